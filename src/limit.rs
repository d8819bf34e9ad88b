//! What is allowed: one limit, its text form, and the numbers its arithmetic needs. Pure.
//!
//! A limit reads `N/PERIOD [burst B | sliding | calendar | fixed]`, for example `10/second burst 100`.

mod delay;
mod error;
mod penalty;
mod text;
mod zone;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    error::LimitError,
    penalty::Penalty,
    zone::{Bounds, Zone},
};

/// Largest integer that a double, and so Lua, holds with all smaller ones exactly.
pub const EXACT: u128 = 1 << 53;

/// A sliding window is counted in this many slots, so it refuses at most a 60th of its length too long.
pub const SLIDING_SLOTS: u64 = 60;

/// Longest delay of a limit.
pub const MOST_DELAY: Duration = Duration::from_secs(60);

/// A named length of time, as the reference's `unit` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Unit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Unit {
    /// All units, shortest first.
    pub const ALL: [Self; 7] = [
        Self::Second,
        Self::Minute,
        Self::Hour,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Year,
    ];

    /// The unit's name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// Length in seconds. A month counts 30 days and a year 365, as in envoyproxy/ratelimit.
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
            Self::Year => 365 * 86_400,
        }
    }

    /// The unit of that name, in any letter case, singular, plural or short (`s`, `min`, `h`, `d`, `w`).
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        match lower.as_str() {
            "s" | "sec" => return Some(Self::Second),
            "m" | "min" => return Some(Self::Minute),
            "h" => return Some(Self::Hour),
            "d" => return Some(Self::Day),
            "w" => return Some(Self::Week),
            _ => {}
        }
        Self::ALL
            .into_iter()
            .find(|unit| lower.strip_suffix('s').unwrap_or(&lower) == unit.name())
    }
}

/// A length of time: so many units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Period {
    /// The unit.
    pub unit: Unit,
    /// How many of them; at least 1.
    pub multiplier: u32,
}

impl Period {
    /// One unit.
    pub const fn of(unit: Unit) -> Self {
        Self {
            unit,
            multiplier: 1,
        }
    }

    /// Length in microseconds.
    pub const fn micros(self) -> u64 {
        self.unit.seconds() * self.multiplier as u64 * 1_000_000
    }

    /// Length in seconds.
    pub const fn seconds(self) -> u64 {
        self.unit.seconds() * self.multiplier as u64
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.multiplier {
            1 => f.write_str(self.unit.name()),
            n => write!(f, "{n} {}s", self.unit.name()),
        }
    }
}

/// How a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A token bucket: refills all the time, holds `burst` at most.
    Bucket {
        /// Most tokens it holds.
        burst: u32,
    },
    /// At most N in any interval of the period's length.
    Sliding,
    /// At most N per calendar period, in UTC unless the limit has a [`Zone`]; weeks begin on Monday.
    Calendar,
    /// At most N per window of the period's length, a month counting 30 days and a year 365. Windows follow each other from
    /// the Unix epoch on, so weeks begin on Thursday.
    // Source: envoyproxy/ratelimit counts so.
    FixedWindow,
    /// The penalty of another limit: all passes but while it runs. No plan says it alone; [`Limit::guard`] makes it.
    Penalty,
}

/// How limits count that do not say it themselves: the reference's form, and plain `N/PERIOD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    /// As [`Kind::Bucket`] that holds N; in our own form, months and years as [`Kind::Calendar`].
    #[default]
    TokenBucket,
    /// As [`Kind::FixedWindow`].
    FixedWindow,
}

impl Algorithm {
    /// All of them, by name.
    pub const NAMES: &[(&str, Self)] = &[
        ("token_bucket", Self::TokenBucket),
        ("fixed_window", Self::FixedWindow),
    ];

    /// As plans say it.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, algorithm)| *algorithm == self);
        found.expect("all are named").0
    }
}

