//! The promise of the pure arithmetic: never over, never under, exact waits, for every kind of limit.

use std::time::Duration;

use proptest::prelude::*;
use tollgate::{
    bucket::{Bucket, Found, calendar},
    clock::Timestamp,
    descriptor::Hits,
    limit::{Algorithm, EXACT, Kind, Limit, Period, SLIDING_SLOTS, Unit},
};

/// A Tuesday in 2026.
const START_US: u64 = 1_795_000_000_123_457;

fn at(us: u64) -> Timestamp {
    Timestamp::from_micros(us)
}

/// From here on, in 2255, microseconds leave the range that Lua's doubles hold exactly; until then no bucket is early.
const END_OF_TIME_US: u64 = 1 << 53;

/// Takes if it fits; what a store does.
fn take(bucket: &mut Bucket, limit: &Limit, hits: u64, now: u64) -> bool {
    bucket.refill(limit, at(now));
    let fits = bucket.fits(limit, Hits::Take(hits));
    if fits {
        bucket.apply(limit, Hits::Take(hits), at(now));
    }
    fits
}

fn limit(text: &str) -> Limit {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn units() -> impl Strategy<Value = Unit> {
    prop::sample::select(&Unit::ALL[..])
}

fn counts() -> impl Strategy<Value = u32> {
    prop_oneof![
        1..20u32,
        1..2_000u32,
        any::<u32>().prop_map(|n| n.max(1)),
        Just(u32::MAX)
    ]
}

fn bucket_limits() -> impl Strategy<Value = Limit> {
    (
        counts(),
        1..40u32,
        units(),
        prop_oneof![Just(None), (1..200u32).prop_map(Some)],
    )
        .prop_filter_map(
            "inexact limits are refused",
            |(count, multiplier, unit, burst)| {
                let burst = burst.unwrap_or(count);
                Limit::new(count, Period { unit, multiplier }, Kind::Bucket { burst }).ok()
            },
        )
}

/// Steps in parts of the time that one token takes, so that every regime is met.
fn steps() -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.0..3.0f64, 0.0..1.5f64), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same decisions as exact fractions give, hit by hit.
    #[test]
    fn a_token_bucket_counts_as_exact_fractions_do(limit in bucket_limits(), steps in steps()) {
        let tick = u128::from(limit.refill().tick_us);
        let (count, period) = (u128::from(limit.count()), u128::from(limit.period().micros()) / tick);
        let full = u128::from(limit.capacity()) * period;
        let per_token = limit.period().micros() as f64 / f64::from(limit.count());
        let (mut now, mut level, mut last) = (START_US, full, u128::from(START_US) / tick);
        let mut bucket = Bucket::full(&limit, at(now));
        for (wait, hits) in steps {
            now = (now + (wait * per_token) as u64).min(END_OF_TIME_US);
            let hits = (hits * f64::from(limit.capacity())).min(3.0 + hits) as u64;
            let ticks = u128::from(now) / tick;
            level = full.min(level + (ticks - last) * count);
            last = ticks;
            let expected = level >= u128::from(hits) * period;
            if expected {
                level -= u128::from(hits) * period;
            }
            prop_assert_eq!(take(&mut bucket, &limit, hits, now), expected);
            prop_assert_eq!(bucket.balance(&limit) as u128, level / period);
        }
    }

    /// A refusal's wait is the first moment at which the hits fit, to the tick.
    #[test]
    fn waits_are_exact(
        limit in prop_oneof![
            bucket_limits(),
            (1..500u32, 1..100u32).prop_map(|(n, s)| Limit::new(n, Period { unit: Unit::Second, multiplier: s }, Kind::Sliding).unwrap()),
            (1..500u32, units()).prop_map(|(n, unit)| Limit::new(n, Period::of(unit), Kind::Calendar).unwrap()),
            (1..500u32, units()).prop_map(|(n, unit)| Limit::new(n, Period::of(unit), Kind::FixedWindow).unwrap()),
        ],
        steps in steps(),
    ) {
        let tick = limit.refill().tick_us;
        let per_token = limit.period().micros() as f64 / f64::from(limit.count());
        let mut now = START_US;
        let mut bucket = Bucket::full(&limit, at(now));
        for (wait, hits) in steps {
            now = (now + (wait * per_token) as u64).min(END_OF_TIME_US / 2);
            let hits = 1 + (hits * f64::from(limit.capacity())) as u64;
            if take(&mut bucket, &limit, hits, now) {
                continue;
            }
            let wait = bucket.wait(&limit, hits, at(now));
            if hits > u64::from(limit.capacity()) {
                prop_assert_eq!(wait, None);
                continue;
            }
            let then = now + wait.expect("fits one day").as_micros() as u64;
            if then > END_OF_TIME_US {
                continue;
            }
            prop_assert!(!take(&mut bucket.clone(), &limit, hits, then - tick.min(then - now)), "too late by a tick");
            prop_assert!(take(&mut bucket.clone(), &limit, hits, then), "too early");
        }
    }

    /// In any interval of the window's length at most N pass; and a slot after the window there is room again.
    #[test]
    fn a_sliding_window_is_never_over(
        count in 1..60u32, seconds in 1..4_000u32, steps in prop::collection::vec((0.0..4.0f64, 1..4u64), 1..300),
    ) {
        let limit = Limit::new(count, Period { unit: Unit::Second, multiplier: seconds }, Kind::Sliding).unwrap();
        let window = limit.period().micros();
        let mut now = START_US;
        let mut bucket = Bucket::full(&limit, at(now));
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for (wait, hits) in steps {
            now += (wait * window as f64 / f64::from(count)) as u64 / 3;
            if take(&mut bucket, &limit, hits, now) {
                admitted.push((now, hits));
                let recent = |(when, _): &&(u64, u64)| *when + window > now;
                let sum: u64 = admitted.iter().filter(recent).map(|(_, hits)| hits).sum();
                prop_assert!(sum <= u64::from(count));
            } else {
                let slack = window + limit.slot_us();
                let recent = |(when, _): &&(u64, u64)| *when + slack > now;
                let sum: u64 = admitted.iter().filter(recent).map(|(_, hits)| hits).sum();
                prop_assert!(sum + hits > u64::from(count), "refused with room for {hits}");
            }
        }
    }

    /// A clock that jumps about admits no more than one that only goes forward.
    #[test]
    fn a_clock_going_backwards_is_harmless(
        text in prop::sample::select(vec!["5/second burst 9", "7/minute sliding", "6/minute calendar", "6/minute fixed"]),
        jumps in prop::collection::vec(-3_000_000..3_000_000i64, 1..200),
    ) {
        let limit = limit(text);
        let mut bucket = Bucket::full(&limit, at(START_US));
        let (mut now, mut first, mut last, mut admitted) = (START_US, START_US, START_US, 0u64);
        for jump in jumps {
            now = now.saturating_add_signed(jump);
            first = first.min(now);
            last = last.max(now);
            admitted += u64::from(take(&mut bucket, &limit, 1, now));
        }
        let span = u128::from(last - first);
        let most = match limit.kind() {
            Kind::Bucket { burst } => u128::from(burst) + span * u128::from(limit.count()) / u128::from(limit.period().micros()),
            _ => u128::from(limit.count()) * (span / u128::from(limit.period().micros()) + 2),
        };
        prop_assert!(u128::from(admitted) <= most);
    }

    /// A fixed window is a count per number of its period since the epoch; a clock that goes back stays in the latest window.
    #[test]
    fn a_fixed_window_counts_what_comes_between_two_multiples_of_its_length(
        count in counts(), multiplier in 1..20u32, unit in units(),
        steps in prop::collection::vec((-0.3..0.9f64, any::<bool>(), prop_oneof![3 => 0..50u64, 1 => any::<u64>()]), 1..60),
    ) {
        let limit = Limit::new(count, Period { unit, multiplier }, Kind::FixedWindow).unwrap();
        let length = limit.period().micros();
        let (mut now, mut latest, mut used) = (START_US, START_US / length, 0u128);
        let mut bucket = Bucket::full(&limit, at(now));
        for (wait, give, hits) in steps {
            now = now.saturating_add_signed((wait * length as f64) as i64);
            if now / length > latest {
                (latest, used) = (now / length, 0);
            }
            bucket.refill(&limit, at(now));
            let fits = bucket.fits(&limit, Hits::Take(hits));
            prop_assert_eq!(fits, used + u128::from(hits) <= u128::from(count));
            if give {
                used = used.saturating_sub(hits.into());
                bucket.apply(&limit, Hits::Give(hits), at(now));
            } else {
                used = (used + u128::from(hits)).min(EXACT - 1);
                bucket.apply(&limit, Hits::Take(hits), at(now));
            }
            prop_assert_eq!(i128::from(bucket.balance(&limit)), i128::from(count) - used as i128);
            let found = Found { fits, charged: true, left: bucket.balance(&limit) };
            let reset = bucket.conclude(&limit, found, hits, at(now)).reset_after;
            prop_assert_eq!(reset.as_micros() as u64, (latest + 1) * length - now, "the window's end, over or not");
        }
    }

    /// Giving back never makes more than full, and debt ends at one capacity.
    #[test]
    fn balances_stay_in_bounds(
        text in prop::sample::select(vec!["5/second burst 9", "7/minute sliding", "6/minute calendar"]),
        moves in prop::collection::vec((any::<bool>(), 0..30u64, 0..2_000_000u64), 1..100),
    ) {
        let limit = limit(text);
        let capacity = i64::from(limit.capacity());
        let (mut bucket, mut now) = (Bucket::full(&limit, at(START_US)), START_US);
        for (give, hits, wait) in moves {
            now += wait;
            bucket.refill(&limit, at(now));
            bucket.apply(&limit, if give { Hits::Give(hits) } else { Hits::Take(hits) }, at(now));
            let balance = bucket.balance(&limit);
            prop_assert!((-capacity..=capacity).contains(&balance), "{balance}");
        }
        now += 10 * limit.period().micros();
        bucket.refill(&limit, at(now));
        prop_assert_eq!(bucket.balance(&limit), capacity, "debt is forgiven by time");
    }
}

