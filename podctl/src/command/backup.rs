//! `podctl backup` and `podctl restore`: what they take.

use std::path::PathBuf;

use serde_json::json;

use super::import::pod;
use crate::backup::keep::{self, Contents};
use crate::backup::restore::{self, Wish};
use crate::import::teller::{Teller, size};

/// Keep all of a pod, or some of its databases, in one file while it runs. The file holds hashes of passwords: only its
/// owner can read it
#[derive(clap::Args)]
pub struct Args {
    /// The file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Only this app or plain database, without accounts; may be given again
    #[arg(long = "app", visible_alias = "db", value_name = "NAME")]
    pub databases: Vec<String>,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub pod: PodArgs,
}

/// Write what is in a backup to a pod again, as new databases. Nothing is written before the whole file has been checked
#[derive(clap::Args)]
pub struct RestoreArgs {
    /// The file
    pub file: PathBuf,
    /// Only this app or plain database, or OLD=NEW under another name; may be given again
    #[arg(long = "app", visible_alias = "db", value_name = "NAME")]
    pub databases: Vec<String>,
    /// Replace databases, accounts and settings that are there
    #[arg(long)]
    pub force: bool,
    /// Begin the replications of the backup; without it they come in at rest
    #[arg(long)]
    pub start_replications: bool,
    /// Only tell what is in the file, and whether it is whole
    #[arg(long)]
    pub list: bool,
    #[command(flatten)]
    pub pod: PodArgs,
}

#[derive(clap::Args)]
pub struct PodArgs {
    /// The pod: http://NAME@HOST:PORT; without it, one of the running `podctl dev` in --data
    #[arg(long, visible_alias = "to", value_name = "URL")]
    pub url: Option<String>,
    /// A file with the password; without it ADEA_PASSWORD, or the terminal
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The data folder of a running `podctl dev`
    #[arg(long, default_value = "./adea-data")]
    pub data: PathBuf,
    /// Print lines of JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    let teller = Teller::new(args.pod.json);
    let server = pod(args.pod.url.as_deref(), &args.pod.data, args.pod.password_file.as_deref())?;
    let contents = super::block_on(keep::keep(&server, &args.databases, &args.out, args.force))?;
    tell(&contents, &teller);
    teller.say(&format!("{}: {}, whole", args.out.display(), size(contents.bytes)));
    Ok(())
}

pub fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    ::adea::logging::init("warn");
    let teller = Teller::new(args.pod.json);
    if args.list {
        tell(&keep::check(&args.file)?, &teller);
        return Ok(());
    }
    let server = pod(args.pod.url.as_deref(), &args.pod.data, args.pod.password_file.as_deref())?;
    let RestoreArgs { file, databases, force, start_replications, .. } = args;
    let wish = Wish { databases, force, start_replications };
    super::block_on(restore::restore(&server, &file, &wish, &teller))
}

/// What is in a backup.
fn tell(contents: &Contents, teller: &Teller) {
    let Contents { head, databases, bytes } = contents;
    teller.say(&format!("pod {}, {}, at sequence {} of its store", head.pod, head.made_at, head.seq));
    for (db, sum) in databases {
        let kind = if db.app { "app" } else { "database" };
        teller.say(&format!(
            "{}: {kind}, {} documents, {} deleted, {} leaves, {} attachments, {}, as of sequence {}",
            db.name,
            db.doc_count,
            db.doc_del_count,
            sum.revisions,
            sum.attachments,
            size(sum.bytes),
            db.seq
        ));
    }
    teller.event(&json!({
        "event": "backup", "pod": head.pod, "made_at": head.made_at, "seq": head.seq, "whole": head.whole, "bytes": bytes,
        "databases": databases.iter().map(|(db, sum)| json!({
            "name": db.name, "app": db.app, "seq": db.seq, "doc_count": db.doc_count, "doc_del_count": db.doc_del_count,
            "revisions": sum.revisions, "attachments": sum.attachments, "bytes": sum.bytes,
        })).collect::<Vec<_>>(),
    }));
}
