//! `podctl import` and `podctl export`: what they take.

use std::path::PathBuf;

use crate::import::choice::{Way, Wish};
use crate::import::copy::Options;
use crate::import::run;
use crate::import::secret::secret;
use crate::import::server::{Address, Server};
use crate::import::teller::Teller;
use crate::running::Running;

/// The variable with the password at the CouchDB.
const COUCH_ENV: &str = "COUCHDB_PASSWORD";
/// The variable with the password at the pod.
const POD_ENV: &str = "ADEA_PASSWORD";

/// Copy databases, accounts and replications from a CouchDB into a pod. What was broken off goes on with --continue. Exits
/// with 0 when all is there and the same, else with 1
#[derive(clap::Args)]
pub struct Args {
    /// The CouchDB: http://NAME@HOST:5984, as an administrator if accounts are to come along
    pub couch: String,
    /// The pod; without it, one of the running `podctl dev` in --data
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    #[command(flatten)]
    pub common: Common,
    /// Make the databases as apps: documents say by `access` who reads and writes them
    #[arg(long)]
    pub access: bool,
    /// Begin the replications of `_replicator` here too; without it they come in at rest
    #[arg(long)]
    pub start_replications: bool,
}

/// Copy databases from a pod to a CouchDB: plain ones, and apps with their `access` members. Accounts only when they are
/// named with --db _users; a user's own documents with --from http://USER@POD --db APP--me
#[derive(clap::Args)]
pub struct ExportArgs {
    /// The CouchDB: http://NAME@HOST:5984
    pub couch: String,
    /// The pod; without it, one of the running `podctl dev` in --data
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(clap::Args)]
pub struct Common {
    /// Only this database, or OLD=NEW under another name; may be given again
    #[arg(long = "db", value_name = "NAME")]
    pub databases: Vec<String>,
    /// Not this database; may be given again
    #[arg(long = "skip", value_name = "NAME")]
    pub skipped: Vec<String>,
    /// Go on with a copy that was broken off, or add to databases that are there
    #[arg(long = "continue")]
    pub go_on: bool,
    /// Don't compare both sides at the end
    #[arg(long)]
    pub no_verify: bool,
    /// Print lines of JSON
    #[arg(long)]
    pub json: bool,
    /// A file with the password at the CouchDB; without it COUCHDB_PASSWORD, or the terminal
    #[arg(long, value_name = "FILE")]
    pub couch_password_file: Option<PathBuf>,
    /// A file with the password at the pod; without it ADEA_PASSWORD, or the terminal
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The data folder of a running `podctl dev`
    #[arg(long, default_value = "./adea-data")]
    pub data: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { couch, to, common, access, start_replications } = args;
    let options = Options { as_apps: access, start_replications, ..common.options(Way::In) };
    let (couch, pod) = (common.couch(&couch)?, common.pod(to.as_deref())?);
    transfer(&couch, &pod, &common, options)
}

pub fn export(args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { couch, from, common } = args;
    let (couch, pod) = (common.couch(&couch)?, common.pod(from.as_deref())?);
    transfer(&pod, &couch, &common, common.options(Way::Out))
}

fn transfer(source: &Server, target: &Server, common: &Common, options: Options) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    let wish = Wish { databases: common.databases.clone(), skipped: common.skipped.clone() };
    let teller = Teller::new(common.json);
    super::block_on(run::run(source, target, &wish, options, &teller))
}

impl Common {
    fn options(&self, way: Way) -> Options {
        Options { way, as_apps: false, go_on: self.go_on, verify: !self.no_verify, start_replications: false }
    }

    fn couch(&self, url: &str) -> anyhow::Result<Server> {
        let address = Address::parse(url)?;
        let login = match &address.user {
            None => None,
            Some(name) => {
                let password = secret(name, &address.base, COUCH_ENV, self.couch_password_file.as_deref())?;
                Some((name.clone(), password))
            }
        };
        Server::new(&address, login)
    }

    fn pod(&self, url: Option<&str>) -> anyhow::Result<Server> {
        pod(url, &self.data, self.password_file.as_deref())
    }
}

/// A pod by its address, or one of a running `podctl dev`.
///
/// # Errors
/// When none runs, or no password is to be had.
pub fn pod(
    url: Option<&str>,
    data: &std::path::Path,
    password_file: Option<&std::path::Path>,
) -> anyhow::Result<Server> {
    use anyhow::Context;
    let Some(url) = url else {
        let running = Running::load(data).context("start it, or give the address of a pod")?;
        let first = running.pods.first().context("no pod runs there")?;
        return Server::new(&Address::parse(&first.url)?, Some((running.name, running.password)));
    };
    let address = Address::parse(url)?;
    let name = address.user.clone().unwrap_or_else(|| "admin".to_owned());
    let password = secret(&name, &address.base, POD_ENV, password_file)?;
    Server::new(&address, Some((name, password)))
}
