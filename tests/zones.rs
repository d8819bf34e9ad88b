//! Quotas by the calendars of time zones: days of 23 and 25 hours, beginnings that no clock shows or that clocks show twice.

#[path = "common/zones.rs"]
mod model;

use std::{sync::Arc, time::Duration};

use jiff::{Zoned, tz::TimeZone};
use proptest::prelude::*;
use tollgate::{
    bucket::calendar,
    clock::{Clock as _, ManualClock, Timestamp},
    descriptor::Hits,
    limit::{Bounds, Limit, LimitError},
    plan::{Charge, OnStoreError, Role, RuleLimit},
    store::{BucketKey, Item, MemoryStore, Take, Taken},
};

use model::{limit, period_around};

const HOUR_US: u64 = 3_600_000_000;

/// `2026-03-29T02:30+02:00[Europe/Berlin]` in microseconds.
fn moment(text: &str) -> u64 {
    let zoned: Zoned = text
        .parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    zoned.timestamp().as_microsecond().unsigned_abs()
}

fn bounds(limit: &Limit, now: u64) -> Bounds {
    let zone = limit.zone().expect("a zone");
    calendar::bounds(limit.period(), zone, Timestamp::from_micros(now))
}

/// Start and end of the period that the moment lies in, as RFC 3339 in UTC.
fn period(text: &str, now: &str) -> [String; 2] {
    let [_, start, end, _] = bounds(&limit(text), moment(now));
    [start, end].map(|at| {
        let at = jiff::Timestamp::from_microsecond(at.as_micros().cast_signed());
        at.expect("in range").to_string()
    })
}

fn zones() -> impl Strategy<Value = String> {
    let all: Vec<String> = jiff::tz::db()
        .available()
        .map(|name| name.to_string())
        .collect();
    assert!(all.len() > 400, "{} zones", all.len());
    prop_oneof![
        prop::sample::select(vec![
            "Europe/Berlin".to_owned(),
            "America/Sao_Paulo".to_owned(),
            "Australia/Lord_Howe".to_owned(),
            "Pacific/Apia".to_owned(),
            "Africa/Casablanca".to_owned(),
            "Asia/Gaza".to_owned(),
            "America/St_Johns".to_owned(),
        ]),
        prop::sample::select(all),
    ]
}

/// A moment, near a change of the zone's clocks more often than not.
fn near_changes(zone: &str, moment: i64, away: i64) -> u64 {
    let zone = TimeZone::get(zone).expect("a zone");
    let at = jiff::Timestamp::from_microsecond(moment).expect("in range");
    let change = zone
        .following(at)
        .next()
        .map(|change| change.timestamp().as_microsecond());
    // Far in the future zones that still change do so for ever; the model lists no more than a few years.
    change
        .filter(|_| away != 0)
        .map_or(moment, |change| change + away)
        .unsigned_abs()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn periods_are_those_of_the_calendar_on_the_wall(
        zone in zones(),
        period in prop::sample::select(vec![
            "day", "day", "week", "month", "year", "2 days", "3 weeks", "2 months", "5 months", "3 years", "6 hours", "1 hour",
            "12 hours", "10 days",
        ]),
        offset_s in prop_oneof![Just(0_i64), 1..3_600_i64, Just(1_800), Just(9_000), 1..86_400_i64],
        since in 800_000_000_000_000_i64..2_200_000_000_000_000,
        away in prop_oneof![Just(0_i64), -90_000_000_000..90_000_000_000_i64, -7_200_000_000..7_200_000_000_i64],
    ) {
        let most = if period.contains("hour") { offset_s % 3_600 } else { offset_s };
        let text = format!("5/{period} calendar in {zone} offset {most}s");
        let limit = limit(&text);
        let now = near_changes(&zone, since, away);
        let Some(of_limit) = limit.zone() else {
            // UTC by another name, from midnight on.
            return Ok(());
        };
        let [before, start, end, last] = calendar::bounds(limit.period(), of_limit, Timestamp::from_micros(now))
            .map(|at| at.as_micros().cast_signed());
        let (expected_start, expected_end) = period_around(&zone, most, limit.period(), now.cast_signed());
        prop_assert_eq!((start, end), (expected_start, expected_end), "{} at {}", text, now);
        prop_assert!(before <= start && start <= now.cast_signed() && now.cast_signed() < end && end <= last);
        // A period's first and last moments are in it, and the bounds beyond it are those of its neighbours.
        for moment in [start, end - 1] {
            let found = bounds(&limit, moment.unsigned_abs());
            prop_assert_eq!([found[1], found[2]].map(|at| at.as_micros().cast_signed()), [start, end]);
        }
        if end < last {
            let next = bounds(&limit, end.unsigned_abs());
            prop_assert_eq!([next[1], next[2]].map(|at| at.as_micros().cast_signed()), [end, last]);
        }
        if before < start {
            prop_assert_eq!(bounds(&limit, start.unsigned_abs() - 1)[1].as_micros().cast_signed(), before);
        }
    }

    #[test]
    fn no_moment_is_too_early_or_too_late(now in any::<u64>(), zone in zones()) {
        let limit = limit(&format!("5/day calendar in {zone} offset 1h"));
        let [before, start, end, last] = bounds(&limit, now);
        prop_assert!(before <= start && start <= end && end <= last);
    }
}

