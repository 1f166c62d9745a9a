//! What an operator is told while a copy goes on, and at its end.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use serde_json::{Value, json};

use super::tally::{Refusals, Tally};

/// Between two updates of a terminal's line.
const LINE_PAUSE: Duration = Duration::from_millis(250);
/// Between two lines where each stays: a log doesn't need more.
const LOG_PAUSE: Duration = Duration::from_secs(10);
/// Between two lines for a program.
const JSON_PAUSE: Duration = Duration::from_secs(1);
/// Refused documents that are printed for people; all that are remembered are in the lines for programs.
const SHOWN_REFUSALS: usize = 50;

/// Tells, in one of three forms: a line of a terminal that changes, lines of a log, or lines of JSON.
pub struct Teller {
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Terminal,
    Log,
    Json,
}

impl Teller {
    /// Lines of JSON on the standard output, or text for people on the standard error output.
    pub fn new(json: bool) -> Self {
        let form = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Form::Json,
            (false, true) => Form::Terminal,
            (false, false) => Form::Log,
        };
        Self { form }
    }

    /// Tells how far it is while the work goes on.
    pub async fn during<T>(&self, stage: &str, db: &str, tally: &Tally, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let pause = match self.form {
            Form::Terminal => LINE_PAUSE,
            Form::Log => LOG_PAUSE,
            Form::Json => JSON_PAUSE,
        };
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + pause, pause);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                _ = ticks.tick() => self.progress(stage, db, tally),
            }
        };
        self.clear();
        done
    }

    /// Something that is worth a line.
    pub fn note(&self, db: &str, text: &str) {
        match self.form {
            Form::Json => print_line(&json!({"event": "note", "db": db, "text": text})),
            _ => self.line(&format!("{db}: {text}")),
        }
    }

    /// A line of its own, for people only.
    pub fn say(&self, text: &str) {
        if self.form != Form::Json {
            self.line(text);
        }
    }

    /// An event, for programs only.
    pub fn event(&self, event: &Value) {
        if self.form == Form::Json {
            print_line(event);
        }
    }

    /// Documents that were refused.
    pub fn refusals(&self, db: &str, refusals: &Refusals) {
        for (n, (id, why)) in refusals.named.iter().enumerate() {
            match self.form {
                Form::Json => print_line(&json!({"event": "refused", "db": db, "id": id, "reason": why})),
                _ if n < SHOWN_REFUSALS => self.line(&format!("{db}: refused: {id:?}: {why}")),
                _ => {
                    let more = refusals.count() - SHOWN_REFUSALS as u64;
                    self.line(&format!("{db}: and {more} more: --json lists them"));
                    return;
                }
            }
        }
        if refusals.others > 0 {
            self.note(db, &format!("and {} more were refused", refusals.others));
        }
    }

    fn progress(&self, stage: &str, db: &str, tally: &Tally) {
        let (done, pending, stats, seconds) = (tally.done(), tally.pending(), tally.stats(), tally.seconds());
        let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        let left_s = (rate > 0.0).then(|| (pending as f64 / rate).ceil() as u64);
        if self.form == Form::Json {
            return print_line(&json!({
                "event": "progress", "stage": stage, "db": db, "documents": done, "pending": pending,
                "written": stats.written, "refused": tally.refusals().count(), "bytes": stats.bytes,
                "documents_per_s": rate.round(), "left_s": left_s,
            }));
        }
        let left = left_s.filter(|_| pending > 0).map(|left| format!(", {} left", span(left))).unwrap_or_default();
        let text = format!(
            "{db}: {stage}: {done} of about {} documents, {}, {rate:.0}/s{left}",
            done + pending,
            size(stats.bytes)
        );
        let mut stderr = std::io::stderr();
        // The reader may be gone, which is no reason to stop.
        let _ = match self.form {
            Form::Terminal => write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush()),
            _ => writeln!(stderr, "{text}"),
        };
    }

    fn clear(&self) {
        if self.form == Form::Terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, text: &str) {
        self.clear();
        // Names and reasons are another server's: what it has in them must not move a terminal's cursor.
        let text: String = text.chars().map(|one| if one.is_control() && one != '\n' { ' ' } else { one }).collect();
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

fn print_line(value: &Value) {
    let _ = writeln!(std::io::stdout(), "{value}");
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1_000.0;
    let mut unit = 0;
    while value >= 1_000.0 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::{size, span};

    #[test]
    fn figures_for_people() {
        assert_eq!([size(999), size(1_000), size(12_345_678)], ["999 B", "1.0 kB", "12.3 MB"]);
        assert_eq!([span(59), span(61), span(7_260)], ["59 s", "2 min", "2 h 1 min"]);
    }
}
