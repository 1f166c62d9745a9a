//! What the programs of the pods have logged, of all pods or of one, as it was and as it goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::ask::say;
use super::maintenance::encoded;
use crate::command::logs::Args;
use crate::exit::{self, Refused};
use crate::http::{Conn, excerpt};
use crate::paint::{Paint, Tone, harmless};
use crate::ring::status::Pods;

/// Between two looks at logs that are followed.
const PAUSE: Duration = Duration::from_secs(1);
/// Pages of one log between two looks, so that one that grows fast doesn't keep the others waiting.
const MOST_PAGES: usize = 8;
/// The most lines of an answer.
const PAGE_LINES: usize = 5_000;

/// One log of one pod.
struct Source {
    pod: String,
    program: String,
    /// Which of the pods, for its colour.
    nth: usize,
    /// Up to where it was told.
    position: Option<String>,
    /// Why it can't be read at the moment, as it was said.
    trouble: Option<String>,
    /// Whether the pod has said that it has no such log.
    is_elsewhere: bool,
}

/// A line, and what it is sorted by.
struct Line {
    stamp: String,
    source: usize,
    text: String,
}

/// Shows them.
///
/// # Errors
/// When no pod answers, or none of the logs can be read.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let mut conn = args.ask.target.connect().await?;
    let mut sources = sources(&mut conn, args).await?;
    let shape = Shape::of(&sources, args.ask.json);
    let mut lines = Vec::new();
    for at in 0..sources.len() {
        let page = page(&mut conn, &sources[at], args.lines, false).await?;
        lines.extend(take(&mut sources, at, page, false));
    }
    // Of many, each has its own last lines: those before the first that all have would look as if only some had spoken.
    lines.sort_by(|a, b| a.stamp.cmp(&b.stamp));
    let first = if args.all_lines { 0 } else { lines.len().saturating_sub(args.lines) };
    print(&lines[first..], &sources, &shape)?;
    tell_troubles(&sources);
    if sources.iter().all(|source| source.trouble.is_some()) {
        return Err(anyhow::anyhow!("none of the logs can be read"));
    }
    if !args.follow {
        return Ok(());
    }
    follow(args, conn, sources, &shape).await
}

async fn sources(conn: &mut Conn, args: &Args) -> anyhow::Result<Vec<Source>> {
    let pods = Pods::read(conn).await?;
    let known: Vec<&str> = pods.rows.iter().filter(|row| !row.has_left()).map(|row| row.id.as_str()).collect();
    if let Some(unknown) = args.pods.iter().find(|pod| !known.contains(&pod.as_str())) {
        return Err(exit::wrong_use(format!("there is no pod {unknown}; there are {}", known.join(", "))));
    }
    let is_wanted = |pod: &str| args.pods.is_empty() || args.pods.iter().any(|wanted| wanted == pod);
    let mut sources = Vec::new();
    for (nth, pod) in known.into_iter().enumerate().filter(|(_, pod)| is_wanted(pod)) {
        for program in &args.programs {
            sources.push(Source {
                pod: pod.to_owned(),
                program: program.clone(),
                nth,
                position: None,
                trouble: None,
                is_elsewhere: false,
            });
        }
    }
    Ok(sources)
}

async fn follow(args: &Args, mut conn: Conn, mut sources: Vec<Source>, shape: &Shape) -> anyhow::Result<()> {
    loop {
        sleep(PAUSE).await;
        let mut lines = Vec::new();
        for at in 0..sources.len() {
            for _ in 0..MOST_PAGES {
                let was_told = sources[at].position.is_some();
                let page = match page(&mut conn, &sources[at], args.lines, true).await {
                    Ok(page) => page,
                    // The pod that was asked is gone, or the log-in has ended: another one, or a new one.
                    Err(_) => match args.ask.target.connect().await {
                        Ok(other) => {
                            conn = other;
                            break;
                        }
                        Err(err) => return Err(err),
                    },
                };
                let more = page.as_ref().is_ok_and(|page| page["more"] == true);
                let before = sources[at].trouble.clone();
                lines.extend(take(&mut sources, at, page, was_told));
                if sources[at].trouble != before {
                    tell_troubles(&sources[at..=at]);
                }
                if !more {
                    break;
                }
            }
        }
        lines.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        print(&lines, &sources, shape)?;
    }
}

