//! Whose calendar a quota follows: that of a time zone, its periods beginning some time after the zone's midnights.
//!
//! A period begins at the first moment at which the zone's clocks show its beginning or later. So a day on which clocks are put
//! forward is short, one on which they are put back is long, a beginning that clocks jump over is when they jump, and one that
//! they show twice is the first. The data of all zones is compiled in: every replica knows the same, whatever its image has.

use std::{fmt, time::Duration};

use arc_swap::ArcSwap;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use super::{EXACT, LimitError, Period, Unit};
use crate::clock::Timestamp;

const DAY_S: u64 = 86_400;

/// The beginnings of four periods in a row. The second one is the present period.
pub type Bounds = [Timestamp; 4];

/// A time zone, and how long after its midnights periods begin.
pub struct Zone {
    zone: TimeZone,
    /// As IANA writes it.
    name: Box<str>,
    offset: Duration,
    /// The bounds last asked for.
    known: ArcSwap<Bounds>,
}

impl Zone {
    /// The zone of that IANA name (UTC unless told), for periods that begin `offset` after its midnights. None where that is
    /// what calendar limits do anyway.
    ///
    /// # Errors
    /// [`LimitError::Zone`] where no zone is called so, [`LimitError::Offset`] where `offset` is no whole number of seconds below
    /// the period's length, [`LimitError::ZonePeriod`] where all zones have the same periods, or the days do not hold them whole.
    pub(super) fn new(
        name: Option<&str>,
        offset: Option<&str>,
        period: Period,
    ) -> Result<Option<Self>, LimitError> {
        let name = name.unwrap_or("UTC");
        let zone = TimeZone::get(name).map_err(|_| LimitError::Zone {
            name: name.to_owned(),
            hint: nearest(name),
        })?;
        let shortest_s = shortest_s(period).ok_or(LimitError::ZonePeriod {
            period: period.to_string(),
        })?;
        let offset = offset
            .map(|text| parse_offset(text, shortest_s, period))
            .transpose()?
            .unwrap_or_default();
        if zone == TimeZone::UTC && offset.is_zero() {
            return Ok(None);
        }
        Ok(Some(Self {
            name: zone.iana_name().unwrap_or(name).into(),
            zone,
            offset,
            known: ArcSwap::default(),
        }))
    }

    /// Its IANA name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long after its midnights periods begin, in whole seconds.
    pub fn offset(&self) -> Duration {
        self.offset
    }

    /// What its clocks show at `moment`, less the offset, as if it were UTC.
    pub fn shown(&self, moment: Timestamp) -> Timestamp {
        let moment = moment.as_micros().min(EXACT as u64);
        let ahead = self.zone.to_offset(instant(moment)).seconds();
        let shown = moment.saturating_add_signed(i64::from(ahead) * 1_000_000);
        Timestamp::from_micros(shown.saturating_sub(self.offset_us()))
    }

    /// The first moment at which [`shown`](Self::shown) is `shown` or later.
    pub fn first(&self, shown: Timestamp) -> Timestamp {
        let shown = shown.as_micros().saturating_add(self.offset_us());
        let local = Offset::UTC.to_datetime(instant(shown));
        let offset = match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset,
            AmbiguousOffset::Fold { before, .. } => before,
            AmbiguousOffset::Gap { before, .. } => {
                let after_jump = instant(less(shown, before) + 1);
                let jump = self.zone.preceding(after_jump).next();
                let jump = jump.expect("a gap has a transition").timestamp();
                return Timestamp::from_micros(jump.as_microsecond().max(0).unsigned_abs());
            }
        };
        Timestamp::from_micros(less(shown, offset))
    }

    /// The bounds around `now`: those of the last call where they still hold, else what `find` finds.
    pub fn bounds(&self, now: Timestamp, find: impl FnOnce() -> Bounds) -> Bounds {
        let known = **self.known.load();
        if known[1] <= now && now < known[2] {
            return known;
        }
        let found = find();
        self.known.store(found.into());
        found
    }

    /// As it stands in a bucket's key.
    pub(super) fn identity(&self) -> String {
        format!("@{}+{}", self.name, self.offset.as_secs())
    }

    fn offset_us(&self) -> u64 {
        self.offset.as_secs() * 1_000_000
    }
}

/// The shortest that such a period ever is on a clock, in seconds; none where zones and offsets have no meaning for it.
fn shortest_s(period: Period) -> Option<u64> {
    let days = match period.unit {
        Unit::Second | Unit::Minute => return None,
        Unit::Hour if 24 % period.multiplier == 0 => return Some(period.seconds()),
        Unit::Hour => return None,
        Unit::Day => 1,
        Unit::Week => 7,
        Unit::Month => 28,
        Unit::Year => 365,
    };
    Some(days * DAY_S * u64::from(period.multiplier))
}

fn parse_offset(text: &str, shortest_s: u64, period: Period) -> Result<Duration, LimitError> {
    let offset = humantime::parse_duration(text).ok();
    offset
        .filter(|offset| offset.subsec_nanos() == 0 && offset.as_secs() < shortest_s)
        .ok_or_else(|| LimitError::Offset {
            text: text.to_owned(),
            period: period.to_string(),
            below: humantime::format_duration(Duration::from_secs(shortest_s)).to_string(),
        })
}

fn nearest(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let distance = |known: &str| {
        let known = known.to_ascii_lowercase();
        // Most forget the continent.
        let city = known.rsplit('/').next().unwrap_or(&known);
        strsim::damerau_levenshtein(&lower, &known).min(strsim::damerau_levenshtein(&lower, city))
    };
    jiff::tz::db()
        .available()
        .map(|known| (distance(known.as_str()), known.to_string()))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, known)| known)
}

/// `shown` less what its zone is ahead of UTC.
fn less(shown: u64, ahead: Offset) -> u64 {
    shown.saturating_add_signed(-i64::from(ahead.seconds()) * 1_000_000)
}

/// The moment so many microseconds after the Unix epoch, or the last one known to calendars.
fn instant(us: u64) -> jiff::Timestamp {
    let us = i64::try_from(us).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(us).unwrap_or(jiff::Timestamp::MAX)
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.offset) == (&other.name, other.offset)
    }
}

impl Eq for Zone {}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.identity())
    }
}

/// ` in Europe/Berlin offset 6h`, to follow a limit's text.
impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.zone != TimeZone::UTC {
            write!(f, " in {}", self.name)?;
        }
        if !self.offset.is_zero() {
            write!(f, " offset {}", humantime::format_duration(self.offset))?;
        }
        Ok(())
    }
}
