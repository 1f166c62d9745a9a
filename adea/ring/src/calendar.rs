//! Days since 1970 and dates of the Gregorian calendar (UTC), by its rule of 400 years, as in Howard Hinnant's
//! "chrono-Compatible Low-Level Date Algorithms". Years begin in March here, so that the leap day is a year's last.

const DAYS_IN_400_YEARS: u64 = 146_097;
/// Between 1 March of year 0 and 1 January 1970.
const DAYS_TO_1970: u64 = 719_468;

/// Year, month and day of the `days`th day after 1 January 1970.
pub fn date_of(days: u64) -> (u64, u64, u64) {
    let shifted = days + DAYS_TO_1970;
    let (era, day) = (shifted / DAYS_IN_400_YEARS, shifted % DAYS_IN_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day_of_month)
}

/// The days from 1 January 1970 to a date, fewer than none before it.
pub fn days_to(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year * 365 + year / 4 - year / 100 + day_of_year;
    era * DAYS_IN_400_YEARS as i64 + day_of_era - DAYS_TO_1970 as i64
}

#[cfg(test)]
mod tests {
    use super::{date_of, days_to};

    #[test]
    fn each_day_of_500_years_is_found_again() {
        let mut before = (1969, 12, 31);
        for days in 0..182_622 {
            let (year, month, day) = date_of(days);
            assert!((year, month, day) > before && (1..=12).contains(&month) && (1..=31).contains(&day));
            assert_eq!(days_to(year as i64, month as i64, day as i64), days as i64);
            before = (year, month, day);
        }
        assert_eq!(date_of(11_016), (2000, 2, 29));
        assert_eq!(days_to(1950, 1, 1), -7_305);
    }
}
