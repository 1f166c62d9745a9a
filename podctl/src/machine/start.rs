//! Starting the pod of this machine, and waiting until it is up.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use adea::ring_file::RingFile;
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use crate::ring::status::Pods;
use crate::ring::target::{CONFIG, local_peer};

/// The unit that runs the pod.
const UNIT: &str = "adea.service";
/// A first start makes an image and containers.
const UP_DEADLINE: Duration = Duration::from_secs(180);
/// Without any progress for so long, a new pod does not catch up.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(250);
/// One look.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// Whether systemd can start a pod with this configuration.
pub fn check(config: &Path) -> anyhow::Result<()> {
    if !Path::new("/run/systemd/system").is_dir() {
        bail!("--start: there is no systemd here; without --start you are told how to start the pod");
    }
    if config != Path::new(CONFIG) {
        bail!("--start: the unit {UNIT} runs the pod of {CONFIG}; start one of another configuration yourself");
    }
    let known = Command::new("systemctl").args(["cat", UNIT]).output().context("can't run systemctl")?;
    if !known.status.success() {
        bail!("--start: the unit {UNIT} is not installed: deploy/install.sh does that");
    }
    Ok(())
}

/// Has systemd start the pod, now and at each boot.
pub fn start() -> anyhow::Result<()> {
    // The environment may hold a token.
    let done = Command::new("systemctl").args(["enable", "--now", UNIT]).env_remove(crate::join::TOKEN_ENV).output();
    let done = done.context("can't run systemctl")?;
    if !done.status.success() {
        bail!("systemctl enable --now {UNIT}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// How a person starts the pod.
pub fn how(config: &Path) -> String {
    if config == Path::new(CONFIG) && Path::new("/run/systemd/system").is_dir() {
        "systemctl enable --now adea".to_owned()
    } else {
        format!("podctl adea --config {}", config.display())
    }
}

/// Waits until the pod's public port answers.
pub async fn until_up(config: &Path) -> anyhow::Result<()> {
    let (config, file) = load(config)?;
    let deadline = Instant::now() + UP_DEADLINE;
    loop {
        if let Ok(Ok(())) = timeout(LOOK_DEADLINE, look(&config, &file)).await {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "the pod is not up after {} s: look at `journalctl -u adea`, and at {}",
                UP_DEADLINE.as_secs(),
                config.data_dir.join("run").display()
            );
        }
        sleep(POLL).await;
    }
}

async fn look(config: &adea::Config, file: &RingFile) -> anyhow::Result<()> {
    let mut conn = local_peer(config, file)?.connect().await?;
    let (status, _) = conn.send(Method::GET, "/", "").await?;
    if status == StatusCode::OK { Ok(()) } else { bail!("it answers with {status}") }
}

/// Waits until the pod knows a write master and has all that the others have; tells how far it is when that changes.
pub async fn until_caught_up(config: &Path, mut tell: impl FnMut(&str)) -> anyhow::Result<()> {
    let (config, file) = load(config)?;
    let (mut last, mut deadline) = (String::new(), Instant::now() + CATCH_UP_DEADLINE);
    loop {
        let found = timeout(LOOK_DEADLINE, progress(&config, &file)).await;
        let text = match found {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(text))) => text,
            Ok(Err(_)) | Err(_) => "the pod does not answer yet".to_owned(),
        };
        if text != last {
            tell(&text);
            (last, deadline) = (text, Instant::now() + CATCH_UP_DEADLINE);
        }
        if Instant::now() >= deadline {
            bail!(
                "the pod has not caught up ({last}): can the other pods reach it at its ring address, by TCP and UDP? \
                 `podctl doctor` looks"
            );
        }
        sleep(POLL).await;
    }
}

/// How far the pod is; none when it is there.
async fn progress(config: &adea::Config, file: &RingFile) -> anyhow::Result<Option<String>> {
    let mut conn = local_peer(config, file)?.connect().await?;
    let pods = Pods::read(&mut conn).await?;
    if pods.master.is_none() {
        return Ok(Some("no write master is known yet".to_owned()));
    }
    let Some(row) = pods.rows.iter().find(|row| row.id == file.pod_id) else {
        return Ok(Some("the pod has not said anything of itself yet".to_owned()));
    };
    if row.own["caught_up"] == true {
        return Ok(None);
    }
    Ok(Some(match pods.behind(row) {
        Some(behind) => format!("{behind} changes behind"),
        None => "how far behind is not known yet".to_owned(),
    }))
}

fn load(config: &Path) -> anyhow::Result<(adea::Config, RingFile)> {
    let config = adea::Config::load(config)?;
    let file = RingFile::load(&config.ring_file)?.context("the ring file is gone")?;
    Ok((config, file))
}
