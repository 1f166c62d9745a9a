//! The pods: which there are, and what each is to do.

use std::time::Duration;

use adea_ring::config::PodState;
use anyhow::bail;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::ask::{confirm, say};
use super::ring_config::RingSettings;
use super::status;
use crate::command::pods::{Args, ChangeArgs, Command, RemoveArgs};
use crate::exit;
use crate::http::Conn;
use crate::paint::Paint;
use crate::ring::documents;
use crate::ring::status::Pods;

/// How long `--wait` waits: a handover takes seconds, and a pod that leaves closes its store.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(300);

/// Lists the pods or changes one.
///
/// # Errors
/// When no pod answers, or it refuses.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Some(Command::Activate(args)) => change(args, PodState::Active).await,
        Some(Command::Deactivate(args)) => change(args, PodState::Inactive).await,
        Some(Command::Remove(args)) => remove(args).await,
        Some(Command::List(ask)) => list(ask).await,
        None => list(&args.ask).await,
    }
}

async fn list(ask: &crate::command::ask::AskArgs) -> anyhow::Result<()> {
    let mut conn = ask.target.connect().await?;
    let pods = Pods::read(&mut conn).await?;
    if ask.json {
        return say(&format!("{}\n", pods.json(&pods.troubles())));
    }
    say(&status::table(&pods).painted(Paint::stdout()))
}

async fn change(args: &ChangeArgs, state: PodState) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    require(&mut conn, &args.pod).await?;
    set(&mut conn, &args.pod, state).await?;
    if args.wait {
        wait(&mut conn, &args.pod, state).await?;
    }
    tell(args, state)
}

async fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let pod = &args.change.pod;
    let mut conn = args.change.ask.target.connect().await?;
    require(&mut conn, pod).await?;
    if !args.yes {
        confirm(&format!("{pod} hands over, leaves the ring and stops; its data stays on its machine"), pod)?;
    }
    set(&mut conn, pod, PodState::Removed).await?;
    if args.change.wait {
        wait(&mut conn, pod, PodState::Removed).await?;
    }
    tell(&args.change, PodState::Removed)
}

/// A slip in a name would set something of a pod that isn't there.
async fn require(conn: &mut Conn, pod: &str) -> anyhow::Result<()> {
    let pods = Pods::read(conn).await?;
    if pods.rows.iter().any(|row| row.id == pod) {
        return Ok(());
    }
    // What is set for a pod that has been removed may be taken back before it starts again.
    if RingSettings::read(conn).await?.members.get("pods").is_some_and(|states| states.get(pod).is_some()) {
        return Ok(());
    }
    let known: Vec<&str> = pods.rows.iter().map(|row| row.id.as_str()).collect();
    Err(exit::wrong_use(format!("there is no pod {pod}; there are {}", known.join(", "))))
}

async fn set(conn: &mut Conn, pod: &str, state: PodState) -> anyhow::Result<()> {
    RingSettings::change(conn, |members| {
        put(members, pod, state);
        Ok(())
    })
    .await?;
    Ok(())
}

/// Active is what a pod is of which nothing is said.
fn put(members: &mut Map<String, Value>, pod: &str, state: PodState) {
    let mut states = members.get("pods").and_then(Value::as_object).cloned().unwrap_or_default();
    if state == PodState::Active {
        states.remove(pod);
    } else {
        states.insert(pod.to_owned(), json!(state));
    }
    if states.is_empty() {
        members.remove("pods");
    } else {
        members.insert("pods".to_owned(), Value::Object(states));
    }
}

async fn wait(conn: &mut Conn, pod: &str, state: PodState) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let path = format!("/_pods/pod:{pod}");
    loop {
        // The pod that is asked may be the one that goes away.
        let seen = match documents::get(conn, &path).await {
            Ok(seen) => seen,
            Err(_) if state == PodState::Removed => None,
            Err(err) => return Err(err),
        };
        if is_so(seen.as_ref(), state) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "{pod} has not done so in {} s; it does as soon as it can: look at `podctl status`",
                PATIENCE.as_secs()
            );
        }
        sleep(PAUSE).await;
    }
}

fn is_so(seen: Option<&Value>, state: PodState) -> bool {
    let Some(seen) = seen else { return state == PodState::Removed };
    let says = seen["state"].as_str().unwrap_or("active");
    match state {
        PodState::Active => says == "active" && seen["alive"] == true,
        PodState::Inactive => says == "inactive",
        PodState::Removed => false,
    }
}

fn tell(args: &ChangeArgs, state: PodState) -> anyhow::Result<()> {
    let pod = &args.pod;
    if args.ask.json {
        return say(&format!("{}\n", json!({"pod": pod, "state": state, "done": args.wait})));
    }
    say(&match state {
        PodState::Active => format!("{pod} is to take clients\n"),
        PodState::Inactive => format!(
            "{pod} is to take no clients and to go on replicating; `podctl pods activate {pod}` takes it back\n"
        ),
        PodState::Removed => format!(
            "{pod} is to leave the ring; nobody waits for it any more. What it has stored stays on its machine\n"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::{is_so, put};
    use adea_ring::config::PodState;
    use serde_json::{Map, Value, json};

    #[test]
    fn only_what_is_not_active_is_written_down() {
        let mut members = Map::new();
        put(&mut members, "pod-1", PodState::Inactive);
        put(&mut members, "pod-2", PodState::Removed);
        assert_eq!(Value::Object(members.clone()), json!({"pods": {"pod-1": "inactive", "pod-2": "removed"}}));
        put(&mut members, "pod-2", PodState::Active);
        put(&mut members, "pod-1", PodState::Active);
        assert!(members.is_empty());
    }

    #[test]
    fn waits_for_what_was_asked() {
        let seen = json!({"state": "inactive", "alive": true});
        assert!(is_so(Some(&seen), PodState::Inactive) && !is_so(Some(&seen), PodState::Active));
        assert!(is_so(None, PodState::Removed) && !is_so(Some(&seen), PodState::Removed));
        assert!(is_so(Some(&json!({"alive": true})), PodState::Active) && !is_so(None, PodState::Active));
    }
}
