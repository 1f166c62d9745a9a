//! Moments as CouchDB writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use adea_ring::calendar;

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A second of the calendar (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// So many seconds after the beginning of 1970.
    pub fn of_unix_s(seconds: u64) -> Self {
        // Years have four digits in both forms; no machine's clock is right that is later than the year 9999.
        Self(seconds.min(253_402_300_799))
    }

    /// Seconds since 1970.
    pub fn unix_s(self) -> u64 {
        self.0
    }

    /// As in the history of a checkpoint: `Mon, 11 Mar 2013 21:45:14 GMT`.
    pub fn rfc1123(self) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, second) = self.time();
        let weekday = WEEKDAYS[(self.0 / 86_400 % 7) as usize];
        let month = MONTHS[(month - 1) as usize];
        format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }

    /// As in `_scheduler`: `2013-03-11T21:45:14Z`.
    pub fn iso8601(self) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, second) = self.time();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    fn time(self) -> (u64, u64, u64) {
        let second = self.0 % 86_400;
        (second / 3_600, second / 60 % 60, second % 60)
    }

    fn date(self) -> (u64, u64, u64) {
        calendar::date_of(self.0 / 86_400)
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(Moment(0).rfc1123(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(Moment(1_363_038_314).rfc1123(), "Mon, 11 Mar 2013 21:45:14 GMT");
        assert_eq!(Moment(951_782_400).iso8601(), "2000-02-29T00:00:00Z");
        assert_eq!(Moment(1_709_251_199).iso8601(), "2024-02-29T23:59:59Z");
        assert_eq!(Moment(4_107_542_400).iso8601(), "2100-03-01T00:00:00Z");
    }
}
