//! Lines of JSON on standard output, one for each figure.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::bench::process::Processes;

/// Times some operations by the clock and by the server's processor.
pub struct Timer<'a> {
    processes: &'a Processes,
    cpu_us: Option<u64>,
    began: Instant,
}

/// What some operations took.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// By the clock.
    pub wall: Duration,
    /// By the server's processor, in microseconds, where its processes are known.
    pub cpu_us: Option<u64>,
}

impl<'a> Timer<'a> {
    /// Starts timing.
    pub fn start(processes: &'a Processes) -> Self {
        Self { processes, cpu_us: processes.cpu_us(), began: Instant::now() }
    }

    /// Ends timing.
    pub fn stop(self) -> Taken {
        let wall = self.began.elapsed();
        let cpu_us = self.processes.cpu_us().zip(self.cpu_us);
        Taken { wall, cpu_us: cpu_us.map(|(after, before)| after.saturating_sub(before)) }
    }
}

/// A figure on its way out.
pub struct Report {
    line: Map<String, Value>,
}

impl Report {
    /// A figure with its value.
    pub fn new(figure: &str, value: f64, unit: &str) -> Self {
        let mut line = Map::new();
        line.insert("figure".into(), figure.into());
        line.insert("value".into(), rounded(value));
        line.insert("unit".into(), unit.into());
        Self { line }
    }

    /// A figure of so many operations a second.
    pub fn rate(figure: &str, n: u64, taken: Taken) -> Self {
        let value = n as f64 / taken.wall.as_secs_f64();
        Self::new(figure, value, "1/s").taken(n, taken)
    }

    /// Adds what `n` operations took.
    pub fn taken(mut self, n: u64, taken: Taken) -> Self {
        self.line.insert("n".into(), n.into());
        self.line.insert("wall_ms".into(), rounded(taken.wall.as_secs_f64() * 1e3));
        if let Some(cpu_us) = taken.cpu_us
            && n > 0
        {
            self.line.insert("cpu_us_per_op".into(), rounded(cpu_us as f64 / n as f64));
        }
        self
    }

    /// Adds the half and the hundredth slowest.
    pub fn times(mut self, times: &mut [Duration]) -> Self {
        self.line.insert("p50_ms".into(), rounded(percentile_ms(times, 0.50)));
        self.line.insert("p99_ms".into(), rounded(percentile_ms(times, 0.99)));
        self
    }

    /// Adds something else worth knowing.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.line.insert(key.into(), value.into());
        self
    }

    /// Prints the line.
    pub fn print(self) {
        println!("{}", Value::Object(self.line));
    }

    /// Prints what is measured.
    pub fn about(root: &Value, processes: &Processes) {
        let line = json!({
            "server": root,
            "pids": processes.pids(),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
        });
        println!("{line}");
    }

    /// Prints that a figure can't be had from this server.
    pub fn skipped(figure: &str, reason: &str) {
        println!("{}", json!({"figure": figure, "skipped": reason}));
    }

    /// Prints that a figure failed.
    pub fn error(figure: &str, err: &anyhow::Error) {
        println!("{}", json!({"figure": figure, "error": format!("{err:#}")}));
    }
}

/// The time, in milliseconds, that a share of the times are not above.
pub fn percentile_ms(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = (times.len() as f64 * share).ceil() as usize;
    times[place.saturating_sub(1).min(last)].as_secs_f64() * 1e3
}

/// Three places are more than any of these can be trusted for.
fn rounded(value: f64) -> Value {
    let rounded = (value * 1e3).round() / 1e3;
    serde_json::Number::from_f64(rounded).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::percentile_ms;
    use std::time::Duration;

    #[test]
    fn percentiles() {
        let mut times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert!((percentile_ms(&mut times, 0.50) - 50.0).abs() < 1e-9);
        assert!((percentile_ms(&mut times, 0.99) - 99.0).abs() < 1e-9);
        assert!((percentile_ms(&mut times[..1], 0.99) - 1.0).abs() < 1e-9);
        assert!(percentile_ms(&mut [], 0.5).is_nan());
    }
}
