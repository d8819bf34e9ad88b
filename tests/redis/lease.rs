//! Tokens taken ahead: never over, all or nothing, few calls, and what is not spent comes back.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures::future::join_all;
use proptest::{collection::vec, prelude::*};
use tollgate::{
    clock::{Clock, ManualClock, Timestamp},
    descriptor::Hits,
    limit::{Kind, Limit},
    plan::{Lease, RuleLimit},
    store::{RedisStore, Take, redis::RedisSettings},
};

use crate::{
    ask::{ask, cases, connected, item, one, patient, patient_at, rule},
    cluster::{self, Nodes},
    common::wait_until,
    faults::{back, down},
    outages::proxy::{Proxy, Wire},
    redis_server::RedisServer,
    zones,
};

/// A limit whose replicas take `percent` of it ahead for `life_ms`.
fn leased(text: &str, percent: u32, life_ms: u32) -> Arc<RuleLimit> {
    let limit = zones::limit(text);
    let lease = Lease::new(&limit, percent, life_ms);
    assert!(lease.is_some(), "{text}");
    let key_prefix = format!("leased/{text}#");
    Arc::new(RuleLimit::new(limit, None, &key_prefix, text).leased(lease))
}

/// A clock that the test moves, and settings with it.
fn by_hand(server: &RedisServer) -> (Arc<ManualClock>, RedisSettings) {
    let start = Timestamp::from_micros(1_700_000_000_000_000);
    let clock = Arc::new(ManualClock::at(start));
    let settings = RedisSettings {
        clock: Some(clock.clone()),
        ..patient(server)
    };
    (clock, settings)
}

fn count(store: &RedisStore, what: &str) -> u64 {
    let stats = store.stats();
    match what {
        "calls" => stats.script_calls.load(Relaxed),
        "leases" => stats.leases.load(Relaxed),
        "leased" => stats.leased.load(Relaxed),
        "decisions" => stats.lease_decisions.load(Relaxed),
        "returned" => stats.lease_returned.load(Relaxed),
        "lost" => stats.lease_lost.load(Relaxed),
        "degraded" => stats.degraded.load(Relaxed),
        _ => unreachable!("{what}"),
    }
}

/// Takes one after another until one is refused by Redis, and counts those before.
async fn drain(store: &RedisStore, take: &Take) -> u64 {
    let mut admitted = 0;
    while ask(store, take.clone()).await.admitted {
        admitted += 1;
    }
    admitted
}

