//! The pods of a ring: what each says of itself, and what the pod that is asked knows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use adea_ring::host::{DiskLevel, HostReport};
use anyhow::bail;
use http::Method;
use serde_json::{Value, json};

use crate::command::ring::StatusArgs;
use crate::http::Conn;
use crate::ring::documents::starting_with;
use crate::ring::table::Table;

/// The pods, from the two documents of each.
pub struct Pods {
    /// The pod that was asked.
    pub asked: Option<String>,
    /// The write master, as it says.
    pub master: Option<String>,
    /// All pods that are known, sorted by id.
    pub rows: Vec<Row>,
}

/// One pod.
pub struct Row {
    pub id: String,
    /// What it wrote of itself: `_ring/pod:ID`.
    pub own: Value,
    /// What the pod that was asked knows of it: `_pods/pod:ID`; null for one that has left.
    pub seen: Value,
}

/// Shows the pods.
pub async fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let mut conn = args.target.connect().await?;
    let pods = Pods::read(&mut conn).await?;
    let troubles = pods.troubles();
    if args.json {
        println!("{}", pods.json(&troubles));
    } else {
        print!("{}", pods.table());
    }
    if troubles.is_empty() {
        return Ok(());
    }
    bail!("{}", troubles.join("\n"))
}

impl Pods {
    /// Asks a pod for all of them.
    pub async fn read(conn: &mut Conn) -> anyhow::Result<Self> {
        let root = conn.expect(Method::GET, "/", "").await?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (own, _) = starting_with(conn, "_ring", "pod:").await?;
        let (seen, _) = starting_with(conn, "_pods", "pod:").await?;
        Ok(Self::new(text(&root["adea"]["pod"]), text(&root["adea"]["master"]["pod"]), own, seen))
    }

    pub fn new(asked: Option<String>, master: Option<String>, own: Vec<Value>, seen: Vec<Value>) -> Self {
        let by_id = |docs: Vec<Value>| -> BTreeMap<String, Value> {
            let named = docs.into_iter().filter_map(|doc| {
                let id = doc["_id"].as_str()?.strip_prefix("pod:")?.to_owned();
                Some((id, doc))
            });
            named.collect()
        };
        let (mut own, mut seen) = (by_id(own), by_id(seen));
        let ids: BTreeSet<String> = own.keys().chain(seen.keys()).cloned().collect();
        let rows = ids.into_iter().map(|id| Row {
            own: own.remove(&id).unwrap_or_default(),
            seen: seen.remove(&id).unwrap_or_default(),
            id,
        });
        Self { asked, master, rows: rows.collect() }
    }

    /// The pods that are away and have not said that they go.
    pub fn away(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| !row.has_left() && !row.is_alive()).map(|row| row.id.as_str()).collect()
    }

    /// What is wrong, and what to do about it.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.master.is_none() {
            troubles.push(format!(
                "no pod takes writes, says {}: it lasts a few seconds when pods come and go; else look at `election` in the document _ring/config, and at the pods' logs",
                self.asked.as_deref().unwrap_or("the pod that was asked")
            ));
        }
        for id in self.away() {
            troubles.push(format!("{id} is away: start it again, or look at its logs"));
        }
        for row in self.rows.iter().filter(|row| row.is_alive()) {
            if row.own["clock_off"] == true {
                troubles
                    .push(format!("the clock of {} is off: set it (NTP); until then the pod is not chosen", row.id));
            }
            if let Some(error) = row.own["config_error"].as_str() {
                troubles.push(format!("{} can't use _ring/config: {error}", row.id));
            }
            if let (Some(theirs), Some(ours)) = (row.own["master"].as_str(), self.master.as_deref())
                && theirs != ours
            {
                troubles.push(format!("{} takes {theirs} for the write master and not {ours}: ask again", row.id));
            }
        }
        troubles
    }

    /// How many of the master's writes a pod had not applied when it last wrote its status.
    pub fn behind(&self, row: &Row) -> Option<u64> {
        let master = self.master.as_ref()?;
        let of_master = self.rows.iter().find(|row| row.id == *master)?;
        let (origin, seq) = of_master.own["applied"]
            .as_object()?
            .iter()
            .find(|(origin, _)| origin.split_once('@').is_some_and(|(pod, _)| pod == master))?;
        let has = row.own["applied"][origin.as_str()].as_u64().unwrap_or(0);
        Some(seq.as_u64()?.saturating_sub(has))
    }

    fn table(&self) -> String {
        let mut table = Table::new(&[
            "pod",
            "url",
            "role",
            "alive",
            "caught up",
            "behind",
            "carried out",
            "clock",
            "links",
            "said",
        ]);
        for row in &self.rows {
            let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
            let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
            let url = if row.seen["url"].is_string() { &row.seen["url"] } else { &row.own["url"] };
            let alive = if row.has_left() { "left".to_owned() } else { yes(row.is_alive()) };
            let behind = self.behind(row).map_or_else(|| "-".to_owned(), |behind| behind.to_string());
            table.push(vec![
                row.id.clone(),
                text(url),
                row.role(),
                alive,
                row.own["caught_up"].as_bool().map_or_else(|| "-".to_owned(), yes),
                behind,
                text(&row.own["carried_out"]),
                if row.own["clock_off"] == true { "off" } else { "right" }.to_owned(),
                row.links(),
                row.age(),
            ]);
        }
        table.text()
    }

    /// All of it, for programs.
    pub fn json(&self, troubles: &[String]) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "pod": row.id, "role": row.role(), "alive": row.is_alive(), "left": row.has_left(),
                "behind": self.behind(row), "own": row.own, "seen": row.seen,
            })
        });
        let rows: Vec<Value> = rows.collect();
        json!({"asked": self.asked, "master": self.master, "pods": rows, "troubles": troubles})
    }
}

