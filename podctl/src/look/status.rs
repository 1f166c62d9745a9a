//! The ring on one screen: who takes the writes, how each pod is, what is wrong and what to do about it.

use adea_ring::host::{DiskLevel, HostReport};
use adea_ring::upgrade::UPGRADE_ID;
use http::Method;
use serde_json::{Value, json};

use super::ask::say;
use crate::command::ask::AskArgs;
use crate::exit;
use crate::http::Conn;
use crate::import::teller::size;
use crate::paint::{Paint, Tone};
use crate::ring::documents::{self, starting_with};
use crate::ring::status::{Pods, Row};
use crate::ring::table::{Cell, Table};

/// A pod that lags by so many writes is worth a word; it catches up with thousands in a second.
const MANY_BEHIND: u64 = 10_000;

/// What the screen shows.
struct Screen {
    pods: Pods,
    apps: usize,
    databases: usize,
    /// Databases in maintenance, and how.
    maintenance: Vec<(String, String)>,
    /// The order of an upgrade that isn't done.
    upgrade: Option<Value>,
    has_diverged: bool,
}

/// Shows it.
///
/// # Errors
/// Also when troubles were found, after they have been told.
pub async fn run(ask: &AskArgs) -> anyhow::Result<()> {
    let mut conn = ask.target.connect().await?;
    let screen = Screen::read(&mut conn).await?;
    let troubles = screen.troubles();
    if ask.json {
        say(&format!("{}\n", screen.json(&troubles)))?;
    } else {
        say(&screen.text(&troubles, Paint::stdout()))?;
    }
    match troubles.len() {
        0 => Ok(()),
        1 => Err(exit::not_well("1 trouble; `podctl doctor` looks further")),
        count => Err(exit::not_well(format!("{count} troubles; `podctl doctor` looks further"))),
    }
}

/// The pods, and what is wrong with the ring.
///
/// # Errors
/// When the pod doesn't answer.
pub async fn pods_and_troubles(conn: &mut Conn) -> anyhow::Result<(Pods, Vec<String>)> {
    let screen = Screen::read(conn).await?;
    let troubles = screen.troubles();
    Ok((screen.pods, troubles))
}

impl Screen {
    async fn read(conn: &mut Conn) -> anyhow::Result<Self> {
        let pods = Pods::read(conn).await?;
        let (databases, _) = starting_with(conn, "_ring", "db:").await?;
        let is_there = |doc: &&Value| doc["instance"].is_string();
        let apps = databases.iter().filter(|doc| doc["app"] == true).count();
        let databases = databases.iter().filter(is_there).count().saturating_sub(apps);
        let maintenance = super::maintenance::read(conn).await?;
        let upgrade = documents::get(conn, &format!("/_ring/{UPGRADE_ID}")).await?;
        let one = "/_ring/_all_docs?limit=1&startkey=%22divergence:%22&endkey=%22divergence%3B%22";
        let diverged = conn.expect(Method::GET, one, "").await?;
        let has_diverged = diverged["rows"].as_array().is_some_and(|rows| !rows.is_empty());
        let upgrade = upgrade.filter(|order| order["state"] == "running");
        Ok(Self { pods, apps, databases, maintenance, upgrade, has_diverged })
    }

    fn troubles(&self) -> Vec<String> {
        let mut troubles = self.pods.troubles();
        for row in self.pods.rows.iter().filter(|row| row.is_alive()) {
            troubles.extend(of_pod(&self.pods, row));
        }
        if let (None, Some(different)) = (&self.upgrade, versions(&self.pods)) {
            troubles
                .push(format!("the pods run different software ({different}): `podctl upgrade` brings them together"));
        }
        troubles
    }

