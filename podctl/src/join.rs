//! A further pod of a ring: the token is shown to a pod of it, which hands over the ring's secret.
//!
//! All that can be looked at beforehand is: that a pod's files and ports are free here, that the token counts, and that
//! this machine reaches the ring's pods at their own ports. Only then a use of the token is spent, and only with its
//! answer something is written.

mod ask;
mod hidden;

use std::net::SocketAddr;
use std::time::Duration;

use adea::ring_file::{Admin, RingFile};
use adea_ring::clock::DEFAULT_MAX_DRIFT_MS;
use adea_ring::join::{Intent, Token, Welcome};
use adea_ring::upgrade::OrderTrust;
use anyhow::{Context, bail};
use serde_json::json;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::command::join::Args;
use crate::exit;
use crate::machine::{Machine, start};
use crate::moment::now_ms;

pub use hidden::{TOKEN_ENV, hide};

/// How long a pod's ring port may take to accept a connection.
const REACH_DEADLINE: Duration = Duration::from_secs(3);

/// A pod of the ring that this machine reaches.
struct Reached {
    seed: String,
    at: SocketAddr,
}

/// Joins the ring.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let invitation = hidden::invitation(args)?;
    let machine = Machine::check(&args.machine)?;
    let mut door = ask::Door::new(&invitation, machine.pod.clone()).await?;
    let seen = door.ask(Intent::Look).await?;
    if order_trust(&invitation.token, &seen)?.is_none() {
        eprintln!(
            "warning: this token names no key for orders, as an earlier version made it or its ring: this pod will follow no \
             upgrade until it is told by hand (podctl upgrade key)"
        );
    }
    judge_clock(door.clock_ahead_ms().await)?;
    let (reached, missed) = reach_all(&seen.seeds).await;
    let Some(first) = reached.first() else { bail!(unreachable_text(&missed)) };
    for miss in &missed {
        eprintln!("warning: {miss}: this pod replicates with the others meanwhile");
    }
    warn_of_versions(&seen);

    let welcome = door.ask(Intent::Join).await?;
    let file = ring_file(&invitation.token, &welcome, &machine)?;
    // Those that answered first come first; the others may be back when the pod starts.
    let mut seeds: Vec<String> = reached.iter().map(|reached| reached.seed.clone()).collect();
    seeds.extend(welcome.seeds.iter().filter(|seed| !seeds.contains(seed)).cloned().collect::<Vec<_>>());
    let written = machine.write(&file, None, &seeds, Some(first.at)).context(
        "the ring has let this pod in, and its files could not be written: the token's use is spent; make another one",
    )?;
    if args.machine.json {
        let mut value = written.json();
        value["seeds"] = json!(seeds);
        value["start"] = json!(start::how(&written.config));
        println!("{value}");
    } else {
        println!("{} may join the ring\n{}", written.pod, written.lines());
    }
    if args.machine.start {
        start::start()?;
    } else if !args.machine.json {
        println!("Start it:\n  {}", start::how(&written.config));
    }
    if args.machine.start || args.wait {
        start::until_up(&written.config).await?;
        let is_quiet = args.machine.json;
        start::until_caught_up(&written.config, |progress| {
            if !is_quiet {
                eprintln!("{progress}");
            }
        })
        .await?;
        if !is_quiet {
            println!("{} is up, and has all that the others have", written.pod);
        }
    }
    Ok(())
}

/// Whether this machine's clock is right, if the ring's is, which is so far ahead of it.
fn judge_clock(ahead_ms: Option<i64>) -> anyhow::Result<()> {
    let ahead_ms = ahead_ms.unwrap_or(0);
    if ahead_ms.unsigned_abs() <= DEFAULT_MAX_DRIFT_MS {
        return Ok(());
    }
    bail!(
        "this machine's clock is {} s {} the ring's: the pod would not be chosen as write master, and it tells by its clock \
         which orders of upgrades are old. Nothing was written, and no use of the token is spent. Set the clock (timedatectl \
         set-ntp true) and join again; if it is the clock of the pod that was asked that is wrong, set that one",
        ahead_ms.unsigned_abs() / 1_000,
        if ahead_ms < 0 { "ahead of" } else { "behind" },
    )
}

fn ring_file(token: &Token, welcome: &Welcome, machine: &Machine) -> anyhow::Result<RingFile> {
    let (Some(secret), Some(admin)) = (&welcome.ring_secret, &welcome.admin) else {
        bail!("the ring's answer has no secret: are its pods of another version?");
    };
    let admin = Admin { name: admin.name.clone(), password_hash: admin.password_hash.clone() };
    let mut file = RingFile::joined(secret, machine.pod.to_string(), admin).context("the ring's secret")?;
    if let Some(trust) = order_trust(token, welcome)? {
        file.trust_orders(&trust, now_ms());
    }
    Ok(file)
}

