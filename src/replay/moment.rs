//! Moments as logs write them.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::clock::{Timestamp, micros};

/// A moment of a log: RFC 3339, or a number of seconds, milliseconds, microseconds or nanoseconds since 1970.
pub fn read(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => from_text(text).or_else(|| from_number(text.parse().ok()?)),
        Value::Number(number) => from_number(number.as_f64()?),
        _ => None,
    }
}

/// As RFC 3339, in milliseconds.
pub fn written(at: Timestamp) -> String {
    let at = UNIX_EPOCH + Duration::from_micros(at.as_micros());
    humantime::format_rfc3339_millis(at).to_string()
}

fn from_text(text: &str) -> Option<Timestamp> {
    let (text, east) = match offset(text) {
        Some((rest, east)) => (format!("{rest}Z"), east),
        None => (text.to_owned(), 0),
    };
    let moment = humantime::parse_rfc3339(&text).ok()?;
    let since = micros(moment.duration_since(UNIX_EPOCH).ok()?);
    let utc = i64::try_from(since).ok()?.checked_sub(east * 60_000_000)?;
    u64::try_from(utc).ok().map(Timestamp::from_micros)
}

/// `+02:00` or `-0530` at the end, in minutes, and what stands before it.
fn offset(text: &str) -> Option<(&str, i64)> {
    let at = text
        .rfind(['+', '-'])
        .filter(|at| *at > "2026-01-01T".len())?;
    let (rest, offset) = (text.get(..at)?, text.get(at + 1..)?);
    let digits = offset.replace(':', "");
    if digits.len() != 4 {
        return None;
    }
    let (hours, minutes) = (digits.get(..2)?, digits.get(2..)?);
    let east = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    let sign = if text.as_bytes()[at] == b'-' { -1 } else { 1 };
    Some((rest, sign * east))
}

/// By its size: seconds reach 10^11 in the year 5138, and milliseconds did in 1973.
fn from_number(number: f64) -> Option<Timestamp> {
    let micros = match number {
        n if n < 0.0 || !n.is_finite() => return None,
        n if n < 1e11 => n * 1e6,
        n if n < 1e14 => n * 1e3,
        n if n < 1e17 => n,
        n => n / 1e3,
    };
    Some(Timestamp::from_micros(micros as u64))
}
