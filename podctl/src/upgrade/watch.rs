//! How far an upgrade is, as the pods say, and following it to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use adea_ring::PodId;
use adea_ring::upgrade::{Order, OrderPublicKey, OrderState, Progress, Step, UPGRADE_ID};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::command::upgrade::Common;
use crate::exit;
use crate::http::Conn;
use crate::paint::harmless;
use crate::ring::documents;
use crate::ring::table::Table;

/// How often to look: a pod says something new at most each two seconds.
const LOOK: Duration = Duration::from_millis(700);
/// Pods come and go in an upgrade. When none has answered for so long, this gives up; the upgrade goes on.
const SILENCE: Duration = Duration::from_secs(120);

/// What a pod is shown at that has said nothing of the order.
const SILENT: &str = "waiting";

/// An order, and what each of its pods says.
pub struct Scene {
    /// The order in the ring.
    pub order: Option<Order>,
    /// Why what is there in its place is none that counts.
    pub not_followed: Option<String>,
    /// What each pod says of itself; none where it is no longer of the ring.
    said: BTreeMap<PodId, Option<Said>>,
}

/// What a pod says.
#[derive(Debug, Clone, Default, PartialEq)]
struct Said {
    progress: Option<Progress>,
    software: Option<String>,
}

/// How an order has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All pods have the new software.
    Done,
    /// It was called off, and all pods have what they had.
    CalledOff,
    /// A pod was not well with it, and all pods have what they had.
    Failed(String),
    /// There is another order.
    Replaced,
}

impl Scene {
    /// Reads the order, which counts by this key, and what the pods say.
    pub async fn read(conn: &mut Conn, key: Option<&OrderPublicKey>) -> anyhow::Result<Self> {
        let doc = documents::get(conn, &format!("/_ring/{UPGRADE_ID}")).await?;
        let (docs, _) = documents::starting_with(conn, "_ring", "pod:").await?;
        // One of an earlier version, or under a key that was replaced since, is in nobody's way.
        Ok(match doc.as_ref().map(|doc| Order::verify(doc, key)) {
            None => Self::new(None, &docs),
            Some(Ok(order)) => Self::new(Some(order), &docs),
            Some(Err(why)) => Self { not_followed: Some(why.to_string()), ..Self::new(None, &docs) },
        })
    }

    fn new(order: Option<Order>, docs: &[Value]) -> Self {
        let said = docs.iter().filter_map(|doc| {
            let id = doc["_id"].as_str()?.strip_prefix("pod:")?.parse().ok()?;
            let said = Said {
                progress: serde_json::from_value(doc["upgrade"].clone()).ok(),
                software: doc["software"].as_str().map(str::to_owned),
            };
            Some((id, (doc["state"] != "removed").then_some(said)))
        });
        Self { order, not_followed: None, said: said.collect() }
    }

    /// Whether no pod has anything left to do.
    pub fn is_settled(&self) -> bool {
        self.order.as_ref().is_none_or(|order| {
            order.is_settled(|pod| match self.said.get(pod) {
                Some(None) => None,
                Some(Some(said)) => Some(said.progress.clone()),
                None => Some(None),
            })
        })
    }

