//! How busy the pods are, once a second: a page that is drawn anew, or lines for programs.
//!
//! Each pod is asked for its figures by way of the one that answers; rates are what two looks differ by.

use std::collections::BTreeMap;
use std::time::Duration;

use adea_ring::host::HostReport;
use http::Method;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::ask::say;
use super::maintenance::encoded;
use super::screen::Screen;
use crate::command::top::Args;
use crate::http::Conn;
use crate::import::teller::size;
use crate::paint::{Paint, Tone};
use crate::ring::status::{Pods, Row};
use crate::ring::table::{Cell, Table};

/// How long all pods together may take to answer, so that one that hangs doesn't stop the page.
const PATIENCE: Duration = Duration::from_secs(3);

/// A pod at one moment.
#[derive(Debug, Clone, Default)]
struct Figures {
    reads: u64,
    writes: u64,
    seq: u64,
    feeds: u64,
    store_bytes: u64,
    /// Of its database server.
    memory_bytes: Option<u64>,
    host: Option<HostReport>,
}

/// All pods at one moment.
struct Look {
    at: Instant,
    pods: Pods,
    figures: BTreeMap<String, Figures>,
}

/// What is shown of a pod.
struct Line<'a> {
    row: &'a Row,
    behind: Option<u64>,
    now: Option<&'a Figures>,
    /// Reads, writes and changes a second.
    rates: Option<[f64; 3]>,
}

/// Looks until somebody has had enough, or as often as was asked.
///
/// # Errors
/// When no pod answers at the start, or for the moment with a terminal.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    let mut before = look(&mut conn).await?;
    let mut screen = if args.ask.json { None } else { Screen::take()? };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tick = interval(Duration::from_secs(args.every_s));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let mut shown = 0;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            key = next_key(&mut screen) => match key {
                Some(b'q' | b'Q') | None => return Ok(()),
                Some(_) => continue,
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
        let now = match look(&mut conn).await {
            Ok(now) => now,
            Err(err) => {
                // The pod that was asked is gone, or the log-in has ended.
                match args.ask.target.connect().await {
                    Ok(other) => conn = other,
                    Err(_) if screen.is_some() => {
                        draw(screen.as_ref(), &[format!("no pod answers: {err}"), "q quits".to_owned()])?;
                    }
                    Err(err) => return Err(err),
                }
                continue;
            }
        };
        match &screen {
            None => say(&format!("{}\n", now.json(&before)))?,
            Some(_) => draw(screen.as_ref(), &now.page(&before, Paint::stdout(), Screen::size().0))?,
        }
        before = now;
        shown += 1;
        if args.times.is_some_and(|times| shown >= times) {
            return Ok(());
        }
    }
}

fn draw(screen: Option<&Screen>, lines: &[String]) -> anyhow::Result<()> {
    if let Some(screen) = screen {
        screen.draw(lines)?;
    }
    Ok(())
}

async fn next_key(screen: &mut Option<Screen>) -> Option<u8> {
    match screen {
        Some(screen) => screen.key().await,
        None => std::future::pending().await,
    }
}

async fn look(conn: &mut Conn) -> anyhow::Result<Look> {
    let pods = Pods::read(conn).await?;
    let at = Instant::now();
    let mut figures = BTreeMap::new();
    let asking = async {
        for row in pods.rows.iter().filter(|row| row.is_alive()) {
            // One that can't be asked has a line without figures.
            if let Ok(found) = Figures::read(conn, &row.id).await {
                figures.insert(row.id.clone(), found);
            }
        }
    };
    if tokio::time::timeout(PATIENCE, asking).await.is_err() {
        anyhow::bail!("the pods took more than {} s to answer", PATIENCE.as_secs());
    }
    Ok(Look { at, pods, figures })
}

impl Figures {
    async fn read(conn: &mut Conn, pod: &str) -> anyhow::Result<Self> {
        let node = format!("/_node/{}", encoded(pod));
        let stats = conn.expect(Method::GET, &format!("{node}/_stats"), "").await?;
        let system = conn.expect(Method::GET, &format!("{node}/_system"), "").await?;
        let value = |of: &Value| of["value"].as_u64().unwrap_or(0);
        let adea = &stats["adea"];
        Ok(Self {
            reads: value(&adea["reads"]),
            writes: value(&adea["writes"]),
            seq: value(&adea["seq"]),
            feeds: value(&stats["couchdb"]["httpd"]["clients_requesting_changes"]),
            store_bytes: value(&adea["disk_bytes"]),
            memory_bytes: system["memory"]["resident"].as_u64(),
            host: serde_json::from_value(system["host"].clone()).ok(),
        })
    }

    /// What the programs of the pod occupy together; its database server alone where the agent says nothing.
    fn memory_bytes(&self) -> Option<u64> {
        let programs: u64 = self.host.iter().flat_map(|host| &host.programs).map(|program| program.memory_bytes).sum();
        if programs > 0 { Some(programs) } else { self.memory_bytes }
    }
}