#[test]
fn a_client_that_hammers_gets_what_it_is_due() {
    let limit = limit("10/second burst 100");
    let mut bucket = Bucket::full(&limit, at(START_US));
    let admitted = (0..6_000)
        .filter(|i| take(&mut bucket, &limit, 1, START_US + i * 10_000))
        .count();
    assert_eq!(
        admitted,
        100 + 599,
        "60 s at 100 per second, less the last 10 ms"
    );
}

#[test]
fn slow_rates_refill_exactly() {
    let limit = limit("1/day");
    let day = 86_400_000_000;
    let mut bucket = Bucket::full(&limit, at(START_US));
    assert!(take(&mut bucket, &limit, 1, START_US));
    for i in 1..=1_000 {
        assert!(
            !take(&mut bucket, &limit, 1, START_US + i * day - 1),
            "day {i}"
        );
        assert!(take(&mut bucket, &limit, 1, START_US + i * day), "day {i}");
    }
}

#[test]
fn seven_per_second_is_seven_per_second() {
    let limit = limit("7/second burst 7");
    let mut bucket = Bucket::full(&limit, at(START_US));
    let admitted = (0..1_000_000)
        .filter(|i| take(&mut bucket, &limit, 1, START_US + i * 101))
        .count();
    assert_eq!(admitted, 7 + 7 * 101 - 1, "101 s less 101 µs");
}

