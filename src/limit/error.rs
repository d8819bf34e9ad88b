//! Why a limit cannot be.

use super::MOST_DELAY;

/// Why a limit cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The text has another shape.
    #[error(
        "`{text}` is not a limit: write N/PERIOD, for example `10/second burst 100`, `50/minute sliding` or `1000000/month`"
    )]
    Shape {
        /// The text.
        text: String,
    },
    /// N or the burst is not a number of 32 bits.
    #[error("`{text}` is not a whole number from 0 to 4294967295")]
    Number {
        /// The text of the number.
        text: String,
    },
    /// No unit is called so.
    #[error("unknown period `{text}`{}; use second, minute, hour, day, week, month or year, or a number of them like `10s` or `2 minutes`", .hint.as_ref().map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default())]
    Period {
        /// The text of the period.
        text: String,
        /// The nearest unit.
        hint: Option<&'static str>,
    },
    /// A period of no length.
    #[error("a period must be longer than zero")]
    ZeroPeriod,
    /// A period that is too long to count in.
    #[error("a period of {period} is too long: use at most 100 years")]
    LongPeriod {
        /// The period.
        period: String,
    },
    /// `burst 0`.
    #[error("a burst must be at least 1; to block, use a limit of 0 without a burst")]
    ZeroBurst,
    /// `0/second burst B`.
    #[error("a limit of 0 blocks, so no burst goes with it")]
    ZeroWithBurst,
    /// `N/month burst B` or `N/month sliding`.
    #[error(
        "a {unit} has no fixed length, so `{word}` cannot go with it: use days, for example `{days} days`"
    )]
    NoFixedLength {
        /// month or year
        unit: &'static str,
        /// burst or sliding
        word: &'static str,
        /// Days of about that length.
        days: u32,
    },
    /// `time_zone` or `offset` on what is no calendar limit.
    #[error(
        "`{limit}` follows no calendar, so `time_zone` and `offset` cannot go with it: use a calendar limit, for example `5/day calendar`"
    )]
    ZoneWithoutCalendar {
        /// The limit.
        limit: String,
    },
    /// No zone is called so.
    #[error(
        "unknown time zone `{name}`{}; use an IANA name like `Europe/Berlin`", .hint.as_ref().map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default()
    )]
    Zone {
        /// The name.
        name: String,
        /// The nearest zone.
        hint: Option<String>,
    },
    /// Not an offset into the period.
    #[error(
        "`{text}` is no offset into a {period}: use whole seconds, less than {below}, for example `6h` or `90m`"
    )]
    Offset {
        /// The text.
        text: String,
        /// The period.
        period: String,
        /// What it must be less than.
        below: String,
    },
    /// A period that is the same in all zones, or that days do not hold whole.
    #[error(
        "`time_zone` and `offset` go with days, weeks, months and years, and with hours that divide a day (1, 2, 3, 4, 6, 8 or 12), not with a period of {period}"
    )]
    ZonePeriod {
        /// The period.
        period: String,
    },
    /// No tick keeps the arithmetic exact.
    #[error(
        "{count} per {period} with a burst of {burst} cannot be counted exactly: use a number that divides the period's seconds, or a shorter period"
    )]
    Inexact {
        /// N
        count: u32,
        /// The period.
        period: String,
        /// The burst.
        burst: u32,
    },
    /// A delay on what is no token bucket.
    #[error(
        "`{limit}` is no token bucket, and only tokens can be waited for: a delay goes with `N/PERIOD` or `N/PERIOD burst B`"
    )]
    DelayOfNoBucket {
        /// The limit.
        limit: String,
    },
    /// A delay that blocks or takes too long.
    #[error("a delay must be longer than 0 and at most {}s", MOST_DELAY.as_secs())]
    DelayLength,
    /// `0/second` with a delay.
    #[error("a limit of 0 blocks, so no delay goes with it")]
    ZeroWithDelay,
    /// A time of a penalty that is none, or endless, or shorter at most than at first.
    #[error(
        "the times of a penalty must be longer than 0 and at most 366 days, and `longest` no shorter than `for`"
    )]
    PenaltyLength,
    /// A penalty after no refusal at all.
    #[error("a penalty comes after at least 1 refusal")]
    PenaltyWithoutRefusals,
    /// `0/second` with a penalty.
    #[error("a limit of 0 blocks, so no penalty goes with it")]
    ZeroWithPenalty,
}
