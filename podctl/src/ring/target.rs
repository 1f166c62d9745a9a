//! Which pod to ask, and as whom.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::timeout;

use crate::http::{Conn, Peer};
use crate::running::Running;

/// The variable that a password is taken from: other users of a machine see the command line.
const PASSWORD_ENV: &str = "ADEA_PASSWORD";
/// A pod that accepts nothing for so long is passed over for the next.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Which pod to ask, and as whom.
#[derive(clap::Args)]
pub struct TargetArgs {
    /// A pod's public URL; without it, a pod of the running `podctl dev` in --data
    #[arg(long)]
    pub url: Option<String>,
    /// The administrator, with --url; the password comes from the variable ADEA_PASSWORD or from --password-file
    #[arg(long, default_value = "admin")]
    pub user: String,
    /// A file with the password; white space at its end doesn't count
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// The data folder of a running `podctl dev`
    #[arg(long, default_value = "./adea-data")]
    pub data: PathBuf,
}

impl TargetArgs {
    /// A connection to the pod, or to the first of the data folder that is there.
    pub async fn connect(&self) -> anyhow::Result<Conn> {
        if let Some(url) = &self.url {
            let peer = Peer::parse(url)?;
            let peer = if peer.has_login() { peer } else { peer.with_login(&self.user, &self.password()?)? };
            return peer.connect().await.context("is that pod up? Any other of the ring will do");
        }
        let running = Running::load(&self.data).context("start it, or name a pod with --url")?;
        let mut last = None;
        for pod in &running.pods {
            let peer = Peer::parse(&pod.url)?.with_login(&running.name, &running.password)?;
            match timeout(CONNECT_DEADLINE, peer.connect()).await {
                Ok(Ok(conn)) => return Ok(conn),
                Ok(Err(err)) => last = Some(err),
                Err(_) => {}
            }
        }
        let none = format!("no pod of {} answers: start `podctl dev` there, or give --url", self.data.display());
        match last {
            Some(err) => Err(err.context(none)),
            None => bail!(none),
        }
    }

    fn password(&self) -> anyhow::Result<String> {
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
            return Ok(text.trim_end().to_owned());
        }
        std::env::var(PASSWORD_ENV)
            .with_context(|| format!("no password: set {PASSWORD_ENV}, or give --password-file FILE"))
    }
}