#[test]
fn every_limit_of_the_reference_counts() {
    for unit in Unit::ALL {
        for count in [1, 2, 3, 999_983, 4_294_967_291, u32::MAX] {
            for algorithm in [Algorithm::TokenBucket, Algorithm::FixedWindow] {
                let limit = Limit::per(count, Period::of(unit), algorithm)
                    .unwrap_or_else(|error| panic!("{count}/{unit:?}: {error}"));
                let mut bucket = Bucket::full(&limit, at(START_US));
                assert!(take(&mut bucket, &limit, u64::from(count), START_US));
                let later = START_US + limit.period().micros();
                assert!(
                    take(&mut bucket, &limit, u64::from(count), later + 1_000_000),
                    "{count}/{unit:?}"
                );
            }
        }
    }
}

#[test]
fn a_changed_limit_keeps_its_tokens_clamped() {
    let (wide, narrow) = (limit("10/second burst 100"), limit("10/second burst 20"));
    let mut bucket = Bucket::full(&wide, at(START_US));
    assert!(take(&mut bucket, &wide, 50, START_US));
    bucket.refill(&narrow, at(START_US));
    assert_eq!(bucket.balance(&narrow), 20);
    bucket.refill(&wide, at(START_US));
    assert_eq!(bucket.balance(&wide), 20, "raising it gives nothing away");
}

#[test]
fn a_lowered_limit_forgives_what_is_more_than_one_burst_of_debt() {
    let (wide, narrow) = (limit("10/second burst 100"), limit("10/second burst 5"));
    let mut bucket = Bucket::full(&wide, at(START_US));
    bucket.apply(&wide, Hits::Take(1_000), at(START_US));
    assert_eq!(bucket.balance(&wide), -100);
    bucket.refill(&narrow, at(START_US));
    assert_eq!(bucket.balance(&narrow), -5);
}

#[test]
fn months_and_years_of_fixed_windows_have_a_fixed_length() {
    let day = 86_400_000_000;
    for (text, days) in [
        ("5/week fixed", 7),
        ("5/month fixed", 30),
        ("5/year fixed", 365),
    ] {
        let limit = limit(text);
        assert_eq!(limit.to_string(), text);
        let start = 100 * days * day;
        let mut bucket = Bucket::full(&limit, at(start));
        assert!(take(&mut bucket, &limit, 5, start));
        assert!(
            !take(&mut bucket, &limit, 1, start + days * day - 1),
            "{text}"
        );
        assert!(take(&mut bucket, &limit, 1, start + days * day), "{text}");
    }
}