#[test]
fn days_are_as_long_as_the_clocks_make_them() {
    let day = "5/day calendar in Europe/Berlin";
    let spring = period(day, "2026-03-29T12:00[Europe/Berlin]");
    assert_eq!(spring, ["2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"]);
    let autumn = period(day, "2026-10-25T12:00[Europe/Berlin]");
    assert_eq!(autumn, ["2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"]);
}

#[test]
fn a_beginning_that_clocks_jump_over_is_when_they_jump() {
    let at_half_past_two = "5/day calendar in Europe/Berlin offset 2h 30m";
    let jump = "2026-03-29T01:00:00Z";
    assert_eq!(
        period(at_half_past_two, "2026-03-29T01:59[Europe/Berlin]")[1],
        jump
    );
    assert_eq!(
        period(at_half_past_two, "2026-03-29T03:00[Europe/Berlin]")[0],
        jump
    );
    // In São Paulo clocks were put forward at midnight.
    let day = period(
        "5/day calendar in America/Sao_Paulo",
        "2018-11-04T12:00[America/Sao_Paulo]",
    );
    assert_eq!(day, ["2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"]);
    // Samoa never had a 30th of December 2011.
    let last = period(
        "5/day calendar in Pacific/Apia",
        "2011-12-29T12:00[Pacific/Apia]",
    );
    assert_eq!(last, ["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"]);
    let next = period(
        "5/day calendar in Pacific/Apia",
        "2011-12-31T00:00[Pacific/Apia]",
    );
    assert_eq!(next, ["2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"]);
}

#[test]
fn a_beginning_that_clocks_show_twice_is_the_first() {
    let at_half_past_two = "5/day calendar in Europe/Berlin offset 2h 30m";
    let first = "2026-10-25T00:30:00Z";
    for after in [
        "02:30+02:00",
        "02:59+02:00",
        "02:00+01:00",
        "02:30+01:00",
        "03:00+01:00",
    ] {
        let after = format!("2026-10-25T{after}[Europe/Berlin]");
        assert_eq!(period(at_half_past_two, &after)[0], first, "{after}");
    }
    assert_eq!(
        period(at_half_past_two, "2026-10-25T02:29+02:00[Europe/Berlin]")[1],
        first
    );
    // The hour that comes twice is one.
    let hour = period(
        "5/hour calendar in Europe/Berlin",
        "2026-10-25T02:10+01:00[Europe/Berlin]",
    );
    assert_eq!(hour, ["2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z"]);
}

#[test]
fn weeks_and_months_begin_when_told() {
    let sunday = period(
        "5/week calendar in America/New_York offset 6d",
        "2026-11-21T12:00[America/New_York]",
    );
    assert_eq!(sunday, ["2026-11-15T05:00:00Z", "2026-11-22T05:00:00Z"]);
    let fifteenth = period(
        "5/month in Asia/Kolkata offset 14d",
        "2026-03-14T23:59[Asia/Kolkata]",
    );
    assert_eq!(fifteenth, ["2026-02-14T18:30:00Z", "2026-03-14T18:30:00Z"]);
    let six = period("5/day calendar offset 6h", "2026-03-14T05:59[UTC]");
    assert_eq!(six, ["2026-03-13T06:00:00Z", "2026-03-14T06:00:00Z"]);
    let tokyo = period("5/year in Asia/Tokyo", "2026-03-14T05:59[Asia/Tokyo]");
    assert_eq!(tokyo, ["2025-12-31T15:00:00Z", "2026-12-31T15:00:00Z"]);
}

