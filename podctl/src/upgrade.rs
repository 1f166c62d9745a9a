//! Other software for a ring: put into it, ordered, watched. The pods do the rest ([`adea_ring::upgrade`]).

mod key;
mod package;
mod upload;
mod watch;

use adea::ring_file::RingFile;
use adea_ring::PodId;
use adea_ring::upgrade::{Order, OrderError, OrderKey, OrderPublicKey, OrderState, Source, UPGRADE_ID};
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::command::upgrade::{CancelArgs, Common, KeyArgs, OrderArgs, Signing};
use crate::exit;
use crate::http::{Conn, excerpt};
use crate::moment::now_ms;
use crate::ring::documents;
use crate::ring::status::Pods;
use crate::upgrade::package::Package;
use crate::upgrade::watch::{Outcome, Scene};

/// Tries to write the order when somebody else writes it at the same time, or no pod takes writes for a moment.
const TRIES: usize = 5;

/// Orders an upgrade, and watches it.
pub async fn start(args: &OrderArgs, common: &Common) -> anyhow::Result<()> {
    let package = Package::of(args)?;
    let (mut conn, file) = open(common).await?;
    let key = signing_key(common, &args.signing, &file)?;
    let scene = Scene::read(&mut conn, Some(&key.public())).await?;
    if let Some(order) = &scene.order
        && !scene.is_settled()
        && !args.force
    {
        bail!(
            "the order {} is being carried out: wait for it (`podctl upgrade status`), call it off (`podctl upgrade cancel`), or see --force",
            order.id
        );
    }
    let pods = Pods::read(&mut conn).await?;
    let away = pods.away();
    if !away.is_empty() && !args.force {
        bail!(
            "{} away: no pod is replaced while another is missing. Start it, or remove it (`podctl pods remove`)",
            if away.len() == 1 { format!("{} is", away[0]) } else { format!("{} are", away.join(", ")) }
        );
    }
    let order = new_order(&package, &pods, &scene, args)?;
    if let Package::File(file) = &package {
        upload::put(&mut conn, file, common.json).await?;
    }
    write(&mut conn, &order, &key).await?;
    if args.no_wait {
        let text = format!("ordered ({}); see `podctl upgrade status`", order.id);
        println!("{}", if common.json { serde_json::json!({"order": order.id}).to_string() } else { text });
        return Ok(());
    }
    end(&watch::follow(common, conn, key.public(), &order, None).await?)
}

/// Shows how far it is.
pub async fn status(common: &Common) -> anyhow::Result<()> {
    let (mut conn, file) = open(common).await?;
    let scene = Scene::read(&mut conn, trusted(&file).as_ref()).await?;
    if common.json {
        println!("{}", scene.json());
    } else {
        print!("{}", scene.text());
    }
    match scene.outcome() {
        Some(Outcome::Failed(_) | Outcome::CalledOff) => Err(exit::not_well("the ring has not got that software")),
        _ => Ok(()),
    }
}

/// Calls it off.
pub async fn cancel(args: &CancelArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let (mut conn, file) = open(common).await?;
    let key = signing_key(common, &args.signing, &file)?;
    let scene = Scene::read(&mut conn, Some(&key.public())).await?;
    let Some(order) = &scene.order else {
        bail!(scene.not_followed.unwrap_or_else(|| "no upgrade was ever ordered".to_owned()))
    };
    let nothing_left = scene.is_settled() && scene.outcome() != Some(Outcome::Done);
    if nothing_left {
        bail!("the order {} is over: no pod runs its software", order.id);
    }
    let stopped = Order { state: OrderState::Stopped, ..order.clone() };
    write(&mut conn, &stopped, &key).await?;
    match watch::follow(common, conn, key.public(), &stopped, Some(scene)).await? {
        Outcome::CalledOff => Ok(()),
        outcome => end(&outcome),
    }
}

/// How podctl ends.
fn end(outcome: &Outcome) -> anyhow::Result<()> {
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::CalledOff => bail!("the upgrade was called off; all pods run what they ran before"),
        Outcome::Failed(why) => bail!("the upgrade failed, and all pods run what they ran before: {why}"),
        Outcome::Replaced => bail!("another order has taken the place of this one"),
    }
}

/// Shows or changes the key that orders are signed with.
pub async fn key(args: &KeyArgs) -> anyhow::Result<()> {
    key::run(args).await
}

async fn open(common: &Common) -> anyhow::Result<(Conn, RingFile)> {
    let (conn, file, _) = common.target.ring(common.ring_file.as_deref()).await?;
    Ok((conn, file))
}

fn signing_key(common: &Common, signing: &Signing, file: &RingFile) -> anyhow::Result<OrderKey> {
    key::find(signing.order_key.as_deref(), &common.target.ring_file(common.ring_file.as_deref())?, file)
}

