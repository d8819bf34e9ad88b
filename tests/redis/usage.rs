//! Usage in Redis: replicas add up, an outage or a lost answer changes no number, and nothing is kept for ever.

use std::{
    collections::{BTreeMap, HashMap},
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
        Chunk, Counts, Day, Fate, Limited, Meter, Period, Recorder, Retention, Row, UsageStore,
    },
};

use crate::{
    common::{
        Process, Tollgate, ask,
        home::{Home, admin_address, call_as},
        plans, ratelimit_command, request, tollgate_command, wait_until,
    },
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

/// 2026-11-30 at five.
const FIVE: u32 = 20_787 * 24 + 5;

fn day(hour: u32) -> Period {
    Period::Day(Day::of_hour(hour))
}

/// A chunk with some rows that are there in all of these tests.
fn chunk(hour: u32, hits: &[(i64, i64, i64)]) -> Arc<Chunk> {
    let row = |number: usize| Arc::new(Row::from(["shop", &format!("key-{number}"), "free", "x"]));
    let rows = hits.iter().enumerate();
    Arc::new(Chunk {
        hour,
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

/// The service in the place of envoyproxy/ratelimit keeps usage in its Redis, and tells it and fills buckets for who has the token.
// The connection ends beside the wait for the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn started_as_ratelimit_it_meters_in_the_redis_of_its_variables() {
    let redis = RedisServer::start();
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("shop/config");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("shop.yaml"), PLANS).unwrap();
    let mut command = ratelimit_command();
    command
        .env("RUNTIME_ROOT", root.path())
        .env("RUNTIME_SUBDIRECTORY", "shop")
        .env("REDIS_URL", redis.url())
        .env("TOLLGATE_STORE_TIMEOUT", "2s")
        .env("TOLLGATE_DRAIN_DELAY", "0s")
        .env("TOLLGATE_USAGE", "1")
        .env("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0")
        .env("TOLLGATE_ADMIN_TOKEN", "ada s3cret-token-of-ada");
    let mut tollgate = Tollgate::from_process(Process::start(&mut command));
    let address = admin_address(&mut tollgate);
    let mut client = tollgate.client().await;
    for _ in 0..3 {
        let asked = request("shop", &[&[("api_key", "ada")]]);
        ask(&mut client, asked).await.unwrap();
    }
    let ask_admin = |line: &str, body: &str| {
        let (status, body) = call_as(&address, Some("s3cret-token-of-ada"), line, body);
        assert_eq!(status, 200, "{line}: {body}");
        body
    };
    let bucket =
        r#"{"domain":"shop","descriptors":[{"entries":[{"key":"api_key","value":"ada"}]}]}"#;
    let filled = ask_admin("POST /v1/buckets/reset", bucket);
    assert_eq!(filled["buckets"][0]["before"], 997, "{filled}");
    let (status, none) = call_as(&address, Some("s3cret-token-of-ada"), "GET /v1/keys", "");
    let detail = none["detail"].as_str().unwrap();
    assert!(
        status == 409 && detail.ends_with("as `ratelimit` they are in plan files only"),
        "{none}"
    );
    let told = ask_admin("GET /v1/usage", "");
    assert_eq!(
        told["rows"][0]["admitted"], 3,
        "what is not kept yet: {told}"
    );
    let audit = ask_admin("GET /v1/audit", "");
    assert_eq!(audit["entries"][0]["action"], "buckets.reset", "{audit}");

    tollgate.process.signal(Signal::SIGTERM);
    tollgate.process.wait();
    let mut command = tollgate_command();
    command.args(["usage", "--by", "month", "--output", "json", "--store"]);
    let output = command.arg(redis.url()).arg("--config").arg(&config);
    let output = output.output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = &report["rows"][0];
    assert_eq!(
        (row["key"].as_str(), row["admitted"].as_i64()),
        (Some("ada"), Some(3)),
        "{report}"
    );
}

#[tokio::test]
async fn a_chunk_that_is_sent_again_under_its_number_counts_once() {
    let redis = RedisServer::start();
    let (mut one, mut other) = (open(&redis), open(&redis));
    let sent = chunk(FIVE, &[(5, 2, 1)]);
    for number in [1, 1, 2, 2, 1] {
        one.add(number, &sent).await.unwrap();
    }
    // Another writer has numbers of its own.
    other.add(1, &sent).await.unwrap();
    for period in [Period::Hour(FIVE), day(FIVE)] {
        let rows = one.read(period).await.unwrap();
        assert_eq!(rows[&*sent.rows[0].0], Counts::from((15, 6, 3)));
    }
    for period in [Period::Hour(FIVE + 1), day(FIVE - 24)] {
        assert!(other.read(period).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_field_that_somebody_spoilt_is_told_and_nothing_is_added_twice() {
    let redis = RedisServer::start();
    let mut store = open(&redis);
    let period = day(FIVE);
    let field = r#"a["shop","key-1","free","x"]"#;
    let mut spoil = redis::cmd("HSET");
    spoil.arg("tollgate:{usage}:1:2026-11-30").arg(field);
    spoil.arg("x").exec(&mut redis.admin()).unwrap();
    let sent = chunk(FIVE, &[(5, 0, 0), (7, 0, 0)]);
    assert!(store.add(1, &sent).await.is_err());
    store.add(1, &sent).await.unwrap();
    assert!(store.read(period).await.is_err());
    let mut mend = redis::cmd("HDEL");
    mend.arg("tollgate:{usage}:1:2026-11-30").arg(field);
    mend.exec(&mut redis.admin()).unwrap();
    store.add(2, &chunk(FIVE, &[(1, 0, 0)])).await.unwrap();
    let rows: Vec<Counts> = store.read(period).await.unwrap().into_values().collect();
    assert_eq!(rows, [Counts::from((6, 0, 0))]);
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_gets_the_chunk_later() {
    let redis = RedisServer::start();
    let mut store = open(&redis);
    let sent = chunk(FIVE, &[(5, 0, 0)]);
    redis.send("CONFIG SET maxmemory 1");
    assert!(store.add(1, &sent).await.is_err());
    redis.send("CONFIG SET maxmemory 0");
    store.add(1, &sent).await.unwrap();
    let rows = store.read(day(FIVE)).await.unwrap();
    assert_eq!(rows.into_values().next(), Some(Counts::from((5, 0, 0))));
}

#[tokio::test]
async fn every_key_in_redis_ends() {
    let redis = RedisServer::start();
    let mut store = open(&redis);
    store.add(1, &chunk(0, &[(1, 0, 0)])).await.unwrap();
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
            meter
                .open("shop", &key, "free")
                .count(Limited::Unlimited(rule), Fate::Admitted, hits);
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
        (day(0), 111),
    ] {
        let rows = store.read(period).await.unwrap();
        assert_eq!(rows.len(), 600, "{period}");
        assert!(
            rows.values().all(|counts| counts.admitted == hits),
            "{period}"
        );
    }
}

/// Hits by limit, of all periods of that length.
fn kept(home: &Home, by: &str) -> BTreeMap<String, i64> {
    let from = humantime::format_rfc3339(SystemTime::now() - Duration::from_secs(2 * 86_400));
    let report = home.json(&["usage", "--by", by, "--from", &from.to_string()[..10]]);
    let mut hits = BTreeMap::new();
    for row in report["rows"].as_array().unwrap() {
        let limit = row["limit"].as_str().unwrap().to_owned();
        *hits.entry(limit).or_default() += row["admitted"].as_i64().unwrap();
    }
    hits
}

/// More rows than Redis takes in one step.
const RULES: usize = 250;

#[tokio::test]
async fn a_replica_that_is_killed_while_it_writes_leaves_hours_and_days_alike() {
    let redis = RedisServer::start();
    let mut text = "domain: shop\ndescriptors:\n".to_owned();
    for rule in 0..RULES {
        text += &format!("  - {{ key: path, value: /{rule}, limits: [1000000/day] }}\n");
    }
    let paths: Vec<String> = (0..RULES).map(|rule| format!("/{rule}")).collect();
    let entries: Vec<_> = paths.iter().map(|path| [("path", &**path)]).collect();
    let asked: Vec<&[(&str, &str)]> = entries.iter().map(|entries| &entries[..]).collect();
    let asked = request("shop", &asked);
    for home in [Home::new(&text), Home::in_redis(&text, &redis.url())] {
        for _ in 0..3 {
            let before = kept(&home, "day");
            let mut replica = home.serve(&["--usage", "--usage-flush-interval", "1ms"]);
            let (mut client, asked) = (replica.client().await, asked.clone());
            let load = tokio::spawn(async move {
                let mut answered = 0;
                // Until the replica is killed.
                while ask(&mut client, asked.clone()).await.is_ok() {
                    answered += 1;
                }
                answered
            });
            wait_until("a flush", async || kept(&home, "day") != before).await;
            replica.process.kill();
            let answered: i64 = load.await.unwrap();
            // What was sent may still arrive.
            wait_until("hours and days to be alike", async || {
                kept(&home, "hour") == kept(&home, "day")
            })
            .await;
            for (limit, hits) in kept(&home, "day") {
                let new = hits - before.get(&limit).unwrap_or(&0);
                // One more may have been on its way.
                assert!(
                    (0..=answered + 1).contains(&new),
                    "{limit}: {new} of {answered}"
                );
            }
        }
    }
}

/// An hour, and what to add to some rows.
type Addition = (u32, Vec<(i64, i64, i64)>);

/// Chunks of random rows for one of few hours of two days.
fn chunks() -> impl Strategy<Value = Vec<Addition>> {
    let counts = (-5..100_i64, 0..100_i64, 0..100_i64);
    let rows = proptest::collection::vec(counts, 1..5);
    proptest::collection::vec((FIVE + 17..FIVE + 21, rows), 1..20)
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
                for (number, (hour, hits)) in (1..).zip(&chunks) {
                    let chunk = chunk(*hour, hits);
                    for (row, counts) in &chunk.rows {
                        for period in [Period::Hour(*hour), day(*hour)] {
                            let row = Row::clone(row);
                            model.entry((period, row)).or_default().add(*counts);
                        }
                    }
                    runtime.block_on(store.add(number, &chunk)).unwrap();
                }
                let days = [FIVE, FIVE + 24].map(Day::of_hour);
                let periods = days
                    .into_iter()
                    .flat_map(|day| day.hours().chain([Period::Day(day)]));
                let mut kept = HashMap::new();
                for period in periods {
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