/// One limit: `count` per `period`, counted as `kind` says. Made by [`Limit::new`], which checks that it can be counted
/// exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    count: u32,
    period: Period,
    kind: Kind,
    /// How long an answer may wait for its tokens.
    delay_us: u32,
    refill: Refill,
    penalty: Option<Arc<Penalty>>,
    zone: Option<Arc<Zone>>,
}

/// How a token bucket refills, in integers: each tick brings `whole + part / denominator` tokens, in lowest terms.
///
/// A tick is `tick_us` microseconds: 1, or 1,000, or 1,000,000 where `part × denominator` would else leave the range that
/// Lua's doubles hold exactly (2^53).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Refill {
    /// Length of a tick in microseconds.
    pub tick_us: u64,
    /// Whole tokens per tick.
    pub whole: u64,
    /// What a tick brings beyond them, in `denominator`ths of a token; less than one token.
    pub part: u64,
    /// The parts of one token.
    pub denominator: u64,
    /// Ticks from empty to full, rounded up; 2^53, which no clock reaches before 2255, where it is more.
    pub ticks_to_full: u64,
}

impl Limit {
    /// A limit of `count` per `period`.
    ///
    /// # Errors
    /// [`LimitError::ZeroPeriod`], [`LimitError::LongPeriod`], [`LimitError::ZeroBurst`] (unless `count` is 0, the way to
    /// block), [`LimitError::ZeroWithBurst`], and [`LimitError::Inexact`] where no tick keeps a token bucket's arithmetic exact.
    pub fn new(count: u32, period: Period, kind: Kind) -> Result<Self, LimitError> {
        if period.multiplier == 0 {
            return Err(LimitError::ZeroPeriod);
        }
        let too_long = u64::from(period.multiplier) > 100 * 365 * 86_400 / period.unit.seconds();
        if too_long {
            return Err(LimitError::LongPeriod {
                period: period.to_string(),
            });
        }
        let burst = match kind {
            Kind::Bucket { burst: 0 } if count > 0 => return Err(LimitError::ZeroBurst),
            Kind::Bucket { burst: 1.. } if count == 0 => return Err(LimitError::ZeroWithBurst),
            Kind::Bucket { burst } => burst,
            Kind::Sliding | Kind::Calendar | Kind::FixedWindow | Kind::Penalty => count,
        };
        let refill = match kind {
            Kind::Bucket { .. } => {
                Refill::exact(count, period, burst).ok_or_else(|| LimitError::Inexact {
                    count,
                    period: period.to_string(),
                    burst,
                })?
            }
            _ => Refill::NEVER,
        };
        Ok(Self {
            count,
            period,
            kind,
            delay_us: 0,
            refill,
            penalty: None,
            zone: None,
        })
    }

    /// The same limit by the calendar of a time zone (an IANA name; UTC unless told), whose periods begin `offset` (such as
    /// `6h`) after its midnights.
    ///
    /// # Errors
    /// [`LimitError::ZoneWithoutCalendar`] for another kind; [`LimitError::Zone`], [`LimitError::Offset`] and
    /// [`LimitError::ZonePeriod`] for what has no meaning.
    pub fn in_zone(self, name: Option<&str>, offset: Option<&str>) -> Result<Self, LimitError> {
        if name.is_none() && offset.is_none() {
            return Ok(self);
        }
        if self.kind != Kind::Calendar {
            return Err(LimitError::ZoneWithoutCalendar {
                limit: self.to_string(),
            });
        }
        let zone = Zone::new(name, offset, self.period)?.map(Arc::new);
        Ok(Self { zone, ..self })
    }

    /// The same limit, by the calendar that `other` follows.
    pub fn in_zone_of(self, other: &Self) -> Self {
        Self {
            zone: other.zone.clone(),
            ..self
        }
    }