/// Whose orders this machine's pod follows.
fn trusted(file: &RingFile) -> Option<OrderPublicKey> {
    file.order_trust().map(|trust| trust.key)
}

fn new_order(package: &Package, pods: &Pods, scene: &Scene, args: &OrderArgs) -> anyhow::Result<Order> {
    let ids = in_order(pods)?;
    let made_at_ms = made_at_ms(scene.order.as_ref(), now_ms());
    let order = match package {
        Package::Named(name) => Order::new(Source::Registry, Some(name.clone()), ids, made_at_ms),
        Package::File(file) => Order {
            archive_sha256: Some(file.sha256.clone()),
            software: file.version.clone(),
            ..Order::new(Source::Ring, file.image.clone(), ids, made_at_ms)
        },
    };
    let before = scene.order.as_ref().filter(|_| scene.outcome() == Some(Outcome::Done));
    let before = before.map_or_else(|| scene.order.as_ref()?.previous.clone(), |order| order.archive_sha256.clone());
    Ok(Order {
        previous: before.filter(|digest| Some(digest) != order.archive_sha256.as_ref()),
        patience_s: args.patience,
        force: args.force,
        ..order
    })
}

/// A clock that is behind must not make an order older than the one before it; but one that is so far ahead that no pod
/// follows it is nothing to come after.
fn made_at_ms(before: Option<&Order>, now_ms: u64) -> u64 {
    let before = before.filter(|order| !order.is_ahead_of(now_ms));
    before.map_or(0, |order| order.made_at_ms.saturating_add(1)).max(now_ms)
}

/// The pods in the order of their turns: who takes the writes comes last, so that these move once.
fn in_order(pods: &Pods) -> anyhow::Result<Vec<PodId>> {
    let rows = pods.rows.iter().filter(|row| !row.has_left() && row.own["state"] != "removed");
    let mut ids: Vec<&str> = rows.map(|row| row.id.as_str()).collect();
    ids.sort_by_key(|id| (Some(*id) == pods.master.as_deref(), *id));
    let ids: Result<Vec<PodId>, _> = ids.into_iter().map(str::parse).collect();
    ids.context("a pod has a name that this podctl doesn't know as one")
}

/// Writes the order, in the place of the one before it.
async fn write(conn: &mut Conn, order: &Order, key: &OrderKey) -> anyhow::Result<()> {
    let path = format!("/_ring/{UPGRADE_ID}");
    let mut refusal = String::new();
    for _ in 0..TRIES {
        let known = documents::get(conn, &path).await?;
        let mut doc = order.sign(key);
        if let Some(rev) = known.as_ref().and_then(|known| known.get("_rev")) {
            doc.insert("_rev".to_owned(), rev.clone());
        }
        let (status, body) = conn.send(Method::PUT, &path, Value::from(doc).to_string()).await?;
        match status {
            StatusCode::CREATED | StatusCode::ACCEPTED => return Ok(()),
            StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => refusal = excerpt(&body),
            // A key that was replaced a moment ago has yet to get to the pod that takes the writes.
            StatusCode::FORBIDDEN if is_unknown_key(&body) => refusal = excerpt(&body),
            status => bail!("the order was not taken: {status}: {}", excerpt(&body)),
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    bail!("the order could not be written: {refusal}; try again")
}

fn is_unknown_key(body: &[u8]) -> bool {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    answer["reason"] == OrderError::Signature.to_string()
}

#[cfg(test)]
mod tests {
    use super::{in_order, made_at_ms};
    use crate::ring::status::Pods;
    use adea_ring::upgrade::{Order, Source};
    use serde_json::json;

    #[test]
    fn an_order_comes_after_the_one_before_if_pods_follow_that() {
        let made = |at_ms| Order::new(Source::Registry, None, Vec::new(), at_ms);
        let now_ms = 1_000_000_000_000;
        assert_eq!(made_at_ms(None, now_ms), now_ms);
        assert_eq!(made_at_ms(Some(&made(now_ms - 9)), now_ms), now_ms);
        assert_eq!(made_at_ms(Some(&made(now_ms + 9)), now_ms), now_ms + 10);
        for never in [2 * now_ms, u64::MAX] {
            assert_eq!(made_at_ms(Some(&made(never)), now_ms), now_ms);
        }
    }

    #[test]
    fn who_takes_the_writes_comes_last() {
        let own = |id: &str| json!({"_id": format!("pod:{id}"), "state": "active"});
        let seen = |id: &str| json!({"_id": format!("pod:{id}"), "alive": true});
        let mut mine: Vec<_> = ["a", "b", "c"].map(own).to_vec();
        mine.push(json!({"_id": "pod:d", "state": "removed"}));
        let seen = ["a", "b", "c", "d"].map(seen).to_vec();
        let pods = Pods::new(Some("b".into()), Some("a".into()), mine, seen);
        let ids: Vec<String> = in_order(&pods).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["b", "c", "a"]);
    }
}
