//! Memory store, one Redis, several of them, and a plain model give the same answers to the same questions.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::future::join_all;
use proptest::{collection::vec, prelude::*};
use tollgate::{
    clock::{Clock, ManualClock, Timestamp},
    descriptor::Hits,
    limit::Penalty,
    plan::{Charge, Role, RuleLimit},
    store::{BucketKey, Item, MemoryStore, Take, Taken, redis::RedisSettings},
};

use crate::{
    ask::{
        ask, cases, connected, item, one_thread, patient, patient_at, rule, rule_with_delay,
        rule_with_penalty,
    },
    cluster::{self, Nodes},
    model::{Model, Row},
    redis_server::RedisServer,
};

/// Limits whose buckets have the same key stand together: their numbers have changed at a reload.
const LIMITS: [&[&str]; 32] = [
    &["10/second burst 100", "7/second burst 3"],
    &["1/second", "3/second burst 50"],
    &["50/minute sliding", "5/minute sliding"],
    &["500/hour sliding"],
    &["3/7s sliding"],
    &["5/day calendar", "9/day calendar"],
    &["20/month", "3/month"],
    &["2/5 months", "7/5 months"],
    &["2/2 years"],
    &["30/week calendar"],
    &["4294967295/365 days", "1/365 days burst 4294967295"],
    &["1000000/10s burst 30"],
    &["0/minute", "2/minute"],
    &["2/minute", "5/minute"],
    &["5/2s fixed", "9/2s fixed"],
    &["0/minute fixed", "3/minute fixed"],
    &["20/month fixed", "3/month fixed"],
    &["4294967295/7 weeks fixed"],
    &["1000000/year fixed"],
    &["10/second burst 5 delay 500ms", "7/second burst 3 delay 2s"],
    &["3/second delay 1s", "3/second", "9/second delay 250ms"],
    &["4294967295/365 days burst 7 delay 60s"],
    &["5/minute delay 30s"],
    &["3/second penalty 2 5s", "2/second penalty 1 1s"],
    &["2/10s sliding penalty 3 30s"],
    &["4/minute penalty 1 60s"],
    &["2/7s fixed penalty 2 4s"],
    &[
        "5/day calendar in Europe/Berlin",
        "9/day calendar in Europe/Berlin",
    ],
    &["20/month in America/New_York offset 14d 6h"],
    &["7/6 hours calendar in Australia/Lord_Howe"],
    &["30/week calendar offset 6d"],
    &["9/2 years in Asia/Tokyo offset 90d"],
];

/// Which of them.
const DELAYED: std::ops::Range<usize> = 19..23;
const PENALISING: std::ops::Range<usize> = 23..27;

#[derive(Debug, Clone)]
struct Step {
    /// Microseconds that the clock moves, backwards too.
    moves: i64,
    takes: Vec<Vec<Want>>,
    /// How all of them are charged; else each want as it says.
    charge: Option<Charge>,
    dry: bool,
}

#[derive(Debug, Clone)]
struct Want {
    limit: usize,
    variant: usize,
    subject: u8,
    hits: Hits,
    role: Role,
    charge: Charge,
    /// How much of the limit's delay the caller has time for, in quarters.
    patience: u64,
}

fn charge() -> impl Strategy<Value = Charge> {
    prop_oneof![
        3 => Just(Charge::AllOrNothing),
        1 => Just(Charge::Overdraw),
        1 => Just(Charge::StopWhenOver),
        3 => Just(Charge::Independent),
    ]
}