    /// What is no trouble, and good to know.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(order) = &self.upgrade {
            let image = order["image"].as_str().unwrap_or("another image");
            notes.push(format!("an upgrade to {image} is under way: `podctl upgrade status`"));
        }
        for (db, rule) in &self.maintenance {
            notes.push(format!("{db} is {rule}: `podctl maintenance off {db}` ends that"));
        }
        if self.has_diverged {
            notes.push("documents have diverged: `podctl divergences` lists them".to_owned());
        }
        notes
    }

    fn text(&self, troubles: &[String], paint: Paint) -> String {
        let verdict = match troubles.len() {
            0 => paint.paint(Tone::Good, "well"),
            1 => paint.paint(Tone::Bad, "not well, 1 trouble"),
            count => paint.paint(Tone::Bad, &format!("not well, {count} troubles")),
        };
        let asked = self.pods.asked.as_deref().unwrap_or("a pod");
        let writes = self.pods.master.as_ref().map_or_else(
            || if self.pods.rows.len() <= 1 { format!("{asked} is alone") } else { "nobody takes writes".to_owned() },
            |master| format!("{master} takes the writes"),
        );
        let mut text = format!("ring {verdict}: {writes}, says {asked}\n\n{}\n", table(&self.pods).painted(paint));
        text.push_str(&format!("{} apps, {} other databases\n", self.apps, self.databases));
        for note in self.notes() {
            text.push_str(&format!("{} {}\n", paint.paint(Tone::Warn, "-"), crate::paint::harmless(&note)));
        }
        for trouble in troubles {
            text.push_str(&format!("{} {}\n", paint.paint(Tone::Bad, "!"), crate::paint::harmless(trouble)));
        }
        text
    }

    fn json(&self, troubles: &[String]) -> Value {
        let mut json = self.pods.json(troubles);
        json["well"] = troubles.is_empty().into();
        json["apps"] = self.apps.into();
        json["databases"] = self.databases.into();
        json["maintenance"] = self.maintenance.iter().map(|(db, rule)| json!({"db": db, "rule": rule})).collect();
        json["upgrade"] = self.upgrade.clone().unwrap_or_default();
        json["notes"] = self.notes().into();
        json
    }
}

/// The pods in a table, for `status` and for `pods`.
pub fn table(pods: &Pods) -> Table {
    let mut table =
        Table::new(&["pod", "url", "state", "role", "behind", "disk free", "memory free", "cpu", "version", "said"]);
    for row in &pods.rows {
        table.push(cells(pods, row));
    }
    table
}

fn cells(pods: &Pods, row: &Row) -> Vec<Cell> {
    let dash = || Cell::toned("-", Tone::Dim);
    let host = row.host();
    let state = match (row.has_left(), row.is_alive(), row.state()) {
        (true, ..) => Cell::toned("left", Tone::Dim),
        (_, false, _) => Cell::toned("away", Tone::Bad),
        (_, true, "active") => Cell::toned("active", Tone::Good),
        (_, true, other) => Cell::toned(other, Tone::Warn),
    };
    let role = row.role();
    let role = if role == "master" { Cell::toned(role, Tone::Bold) } else { role.into() };
    let behind = match pods.behind(row) {
        None => dash(),
        Some(0) => "0".into(),
        Some(behind) => Cell::toned(behind.to_string(), Tone::Warn),
    };
    let of = |free: u64, all: u64| format!("{} of {}", size(free), size(all));
    let disk = match (&host, row.disk()) {
        (Some(host), level) if host.disk_bytes > 0 => {
            let text = of(host.disk_available_bytes, host.disk_bytes);
            match level {
                DiskLevel::Roomy => text.into(),
                DiskLevel::Low => Cell::toned(text, Tone::Warn),
                DiskLevel::Full => Cell::toned(text, Tone::Bad),
            }
        }
        (_, DiskLevel::Roomy) => dash(),
        (_, level) => Cell::toned(level.to_string(), Tone::Warn),
    };
    let measured = |what: fn(&HostReport) -> Option<String>| host.as_ref().and_then(what).map_or_else(dash, Cell::from);
    vec![
        row.id.as_str().into(),
        row.url().map_or_else(dash, Cell::from),
        state,
        role,
        behind,
        disk,
        measured(|host| (host.memory_bytes > 0).then(|| size(host.memory_available_bytes))),
        measured(|host| (host.cpus > 0).then(|| format!("{:.0} %", host.cpu_percent))),
        row.software().map_or_else(dash, Cell::from),
        Cell::toned(row.age(), Tone::Dim),
    ]
}

