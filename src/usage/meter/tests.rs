use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    clock::{ManualClock, Timestamp},
    usage::Pending,
};

const HOUR: Duration = Duration::from_secs(3_600);

fn limit(text: &str) -> RuleLimit {
    let key_prefix = format!("shop/api_key#{text}");
    RuleLimit::new(
        text.parse().unwrap(),
        None,
        &key_prefix,
        &format!("api_key:{text}"),
    )
}

fn meter(most_rows: usize) -> (Arc<ManualClock>, Meter) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(0)));
    (clock.clone(), Meter::new(most_rows, clock))
}

/// Everything counted since the last time: hour, key, limit and counts.
fn taken(meter: &Meter) -> BTreeMap<(u32, String, String), Counts> {
    let mut sums: BTreeMap<_, Counts> = BTreeMap::new();
    meter.drain(|hour, row, counts| {
        let name = (hour, row.key.clone(), row.limit.clone());
        sums.entry(name).or_default().add(counts);
    });
    sums
}

#[test]
fn an_hour_ends_on_time_and_a_clock_that_jumps_back_loses_nothing() {
    let (clock, meter) = meter(1_000);
    let limit = limit("1/second");
    let count = |hits| {
        let tab = meter.open("shop", "ada", "free");
        tab.count(Limited::Limit(None, &limit), Fate::Admitted, hits);
    };
    clock.set(Timestamp::from_micros(25 * 3_600_000_000 - 1));
    count(1);
    clock.advance(Duration::from_micros(1));
    count(10);
    clock.set(Timestamp::from_micros(0));
    count(100);
    clock.set(Timestamp::from_micros(25 * 3_600_000_000));
    count(1_000);
    let counted: Vec<_> = taken(&meter)
        .into_iter()
        .map(|((hour, ..), counts)| (hour, counts.admitted))
        .collect();
    assert_eq!(counted, [(0, 100), (24, 1), (25, 1_010)]);
}

#[test]
fn a_hundred_thousand_keys_are_bounded_and_every_hit_is_somewhere() {
    let (_, meter) = meter(6_400);
    let limit = limit("1/second");
    let count = |key: &str| {
        let tab = meter.open("shop", key, "free");
        tab.count(Limited::Limit(None, &limit), Fate::Refused, 1);
    };
    for number in 0..100_000 {
        count(&format!("key-{number}"));
    }
    assert_eq!((meter.rows(), meter.most_rows()), (6_400, 6_400));
    let sums = taken(&meter);
    assert_eq!(sums.len(), 6_401);
    assert_eq!(
        sums.values().map(|counts| counts.refused).sum::<i64>(),
        100_000
    );
    let other = sums[&(0, "(other)".to_owned(), "(other)".to_owned())];
    assert_eq!((other.refused, meter.other_hits()), (93_600, 93_600));
    // Rows that nobody uses any more make room.
    assert!(taken(&meter).is_empty());
    assert_eq!(meter.rows(), 0);
    count("late");
    assert_eq!(taken(&meter).len(), 1);
}

#[test]
fn hours_of_a_clock_gone_astray_are_bounded_too() {
    let (clock, meter) = meter(SHARDS);
    let limit = limit("1/second");
    for number in 0..10_000 {
        let key = format!("key-{number}");
        let tab = meter.open("shop", &key, "free");
        tab.count(Limited::Limit(None, &limit), Fate::Admitted, 1);
        clock.advance(HOUR);
    }
    let sums = taken(&meter);
    assert!(sums.len() <= SHARDS * (1 + OTHER_HOURS), "{}", sums.len());
    assert_eq!(
        sums.values().map(|counts| counts.admitted).sum::<i64>(),
        10_000
    );
}

#[test]
fn limits_built_anew_for_each_request_share_a_row() {
    let (_, meter) = meter(1_000);
    for _ in 0..3 {
        let tab = meter.open("shop", "ada", "free");
        tab.count(Limited::Limit(None, &limit("1/second")), Fate::Overage, 2);
    }
    assert_eq!(meter.rows(), 1);
    let expected = Counts {
        admitted: 6,
        refused: 0,
        overage: 6,
    };
    assert_eq!(taken(&meter).into_values().collect::<Vec<_>>(), [expected]);
}

/// What happens in a random history.
#[derive(Debug, Clone)]
enum Step {
    Count(u8, bool, u8, i64),
    Hours(i8),
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..5_u8, any::<bool>(), 0..3_u8, -3..10_i64)
            .prop_map(|(key, limit, fate, hits)| Step::Count(key, limit, fate, hits)),
        1 => (-30..30_i8).prop_map(Step::Hours),
        1 => Just(Step::Drain),
    ]
}

proptest! {
    /// Every hit arrives in its hour, however takes and hours come in between.
    #[test]
    fn what_arrives_is_what_was_counted(steps in proptest::collection::vec(step(), 1..200)) {
        let (clock, meter) = meter(1_000);
        let limits = [limit("1/second"), limit("5/day")];
        let mut pending = Pending::new(10_000);
        let mut model: BTreeMap<(u32, String, String), Counts> = BTreeMap::new();
        let mut hour = 100_u32;
        for step in steps {
            clock.set(Timestamp::from_micros(u64::from(hour) * 3_600_000_000 + 5));
            match step {
                Step::Hours(by) => hour = hour.saturating_add_signed(by.into()),
                Step::Drain => meter.drain(|hour, row, counts| assert!(pending.add(hour, &row, counts))),
                Step::Count(key, second, fate, hits) => {
                    let fates = [Fate::Admitted, Fate::Overage, Fate::Refused];
                    let (key, fate) = (format!("key-{key}"), fates[usize::from(fate)]);
                    let limit = &limits[usize::from(second)];
                    meter.open("shop", &key, "free").count(Limited::Limit(None, limit), fate, hits);
                    let passed = fate != Fate::Refused;
                    let counts = Counts {
                        admitted: if passed { hits } else { 0 },
                        refused: if passed { 0 } else { hits },
                        overage: if fate == Fate::Overage { hits } else { 0 },
                    };
                    model.entry((hour, key, limit.label().to_owned())).or_default().add(counts);
                }
            }
        }
        meter.drain(|hour, row, counts| assert!(pending.add(hour, &row, counts)));
        let mut arrived: BTreeMap<(u32, String, String), Counts> = BTreeMap::new();
        while let Some(chunk) = pending.take(3) {
            prop_assert!(chunk.rows.len() <= 3);
            for (row, counts) in chunk.rows {
                arrived.entry((chunk.hour, row.key.clone(), row.limit.clone())).or_default().add(counts);
            }
        }
        // What adds up to nothing may or may not have travelled.
        model.retain(|_, counts| !counts.is_zero());
        arrived.retain(|_, counts| !counts.is_zero());
        prop_assert_eq!(arrived, model);
    }
}
