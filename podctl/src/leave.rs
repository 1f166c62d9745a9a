//! A pod leaves its ring for good: `_ring/config` says that it is removed, its agent hands over and stops, and what is
//! left on the machine can be deleted.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use adea::folder::{Folder, FolderError};
use adea::image::OWN_LABEL;
use adea::ring_file::RingFile;
use adea_ring::PodId;
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::command::leave::Args;
use crate::http::{Conn, excerpt};
use crate::ring::documents;
use crate::ring::target::local_peer;

const CONFIG: &str = "/_ring/config";
/// Tries to change the configuration when others do at the same time.
const TRIES: usize = 5;
/// Handing over waits for the other pods at most half a minute; then the programs have their time to stop.
const LEAVE_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(250);

/// Leaves the ring.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let config = adea::Config::load(&args.config)?;
    let file = RingFile::load(&config.ring_file)?
        .with_context(|| format!("there is no {}: is there a pod here?", config.ring_file.display()))?;
    let pod: PodId = file.pod_id.parse().context("the ring file's `pod_id`")?;
    let folder = Folder::new(&config.data_dir)?;
    if is_over(&folder)? {
        bail!(
            "{pod} doesn't run, so it can't hand over: start it and leave then; if it is to go as it is, on another pod: \
             podctl pods remove {pod}"
        );
    }
    let order_key = adea::order_key::beside(&config.ring_file);
    if order_key.exists() {
        eprintln!(
            "note: {} signs orders of upgrades, and perhaps no other machine has it: bring it to one that stays, or make another \
             key there afterwards (podctl upgrade key --replace)",
            order_key.display()
        );
    }
    agree(
        args,
        &format!("{pod} leaves the ring for good: its name can't come back, and its data stays behind. Go on?"),
    )?;
    let mut conn = local_peer(&config, &file)?.connect().await.context("the pod of this machine does not answer")?;
    remove(&mut conn, &pod).await?;
    tell(args, &format!("{pod} is removed from the ring; waiting until it has handed over and stopped"));
    until_over(&folder).await?;
    if args.purge {
        agree(args, &format!("Delete {} and {}?", config.data_dir.display(), args.config.display()))?;
        purge(&config, &args.config)?;
    }
    if args.json {
        let (data, config) = (&config.data_dir, &args.config);
        println!("{}", json!({"pod": pod, "left": true, "data": data, "config": config, "purged": args.purge}));
        return Ok(());
    }
    println!("{pod} has left the ring and stopped");
    if !args.purge {
        println!(
            "Left on this machine:\n  {}  all documents, and the ring's secrets\n  {}  the agent's configuration\nWhen they \
             are needed no more: rm -r {0} {1}",
            config.data_dir.display(),
            args.config.display(),
        );
    }
    if config.runtime.docker().is_some() {
        println!("The image stays in Docker, where others may use it: docker image ls --filter label={OWN_LABEL}");
    }
    println!("So that it isn't started again: systemctl disable adea");
    Ok(())
}

/// Notes in the ring's configuration that a pod is removed.
async fn remove(conn: &mut Conn, pod: &PodId) -> anyhow::Result<()> {
    for _ in 0..TRIES {
        let mut config = documents::get(conn, CONFIG).await?.unwrap_or_else(|| Value::Object(Map::new()));
        config["pods"][pod.as_str()] = json!("removed");
        let (status, body) = conn.send(Method::PUT, CONFIG, config.to_string()).await?;
        match status {
            status if status.is_success() => return Ok(()),
            StatusCode::CONFLICT => {}
            status => {
                let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                let reason = answer["reason"].as_str().map_or_else(|| excerpt(&body), str::to_owned);
                bail!("the ring does not let {pod} go: {status}: {reason}");
            }
        }
    }
    bail!("others keep changing {CONFIG}: try again")
}

async fn until_over(folder: &Folder) -> anyhow::Result<()> {
    let deadline = Instant::now() + LEAVE_DEADLINE;
    while !is_over(folder)? {
        if Instant::now() >= deadline {
            bail!(
                "the pod is removed and still runs after {} s: look at its log (journalctl -u adea); nothing was deleted",
                LEAVE_DEADLINE.as_secs()
            );
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Whether no agent works in the folder.
fn is_over(folder: &Folder) -> anyhow::Result<bool> {
    match folder.try_lock("adea") {
        Ok(_) => Ok(true),
        Err(FolderError::InUse { .. }) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// Deletes the pod's data and configuration. The agent's lock is held meanwhile, so that none begins.
fn purge(config: &adea::Config, config_file: &Path) -> anyhow::Result<()> {
    let folder = Folder::new(&config.data_dir)?;
    let _lock = folder.try_lock("adea")?;
    for path in [config_file, &config.ring_file, &adea::order_key::beside(&config.ring_file)] {
        match fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("can't delete {}", path.display()));
            }
            _ => {}
        }
    }
    fs::remove_dir_all(&config.data_dir).with_context(|| format!("can't delete {}", config.data_dir.display()))
}

/// Asks, unless it was agreed to beforehand.
fn agree(args: &Args, question: &str) -> anyhow::Result<()> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{question} There is no terminal to ask at: give --yes");
    }
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let _ = io::stderr().flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if matches!(line.trim(), "y" | "Y" | "yes") { Ok(()) } else { bail!("nothing more was done") }
}

fn tell(args: &Args, text: &str) {
    if !args.json {
        println!("{text}");
    }
}