impl Row {
    /// Whether it is known to have left: its document stays in `_ring`, but not in `_pods`.
    pub fn has_left(&self) -> bool {
        self.seen.is_null()
    }

    /// Whether the pod that was asked takes it for alive.
    pub fn is_alive(&self) -> bool {
        !self.has_left() && self.seen["alive"] == true
    }

    /// What it does about writes.
    pub fn role(&self) -> String {
        self.seen["role"].as_str().or(self.own["role"].as_str()).unwrap_or("-").to_owned()
    }

    /// Where clients reach it.
    pub fn url(&self) -> Option<String> {
        self.seen["url"].as_str().or(self.own["url"].as_str()).map(str::to_owned)
    }

    /// What the operator wants of it, as far as it knows: `active`, `inactive` or `removed`.
    pub fn state(&self) -> &str {
        self.seen["state"].as_str().or(self.own["state"].as_str()).unwrap_or("active")
    }

    /// Of its programs.
    pub fn software(&self) -> Option<String> {
        self.seen["software"].as_str().or(self.own["software"].as_str()).map(str::to_owned)
    }

    /// Its machine, when it last wrote its status.
    pub fn host(&self) -> Option<HostReport> {
        self.own.get("host").and_then(|host| serde_json::from_value(host.clone()).ok())
    }

    /// Room on its disk.
    pub fn disk(&self) -> DiskLevel {
        let of =
            |doc: &Value| doc.get("disk").and_then(|level| serde_json::from_value::<DiskLevel>(level.clone()).ok());
        let host = self.own.get("host").and_then(of);
        [of(&self.seen), of(&self.own), host].into_iter().flatten().max().unwrap_or_default()
    }

    /// What it says itself to be wrong.
    pub fn said_troubles(&self) -> Vec<String> {
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut troubles = texts(&self.own["troubles"]);
        for trouble in texts(&self.own["host"]["troubles"]) {
            if !troubles.contains(&trouble) {
                troubles.push(trouble);
            }
        }
        troubles
    }

    /// Its links that work, of all.
    fn links(&self) -> String {
        let Some(links) = self.own["links"].as_array() else { return "-".to_owned() };
        let live = links.iter().filter(|link| link["state"] == "live").count();
        format!("{live}/{}", links.len())
    }

    /// How long ago it wrote its status.
    pub fn age(&self) -> String {
        self.own["stamp"].as_str().and_then(age_of).map_or_else(|| "-".to_owned(), ago)
    }
}

/// How long ago a stamp was made, in milliseconds, by this machine's clock.
pub fn age_of(stamp: &str) -> Option<u64> {
    let stamp: adea_ring::Stamp = stamp.parse().ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(u64::try_from(now.as_millis()).ok()?.saturating_sub(stamp.millis()))
}

/// A time span for people.
pub fn ago(age_ms: u64) -> String {
    match age_ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::{Pods, ago};
    use serde_json::{Value, json};

    fn own(id: &str, applied: &Value) -> Value {
        json!({
            "_id": format!("pod:{id}"), "master": "pod-b", "role": "follower", "applied": applied, "caught_up": true,
            "links": [{"peer": "x", "state": "live"}, {"peer": "y", "state": "waiting"}], "clock_off": false,
        })
    }

    fn seen(id: &str, role: &str, alive: bool) -> Value {
        json!({"_id": format!("pod:{id}"), "url": format!("http://{id}"), "role": role, "alive": alive})
    }

    #[test]
    fn says_who_is_away_and_who_is_behind() {
        let pods = Pods::new(
            Some("pod-a".into()),
            Some("pod-b".into()),
            vec![
                own("pod-a", &json!({"pod-b@00000000": 7, "pod-a@00000000": 3})),
                own("pod-b", &json!({"pod-b@00000000": 9})),
                own("pod-c", &json!({})),
                own("pod-d", &json!({})),
            ],
            vec![seen("pod-a", "follower", true), seen("pod-b", "master", true), seen("pod-c", "follower", false)],
        );
        assert_eq!(pods.away(), ["pod-c"]);
        let table = pods.table();
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..6], ["pod-a", "http://pod-a", "follower", "yes", "yes", "2"]);
        assert_eq!(lines[2][2..6], ["master", "yes", "yes", "0"]);
        assert_eq!(lines[3][3], "no");
        assert_eq!(lines[4][3], "left");
        assert!(lines[1].contains(&"1/2"), "{table}");
        let troubles = pods.troubles();
        assert!(troubles.len() == 1 && troubles[0].contains("pod-c is away"), "{troubles:?}");
        assert_eq!(pods.json(&troubles)["pods"][0]["behind"], 2);
    }

    #[test]
    fn no_master_is_a_trouble() {
        let pods = Pods::new(Some("pod-a".into()), None, vec![], vec![seen("pod-a", "waiting", true)]);
        assert!(pods.troubles()[0].contains("no pod takes writes, says pod-a"));
        assert!(pods.table().contains("waiting"));
    }

    #[test]
    fn times_are_rough() {
        assert_eq!([ago(1_999), ago(600_000), ago(90_000_000)], ["1 s ago", "10 min ago", "25 h ago"]);
    }
}
