//! Quotas: at most N per period, of the calendar (UTC's, or a time zone's) or of fixed windows that follow each other from the
//! Unix epoch on. Pure integers.

use std::time::Duration;

use crate::{
    clock::Timestamp,
    descriptor::Hits,
    limit::{Bounds, EXACT, Kind, Limit, Period, Unit, Zone},
};

/// Microseconds in a day.
pub const DAY_US: u64 = 86_400_000_000;

/// What is used of the present period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Hits in the period; above the limit's count is debt.
    pub used: u64,
    /// Start of the period, in microseconds since the Unix epoch.
    pub start_us: u64,
}

impl Spent {
    /// Nothing used.
    pub fn unused(limit: &Limit, now: Timestamp) -> Self {
        Self {
            used: 0,
            start_us: begins(limit, now).as_micros(),
        }
    }

    /// Starts anew if a later period has begun.
    pub fn turn(&mut self, limit: &Limit, now: Timestamp) {
        let start_us = begins(limit, now).as_micros();
        if start_us > self.start_us {
            *self = Self { used: 0, start_us };
        }
    }

    /// Counts hits, or takes them out again. Debt ends where [`most`] says.
    pub fn apply(&mut self, limit: &Limit, hits: Hits) {
        self.used = match hits {
            Hits::Take(hits) => {
                let most = most(limit).max(self.used);
                self.used.saturating_add(hits).min(most)
            }
            Hits::Give(hits) => self.used.saturating_sub(hits),
        };
    }

    /// How long until `missing` more hits fit: to the end of the period, as each period starts with nothing used.
    pub fn wait(&self, limit: &Limit, _missing: u64, now: Timestamp) -> Option<Duration> {
        Some(self.end(limit).since(now))
    }

    /// End of the period, or the distant past if nothing is used.
    pub fn full_at(&self, limit: &Limit) -> Timestamp {
        if self.used == 0 {
            Timestamp::default()
        } else {
            self.end(limit)
        }
    }

    /// End of the period.
    pub fn end(&self, limit: &Limit) -> Timestamp {
        let start = Timestamp::from_micros(self.start_us);
        match (limit.kind(), limit.zone()) {
            (Kind::Calendar, Some(zone)) => bounds(limit.period(), zone, start)[2],
            (Kind::Calendar, None) => end_of(limit.period(), start),
            _ => start.after(Duration::from_micros(limit.period().micros())),
        }
    }
}

/// The most that is counted: a calendar quota goes into debt by one count, and a fixed window counts whatever comes, since
/// its end forgives it.
pub fn most(limit: &Limit) -> u64 {
    match limit.kind() {
        Kind::FixedWindow => EXACT as u64 - 1,
        _ => 2 * u64::from(limit.count()),
    }
}

/// Start of the period of `limit` that `now` lies in.
fn begins(limit: &Limit, now: Timestamp) -> Timestamp {
    match (limit.kind(), limit.zone()) {
        (Kind::Calendar, Some(zone)) => bounds(limit.period(), zone, now)[1],
        (Kind::Calendar, None) => start_of(limit.period(), now),
        _ => {
            let now_us = now.as_micros();
            Timestamp::from_micros(now_us - now_us % limit.period().micros())
        }
    }
}

/// The beginnings of the periods around `now` by the calendar of `zone`: of the one before, of the present one, and of the two
/// after it.
pub fn bounds(period: Period, zone: &Zone, now: Timestamp) -> Bounds {
    // No clock goes further.
    let now = now.min(Timestamp::from_micros(EXACT as u64));
    zone.bounds(now, || {
        let mut shown = start_of(period, zone.shown(now));
        // Clocks that were put back show a period again that has ended.
        while zone.first(end_of(period, shown)) <= now {
            shown = end_of(period, shown);
        }
        let next = end_of(period, shown);
        let moment_before = Timestamp::from_micros(shown.as_micros().saturating_sub(1));
        [
            start_of(period, moment_before),
            shown,
            next,
            end_of(period, next),
        ]
        .map(|at| zone.first(at))
    })
}

/// Start of the calendar's period that `now` lies in.
pub fn start_of(period: Period, now: Timestamp) -> Timestamp {
    let now_us = now.as_micros();
    let multiplier = u64::from(period.multiplier);
    let start = match period.unit {
        Unit::Month => {
            let months = months_since_epoch(now_us / DAY_US);
            first_of_month(months / multiplier * multiplier) * DAY_US
        }
        Unit::Year => {
            let months = months_since_epoch(now_us / DAY_US);
            first_of_month(months / (12 * multiplier) * (12 * multiplier)) * DAY_US
        }
        _ => {
            let (length, anchor) = (period.micros(), anchor(period.unit));
            // Before the first Monday of 1970 only a clock without a date is.
            now_us.saturating_sub(anchor) / length * length
                + if now_us < anchor { 0 } else { anchor }
        }
    };
    Timestamp::from_micros(start)
}

/// End of the period that begins at `start`.
pub fn end_of(period: Period, start: Timestamp) -> Timestamp {
    let months = match period.unit {
        Unit::Month => 1,
        Unit::Year => 12,
        _ => return start.after(Duration::from_micros(period.micros())),
    };
    let first = months_since_epoch(start.as_micros() / DAY_US);
    Timestamp::from_micros(first_of_month(first + months * u64::from(period.multiplier)) * DAY_US)
}

/// Microseconds since the epoch from which periods of `unit` are counted: weeks begin on Monday, and 1970-01-01 was a
/// Thursday.
pub fn anchor(unit: Unit) -> u64 {
    if unit == Unit::Week { 4 * DAY_US } else { 0 }
}

/// Months from January 1970 to the month of a day, which is counted from the epoch.
// Source: the civil-from-days rule of the proleptic Gregorian calendar, with years that begin in March.
fn months_since_epoch(day: u64) -> u64 {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + from_march + 2 - 1970 * 12
}

/// The first day of a month, both counted from January 1970.
fn first_of_month(months: u64) -> u64 {
    let since_march = months + 1970 * 12 - 2;
    let (year, from_march) = (since_march / 12, since_march % 12);
    let (era, of_era) = (year / 400, year % 400);
    era * 146_097 + 365 * of_era + of_era / 4 - of_era / 100 + (153 * from_march + 2) / 5 - 719_468
}