impl Look {
    fn lines<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Line<'a>> {
        let seconds = (self.at - before.at).as_secs_f64();
        self.pods.rows.iter().filter(|row| !row.has_left()).map(move |row| {
            let now = self.figures.get(&row.id);
            let rates = now.zip(before.figures.get(&row.id)).map(|(now, then)| {
                let rate = |now: u64, then: u64| rate(now, then, seconds);
                [rate(now.reads, then.reads), rate(now.writes, then.writes), rate(now.seq, then.seq)]
            });
            Line { row, behind: self.pods.behind(row), now, rates }
        })
    }

    fn page(&self, before: &Self, paint: Paint, width: usize) -> Vec<String> {
        let mut table = Table::new(&[
            "pod",
            "role",
            "cpu",
            "memory",
            "reads/s",
            "writes/s",
            "changes/s",
            "feeds",
            "behind",
            "store",
            "disk free",
        ]);
        for line in self.lines(before) {
            table.push(line.cells());
        }
        let asked = self.pods.asked.as_deref().unwrap_or("a pod");
        let master = self.pods.master.as_deref().unwrap_or("nobody");
        let head = format!("{} pods, {master} takes the writes, says {asked}; q quits", self.pods.rows.len());
        let mut lines = vec![cut(&head, width), String::new()];
        // A line that is cut would lose the end of its colour: those of a narrow terminal have none.
        let widest = table.text().lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let text = if widest <= width { table.painted(paint) } else { table.text() };
        lines.extend(text.lines().map(|line| if widest <= width { line.to_owned() } else { cut(line, width) }));
        lines.push(String::new());
        let troubles = self.pods.troubles();
        lines.extend(troubles.iter().map(|trouble| cut(&format!("! {}", crate::paint::harmless(trouble)), width)));
        lines
    }

    fn json(&self, before: &Self) -> Value {
        let pods: Vec<Value> = self.lines(before).map(|line| line.json()).collect();
        json!({"asked": self.pods.asked, "master": self.pods.master, "pods": pods, "troubles": self.pods.troubles()})
    }
}

/// A counter begins anew with its program.
fn rate(now: u64, then: u64, seconds: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let grown = now.checked_sub(then).unwrap_or(now) as f64;
    if seconds > 0.0 { grown / seconds } else { 0.0 }
}

fn cut(line: &str, width: usize) -> String {
    line.chars().take(width).collect()
}

impl Line<'_> {
    fn host(&self) -> Option<HostReport> {
        self.now.and_then(|now| now.host.clone()).or_else(|| self.row.host())
    }

    fn cells(&self) -> Vec<Cell> {
        let dash = || Cell::toned("-", Tone::Dim);
        let host = self.host();
        let role = match (self.row.is_alive(), self.row.role()) {
            (false, _) => Cell::toned("away", Tone::Bad),
            (true, role) if role == "master" => Cell::toned(role, Tone::Bold),
            (true, role) => role.into(),
        };
        let rates = |at: usize| self.rates.map_or_else(dash, |rates| per_second(rates[at]).into());
        let known = |text: Option<String>| text.map_or_else(dash, Cell::from);
        let behind = match self.behind {
            None => dash(),
            Some(0) => "0".into(),
            Some(behind) => Cell::toned(behind.to_string(), Tone::Warn),
        };
        vec![
            self.row.id.as_str().into(),
            role,
            known(host.as_ref().filter(|host| host.cpus > 0).map(|host| format!("{:.0} %", host.cpu_percent))),
            known(self.now.and_then(Figures::memory_bytes).map(size)),
            rates(0),
            rates(1),
            rates(2),
            known(self.now.map(|now| now.feeds.to_string())),
            behind,
            known(self.now.map(|now| size(now.store_bytes))),
            known(host.filter(|host| host.disk_bytes > 0).map(|host| size(host.disk_available_bytes))),
        ]
    }

    fn json(&self) -> Value {
        let rates = self.rates.map(|rates| rates.map(|rate| (rate * 10.0).round() / 10.0));
        json!({
            "pod": self.row.id, "alive": self.row.is_alive(), "role": self.row.role(), "behind": self.behind,
            "reads_per_s": rates.map(|rates| rates[0]), "writes_per_s": rates.map(|rates| rates[1]),
            "changes_per_s": rates.map(|rates| rates[2]), "feeds": self.now.map(|now| now.feeds),
            "memory_bytes": self.now.and_then(Figures::memory_bytes),
            "store_bytes": self.now.map(|now| now.store_bytes), "host": self.host(),
        })
    }
}

fn per_second(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

#[cfg(test)]
mod tests {
    use super::{Figures, Look, rate};
    use crate::paint::Paint;
    use crate::ring::status::{Pods, Row};
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::time::Duration;
    use tokio::time::Instant;

    fn look(at: Instant, reads: u64, writes: u64) -> Look {
        let row = |id: &str, alive: bool| Row {
            id: id.to_owned(),
            own: json!({}),
            seen: json!({"alive": alive, "role": if alive { "master" } else { "gone" }}),
        };
        let pods = Pods {
            asked: Some("pod-1".into()),
            master: Some("pod-1".into()),
            rows: vec![row("pod-1", true), row("pod-2", false)],
        };
        let figures = Figures { reads, writes, seq: 7, feeds: 3, store_bytes: 1_500, ..Figures::default() };
        Look { at, pods, figures: BTreeMap::from([("pod-1".to_owned(), figures)]) }
    }

    #[test]
    fn rates_are_what_two_looks_differ_by() {
        let start = Instant::now();
        let (before, now) = (look(start, 100, 10), look(start + Duration::from_secs(2), 300, 11));
        let json = now.json(&before);
        assert_eq!(json["pods"][0]["reads_per_s"], 100.0);
        assert_eq!(json["pods"][0]["writes_per_s"], 0.5);
        assert!(json["pods"][1]["reads_per_s"].is_null() && json["pods"][1]["alive"] == false);
        let page = now.page(&before, Paint::off(), 120).join("\n");
        for part in ["pod-1", "master", "100", "0.5", "1.5 kB", "away", "pod-2 is away", "q quits"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(now.page(&before, Paint::on(), 20).iter().all(|line| line.chars().count() <= 20));
    }

    #[test]
    fn a_program_that_was_started_anew_counts_from_nothing() {
        assert!((rate(5, 1_000, 1.0) - 5.0).abs() < 0.01);
        assert!(rate(5, 1, 0.0).abs() < 0.01);
    }
}