#[test]
fn what_has_no_meaning_is_refused_with_what_to_write() {
    let error = |text: &str, zone: Option<&str>, offset: Option<&str>| -> LimitError {
        text.parse::<Limit>()
            .unwrap()
            .in_zone(zone, offset)
            .expect_err(text)
    };
    for (text, zone, offset, words) in [
        ("5/day", Some("Europe/Berlin"), None, "use a calendar limit"),
        ("5/day burst 9", None, Some("6h"), "use a calendar limit"),
        (
            "50/2 days sliding",
            Some("UTC"),
            None,
            "use a calendar limit",
        ),
        ("50/week fixed", Some("UTC"), None, "use a calendar limit"),
        (
            "5/day calendar",
            Some("Europe/Berln"),
            None,
            "did you mean `Europe/Berlin`?",
        ),
        (
            "5/day calendar",
            Some("Berlin"),
            None,
            "did you mean `Europe/Berlin`?",
        ),
        ("5/day calendar", Some("CEST+1"), None, "use an IANA name"),
        ("5/day calendar", None, Some("24h"), "less than 1day"),
        ("5/month", None, Some("28d"), "less than 28days"),
        ("5/day calendar", None, Some("-6h"), "for example `6h`"),
        ("5/day calendar", None, Some("6"), "for example `6h`"),
        ("5/day calendar", None, Some("100ms"), "whole seconds"),
        (
            "5/minute calendar",
            Some("Europe/Berlin"),
            None,
            "not with a period of minute",
        ),
        (
            "5/5 hours calendar",
            Some("Europe/Berlin"),
            None,
            "hours that divide a day",
        ),
        (
            "5/48 hours calendar",
            None,
            Some("1h"),
            "hours that divide a day",
        ),
    ] {
        let said = error(text, zone, offset).to_string();
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn a_limit_prints_its_zone_and_its_bucket_is_of_that_zone() {
    for text in [
        "5/day calendar in Europe/Berlin offset 6h",
        "100/month in Asia/Tokyo",
        "5/day calendar offset 6h",
    ] {
        assert_eq!(limit(text).to_string(), text);
    }
    assert_eq!(
        limit("5/day calendar in europe/berlin").to_string(),
        "5/day calendar in Europe/Berlin"
    );
    let identity = |text: &str| limit(text).identity();
    assert_eq!(
        identity("5/day calendar"),
        identity("9/day calendar in UTC")
    );
    let apart = [
        identity("5/day calendar"),
        identity("5/day calendar offset 6h"),
        identity("5/day calendar in Europe/Berlin"),
        identity("5/day calendar in Europe/Berlin offset 6h"),
        identity("5/day calendar in Europe/Paris offset 6h"),
    ];
    for (index, one) in apart.iter().enumerate() {
        assert!(!apart[..index].contains(one), "{one}");
    }
}

fn take(store: &MemoryStore, limit: &Arc<RuleLimit>, hits: u64) -> Taken {
    let item = Item {
        key: BucketKey::new(limit.key_prefix(), b"|1:a"),
        limit: limit.clone(),
        hits: Hits::Take(hits),
        role: Role::Enforced,
        charge: Charge::AllOrNothing,
        on_store_error: OnStoreError::Local,
    };
    store.take(&Take {
        items: [item].into_iter().collect(),
        dry: false,
    })
}

#[test]
fn a_quota_lasts_a_day_of_25_hours_and_its_wait_says_so() {
    let midnight = moment("2026-10-25T00:00[Europe/Berlin]");
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(midnight)));
    let store = MemoryStore::new(1_000, clock.clone());
    let limit = limit("5/day calendar in Europe/Berlin");
    let limit = Arc::new(RuleLimit::new(limit, None, "day", "day"));
    let first = take(&store, &limit, 5);
    assert_eq!(
        first.balances[0].reset_after,
        Duration::from_micros(25 * HOUR_US)
    );
    let refused = take(&store, &limit, 1);
    assert_eq!(
        refused.balances[0].retry_after,
        Some(Duration::from_micros(25 * HOUR_US))
    );
    clock.advance(Duration::from_micros(25 * HOUR_US - 1));
    assert!(!take(&store, &limit, 1).admitted, "{:?}", clock.now());
    clock.advance(Duration::from_micros(1));
    assert!(take(&store, &limit, 5).admitted);
}
