//! Hours and days of UTC, counted from 1970, and their names.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, UNIX_EPOCH},
};

use crate::clock::Timestamp;

const HOUR_SECONDS: u64 = 3_600;

/// The last day that has a name of four digits of a year: 9999-12-31.
const LAST_DAY: u32 = 2_932_896;

/// An hour or a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// Hours since 1970.
    Hour(u32),
    /// A day.
    Day(Day),
}

/// Days since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(u32);

/// The text is no day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no day: write it like 2026-11-30")]
pub struct DayError(String);

impl Day {
    /// The day of that moment.
    pub fn of(moment: Timestamp) -> Self {
        Self::of_hour(hour_of(moment))
    }

    /// The day of that hour, counted since 1970.
    pub fn of_hour(hour: u32) -> Self {
        Self(hour / 24)
    }

    /// The first day of its month.
    pub fn month_begin(self) -> Self {
        let first = format!("{}-01", self.month());
        first.parse().expect("every month has a first day")
    }

    /// `2026-11`.
    pub fn month(self) -> String {
        self.to_string()[..7].to_owned()
    }

    /// Its hours.
    pub fn hours(self) -> impl Iterator<Item = Period> {
        (self.0 * 24..(self.0 + 1) * 24).map(Period::Hour)
    }

    /// The days from this to `last`, both of them.
    pub fn through(self, last: Self) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..=last.0).map(Self)
    }
}

/// Hours since 1970, of which the last one has a name.
pub(super) fn hour_of(moment: Timestamp) -> u32 {
    let hours = moment.as_micros() / (HOUR_SECONDS * 1_000_000);
    u32::try_from(hours).map_or(LAST_DAY * 24, |hours| hours.min(LAST_DAY * 24))
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339(u64::from(self.0) * 24)[..10])
    }
}

impl FromStr for Day {
    type Err = DayError;

    fn from_str(text: &str) -> Result<Self, DayError> {
        let wrong = || DayError(text.to_owned());
        let midnight =
            humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).map_err(|_| wrong())?;
        let since = midnight.duration_since(UNIX_EPOCH).map_err(|_| wrong())?;
        let day = Self((since.as_secs() / (24 * HOUR_SECONDS)) as u32);
        // No other way to write it.
        (day.to_string() == text).then_some(day).ok_or_else(wrong)
    }
}

impl fmt::Display for Period {
    /// `2026-11-30T05` or `2026-11-30`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hour(hour) => f.write_str(&rfc3339(u64::from(*hour))[..13]),
            Self::Day(day) => day.fmt(f),
        }
    }
}

/// The beginning of an hour.
fn rfc3339(hours: u64) -> String {
    let moment = UNIX_EPOCH + Duration::from_secs(hours * HOUR_SECONDS);
    humantime::format_rfc3339_seconds(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_hours_have_names_and_months() {
        let day: Day = "2024-02-29".parse().unwrap();
        assert_eq!(day.to_string(), "2024-02-29");
        assert_eq!(day.month(), "2024-02");
        assert_eq!(day.month_begin().to_string(), "2024-02-01");
        let hours: Vec<String> = day.hours().map(|hour| hour.to_string()).collect();
        assert_eq!((hours.len(), &*hours[0]), (24, "2024-02-29T00"));
        assert_eq!(hours[23], "2024-02-29T23");
        for wrong in [
            "",
            "2024-2-9",
            "2023-02-29",
            "2024-02",
            "1969-12-31",
            "+2024-02-29",
        ] {
            assert!(wrong.parse::<Day>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_hour_ends_on_the_microsecond() {
        let hour = |us| hour_of(Timestamp::from_micros(us));
        assert_eq!((hour(3_599_999_999), hour(3_600_000_000)), (0, 1));
    }

    #[test]
    fn a_clock_beyond_all_years_still_has_a_name() {
        let last = Timestamp::from_micros(u64::MAX);
        assert_eq!(Day::of(last).to_string(), "9999-12-31");
        assert_eq!(Period::Hour(hour_of(last)).to_string(), "9999-12-31T00");
    }
}
