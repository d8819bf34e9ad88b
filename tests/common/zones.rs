//! The calendars of time zones as plainly as can be: the beginnings around a day are listed, each as the zone's clocks show it.

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, DateTime, date},
    tz::{AmbiguousOffset, TimeZone},
};
use tollgate::limit::{Limit, Period, Unit};

/// Reads `5/day calendar in Europe/Berlin offset 6h`, as limits print.
pub fn limit(text: &str) -> Limit {
    let (rest, offset) = match text.split_once(" offset ") {
        Some((rest, offset)) => (rest, Some(offset)),
        None => (text, None),
    };
    let (plain, zone) = match rest.split_once(" in ") {
        Some((plain, zone)) => (plain, Some(zone)),
        None => (rest, None),
    };
    let limit: Limit = plain.parse().expect("a limit");
    limit
        .in_zone(zone, offset)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Start and end of the period that `now` lies in, all in microseconds since the Unix epoch.
pub fn period_around(zone: &str, offset_s: i64, period: Period, now: i64) -> (i64, i64) {
    let zone = TimeZone::get(zone).expect("a zone");
    let today = Timestamp::from_microsecond(now)
        .expect("in range")
        .to_zoned(zone.clone())
        .date();
    let moments: Vec<i64> = beginnings(period, today)
        .map(|beginning| first_moment(&zone, beginning + offset_s.seconds()))
        .collect();
    let start = moments
        .iter()
        .rfind(|moment| **moment <= now)
        .expect("an earlier one");
    let end = moments
        .iter()
        .find(|moment| **moment > now)
        .expect("a later one");
    (*start, *end)
}

/// Where periods begin by the clock, from before `today` until after it.
fn beginnings(period: Period, today: Date) -> impl Iterator<Item = DateTime> {
    let n = i64::from(period.multiplier);
    let epoch = date(1970, 1, 1);
    let days = i64::from(epoch.until(today).expect("in range").get_days());
    let months = (i64::from(today.year()) - 1970) * 12 + i64::from(today.month()) - 1;
    let (first, step, present) = match period.unit {
        Unit::Hour => (epoch, n.hours(), days * 24 / n),
        Unit::Day => (epoch, n.days(), days / n),
        Unit::Week => (date(1970, 1, 5), n.weeks(), (days - 4) / (7 * n)),
        Unit::Month => (epoch, n.months(), months / n),
        Unit::Year => (epoch, n.years(), months / 12 / n),
        unit => panic!("{unit:?} has no zones"),
    };
    let around = if period.unit == Unit::Hour { 60 } else { 3 };
    let first = first.at(0, 0, 0, 0);
    (0.max(present - around)..present + around).map(move |k| first + step * k)
}

/// The first moment at which the zone's clocks show `shown` or later.
fn first_moment(zone: &TimeZone, shown: DateTime) -> i64 {
    let asked = zone.to_ambiguous_zoned(shown);
    let in_gap = matches!(asked.offset(), AmbiguousOffset::Gap { .. });
    let earlier = asked.earlier().expect("in range").timestamp();
    let moment = match in_gap {
        true => zone
            .following(earlier)
            .next()
            .expect("the jump")
            .timestamp(),
        false => earlier,
    };
    moment.as_microsecond()
}