/// What is wrong with a pod that is there.
fn of_pod(pods: &Pods, row: &Row) -> Vec<String> {
    let id = &row.id;
    let mut troubles = Vec::new();
    match row.disk() {
        DiskLevel::Roomy => {}
        DiskLevel::Low => troubles.push(format!(
            "the disk of {id} is nearly full: it takes no mastership any more, and soon no data; make room, or give it a larger disk"
        )),
        DiskLevel::Full => troubles.push(format!(
            "the disk of {id} is full: it takes no new data and brings none from the others; make room, or give it a larger disk"
        )),
    }
    if let Some(behind) = pods.behind(row).filter(|behind| *behind >= MANY_BEHIND) {
        troubles.push(format!("{id} is {behind} writes behind: if that doesn't shrink, look at `podctl logs {id}`"));
    }
    let links = row.own["links"].as_array().into_iter().flatten().filter(|link| link["state"] == "waiting");
    for link in links {
        let (Some(peer), Some(why)) = (link["peer"].as_str(), link["last_error"].as_str()) else { continue };
        // That a pod is away is a trouble of its own.
        if pods.rows.iter().any(|row| row.id == peer && row.is_alive()) {
            troubles.push(format!("{id} gets nothing from {peer} ({why}): can it reach the ring port of {peer}?"));
        }
    }
    troubles.extend(row.said_troubles().into_iter().map(|trouble| format!("{id}: {trouble}")));
    troubles
}

/// The versions, where they differ.
fn versions(pods: &Pods) -> Option<String> {
    let live = pods.rows.iter().filter(|row| row.is_alive());
    let mut all: Vec<String> = live.filter_map(Row::software).collect();
    all.sort_unstable();
    all.dedup();
    (all.len() > 1).then(|| all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::Screen;
    use crate::paint::Paint;
    use crate::ring::status::{Pods, Row};
    use serde_json::{Value, json};

    fn row(id: &str, own: Value) -> Row {
        let seen =
            json!({"alive": true, "role": "follower", "url": format!("http://{id}"), "software": own["software"]});
        Row { id: id.to_owned(), own, seen }
    }

    fn screen(rows: Vec<Row>) -> Screen {
        let pods = Pods { asked: Some("pod-1".into()), master: Some("pod-1".into()), rows };
        Screen { pods, apps: 2, databases: 1, maintenance: Vec::new(), upgrade: None, has_diverged: false }
    }

    #[test]
    fn a_well_ring_has_no_troubles() {
        let host = json!({"cpus": 2, "cpu_percent": 12.4, "memory_bytes": 8_000_000_000_u64,
            "memory_available_bytes": 4_000_000_000_u64, "disk_bytes": 100_000_000_000_u64,
            "disk_available_bytes": 50_000_000_000_u64});
        let screen = screen(vec![row("pod-1", json!({"software": "0.1.0", "host": host}))]);
        assert!(screen.troubles().is_empty());
        let text = screen.text(&[], Paint::off());
        for part in ["ring well: pod-1 takes the writes", "50.0 GB of 100.0 GB", "4.0 GB", "12 %", "0.1.0", "2 apps"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn troubles_say_what_to_do() {
        let mut screen = screen(vec![
            row("pod-1", json!({"software": "0.1.0", "disk": "full"})),
            row(
                "pod-2",
                json!({"software": "0.2.0", "disk": "low", "state": "inactive",
                "host": {"troubles": ["Docker doesn't answer\u{1b}[2J"]}}),
            ),
        ]);
        let troubles = screen.troubles();
        for (part, todo) in [
            ("pod-1 is full", "make room"),
            ("pod-2 is nearly full", "make room"),
            ("Docker doesn't answer", ""),
            ("different software", "podctl upgrade"),
        ] {
            assert!(troubles.iter().any(|one| one.contains(part) && one.contains(todo)), "{part}: {troubles:?}");
        }
        let text = screen.text(&troubles, Paint::off());
        assert!(
            text.contains("not well, 4 troubles") && text.contains("inactive") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert_eq!(screen.json(&troubles)["well"], false);
        screen.upgrade = Some(json!({"image": "adea:0.2.0"}));
        assert_eq!(screen.troubles().len(), 3);
        assert!(screen.notes()[0].contains("adea:0.2.0"));
    }
}