#[test]
fn zero_blocks_but_may_be_looked_at() {
    let limit = limit("0/second");
    let mut bucket = Bucket::full(&limit, at(START_US));
    assert!(take(&mut bucket, &limit, 0, START_US));
    assert!(!take(&mut bucket, &limit, 1, START_US));
    let found = Found {
        fits: false,
        charged: false,
        left: 0,
    };
    let balance = bucket.conclude(&limit, found, 1, at(START_US));
    assert_eq!(
        (balance.retry_after, balance.reset_after),
        (None, Duration::from_secs(1))
    );
}

#[test]
fn periods_begin_where_the_calendar_says() {
    let day = 86_400_000_000;
    let cases = [
        // 2026-11-18 11:06:40 UTC was a Wednesday.
        (Unit::Week, 1, 1_795_000_000_000_000, 20_773 * day),
        (Unit::Month, 1, 1_795_000_000_000_000, 20_758 * day),
        (Unit::Year, 1, 1_795_000_000_000_000, 20_454 * day),
        (Unit::Day, 1, 1_795_000_000_000_000, 20_775 * day),
        (
            Unit::Hour,
            6,
            1_795_000_000_000_000,
            20_775 * day + 6 * 3_600_000_000,
        ),
        (Unit::Month, 3, 1_795_000_000_000_000, 20_727 * day),
    ];
    for (unit, multiplier, now, start) in cases {
        let period = Period { unit, multiplier };
        assert_eq!(calendar::start_of(period, at(now)), at(start), "{period}");
    }
}

#[test]
fn months_are_as_long_as_they_are() {
    let lengths = |year: u64| {
        let leap =
            (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
        [
            31,
            28 + u64::from(leap),
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ]
    };
    let (month, year) = (Period::of(Unit::Month), Period::of(Unit::Year));
    let mut first = 0;
    for of_year in 1970..2200 {
        let new_year = first;
        for length in lengths(of_year) {
            let next = first + length * 86_400_000_000;
            for moment in [first, first + 1, next - 1] {
                assert_eq!(
                    calendar::start_of(month, at(moment)),
                    at(first),
                    "{of_year}"
                );
                assert_eq!(
                    calendar::start_of(year, at(moment)),
                    at(new_year),
                    "{of_year}"
                );
            }
            assert_eq!(calendar::end_of(month, at(first)), at(next));
            first = next;
        }
        assert_eq!(calendar::end_of(year, at(new_year)), at(first));
    }
}

#[test]
fn limits_read_as_they_print() {
    for text in [
        "10/second burst 100",
        "50/minute sliding",
        "500/hour sliding",
        "1000000/month",
        "5/day calendar",
        "100/10 seconds",
        "1/year",
        "3/2 weeks calendar",
        "0/second",
    ] {
        assert_eq!(limit(text).to_string(), text);
    }
    for (text, same) in [
        ("100/10s", "100/10 seconds"),
        ("5/2 minutes", "5/2 minutes"),
        (" 7 / Hour ", "7/hour"),
        ("1_000/h", "1000/hour"),
    ] {
        assert_eq!(limit(text).to_string(), same);
    }
}

#[test]
fn wrong_limits_say_what_to_write() {
    for (text, words) in [
        ("", "N/PERIOD"),
        ("10", "N/PERIOD"),
        ("ten/second", "whole number"),
        ("-1/second", "whole number"),
        ("4294967296/day", "whole number"),
        ("10/secnd", "did you mean `second`"),
        ("10/0s", "longer than zero"),
        ("10/second burst", "N/PERIOD"),
        ("10/second burst 0", "at least 1"),
        ("0/second burst 5", "blocks"),
        ("10/month burst 5", "30 days"),
        ("10/year sliding", "365 days"),
        ("10/second sliding burst 5", "N/PERIOD"),
        ("10/4000000000 years", "100 years"),
        ("1.5/second", "whole number"),
    ] {
        let error = text.parse::<Limit>().expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_sliding_window_uses_a_bounded_number_of_slots() {
    let limit = limit("1000000/minute sliding");
    let mut bucket = Bucket::full(&limit, at(START_US));
    for i in 0..10_000 {
        take(&mut bucket, &limit, 1, START_US + i * 100_000);
        let Bucket::Window(window) = &bucket else {
            panic!("{bucket:?}")
        };
        assert!(window.slots.len() as u64 <= SLIDING_SLOTS + 1);
    }
}