/// Takes until so many have passed in all, and then one is refused: one may be refused while a lease is on its way.
async fn drain_to(store: &RedisStore, take: &Take, mut admitted: u64, all: u64) {
    let until = Instant::now() + Duration::from_secs(10);
    while admitted < all {
        admitted += drain(store, take).await;
        assert!(Instant::now() < until, "{admitted} passed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    admitted += drain(store, take).await;
    assert_eq!(admitted, all);
}

#[derive(Debug, Clone)]
struct Step {
    moves_us: u64,
    /// Which limits' buckets it asks for.
    limits: Vec<usize>,
    /// Which replica, and how many hits.
    asks: Vec<(usize, u64)>,
    /// How many of them at once; what comes later finds the leases of those before.
    at_once: usize,
    /// Which replica fills the buckets up before, if any.
    filled_by: Option<usize>,
}

/// Hits that passed, and when; anew from each gift on.
type Passed = Vec<Vec<(u64, u64)>>;

const LIMITS: [(&str, u32, u32); 5] = [
    ("50/second burst 100", 50, 400),
    ("7/second", 30, 200),
    ("1000/second burst 60", 20, 100),
    ("40/second calendar", 50, 400),
    ("30/2s fixed", 20, 300),
];

fn step(limits: usize) -> impl Strategy<Value = Step> {
    let moves_us = prop_oneof![
        4 => 0..20_000_u64,
        2 => 0..500_000_u64,
        1 => 0..3_000_000_u64,
    ];
    let limits = prop_oneof![
        4 => (0..limits).prop_map(|limit| vec![limit]),
        1 => vec(0..limits, 2..4),
    ];
    let asks = prop_oneof![
        3 => vec((0..3_usize, 1..4_u64), 1..10),
        // Many at one replica, so that it takes a lease; or all that is there.
        3 => (0..3_usize, 10..50_usize).prop_map(|(replica, times)| vec![(replica, 1); times]),
    ];
    let at_once = prop_oneof![2 => Just(4_usize), 1 => Just(50)];
    let filled_by = prop_oneof![5 => Just(None), 1 => (0..3_usize).prop_map(Some)];
    let all = (moves_us, limits, asks, at_once, filled_by);
    all.prop_map(|(moves_us, mut limits, asks, at_once, filled_by)| {
        limits.sort_unstable();
        limits.dedup();
        Step {
            moves_us,
            limits,
            asks,
            at_once,
            filled_by,
        }
    })
}

/// What is over, of hits that passed at these times. Quotas go by the calendar of a zone, if one is named, from an hour on.
fn over(limit: &Limit, zone: Option<(&str, i64)>, passed: &[(u64, u64)]) -> Option<String> {
    let period = u128::from(limit.period().micros());
    let period_of = |(at, _): &(u64, u64)| match zone {
        Some((zone, offset_s)) => {
            zones::period_around(zone, offset_s, limit.period(), at.cast_signed()).0
        }
        None => (u128::from(*at) / period) as i64,
    };
    let periods: Vec<i64> = passed.iter().map(period_of).collect();
    for (first, (from, _)) in passed.iter().enumerate() {
        let mut sum = 0;
        for (place, (to, hits)) in passed.iter().enumerate().skip(first) {
            sum += u128::from(*hits);
            let most = match limit.kind() {
                Kind::Bucket { burst } => {
                    // Rounded up: a part of a token may have been earned before.
                    u128::from(burst)
                        + (u128::from(limit.count()) * u128::from(to - from)).div_ceil(period)
                }
                _ if periods[first] != periods[place] => break,
                _ => u128::from(limit.count()),
            };
            if sum > most {
                return Some(format!("{limit}: {sum} > {most} from {from} to {to}"));
            }
        }
    }
    None
}

/// Three replicas, of which any may hold leases while any other asks.
struct Replicas {
    runtime: tokio::runtime::Runtime,
    clock: Arc<ManualClock>,
    stores: Vec<RedisStore>,
    _server: RedisServer,
}

impl Replicas {
    fn start() -> Self {
        let server = RedisServer::start();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (clock, settings) = by_hand(&server);
        let connect = |_| runtime.block_on(connected(settings.clone()));
        let stores = (0..3).map(connect).collect();
        Self {
            runtime,
            clock,
            stores,
            _server: server,
        }
    }

    /// The hits of each limit that pass.
    fn play(
        &self,
        limits: &[Arc<RuleLimit>],
        subject: &str,
        steps: &[Step],
    ) -> Result<Vec<Passed>, TestCaseError> {
        let mut passed = vec![vec![Vec::new()]; limits.len()];
        for step in steps {
            self.clock.advance(Duration::from_micros(step.moves_us));
            let now = self.clock.now().as_micros();
            if let Some(replica) = step.filled_by {
                let store = &self.stores[replica];
                for limit in &step.limits {
                    self.runtime.block_on(fill(store, &limits[*limit], subject));
                    passed[*limit].push(Vec::new());
                }
            }
            for asks in step.asks.chunks(step.at_once) {
                let answers = asks.iter().map(|(replica, hits)| {
                    let items = step
                        .limits
                        .iter()
                        .map(|limit| item(&limits[*limit], subject, Hits::Take(*hits)));
                    let take = Take {
                        items: items.collect(),
                        dry: false,
                    };
                    ask(&self.stores[*replica], take)
                });
                let answers = self.runtime.block_on(join_all(answers));
                for ((_, hits), answer) in asks.iter().zip(answers) {
                    prop_assert!(!answer.degraded, "{:?}", self.stores[0].is_down());
                    if answer.admitted {
                        let limits = step.limits.iter();
                        limits.for_each(|limit| {
                            let since_gift = passed[*limit].last_mut().expect("never empty");
                            since_gift.push((now, *hits));
                        });
                    }
                }
            }
        }
        Ok(passed)
    }

    fn have_decided_by_leases(&self, times: u64) {
        for store in &self.stores {
            let decisions = count(store, "decisions");
            assert!(decisions > times, "only {decisions} decisions by leases");
        }
    }
}

/// Every interval is looked at in which no bucket is filled up by hand.
#[test]
fn no_interval_admits_more_than_the_limit_over_all_replicas() {
    let replicas = Replicas::start();
    let limits = LIMITS.map(|(text, percent, life_ms)| leased(text, percent, life_ms));
    let case = std::cell::Cell::new(0);
    proptest!(cases(150), |(steps in vec(step(LIMITS.len()), 1..60))| {
        case.set(case.get() + 1);
        replicas.clock.advance(Duration::from_secs(10));
        let passed = replicas.play(&limits, &case.get().to_string(), &steps)?;
        for (limit, passed) in limits.iter().zip(&passed) {
            for passed in passed {
                prop_assert_eq!(over(&limit.limit, None, passed), None);
            }
        }
    });
    replicas.have_decided_by_leases(1_000);
}

/// Limit, percent, life; zone and offset again, for the model.
const ZONES: [(&str, u32, u32, &str, i64); 3] = [
    (
        "90/day calendar in Europe/Berlin offset 6h",
        20,
        400,
        "Europe/Berlin",
        6 * 3_600,
    ),
    (
        "60/hour calendar in Asia/Kolkata",
        30,
        300,
        "Asia/Kolkata",
        0,
    ),
    (
        "80/month calendar in America/New_York",
        20,
        300,
        "America/New_York",
        0,
    ),
];

/// Each case begins a second before a period ends, day after day, so that those on which clocks change are among them.
#[test]
fn no_period_of_a_zone_admits_more_than_its_quota_over_all_replicas() {
    let replicas = Replicas::start();
    let limits = ZONES.map(|(text, percent, life_ms, _, _)| leased(text, percent, life_ms));
    let case = std::cell::Cell::new(0);
    proptest!(cases(200), |(which in 0..ZONES.len(), steps in vec(step(ZONES.len()), 1..40))| {
        case.set(case.get() + 1);
        let now = replicas.clock.now().as_micros() + 2_000_000;
        let (_, _, _, zone, offset_s) = ZONES[which];
        let period = limits[which].limit.period();
        let (_, end) = zones::period_around(zone, offset_s, period, now.cast_signed());
        let wait = end.cast_unsigned() - 1_000_000 - replicas.clock.now().as_micros();
        replicas.clock.advance(Duration::from_micros(wait));
        let passed = replicas.play(&limits, &case.get().to_string(), &steps)?;
        for ((limit, (_, _, _, zone, offset_s)), passed) in limits.iter().zip(ZONES).zip(&passed) {
            for passed in passed {
                prop_assert_eq!(over(&limit.limit, Some((zone, offset_s)), passed), None);
            }
        }
    });
    replicas.have_decided_by_leases(300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_needs_one_call_per_hundred_decisions_at_most() {
    let server = RedisServer::start();
    let store = connected(patient(&server)).await;
    let limit = leased("1000000/day", 5, 10_000);
    for _ in 0..20_000 {
        assert!(ask(&store, one(&limit, "hot", 1)).await.admitted);
    }
    let calls = count(&store, "calls");
    assert!(calls * 100 <= 20_000, "{calls} calls");
    assert!(count(&store, "decisions") > 19_000);
    // What is asked for seldom is not leased.
    let before = count(&store, "leases");
    for number in 0..100 {
        ask(&store, one(&limit, &number.to_string(), 1)).await;
    }
    assert_eq!(count(&store, "leases"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_spent_comes_back_and_nothing_is_refused_for_ever() {
    let server = RedisServer::start();
    for text in ["1000/day", "1000/day calendar", "1000/day fixed"] {
        let limit = leased(text, 40, 100);
        let (idle, busy) = (
            connected(patient(&server)).await,
            connected(patient(&server)).await,
        );
        for _ in 0..200 {
            assert!(ask(&idle, one(&limit, "same", 1)).await.admitted);
        }
        assert!(count(&idle, "leases") > 0, "{text}");
        let until = Instant::now() + Duration::from_secs(10);
        let mut admitted = 200;
        while admitted < 1_000 {
            admitted += drain(&busy, &one(&limit, "same", 1)).await;
            assert!(Instant::now() < until, "{text}: {admitted} passed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(admitted, 1_000, "{text}");
        assert!(count(&idle, "returned") > 0, "{text}");
        assert_eq!(count(&idle, "lost"), 0, "{text}");
        // The day's tokens are spent: none comes any more, from whichever replica.
        assert_eq!(drain(&idle, &one(&limit, "same", 1)).await, 0, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_dies_takes_its_leases_along_and_no_more() {
    let server = RedisServer::start();
    let limit = leased("1000/day", 10, 100);
    let dying = connected(patient(&server)).await;
    for _ in 0..200 {
        assert!(ask(&dying, one(&limit, "same", 1)).await.admitted);
    }
    drop(dying);
    let other = connected(patient(&server)).await;
    let until = Instant::now() + Duration::from_secs(10);
    let mut admitted = 200;
    // What another replica has in leases is at most a tenth; a refusal may come while this one takes a lease itself.
    while admitted < 900 {
        admitted += drain(&other, &one(&limit, "same", 1)).await;
        assert!(Instant::now() < until, "{admitted} passed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    admitted += drain(&other, &one(&limit, "same", 1)).await;
    assert!(admitted <= 1_000, "{admitted}");
}

/// Time is moved, so that nothing else refills the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_replica_had_is_there_again_after_nine_quarters_of_its_lease() {
    let server = RedisServer::start();
    let (clock, settings) = by_hand(&server);
    let limit = leased("100/hour", 20, 400);
    let take = one(&limit, "same", 1);
    let (dying, other) = (
        connected(settings.clone()).await,
        connected(settings.clone()).await,
    );
    for _ in 0..40 {
        assert!(ask(&dying, take.clone()).await.admitted);
    }
    let leased = count(&dying, "leased");
    drop(dying);
    let admitted = drain(&other, &take).await;
    // Each of the two may have a fifth of the limit in leases when one is refused.
    assert!((20..=60).contains(&admitted), "{admitted} of {leased}");
    // A bucket that is empty fills up in an hour, with the leases that ended meanwhile.
    clock.advance(Duration::from_millis(900) + Duration::from_secs(3_600));
    let mut admitted = drain(&other, &take).await;
    let until = Instant::now() + Duration::from_secs(10);
    while admitted < 100 {
        // It refuses while it takes a lease itself.
        admitted += drain(&other, &take).await;
        assert!(Instant::now() < until, "{admitted} passed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(admitted, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_which_a_part_is_leased_is_all_or_nothing() {
    let server = RedisServer::start();
    let settings = RedisSettings {
        timeout: Duration::from_secs(5),
        ..patient(&server)
    };
    let store = connected(settings).await;
    let (hot, plain) = (leased("1000/day", 40, 10_000), rule("300/day"));
    for _ in 0..100 {
        assert!(ask(&store, one(&hot, "same", 1)).await.admitted);
    }
    let both = Take {
        items: [
            item(&hot, "same", Hits::Take(1)),
            item(&plain, "same", Hits::Take(1)),
        ]
        .into_iter()
        .collect(),
        dry: false,
    };
    let mut admitted = 0;
    for _ in 0..400 {
        let taken = ask(&store, both.clone()).await;
        admitted += u64::from(taken.admitted);
        let [hot, plain] = &taken.balances[..] else {
            panic!("{taken:?}");
        };
        assert_eq!(
            (hot.charged, plain.charged),
            (taken.admitted, taken.admitted)
        );
    }
    assert_eq!(admitted, 300);
    // The refused ones have cost the other limit nothing.
    let until = Instant::now() + Duration::from_secs(10);
    let mut admitted = 400;
    while admitted < 1_000 {
        admitted += drain(&store, &one(&hot, "same", 1)).await;
        assert!(Instant::now() < until, "{admitted} passed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(admitted, 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_gives_back_at_once() {
    let server = RedisServer::start();
    let limit = leased("1000/day calendar", 40, 10_000);
    let (stopping, other) = (
        connected(patient(&server)).await,
        connected(patient(&server)).await,
    );
    for _ in 0..100 {
        assert!(ask(&stopping, one(&limit, "same", 1)).await.admitted);
    }
    assert!(count(&stopping, "leased") > 100);
    stopping.give_back_leases(Duration::from_secs(10)).await;
    let look = Take {
        dry: true,
        ..one(&limit, "same", 0)
    };
    assert_eq!(ask(&other, look).await.balances[0].remaining(), 900);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_spent_while_redis_is_away() {
    let mut server = RedisServer::start();
    let store = connected(patient(&server)).await;
    let take = one(&leased("1000000/day", 5, 10_000), "hot", 1);
    for _ in 0..2_000 {
        assert!(ask(&store, take.clone()).await.admitted);
    }
    // A lease on its way arrives.
    let until = Instant::now() + Duration::from_secs(5);
    while count(&store, "leased") < 2_100 {
        assert!(Instant::now() < until, "{:?}", store.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
        ask(&store, take.clone()).await;
    }
    server.kill();
    while store.is_down().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let taken = ask(&store, take.clone()).await;
    assert!(taken.admitted && !taken.degraded, "{taken:?}");
    assert!(count(&store, "decisions") > 1_000);
    let mut asked = 0;
    while !ask(&store, take.clone()).await.degraded {
        asked += 1;
        assert!(asked < 50_000, "a lease that never ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_leased_from_like_one_server() {
    let nodes = Nodes::start(0).await;
    let limit = leased("500/day", 10, 100);
    let settings = patient_at(&nodes.url());
    let replicas = [
        cluster::connected(settings.clone()).await,
        cluster::connected(settings).await,
    ];
    // All at once, so that a call is about leases in several slots.
    let (replicas, limit) = (&replicas, &limit);
    let drained = ["a", "b", "c", "d", "e", "f", "g", "h"].map(async |subject| {
        let until = Instant::now() + Duration::from_secs(20);
        let (mut admitted, mut turn) = (0, 0);
        while admitted < 500 {
            turn += 1;
            let taken = cluster::ask(&replicas[turn / 50 % 2], one(limit, subject, 1)).await;
            admitted += u64::from(taken.admitted);
            assert!(Instant::now() < until, "{subject}: {admitted} passed");
            if !taken.admitted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        for replica in replicas {
            let taken = cluster::ask(replica, one(limit, subject, 1)).await;
            assert!(!taken.admitted, "{subject}");
        }
    });
    join_all(drained).await;
    for replica in replicas {
        assert!(replica.stats().lease_decisions.load(Relaxed) > 0);
    }
}

/// Fills a bucket by hand, as `tollgate buckets reset` does.
async fn fill(store: &RedisStore, limit: &Arc<RuleLimit>, subject: &str) -> u64 {
    let items = [item(limit, subject, Hits::Give(u64::MAX))];
    let gift = Take {
        items: items.into_iter().collect(),
        dry: false,
    };
    ask(store, gift).await.balances[0].remaining()
}

/// What replicas hold in leases was charged before, and is theirs to spend: on top of a full bucket it would be too much.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_filled_by_hand_holds_no_more_than_leases_leave() {
    let server = RedisServer::start();
    for text in ["1000/day calendar", "1000/day fixed", "1000/300 days"] {
        let limit = leased(text, 40, 10_000);
        let (holder, other) = (
            connected(patient(&server)).await,
            connected(patient(&server)).await,
        );
        for _ in 0..200 {
            assert!(ask(&holder, one(&limit, "same", 1)).await.admitted);
        }
        assert!(count(&holder, "leased") > 200, "{text}");
        let left = fill(&other, &limit, "same").await;
        assert!((500..1_000).contains(&left), "{text}: {left}");
        // At first all that others may take, then what comes back.
        let mut admitted = drain(&other, &one(&limit, "same", 1)).await;
        assert!((500..1_000).contains(&admitted), "{text}: {admitted}");
        other.give_back_leases(Duration::from_secs(10)).await;
        holder.give_back_leases(Duration::from_secs(10)).await;
        admitted += drain(&other, &one(&limit, "same", 1)).await;
        assert!(admitted <= 1_000, "{text}: {admitted}");
    }
}

/// A replica that was cut off gives its lease back when Redis has forgotten it. That counts as long as nobody has filled the
/// quota up meanwhile, which was its return.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_late_comes_back_once() {
    let server = RedisServer::start();
    let wire = Proxy::start(0, server.port()).await;
    let cases = [
        ("1000/day calendar", true),
        ("1000/day calendar", false),
        ("1000/day fixed", true),
        ("1000/day fixed", false),
    ];
    for (number, (text, filled)) in cases.into_iter().enumerate() {
        let (clock, settings) = by_hand(&server);
        let limit = leased(text, 40, 10_000);
        let subject = number.to_string();
        let take = one(&limit, &subject, 1);
        let other = connected(settings.clone()).await;
        let cut_off = connected(RedisSettings {
            url: wire.url().parse().expect("a Redis URL"),
            ..settings
        })
        .await;
        for _ in 0..200 {
            assert!(ask(&cut_off, take.clone()).await.admitted);
        }
        assert!(count(&cut_off, "leased") > count(&cut_off, "decisions"));
        wire.set(Wire::Silent);
        wire.tear();
        down(&cut_off).await;
        clock.advance(Duration::from_millis(22_500));
        let before = if filled {
            assert_eq!(fill(&other, &limit, &subject).await, 1_000, "{text}");
            0
        } else {
            200
        };
        let admitted = before + drain(&other, &take).await;
        wire.set(Wire::Whole);
        back(&cut_off).await;
        cut_off.give_back_leases(Duration::from_secs(10)).await;
        assert!(count(&cut_off, "returned") > 0, "{text}");
        drain_to(&other, &take, admitted, 1_000).await;
        assert_eq!(drain(&cut_off, &take).await, 0, "{text}");
    }
}

/// An empty bucket is asked for a lease only now and then, so a replica hears of a gift from outside by its next request, and leases
/// from it a quarter of `for` later at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_filled_by_hand_is_used_at_once_and_leased_from_soon() {
    let server = RedisServer::start();
    let (clock, settings) = by_hand(&server);
    for text in ["1000/day calendar", "1000/300 days"] {
        let limit = leased(text, 20, 10_000);
        let (busy, other) = (
            connected(settings.clone()).await,
            connected(settings.clone()).await,
        );
        let take = one(&limit, "same", 1);
        drain_to(&busy, &take, 0, 1_000).await;
        // So long that all is known to be spent, and the last answer was that there is nothing.
        clock.advance(Duration::from_millis(22_500));
        assert!(!ask(&busy, take.clone()).await.admitted, "{text}");
        assert_eq!(fill(&other, &limit, "same").await, 1_000, "{text}");
        for _ in 0..5 {
            let taken = ask(&busy, take.clone()).await;
            assert!(taken.admitted && !taken.degraded, "{text}: {taken:?}");
        }
        let leases = count(&busy, "leases");
        clock.advance(Duration::from_millis(2_500));
        let (until, mut admitted) = (Instant::now() + Duration::from_secs(10), 5);
        while count(&busy, "leases") == leases {
            assert!(Instant::now() < until, "{text}: no lease any more");
            admitted += u64::from(ask(&busy, take.clone()).await.admitted);
        }
        drain_to(&busy, &take, admitted, 1_000).await;
    }
}

/// Three kinds of decisions in one quota: by leases, by Redis, and without it. Each hit that passed is charged once when Redis is back.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_everything_that_passed_is_charged_and_only_that() {
    let mut server =
        RedisServer::start_with(|_| vec!["--appendonly", "yes", "--appendfsync", "always"]);
    let limit = leased("1000/300 days", 10, 10_000);
    let quota = leased("1000/month", 10, 10_000);
    for limit in [limit, quota] {
        let text = limit.limit.to_string();
        let stores = [
            connected(patient(&server)).await,
            connected(patient(&server)).await,
        ];
        let take = one(&limit, "same", 1);
        let mut passed = 0;
        for store in &stores {
            for _ in 0..200 {
                assert!(ask(store, take.clone()).await.admitted, "{text}");
                passed += 1;
            }
        }
        for store in &stores {
            wait_until("both count each other", async || store.replicas() == 2).await;
            assert!(count(store, "leased") > 100, "{text}");
            // So that no answer is lost, of which nobody could say what it did.
            wait_until("the leases", async || store.queued() == 0).await;
        }
        server.kill();
        let mut degraded = 0;
        for store in &stores {
            while store.is_down().is_none() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            loop {
                let taken = ask(store, take.clone()).await;
                degraded += u64::from(taken.admitted && taken.degraded);
                passed += u64::from(taken.admitted);
                if !taken.admitted {
                    break;
                }
            }
        }
        assert!(degraded > 0, "{text}");
        // What was charged before, leases among it, and for each of the two its half of the limit.
        assert!(passed <= 400 + 2 * 100 + 2 * 500, "{text}: {passed}");
        server.restart();
        for store in &stores {
            back(store).await;
            store.give_back_leases(Duration::from_secs(10)).await;
        }
        let look = Take {
            dry: true,
            ..one(&limit, "same", 0)
        };
        let mut used = 0;
        wait_until("what passed to be charged", async || {
            let taken = ask(&stores[0], look.clone()).await;
            used = 1_000 - taken.balances[0].left;
            !taken.degraded && used.cast_unsigned() >= passed
        })
        .await;
        // Leases on their way when Redis died, or over before it came back, are charged and lost.
        let leases = 2 * 100;
        let used = used.cast_unsigned();
        assert!(used <= passed + leases, "{text}: {used} for {passed}");
        // And from then on Redis has the last word: the bucket is in debt.
        for store in &stores {
            assert_eq!(drain(store, &take).await, 0, "{text}");
        }
    }
}
