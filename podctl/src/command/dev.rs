//! `podctl dev`: a ring on this machine, to work against.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::bail;

use crate::dev;

/// Start a ring on this machine and keep it running until Ctrl-C
#[derive(clap::Args)]
pub struct Args {
    /// How many pods, 1 to 9 [default: as many as the data folder has, one in a new folder]. The first is in the data
    /// folder itself, the others in its folders pod-2, pod-3 and so on
    #[arg(long)]
    pub pods: Option<u16>,
    /// The public port of the first pod; the others' are 10 apart. The port above each is the ring's
    #[arg(long, default_value_t = 5984, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Where everything is kept; the next start uses it again
    #[arg(long, default_value = "./adea-data")]
    pub data: PathBuf,
    /// The administrator [default: `admin` and a made-up password, which is printed]
    #[arg(long, value_name = "NAME:PASSWORD")]
    pub admin: Option<Login>,
    /// Plain HTTP, as is always the case on loopback for now
    #[arg(long)]
    pub no_tls: bool,
    /// The storage engine
    #[arg(long, default_value = "fjall", value_parser = ["fjall", "sled"])]
    pub engine: String,
    /// Print one line of JSON when ready, for scripts, instead of text
    #[arg(long)]
    pub json: bool,
    /// Log a line for each request to DATA/run/proxy.log
    #[arg(long)]
    pub access_log: bool,
    /// A log-in by POST /_session gives CouchDB's cookie, for clients that were written for it
    #[arg(long)]
    pub couch_cookie: bool,
    /// Don't make the example app and its users in a new data folder
    #[arg(long)]
    pub no_example: bool,
}

/// A name and a password, as on the command line.
#[derive(Clone)]
pub struct Login {
    pub name: String,
    pub password: String,
}

impl FromStr for Login {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, password) = text.split_once(':').ok_or("must be NAME:PASSWORD")?;
        if name.is_empty() || name.starts_with('_') {
            return Err("the name must not be empty nor start with `_`");
        }
        if password.is_empty() {
            return Err("the password must not be empty");
        }
        if text.chars().any(char::is_control) {
            return Err("control characters can't be sent in a log-in");
        }
        Ok(Self { name: name.to_owned(), password: password.to_owned() })
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.pods {
        Some(0) => bail!("--pods: a ring needs at least one pod"),
        Some(pods) if pods > dev::MAX_PODS => {
            bail!("--pods: at most {} on one machine: each is three processes and a store", dev::MAX_PODS)
        }
        _ => {}
    }
    ::adea::logging::init("warn");
    super::block_on(dev::run(&args))
}

#[cfg(test)]
mod tests {
    use super::Login;

    #[test]
    fn a_login_is_split_at_the_first_colon() {
        let login: Login = "ann:a:b".parse().ok().unwrap();
        assert_eq!((login.name.as_str(), login.password.as_str()), ("ann", "a:b"));
        for wrong in ["", "ann", ":x", "ann:", "_pod:x", "ann:x\ny"] {
            assert!(wrong.parse::<Login>().is_err(), "{wrong:?}");
        }
    }
}