/// Whose orders this machine is to follow: what the pod says, if it is what the token says, which comes from a machine
/// and not from a container. A token that says nothing makes none count.
fn order_trust(token: &Token, welcome: &Welcome) -> anyhow::Result<Option<OrderTrust>> {
    let Some(wanted) = token.order_key() else { return Ok(None) };
    match &welcome.order_trust {
        Some(trust) if trust.key.fingerprint() == wanted => Ok(Some(trust.clone())),
        Some(trust) => bail!(
            "the pod that answers follows the orders of {}, and this token was made where those of {wanted} are followed: \
             either the key was replaced and not on all machines (`podctl upgrade key` shows which each knows), or that pod \
             is not what it should be. This machine has not joined",
            trust.key.fingerprint(),
        ),
        None => bail!(
            "the pod that answers doesn't say whose orders of upgrades it follows, and this token does: its machine knows no \
             key (`podctl upgrade key`), or runs an earlier version (upgrade it first). This machine has not joined"
        ),
    }
}

/// Which of the pods can be reached at their ring addresses, in their order, and why the others can't.
async fn reach_all(seeds: &[String]) -> (Vec<Reached>, Vec<String>) {
    let mut tries = JoinSet::new();
    for (place, seed) in seeds.iter().enumerate() {
        let seed = seed.clone();
        tries.spawn(async move {
            let reached = timeout(REACH_DEADLINE, reach(&seed)).await;
            (
                place,
                match reached {
                    Ok(Ok(at)) => Ok(Reached { seed, at }),
                    Ok(Err(err)) => Err(format!("{seed} can't be reached ({err:#})")),
                    Err(_) => Err(format!("{seed} can't be reached (no answer in {} s)", REACH_DEADLINE.as_secs())),
                },
            )
        });
    }
    let mut found = Vec::new();
    while let Some(tried) = tries.join_next().await {
        found.extend(tried.ok());
    }
    found.sort_by_key(|(place, _)| *place);
    let (mut reached, mut missed) = (Vec::new(), Vec::new());
    for (_, one) in found {
        match one {
            Ok(one) => reached.push(one),
            Err(why) => missed.push(why),
        }
    }
    (reached, missed)
}

async fn reach(seed: &str) -> anyhow::Result<SocketAddr> {
    let mut last = None;
    for at in lookup_host(seed).await.context("no such host")? {
        match TcpStream::connect(at).await {
            Ok(_) => return Ok(at),
            Err(err) => last = Some(err),
        }
    }
    match last {
        Some(err) => Err(err.into()),
        None => bail!("no such host"),
    }
}

fn unreachable_text(missed: &[String]) -> anyhow::Error {
    let why = match missed {
        [] => "the ring's pods are not known at the moment: try again when one is master".to_owned(),
        missed => format!(
            "this machine reaches no pod of the ring at its ring address: {}. Open that port between the machines, TCP and \
             UDP, or set `ring.advertise` in the pod's configuration to an address that leads there",
            missed.join("; ")
        ),
    };
    exit::no_pod(format!("{why}. The token has not been used up"))
}

fn warn_of_versions(seen: &Welcome) {
    let ours = adea_ring::software::version();
    if !seen.software.is_empty() && seen.software != ours {
        eprintln!(
            "warning: the ring runs version {}, and this is {ours}: they work together, but take the same soon \
             (`podctl upgrade`)",
            seen.software
        );
    }
}

#[cfg(test)]
mod tests {
    use super::order_trust;
    use adea_ring::join::{Token, Welcome};
    use adea_ring::upgrade::{OrderKey, OrderTrust};

    #[test]
    fn whose_orders_count_is_what_the_token_says() {
        let (ours, theirs) = (OrderKey::random().public(), OrderKey::random().public());
        let token = Token::random(Some(ours.fingerprint()));
        let says = |key| Welcome { order_trust: Some(OrderTrust { key, at: None }), ..Welcome::default() };
        assert_eq!(order_trust(&token, &says(ours)).unwrap().unwrap().key, ours);
        assert!(order_trust(&token, &says(theirs)).unwrap_err().to_string().contains("not joined"));
        assert!(order_trust(&token, &Welcome::default()).unwrap_err().to_string().contains("not joined"));
        // An earlier version's token says nothing: what a pod says is not enough.
        assert_eq!(order_trust(&Token::random(None), &says(theirs)).unwrap(), None);
    }
}