fn want() -> impl Strategy<Value = Want> {
    let hits = prop_oneof![
        8 => (1_u64..4).prop_map(Hits::Take),
        1 => Just(Hits::Take(0)),
        2 => (1_u64..60).prop_map(Hits::Take),
        1 => any::<u64>().prop_map(Hits::Take).prop_filter("the model lists every hit", |hits| {
            matches!(hits, Hits::Take(hits) if *hits > 1 << 33)
        }),
        2 => (0_u64..20).prop_map(Hits::Give),
    ];
    let role =
        prop_oneof![5 => Just(Role::Enforced), 1 => Just(Role::Shadow), 2 => Just(Role::Quota)];
    let variant = prop_oneof![4 => Just(0_usize), 1 => Just(1)];
    let patience = prop_oneof![3 => Just(4_u64), 1 => 0_u64..4];
    // Nobody waits, and nobody is penalised, unless some come to one bucket.
    let limit = prop_oneof![3 => 0..LIMITS.len(), 3 => DELAYED, 1 => PENALISING];
    let want = (limit, variant, 0_u8..2, hits, role, charge(), patience);
    want.prop_map(
        |(limit, variant, subject, hits, role, charge, patience)| Want {
            limit,
            variant,
            subject,
            hits,
            role,
            charge,
            patience,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let moves = prop_oneof![
        3 => Just(0_i64),
        4 => 0..2_000_000_i64,
        3 => 0..120_000_000_i64,
        1 => 0..40 * 86_400_000_000_i64,
        1 => -30_000_000..0_i64,
    ];
    let takes = vec(vec(want(), 0..5), 1..6);
    let charge = prop::option::weighted(0.7, charge());
    (moves, takes, charge, prop::bool::weighted(0.1)).prop_map(|(moves, takes, charge, dry)| Step {
        moves,
        takes,
        charge,
        dry,
    })
}

/// A limit with ` delay D`, or with ` penalty N D`: for D after N refusals within 20 s, for a minute at most.
fn beyond(text: &str) -> Arc<RuleLimit> {
    if let Some((text, terms)) = text.split_once(" penalty ") {
        let (after, first) = terms.split_once(' ').expect("two terms");
        let penalty = Penalty {
            after: after.parse().expect("a number"),
            within: Duration::from_secs(20),
            first: humantime::parse_duration(first).expect("a length of time"),
            longest: Duration::from_secs(60),
        };
        return rule_with_penalty(text, penalty);
    }
    match text.split_once(" delay ") {
        Some((text, delay)) => {
            let delay = humantime::parse_duration(delay).expect("a length of time");
            rule_with_delay(text, delay)
        }
        None => rule(text),
    }
}

fn limits() -> Vec<Vec<Arc<RuleLimit>>> {
    let limits = LIMITS.iter();
    limits
        .map(|texts| texts.iter().map(|text| beyond(text)).collect())
        .collect()
}

fn take(
    wants: &[Want],
    step: &Step,
    limits: &[Vec<Arc<RuleLimit>>],
    case: u64,
    plain: bool,
) -> Take {
    let items = wants.iter().flat_map(|want| {
        let variants = &limits[want.limit];
        let subject = format!("{case}:{}:{}", want.limit, want.subject);
        let mut item = item(
            &variants[if plain {
                0
            } else {
                want.variant % variants.len()
            }],
            &subject,
            want.hits,
        );
        // Variants of one limit are one bucket.
        item.key = BucketKey::new(variants[0].key_prefix(), subject.as_bytes());
        item.role = want.role;
        item.charge = step.charge.unwrap_or(want.charge);
        // No other charge goes with a delay or a penalty, and nobody waits in shadow mode.
        let guard = item
            .limit
            .guard()
            // A gift is for the limit alone, unless it is to end a penalty.
            .filter(|_| matches!(item.hits, Hits::Take(_)) || want.patience == 0);
        if guard.is_some() {
            item.charge = Charge::AllOrNothing;
            item.role = if want.role == Role::Quota {
                Role::Enforced
            } else {
                want.role
            };
        }
        let guard = guard.map(|guard| Item {
            key: BucketKey::new(
                &format!("{}p", variants[0].key_prefix()),
                subject.as_bytes(),
            ),
            limit: guard.clone(),
            hits: match item.hits {
                Hits::Take(_) => Hits::Take(1),
                Hits::Give(_) => item.hits,
            },
            charge: match item.hits {
                Hits::Take(_) => Charge::Strike,
                Hits::Give(_) => Charge::AllOrNothing,
            },
            ..item.clone()
        });
        if let (delay_us @ 1.., Hits::Take(_)) = (item.limit.limit.delay_us(), item.hits) {
            item.charge = Charge::AllOrNothing;
            if want.role != Role::Shadow {
                item.patience_us = (u64::from(delay_us) * want.patience / 4) as u32;
            }
        }
        std::iter::once(item).chain(guard)
    });
    Take {
        items: items.collect(),
        dry: step.dry,
    }
}

fn brief(take: &Take) -> Vec<(&BucketKey, String, Hits, Role, Charge)> {
    let items = take.items.iter();
    items
        .map(|item| {
            (
                &item.key,
                item.limit.limit.to_string(),
                item.hits,
                item.role,
                item.charge,
            )
        })
        .collect()
}

fn rows(taken: &Taken) -> (bool, Vec<Row>) {
    let micros = |duration: Duration| duration.as_micros() as i128;
    let rows = taken.balances.iter().map(|balance| {
        let retry = balance.retry_after.map(micros);
        (
            balance.fits,
            balance.charged,
            i128::from(balance.left),
            retry,
            micros(balance.reset_after),
            // Who is refused waits for nothing, whatever was found on the way.
            i128::from(taken.admitted) * i128::from(balance.delay_us),
        )
    });
    (taken.admitted, rows.collect())
}

#[test]
fn memory_and_redis_and_the_model_give_the_same_answers() {
    let server = RedisServer::start();
    // On one thread, the lane runs when all takes of a step are queued, so that they make one batch.
    let runtime = one_thread();
    let clock = Arc::new(ManualClock::default());
    let settings = RedisSettings {
        // One lane keeps the order of takes, so that batches can be compared with takes one after another.
        lanes: 1,
        clock: Some(clock.clone()),
        ..patient(&server)
    };
    let redis = runtime.block_on(connected(settings));
    let limits = limits();
    let (case, seen) = (std::cell::Cell::new(0), std::cell::Cell::new((0, 0)));
    proptest!(cases(300), |(plain: bool, start in 1_700_000_000_000_000_u64..1_900_000_000_000_000, steps in vec(step(), 1..40))| {
        case.set(case.get() + 1);
        clock.set(Timestamp::from_micros(start));
        let memory = MemoryStore::new(100_000, clock.clone());
        let mut model = Model::default();
        for step in steps {
            let moves = if plain { step.moves.abs() } else { step.moves };
            let now = clock.now().as_micros().saturating_add_signed(moves);
            clock.set(Timestamp::from_micros(now));
            let takes: Vec<Take> =
                step.takes.iter().map(|wants| take(wants, &step, &limits, case.get(), plain)).collect();
            let answers = runtime.block_on(join_all(takes.iter().map(|take| ask(&redis, take.clone()))));
            for (take, answer) in takes.iter().zip(&answers) {
                let expected = model.take(take, now);
                if plain {
                    prop_assert_eq!(&rows(&memory.take(take)), &expected, "memory at {}: {:?}", now, brief(take));
                }
                prop_assert_eq!(&rows(answer), &expected, "redis at {}: {:?}", now, brief(take));
                prop_assert!(!answer.degraded, "{:?}", redis.is_down());
                let of_penalties = take.items.iter().zip(&answer.balances);
                let began = of_penalties
                    .filter(|(item, balance)| item.charge == Charge::Strike && balance.fits && balance.retry_after.is_some());
                let waits = answer.balances.iter().filter(|balance| balance.delay_us > 0);
                let (waited, penalised) = seen.get();
                seen.set((waited + waits.count(), penalised + began.count()));
            }
        }
    });
    let (waited, penalised) = seen.get();
    assert!(
        waited > 30 && penalised > 30,
        "{waited} waits, {penalised} penalties"
    );
    let batches = redis.stats().script_calls.load(Relaxed);
    let takes = redis.stats().batch_size.sum();
    assert!(
        batches * 2 < takes,
        "{takes} takes in {batches} batches: hardly any batch was compared"
    );
}

/// Leaves out what several places do not tell exactly, of a request that names one bucket twice: a gift comes last, so that no
/// other item takes from it, and an item that does not fit, yet refuses nothing or is charged, shows its bucket as it was before
/// the other one was given back.
fn keep_exact(take: &mut Take) {
    let plain = |item: &Item| {
        let takes = matches!(item.hits, Hits::Take(_));
        takes && item.role == Role::Enforced && item.charge != Charge::Overdraw
    };
    let mut kept: Vec<Item> = Vec::new();
    let mut kept_last = false;
    for item in take.items.drain(..) {
        // A penalty goes with its limit.
        if item.charge == Charge::Strike {
            kept.extend(kept_last.then_some(item));
            continue;
        }
        // Both are of one rule.
        let alike = |other: &Item| plain(&item) && plain(other) && other.charge == item.charge;
        let mut same = kept.iter().filter(|other| other.key == item.key);
        kept_last = same.all(alike);
        if kept_last {
            kept.push(item);
        }
    }
    take.items.extend(kept);
}

/// Most takes span the slots of a cluster, and its servers and the one of limits per second.
#[test]
fn several_servers_answer_as_the_model_of_one() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let nodes = runtime.block_on(Nodes::start(0));
    let second = RedisServer::start();
    let clock = Arc::new(ManualClock::default());
    let settings = RedisSettings {
        clock: Some(clock.clone()),
        per_second: Some(second.url().parse().expect("a Redis URL")),
        ..patient_at(&nodes.url())
    };
    let shards = runtime.block_on(cluster::connected(settings));
    let limits = limits();
    let case = std::cell::Cell::new(0);
    proptest!(cases(150), |(start in 1_700_000_000_000_000_u64..1_900_000_000_000_000, steps in vec(step(), 1..20))| {
        case.set(case.get() + 1);
        clock.set(Timestamp::from_micros(start));
        let mut model = Model::default();
        for step in steps {
            let now = clock.now().as_micros() + step.moves.unsigned_abs();
            clock.set(Timestamp::from_micros(now));
            for wants in &step.takes {
                let mut take = take(wants, &step, &limits, case.get(), true);
                keep_exact(&mut take);
                let expected = model.take(&take, now);
                let answer = runtime.block_on(cluster::ask(&shards, take.clone()));
                prop_assert_eq!(&rows(&answer), &expected, "at {}: {:?}", now, brief(&take));
                prop_assert!(!answer.degraded, "{:?}", shards.is_down());
            }
        }
    });
    let given_back = shards.stats().given_back.load(Relaxed);
    assert!(given_back > 0, "no request was refused in its second place");
}

/// Each take is about one subject, so a node of a cluster decides what waits for it in one call, whatever the slots.
#[test]
fn calls_about_several_slots_of_a_cluster_answer_as_the_model() {
    // On one thread and with one lane for each node: see above.
    let runtime = one_thread();
    let nodes = runtime.block_on(Nodes::start(0));
    let clock = Arc::new(ManualClock::default());
    let settings = RedisSettings {
        lanes: 1,
        clock: Some(clock.clone()),
        ..patient_at(&nodes.url())
    };
    let shards = runtime.block_on(cluster::connected(settings));
    let limits = limits();
    let case = std::cell::Cell::new(0);
    proptest!(cases(150), |(start in 1_700_000_000_000_000_u64..1_900_000_000_000_000, steps in vec(step(), 1..20))| {
        case.set(case.get() + 1);
        clock.set(Timestamp::from_micros(start));
        let mut model = Model::default();
        for step in steps {
            let now = clock.now().as_micros() + step.moves.unsigned_abs();
            clock.set(Timestamp::from_micros(now));
            let wants = step.takes.iter().flatten();
            let takes: Vec<Take> = wants
                .map(|want| take(std::slice::from_ref(want), &step, &limits, case.get(), true))
                .collect();
            let answers = takes.iter().map(|take| cluster::ask(&shards, take.clone()));
            let answers = runtime.block_on(join_all(answers));
            for (take, answer) in takes.iter().zip(&answers) {
                let expected = model.take(take, now);
                prop_assert_eq!(&rows(answer), &expected, "at {}: {:?}", now, brief(take));
                prop_assert!(!answer.degraded, "{:?}", shards.is_down());
            }
        }
    });
    let calls = shards.stats().script_calls.load(Relaxed);
    let takes = shards.stats().batch_size.sum();
    assert!(
        calls * 3 < takes * 2,
        "{takes} takes in {calls} calls: slots were not asked together"
    );
    assert_eq!(shards.stats().given_back.load(Relaxed), 0);
}