    /// How it has ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        let order = self.order.as_ref().filter(|_| self.is_settled())?;
        if order.state == OrderState::Stopped {
            return Some(Outcome::CalledOff);
        }
        Some(self.failure().map_or(Outcome::Done, Outcome::Failed))
    }

    /// Which pod went back, and why.
    fn failure(&self) -> Option<String> {
        let mut back = self.progress().filter(|(_, said)| matches!(said.step, Step::RollingBack | Step::RolledBack));
        let first =
            back.clone().find(|(_, said)| !said.reason.as_ref().is_some_and(|why| why.contains(" went back: ")));
        let (pod, said) = first.or_else(|| back.next())?;
        Some(format!("{pod}: {}", said.reason.as_deref().unwrap_or("it does not say why")))
    }

    /// What the order's pods say of it.
    fn progress(&self) -> impl Iterator<Item = (&PodId, &Progress)> + Clone {
        let order = self.order.as_ref();
        order.into_iter().flat_map(|order| &order.pods).filter_map(move |pod| {
            let progress = self.said.get(pod)?.as_ref()?.progress.as_ref()?;
            (Some(&progress.order) == order.map(|order| &order.id)).then_some((pod, progress))
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let Some(order) = &self.order else {
            return match &self.not_followed {
                None => "no upgrade was ever ordered\n".to_owned(),
                Some(why) => {
                    format!("there is an order that the pod of this machine does not follow\n{}\n", harmless(why))
                }
            };
        };
        let mut table = Table::new(&["pod", "runs", "step", "why"]);
        for pod in &order.pods {
            let (step, why) = self.step_of(pod);
            let runs = self.said.get(pod).and_then(Option::as_ref).and_then(|said| said.software.clone());
            table.push(vec![pod.to_string(), runs.unwrap_or_else(|| "-".into()), step, why.unwrap_or_default()]);
        }
        let state = match self.outcome() {
            None if order.state == OrderState::Stopped => "is being called off".to_owned(),
            None if self.failure().is_some() => "has failed, and the pods go back".to_owned(),
            None => "is under way".to_owned(),
            Some(Outcome::Done) => "is done".to_owned(),
            Some(Outcome::CalledOff) => "was called off".to_owned(),
            Some(Outcome::Failed(why)) => format!("failed: {}", harmless(&why)),
            Some(Outcome::Replaced) => "was replaced".to_owned(),
        };
        format!("order {} ({}) {state}\n{}", order.id, what(order), table.text())
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let Some(order) = &self.order else { return json!({"order": null, "reason": self.not_followed}) };
        let pods: Vec<Value> = order.pods.iter().map(|pod| self.pod_json(pod)).collect();
        let (result, why) = match self.outcome() {
            None => ("running", self.failure()),
            Some(Outcome::Done) => ("done", None),
            Some(Outcome::CalledOff) => ("called_off", None),
            Some(Outcome::Failed(why)) => ("failed", Some(why)),
            Some(Outcome::Replaced) => ("replaced", None),
        };
        json!({
            "order": order.id, "software": order.software, "image": order.image, "state": order.state,
            "result": result, "reason": why, "pods": pods,
        })
    }

    fn pod_json(&self, pod: &PodId) -> Value {
        let (step, why) = self.step_of(pod);
        let software = self.said.get(pod).and_then(Option::as_ref).and_then(|said| said.software.clone());
        json!({"pod": pod, "step": step, "reason": why, "software": software})
    }

    fn step_of(&self, pod: &PodId) -> (String, Option<String>) {
        if self.said.get(pod) == Some(&None) {
            return ("removed".to_owned(), None);
        }
        match self.progress().find(|(id, _)| *id == pod) {
            Some((_, progress)) => (progress.step.to_string(), progress.reason.clone()),
            None => (SILENT.to_owned(), None),
        }
    }
}

/// What an order brings.
fn what(order: &Order) -> String {
    order.image.clone().or_else(|| order.software.clone()).unwrap_or_else(|| "a program".to_owned())
}

/// Follows an order to its end, and tells of each change; `known`: what needs no telling.
pub async fn follow(
    common: &Common,
    conn: Conn,
    key: OrderPublicKey,
    order: &Order,
    known: Option<Scene>,
) -> anyhow::Result<Outcome> {
    let mut told: BTreeMap<PodId, (String, Option<String>)> = BTreeMap::new();
    if let Some(known) = &known {
        told.extend(order.pods.iter().map(|pod| (pod.clone(), known.step_of(pod))));
    }
    if !common.json {
        println!("order {} ({}) for {} pods", order.id, what(order), order.pods.len());
    }
    let (mut conn, mut heard) = (Some(conn), Instant::now());
    loop {
        match look(common, &mut conn, &key).await {
            Ok(scene) => {
                heard = Instant::now();
                if let Some(outcome) = tell(common, order, &scene, &mut told) {
                    if common.json {
                        println!("{}", scene.json());
                    } else {
                        print!("{}", scene.text());
                    }
                    return Ok(outcome);
                }
            }
            Err(err) if heard.elapsed() > SILENCE => {
                return Err(exit::no_pod(format!(
                    "no pod has answered for {} s ({err:#}); the upgrade goes on without this: podctl upgrade status",
                    SILENCE.as_secs()
                )));
            }
            // The pod that was asked is being replaced, perhaps: the next one, or the same a little later.
            Err(_) => conn = None,
        }
        sleep(LOOK).await;
    }
}

async fn look(common: &Common, conn: &mut Option<Conn>, key: &OrderPublicKey) -> anyhow::Result<Scene> {
    let mut fresh = match conn.take() {
        Some(conn) => conn,
        None => common.target.connect().await?,
    };
    let scene = Scene::read(&mut fresh, Some(key)).await?;
    *conn = Some(fresh);
    Ok(scene)
}

/// Tells what is new; how it has ended, if it has.
fn tell(
    common: &Common,
    order: &Order,
    scene: &Scene,
    told: &mut BTreeMap<PodId, (String, Option<String>)>,
) -> Option<Outcome> {
    let now = scene.order.as_ref()?;
    // A pod that is asked may be behind the one that the order was written to.
    if now.id != order.id {
        return now.is_newer_than(order).then_some(Outcome::Replaced);
    }
    if now.state != order.state {
        return if now.is_newer_than(order) { scene.outcome() } else { None };
    }
    for pod in &order.pods {
        let step = scene.step_of(pod);
        // A pod that has just come back says nothing yet.
        let is_silent = step.0 == SILENT && told.contains_key(pod);
        if is_silent || told.get(pod) == Some(&step) {
            continue;
        }
        if common.json {
            println!("{}", scene.pod_json(pod));
        } else {
            let why = step.1.as_ref().map(|why| format!(" ({})", harmless(why))).unwrap_or_default();
            println!("{pod}: {}{why}", step.0.replace('_', " "));
        }
        told.insert(pod.clone(), step);
    }
    scene.outcome()
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Scene};
    use adea_ring::upgrade::{Order, OrderState, Source};
    use serde_json::{Value, json};

    fn order() -> Order {
        let pods = ["a", "b"].map(|id| id.parse().unwrap()).to_vec();
        Order { archive_sha256: Some("0".repeat(64)), ..Order::new(Source::Ring, Some("adea:2".into()), pods, 1) }
    }

    fn pod(order: &Order, id: &str, step: &str, reason: Option<&str>) -> Value {
        let upgrade = json!({"order": order.id, "step": step, "reason": reason});
        json!({"_id": format!("pod:{id}"), "state": "active", "software": "1", "upgrade": upgrade})
    }

    #[test]
    fn how_it_ends() {
        let order = order();
        let outcome = |order: &Order, docs: [Value; 2]| Scene::new(Some(order.clone()), &docs).outcome();
        let at = |id: &str, step: &str| pod(&order, id, step, None);
        assert_eq!(outcome(&order, [at("a", "done"), at("b", "ready")]), None);
        assert_eq!(outcome(&order, [at("a", "done"), at("b", "done")]), Some(Outcome::Done));
        assert_eq!(
            outcome(&order, [at("a", "done"), json!({"_id": "pod:b", "state": "removed"})]),
            Some(Outcome::Done)
        );
        assert_eq!(outcome(&order, [at("a", "done"), at("b", "rolled_back")]), None, "a goes back, too");
        let back = pod(&order, "a", "rolled_back", Some("b went back: bad"));
        let failed = outcome(&order, [back, pod(&order, "b", "rolled_back", Some("bad"))]);
        assert_eq!(failed, Some(Outcome::Failed("b: bad".into())));
        let stopped = Order { state: OrderState::Stopped, ..order.clone() };
        assert_eq!(outcome(&stopped, [at("a", "done"), at("b", "ready")]), None);
        assert_eq!(outcome(&stopped, [at("a", "rolled_back"), at("b", "ready")]), Some(Outcome::CalledOff));
    }

    #[test]
    fn what_is_shown() {
        let order = order();
        let docs = [pod(&order, "a", "done", None), pod(&order, "b", "ready", Some("waits for a"))];
        let scene = Scene::new(Some(order), &docs);
        let text = scene.text();
        assert!(text.contains("adea:2) is under way") && text.contains("waits for a"), "{text}");
        let json = scene.json();
        assert_eq!((&json["result"], &json["pods"][1]["step"]), (&json!("running"), &json!("ready")));
        assert!(Scene::new(None, &[]).text().contains("no upgrade") && Scene::new(None, &[]).is_settled());
    }
}