/// A page of a log; the inner error is why this one can't be read, with others that can.
async fn page(
    conn: &mut Conn,
    source: &Source,
    lines: usize,
    is_followed: bool,
) -> anyhow::Result<Result<Value, String>> {
    if source.is_elsewhere && is_followed {
        return Ok(Err(source.trouble.clone().unwrap_or_default()));
    }
    let mut path = format!("/_node/{}/_logs?program={}", encoded(&source.pod), source.program);
    match &source.position {
        Some(position) => path.push_str(&format!("&lines={PAGE_LINES}&since={position}")),
        None => path.push_str(&format!("&lines={}", lines.clamp(1, PAGE_LINES))),
    }
    let (status, body) = conn.send(Method::GET, &path, "").await?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let reason = || answer["reason"].as_str().unwrap_or("it gave no reason").to_owned();
    match status {
        StatusCode::NOT_FOUND => Ok(Err(format!("elsewhere: {}", reason()))),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Ok(Err(reason())),
        status if status.is_success() => Ok(Ok(answer)),
        status => anyhow::bail!(Refused { method: Method::GET, path, status, excerpt: excerpt(&body) }),
    }
}

/// Notes how far a log was told, and gives its lines.
fn take(sources: &mut [Source], at: usize, page: Result<Value, String>, was_told: bool) -> Vec<Line> {
    let source = &mut sources[at];
    let page = match page {
        Ok(page) => page,
        Err(trouble) => {
            source.is_elsewhere = trouble.starts_with("elsewhere: ");
            source.trouble = Some(trouble.trim_start_matches("elsewhere: ").to_owned());
            return Vec::new();
        }
    };
    source.trouble = None;
    source.position = page["position"].as_str().map(str::to_owned);
    let mut lines = Vec::new();
    let mut stamp = String::new();
    if was_told && page["gap"] == true {
        lines.push(Line { stamp: stamp.clone(), source: at, text: "... lines are missing here".to_owned() });
    }
    for text in page["lines"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        // What goes on over several lines stays with its first.
        if let Some(found) = stamp_of(text) {
            stamp = found.to_owned();
        }
        lines.push(Line { stamp: stamp.clone(), source: at, text: text.to_owned() });
    }
    lines
}

/// The time that a line begins with: `2026-01-02T03:04:05.678901Z`.
fn stamp_of(line: &str) -> Option<&str> {
    let plain = line.trim_start_matches("\u{1b}[2m");
    let stamp = plain.split_once('Z')?.0;
    let fits = stamp.len() >= 19 && stamp.as_bytes()[4] == b'-' && stamp.as_bytes()[10] == b'T';
    (fits && stamp.bytes().all(|byte| byte.is_ascii_digit() || b"-T:.".contains(&byte))).then_some(stamp)
}

fn tell_troubles(sources: &[Source]) {
    let mut told = BTreeSet::new();
    for source in sources {
        let Some(trouble) = &source.trouble else { continue };
        // A pod that is away says the same of each of its programs.
        let text = if source.is_elsewhere {
            format!("{} {}: {trouble}", source.pod, source.program)
        } else {
            format!("{}: {trouble}", source.pod)
        };
        if told.insert(text.clone()) {
            eprintln!("{}", Paint::stderr().paint(Tone::Warn, &harmless(&text)));
        }
    }
}

/// How lines are printed.
struct Shape {
    json: bool,
    paint: Paint,
    pod_width: usize,
    program_width: usize,
}

impl Shape {
    fn of(sources: &[Source], json: bool) -> Self {
        let width = |of: fn(&Source) -> &str| sources.iter().map(|source| of(source).len()).max().unwrap_or(0);
        Self {
            json,
            paint: Paint::stdout(),
            pod_width: width(|source| &source.pod),
            program_width: width(|source| &source.program),
        }
    }