    /// What the reference's `rate_limit` of `count` per `period` becomes under `algorithm`.
    ///
    /// # Errors
    /// As [`Limit::new`].
    pub fn per(count: u32, period: Period, algorithm: Algorithm) -> Result<Self, LimitError> {
        let kind = match algorithm {
            Algorithm::TokenBucket => Kind::Bucket { burst: count },
            Algorithm::FixedWindow => Kind::FixedWindow,
        };
        Self::new(count, period, kind)
    }

    /// The same numbers, counted in fixed windows.
    pub fn in_fixed_windows(&self) -> Self {
        Self {
            kind: Kind::FixedWindow,
            refill: Refill::NEVER,
            zone: None,
            ..self.clone()
        }
    }

    /// Whether a limit's text leaves it open how to count.
    pub fn is_plain(text: &str) -> bool {
        let mut words = text.split_whitespace();
        !words.any(|word| text::KIND_WORDS.contains(&word))
    }

    /// Hits per period.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The period.
    pub fn period(&self) -> Period {
        self.period
    }

    /// How it counts.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Most hits that can ever pass at one moment: the burst, or the count.
    pub fn capacity(&self) -> u32 {
        match self.kind {
            Kind::Bucket { burst } => burst,
            Kind::Sliding | Kind::Calendar | Kind::FixedWindow => self.count,
            Kind::Penalty => 1,
        }
    }

    /// The zone whose calendar it follows; none for UTC, from midnight on.
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_deref()
    }

    /// How a token bucket refills. Of no meaning for the other kinds.
    pub fn refill(&self) -> &Refill {
        &self.refill
    }

    /// Length of a sliding window's slot in microseconds: the period over [`SLIDING_SLOTS`], rounded up.
    pub fn slot_us(&self) -> u64 {
        self.period.micros().div_ceil(SLIDING_SLOTS)
    }

    /// Kind, period and zone as they stand in a bucket's key: what must stay for a bucket to stay.
    pub fn identity(&self) -> String {
        let letter = match self.kind {
            Kind::Bucket { .. } => 'b',
            Kind::Sliding => 's',
            Kind::Calendar => 'c',
            Kind::FixedWindow => 'f',
            Kind::Penalty => 'p',
        };
        match (self.kind, self.period.unit) {
            (Kind::Calendar, unit) => {
                let zone = self.zone().map(Zone::identity).unwrap_or_default();
                format!("{letter}{}{}{zone}", self.period.multiplier, unit.name())
            }
            _ => format!("{letter}{}", self.period.seconds()),
        }
    }
}

impl Refill {
    const NEVER: Self = Self {
        tick_us: 1,
        whole: 0,
        part: 0,
        denominator: 1,
        ticks_to_full: 0,
    };

    /// The finest tick that keeps `count` per `period` exact, or none.
    fn exact(count: u32, period: Period, burst: u32) -> Option<Self> {
        if count == 0 {
            return Some(Self::NEVER);
        }
        [1, 1_000, 1_000_000].into_iter().find_map(|tick_us| {
            let ticks = period.micros() / tick_us;
            let divisor = gcd(u64::from(count), ticks);
            let (numerator, denominator) = (u64::from(count) / divisor, ticks / divisor);
            let refill = Self {
                tick_us,
                whole: numerator / denominator,
                part: numerator % denominator,
                denominator,
                ticks_to_full: 0,
            };
            let exact = u128::from(refill.part) * u128::from(denominator) < EXACT / 2;
            exact.then(|| {
                let ticks_to_full = refill.ticks_for(u64::from(burst), 0).min(EXACT as u64);
                Self {
                    ticks_to_full,
                    ..refill
                }
            })
        })
    }

    /// Ticks until `tokens` more are there, when `fraction` of the first one is.
    pub fn ticks_for(&self, tokens: u64, fraction: u64) -> u64 {
        let rate = u128::from(self.whole) * u128::from(self.denominator) + u128::from(self.part);
        let missing = u128::from(tokens) * u128::from(self.denominator);
        let ticks = missing
            .saturating_sub(u128::from(fraction))
            .div_ceil(rate.max(1));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
