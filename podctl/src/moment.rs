//! Moments and spans of time as podctl reads and tells them: milliseconds since 1970, `1h`, `2026-01-31T12:00:00.000Z`.

use std::time::{SystemTime, UNIX_EPOCH};

use adea_ring::calendar::days_to;
use anyhow::{Context, bail};

/// Milliseconds since 1970. A clock before 1970 counts as 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a span such as `90s`, `15m`, `1h` or `2d`, in milliseconds.
pub fn parse_span(text: &str) -> anyhow::Result<u64> {
    let units = [("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let found = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)));
    let (number, unit_ms) = found.context("a span of time is a number with s, m, h or d, such as 1h")?;
    let number: u64 = number.parse().context("a span of time is a number with s, m, h or d, such as 1h")?;
    match number.checked_mul(*unit_ms) {
        Some(ms) if ms > 0 => Ok(ms),
        _ => bail!("a span of time is more than nothing, and not for ever"),
    }
}

/// A span for people: `59 min`.
pub fn span(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Reads `2026-01-31T12:00:00.000Z`, as servers tell a moment, in milliseconds since 1970.
pub fn parse_iso(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok().map(i64::from);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !text.ends_with('Z') || year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = ((days_to(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(u64::try_from(seconds).ok()? * 1_000)
}

#[cfg(test)]
mod tests {
    use super::{parse_iso, parse_span, span};

    #[test]
    fn spans() {
        assert_eq!(parse_span("90s").unwrap(), 90_000);
        assert_eq!(parse_span("1h").unwrap(), 3_600_000);
        for bad in ["", "1", "h", "0h", "-1h", "1w", "1.5h", "99999999999999d"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
        assert_eq!((span(59_000), span(3_599_000)), ("59 s".to_owned(), "59 min".to_owned()));
        assert_eq!((span(7_200_000), span(180_000_000)), ("2 h".to_owned(), "2 days".to_owned()));
    }

    #[test]
    fn moments() {
        assert_eq!(parse_iso("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(parse_iso("2000-02-29T00:00:00.000Z"), Some(951_782_400_000));
        assert_eq!(parse_iso("2024-02-29T23:59:59.999Z"), Some(1_709_251_199_000));
        for bad in ["", "2024-02-29", "2024-13-01T00:00:00Z", "2024-02-29T23:59:59", "ä024-02-29T23:59:59Z"] {
            assert_eq!(parse_iso(bad), None, "{bad}");
        }
    }
}