    fn line(&self, source: &Source, line: &Line) -> String {
        let Source { pod, program, .. } = source;
        if self.json {
            return format!("{}\n", json!({"pod": pod, "program": program, "line": line.text}));
        }
        let head = format!("{pod:<0$} {program:<1$} |", self.pod_width, self.program_width);
        let text = harmless(&without_colours(&line.text));
        let text = match level_of(&text) {
            Some("ERROR") => self.paint.paint(Tone::Bad, &text),
            Some("WARN") => self.paint.paint(Tone::Warn, &text),
            _ => text,
        };
        format!("{} {text}\n", self.paint.paint(Tone::Of(source.nth), &head))
    }
}

fn level_of(line: &str) -> Option<&str> {
    stamp_of(line)?;
    line.split_whitespace().nth(1)
}

/// The line without what a program puts in for a terminal.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        let end = after.find(|c: char| !c.is_ascii_digit() && c != ';');
        match end {
            Some(end) if after[end..].starts_with('m') => rest = &after[end + 1..],
            _ => rest = after,
        }
    }
    plain.push_str(rest);
    plain
}

fn print(lines: &[Line], sources: &[Source], shape: &Shape) -> anyhow::Result<()> {
    let text: String = lines.iter().map(|line| shape.line(&sources[line.source], line)).collect();
    if text.is_empty() { Ok(()) } else { say(&text) }
}

#[cfg(test)]
mod tests {
    use super::{Line, Shape, Source, stamp_of, take, without_colours};
    use crate::paint::Paint;
    use serde_json::json;

    fn source(pod: &str) -> Source {
        Source { pod: pod.into(), program: "rean".into(), nth: 0, position: None, trouble: None, is_elsewhere: false }
    }

    #[test]
    fn lines_of_several_pods_come_in_the_order_of_time() {
        let mut sources = [source("pod-1"), source("pod-2")];
        let page = |lines: &[&str]| Ok(json!({"lines": lines, "position": "9-00", "more": false, "gap": false}));
        let mut lines = take(&mut sources, 0, page(&["2026-01-02T03:04:05.3Z INFO a", "  goes on"]), false);
        lines.extend(take(
            &mut sources,
            1,
            page(&["2026-01-02T03:04:05.2Z INFO b", "2026-01-02T03:04:05.4Z INFO c"]),
            false,
        ));
        lines.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        let order: Vec<&str> = lines.iter().map(|line| line.text.rsplit(' ').next().unwrap_or("")).collect();
        assert_eq!(order, ["b", "a", "on", "c"]);
        assert_eq!(sources[0].position.as_deref(), Some("9-00"));
    }

    #[test]
    fn a_log_that_is_elsewhere_is_told_and_no_error() {
        let mut sources = [source("pod-1")];
        assert!(take(&mut sources, 0, Err("elsewhere: look at the journal".into()), false).is_empty());
        assert_eq!((sources[0].is_elsewhere, sources[0].trouble.as_deref()), (true, Some("look at the journal")));
        let gap = Ok(json!({"lines": ["x"], "position": "1-00", "gap": true}));
        assert_eq!(take(&mut sources, 0, gap, true).len(), 2);
        assert!(sources[0].trouble.is_none());
    }

    #[test]
    fn what_was_logged_moves_no_cursor() {
        let source = source("pod-1");
        let shape = Shape { json: false, paint: Paint::off(), pod_width: 6, program_width: 4 };
        let line = Line { stamp: String::new(), source: 0, text: "a\u{1b}[31mred\u{1b}[0m\u{1b}[2Jb".into() };
        assert_eq!(shape.line(&source, &line), "pod-1  rean | ared2Jb\n");
        assert_eq!(without_colours("\u{1b}[2m2026\u{1b}[0m x"), "2026 x");
    }

    #[test]
    fn stamps_are_found() {
        assert_eq!(stamp_of("2026-01-02T03:04:05.678901Z  INFO x"), Some("2026-01-02T03:04:05.678901"));
        for none in ["", "Z", "hello Z", "  at x.rs:1", "2026-01-02 03:04:05Z"] {
            assert_eq!(stamp_of(none), None, "{none}");
        }
    }
}
