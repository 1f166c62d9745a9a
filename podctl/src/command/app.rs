//! `podctl app`: the pages of an app, in versions.

use std::path::PathBuf;

use super::ask::AskArgs;
use crate::app;

/// Put an app's pages on a database's own address, /NAME/_app/, in versions of which each visitor keeps one
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(clap::Subcommand)]
pub enum Command {
    /// Put the files of a folder there as a version. Only what has changed is sent, and all of it counts at once
    Deploy(DeployArgs),
    /// List the versions with their shares
    List(ListArgs),
    /// Set which part of the visitors gets which version
    Share(ShareArgs),
    /// Remove a version. Pages of it that are still open find their files no more
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
pub struct DeployArgs {
    /// The folder with the files, as a bundler made it
    pub dir: PathBuf,
    /// The database, an app's or any other
    #[arg(long)]
    pub app: String,
    /// The version's name: letters, digits, `.`, `_` and `-`
    #[arg(long = "version", value_name = "VERSION", value_parser = parse_version)]
    pub name: String,
    /// The part of the visitors that gets it, in percent; the others' parts shrink alike [default: as it was; a new one is
    /// for everybody]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub share: Option<u32>,
    /// Then remove versions that nobody gets, but for this many, the newest
    #[arg(long, value_name = "COUNT")]
    pub keep: Option<usize>,
    /// The page of a folder [default: as before, else index.html]
    #[arg(long, value_name = "FILE")]
    pub index: Option<String>,
    /// The page for paths that are no files, which a router in the browser reads [default: as before, else none]
    #[arg(long, value_name = "FILE")]
    pub fallback: Option<String>,
    /// A folder whose files never change under their names, such as `assets/`; may be given again. Names with a content
    /// hash are known without
    #[arg(long, value_name = "FOLDER/")]
    pub immutable: Vec<String>,
    /// A header for its answers, such as `Content-Security-Policy: default-src 'self'`; may be given again
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    pub headers: Vec<(String, String)>,
    /// Also files and folders whose names begin with a dot
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// The database
    pub app: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct ShareArgs {
    /// The database
    pub app: String,
    /// VERSION=SHARE; versions that aren't named get nobody
    #[arg(required = true, value_name = "VERSION=SHARE", value_parser = parse_share)]
    pub shares: Vec<(String, u32)>,
    #[command(flatten)]
    pub ask: AskArgs,
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    /// The database
    pub app: String,
    /// The version
    #[arg(value_name = "VERSION")]
    pub name: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// As the pods have it, so that nothing is begun in vain.
fn parse_version(text: &str) -> anyhow::Result<String> {
    if rean::hosting::is_version_name(text) {
        return Ok(text.to_owned());
    }
    anyhow::bail!("letters, digits, `.`, `_` and `-`, at most 64, the first a letter or a digit")
}

fn parse_header(text: &str) -> anyhow::Result<(String, String)> {
    match text.split_once(':') {
        Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
        None => anyhow::bail!("NAME: VALUE"),
    }
}

fn parse_share(text: &str) -> anyhow::Result<(String, u32)> {
    match text.split_once('=').map(|(name, share)| (name, share.parse())) {
        Some((name, Ok(share))) if !name.is_empty() => Ok((name.to_owned(), share)),
        _ => anyhow::bail!("VERSION=SHARE, such as v2=10"),
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    super::block_on(async {
        match &args.command {
            Command::Deploy(args) => app::deploy::deploy(args).await,
            Command::List(args) => app::versions::list(args).await,
            Command::Share(args) => app::versions::share(args).await,
            Command::Remove(args) => app::versions::remove(args).await,
        }
    })
}
