//! Usage in Redis: replicas add up, an outage or a lost answer changes no number, and nothing is kept for ever.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use proptest::{prelude::*, test_runner::TestRunner};
use tollgate::{
    clock::{ManualClock, Timestamp},
    home::Place,
    plan::{Plans, Rule},
    usage::{
        Chunk, Counts, Fate, Limited, Meter, Period, Recorder, Requester, Retention, Row,
        UsageStore,
    },
};

use crate::{
    common::{Tollgate, ask, plans, request, tollgate_command},
    redis_server::RedisServer,
};

const PLANS: &str = r#"
domain: shop
tiers: { free: { limits: ["1000/day"] } }
api_keys:
  - { id: ada, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
descriptors:
  - { key: api_key, limits_from: tier }
"#;

fn open(server: &RedisServer) -> UsageStore {
    let url = server.url().parse().unwrap();
    UsageStore::open(Place::Redis(Box::new(url)), Retention::default())
}

fn day(text: &str) -> Period {
    Period::Day(text.parse().unwrap())
}

/// A chunk with some rows that are there in all of these tests.
fn chunk(period: Period, hits: &[(i64, i64, i64)]) -> Arc<Chunk> {
    let row = |number: usize| Arc::new(Row::from(["shop", &format!("key-{number}"), "free", "x"]));
    let rows = hits.iter().enumerate();
    Arc::new(Chunk {
        period,
        rows: rows
            .map(|(number, hits)| (row(number), (*hits).into()))
            .collect(),
    })
}

#[tokio::test]
async fn two_replicas_add_up_exactly_after_both_have_stopped() {
    let redis = RedisServer::start();
    let (_folder, config) = plans(PLANS);
    let store = redis.url();
    let args = [
        "--store",
        &store,
        "--usage",
        "--usage-flush-interval",
        "20ms",
    ];
    let mut replicas = [
        Tollgate::start(&config, &args),
        Tollgate::start(&config, &args),
    ];
    for (replica, times) in replicas.iter().zip([700, 800]) {
        let mut client = replica.client().await;
        for _ in 0..times {
            ask(&mut client, request("shop", &[&[("api_key", "ada")]]))
                .await
                .unwrap();
        }
    }
    for replica in &mut replicas {
        replica.process.signal(Signal::SIGTERM);
        assert_eq!(replica.process.wait(), Some(0));
    }
    for by in ["hour", "day", "month"] {
        let two_days_ago = SystemTime::now() - Duration::from_secs(2 * 86_400);
        let from = humantime::format_rfc3339_seconds(two_days_ago).to_string();
        let mut command = tollgate_command();
        command.args([
            "usage",
            "--by",
            by,
            "--from",
            &from[..10],
            "--output",
            "json",
        ]);
        command.args(["--store", &store, "--config"]).arg(&config);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let sum = |name: &str| -> i64 {
            let rows = report["rows"].as_array().unwrap().iter();
            rows.map(|row| row[name].as_i64().unwrap()).sum()
        };
        // A day's end in between would give the key its hits anew.
        assert_eq!(sum("admitted") + sum("refused"), 1_500, "{report}");
        assert!(
            sum("admitted") == 1_000
                || sum("admitted") > 1_000 && report["rows"].as_array().unwrap().len() > 1,
            "{report}"
        );
    }
}

#[tokio::test]
async fn a_chunk_that_is_sent_again_under_its_number_counts_once() {
    let redis = RedisServer::start();
    let (mut one, mut other) = (open(&redis), open(&redis));
    let period = day("2026-11-30");
    let sent = chunk(period, &[(5, 2, 1)]);
    for number in [1, 1, 2, 2, 1] {
        one.add(number, &sent).await.unwrap();
    }
    // Another writer has numbers of its own.
    other.add(1, &sent).await.unwrap();
    let rows = one.read(period).await.unwrap();
    assert_eq!(rows[&*sent.rows[0].0], Counts::from((15, 6, 3)));
    assert!(other.read(day("2026-11-29")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_field_that_somebody_spoilt_is_told_and_nothing_is_added_twice() {
    let redis = RedisServer::start();
    let mut store = open(&redis);
    let period = day("2026-11-30");
    let field = r#"a["shop","key-1","free","x"]"#;
    let mut spoil = redis::cmd("HSET");
    spoil.arg("tollgate:{usage}:1:2026-11-30").arg(field);
    spoil.arg("x").exec(&mut redis.admin()).unwrap();
    let sent = chunk(period, &[(5, 0, 0), (7, 0, 0)]);
    assert!(store.add(1, &sent).await.is_err());
    store.add(1, &sent).await.unwrap();
    assert!(store.read(period).await.is_err());
    let mut mend = redis::cmd("HDEL");
    mend.arg("tollgate:{usage}:1:2026-11-30").arg(field);
    mend.exec(&mut redis.admin()).unwrap();
    store.add(2, &chunk(period, &[(1, 0, 0)])).await.unwrap();
    let rows: Vec<Counts> = store.read(period).await.unwrap().into_values().collect();
    assert_eq!(rows, [Counts::from((6, 0, 0))]);
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_gets_the_chunk_later() {
    let redis = RedisServer::start();
    let mut store = open(&redis);
    let sent = chunk(day("2026-11-30"), &[(5, 0, 0)]);
    redis.send("CONFIG SET maxmemory 1");
    assert!(store.add(1, &sent).await.is_err());
    redis.send("CONFIG SET maxmemory 0");
    store.add(1, &sent).await.unwrap();
    let rows = store.read(day("2026-11-30")).await.unwrap();
    assert_eq!(rows.into_values().next(), Some(Counts::from((5, 0, 0))));
}

#[tokio::test]
async fn every_key_in_redis_ends() {
    let redis = RedisServer::start();
    let mut store = open(&redis);
    for (number, period) in [(1, Period::Hour(0)), (2, day("1970-01-01"))] {
        store
            .add(number, &chunk(period, &[(1, 0, 0)]))
            .await
            .unwrap();
    }
    let mut admin = redis.admin();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut admin).unwrap();
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in keys {
        let left: i64 = redis::cmd("TTL").arg(&key).query(&mut admin).unwrap();
        let days = match &*key {
            "tollgate:{usage}:1:1970-01-01T00" => 36,
            "tollgate:{usage}:1:1970-01-01" => 401,
            _ => 1,
        };
        assert!(
            (days * 86_400 - 60..=days * 86_400).contains(&left),
            "{key}: {left}"
        );
    }
}

#[tokio::test]
async fn what_is_counted_during_an_outage_is_kept_after_it() {
    let mut redis = RedisServer::reserve();
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(0)));
    let meter = Arc::new(Meter::new(10_000, clock.clone()));
    let recorder = Recorder::new(meter.clone(), open(&redis));
    let plans = Plans::from_texts(&[("plans.yaml", PLANS)]).unwrap();
    let rule: &Rule = plans.domain("shop").unwrap().rules().next().unwrap();
    let count = |hits| {
        for number in 0..600 {
            let key = format!("key-{number}");
            meter.open("shop", Requester::new(&key, "free")).count(
                Limited::Unlimited(rule),
                Fate::Admitted,
                hits,
            );
        }
    };
    for hits in [1, 10] {
        count(hits);
        assert!(recorder.flush().await.is_err(), "nobody is there");
        clock.advance(Duration::from_secs(3_600));
    }
    redis.restart();
    count(100);
    recorder.flush().await.unwrap();
    let mut store = open(&redis);
    for (period, hits) in [
        (Period::Hour(0), 1),
        (Period::Hour(1), 10),
        (Period::Hour(2), 100),
        (day("1970-01-01"), 111),
    ] {
        let rows = store.read(period).await.unwrap();
        assert_eq!(rows.len(), 600, "{period}");
        assert!(
            rows.values().all(|counts| counts.admitted == hits),
            "{period}"
        );
    }
}

/// A day of the month, and what to add to some rows.
type Addition = (u8, Vec<(i64, i64, i64)>);

/// Chunks of random rows for one of few days.
fn chunks() -> impl Strategy<Value = Vec<Addition>> {
    let counts = (-5..100_i64, 0..100_i64, 0..100_i64);
    let rows = proptest::collection::vec(counts, 1..5);
    proptest::collection::vec((1..4_u8, rows), 1..20)
}

#[test]
fn both_stores_keep_what_a_plain_sum_says() {
    let redis = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cases = ProptestConfig::with_cases(32);
    TestRunner::new(cases)
        .run(&chunks(), |chunks| {
            redis.send("FLUSHALL");
            let state = tempfile::tempdir().unwrap();
            let folder =
                UsageStore::open(Place::Folder(state.path().to_owned()), Retention::default());
            for mut store in [folder, open(&redis)] {
                let mut model: HashMap<(Period, Row), Counts> = HashMap::new();
                for (number, (day_of_month, hits)) in (1..).zip(&chunks) {
                    let chunk = chunk(day(&format!("2026-11-0{day_of_month}")), hits);
                    for (row, counts) in &chunk.rows {
                        let row = Row::clone(row);
                        model.entry((chunk.period, row)).or_default().add(*counts);
                    }
                    runtime.block_on(store.add(number, &chunk)).unwrap();
                }
                let mut kept = HashMap::new();
                for day_of_month in 1..4 {
                    let period = day(&format!("2026-11-0{day_of_month}"));
                    for (row, counts) in runtime.block_on(store.read(period)).unwrap() {
                        kept.insert((period, row), counts);
                    }
                }
                // A row of nothing need not be there.
                kept.retain(|_, counts| !counts.is_zero());
                model.retain(|_, counts| !counts.is_zero());
                prop_assert_eq!(kept, model);
            }
            Ok(())
        })
        .unwrap();
}
