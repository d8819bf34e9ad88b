//! A limit as plans write it: `N/PERIOD [burst B | sliding | calendar | fixed]`.

use std::{fmt, str::FromStr};

use super::{Kind, Limit, LimitError, Period, Unit};

/// As plans say it; `{:#}` leaves out what becomes of what is beyond it.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.period)?;
        match (self.kind, self.period.unit) {
            (Kind::Bucket { burst }, _) if burst != self.count => write!(f, " burst {burst}"),
            (Kind::Sliding, _) => f.write_str(" sliding"),
            (Kind::FixedWindow, _) => f.write_str(" fixed"),
            (Kind::Penalty, _) => f.write_str(" penalty"),
            (Kind::Calendar, Unit::Month | Unit::Year) | (Kind::Bucket { .. }, _) => Ok(()),
            (Kind::Calendar, _) => f.write_str(" calendar"),
        }?;
        if let Some(zone) = self.zone() {
            zone.fmt(f)?;
        }
        match f.alternate() {
            true => Ok(()),
            false => self.write_beyond(f),
        }
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let shape = || LimitError::Shape {
            text: text.to_owned(),
        };
        let (count, rest) = text.split_once('/').ok_or_else(shape)?;
        let count = number(count.trim())?;
        let mut words = rest.split_whitespace().peekable();
        let period = period(&mut words, shape)?;
        let kind = kind(&mut words, count, period, shape)?;
        match words.next() {
            Some(_) => Err(shape()),
            None => Self::new(count, period, kind),
        }
    }
}

fn number(text: &str) -> Result<u32, LimitError> {
    let digits = text.replace('_', "");
    digits.parse().map_err(|_| LimitError::Number {
        text: text.to_owned(),
    })
}

/// Reads `second`, `10s`, `10 seconds`.
fn period<'a>(
    words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    shape: impl Fn() -> LimitError,
) -> Result<Period, LimitError> {
    let first = words.next().ok_or_else(&shape)?;
    let letters = first
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(first.len());
    let (digits, mut name) = first.split_at(letters);
    if name.is_empty() {
        name = words.next().ok_or_else(&shape)?;
    }
    let multiplier = if digits.is_empty() {
        1
    } else {
        number(digits)?
    };
    match Unit::parse(name) {
        Some(unit) => Ok(Period { unit, multiplier }),
        None => Err(LimitError::Period {
            text: name.to_owned(),
            hint: nearest_unit(name),
        }),
    }
}

fn nearest_unit(name: &str) -> Option<&'static str> {
    Unit::ALL
        .into_iter()
        .map(|unit| {
            (
                strsim::damerau_levenshtein(&name.to_ascii_lowercase(), unit.name()),
                unit.name(),
            )
        })
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, name)| name)
}

/// The words that say how a limit counts.
pub(super) const KIND_WORDS: [&str; 4] = ["burst", "sliding", "calendar", "fixed"];

/// Reads `burst B`, `sliding`, `calendar`, `fixed` or nothing.
fn kind<'a>(
    words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
    count: u32,
    period: Period,
    shape: impl Fn() -> LimitError,
) -> Result<Kind, LimitError> {
    let needs_length = |word: &'static str, kind: Kind| match period.unit {
        Unit::Month | Unit::Year => Err(LimitError::NoFixedLength {
            unit: period.unit.name(),
            word,
            days: (period.seconds() / 86_400) as u32,
        }),
        _ => Ok(kind),
    };
    match words.next() {
        Some("burst") => {
            let burst = number(words.next().ok_or_else(shape)?)?;
            if burst == 0 {
                return Err(LimitError::ZeroBurst);
            }
            needs_length("burst", Kind::Bucket { burst })
        }
        Some("sliding") => needs_length("sliding", Kind::Sliding),
        Some("calendar") => Ok(Kind::Calendar),
        Some("fixed") => Ok(Kind::FixedWindow),
        Some(_) => Err(shape()),
        None if matches!(period.unit, Unit::Month | Unit::Year) => Ok(Kind::Calendar),
        None => Ok(Kind::Bucket { burst: count }),
    }
}
