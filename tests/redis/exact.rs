//! Exact over all replicas, and few calls.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tollgate::{
    descriptor::Hits,
    plan::{Charge, RuleLimit},
    store::{RedisStore, Take, Taken, redis::RedisSettings},
};

use crate::{
    ask::{ask, connected, item, one, patient, rule},
    redis_server::RedisServer,
};

/// Asks `requests` times, `tasks` at once, and counts what is admitted.
async fn hammer(store: &Arc<RedisStore>, take: &Take, tasks: usize, requests: usize) -> usize {
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (store, take) = (store.clone(), take.clone());
        running.spawn(async move {
            let mut admitted = 0;
            for _ in 0..requests / tasks {
                admitted += usize::from(ask(&store, take.clone()).await.admitted);
            }
            admitted
        });
    }
    running.join_all().await.into_iter().sum()
}

fn calls(store: &RedisStore) -> u64 {
    store.stats().script_calls.load(Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_under_load_admit_exactly_the_burst() {
    let server = RedisServer::start();
    // One token per 86 s: none comes back meanwhile.
    let take = one(&rule("1000/day"), "shop", 1);
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Arc::new(connected(patient(&server)).await));
    }
    let mut all = JoinSet::new();
    for store in &replicas {
        let (store, take) = (store.clone(), take.clone());
        all.spawn(async move { hammer(&store, &take, 64, 6_400).await });
    }
    assert_eq!(all.join_all().await.into_iter().sum::<usize>(), 1_000);
    for store in &replicas {
        assert_eq!(store.stats().degraded.load(Relaxed), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_script_is_loaded_again_and_no_take_is_lost_or_doubled() {
    let server = RedisServer::start();
    let store = Arc::new(connected(patient(&server)).await);
    let take = one(&rule("2000/day"), "shop", 1);
    let asking = tokio::spawn({
        let store = store.clone();
        async move { hammer(&store, &take, 16, 1_600).await }
    });
    while !asking.is_finished() {
        server.send("SCRIPT FLUSH");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(asking.await.expect("no panic"), 1_600);
    assert!(server.errors("NOSCRIPT") > 1, "the flush came too late");
    let left = ask(&store, one(&rule("2000/day"), "shop", 0)).await;
    assert_eq!(left.balances[0].remaining(), 400);
    assert_eq!(store.stats().degraded.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_needs_at_most_one_call_per_eight_decisions() {
    let server = RedisServer::start();
    let store = Arc::new(connected(patient(&server)).await);
    let take = one(&rule("1000000/day"), "hot", 1);
    let before = server.calls("evalsha");
    assert_eq!(hammer(&store, &take, 64, 12_800).await, 12_800);
    let called = server.calls("evalsha") - before;
    assert!(called * 8 <= 12_800, "{called} calls");
    assert_eq!(called, calls(&store));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_bucket_costs_one_call_per_second_at_most() {
    let server = RedisServer::start();
    let store = Arc::new(connected(patient(&server)).await);
    let take = one(&rule("5/day"), "empty", 1);
    assert_eq!(hammer(&store, &take, 1, 5).await, 5);
    let before = calls(&store);
    // The last token's answer says that the bucket is empty, so even the first refusal needs no call.
    assert_eq!(hammer(&store, &take, 64, 6_400).await, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(hammer(&store, &take, 16, 160).await, 0);
    }
    let called = calls(&store) - before;
    // Two renewals; a machine that takes 50 ms for one lets some more requests ask.
    assert!((1..=6).contains(&called), "{called} calls in 2.5 s");
}

#[tokio::test]
async fn a_cached_refusal_is_the_refusal_of_redis() {
    let server = RedisServer::start();
    let (first, second) = (
        connected(patient(&server)).await,
        connected(patient(&server)).await,
    );
    let (empty, other) = (rule("1/day"), rule("10/day"));
    let take = |hits| Take {
        items: [
            item(&empty, "a", Hits::Take(1)),
            item(&other, "a", Hits::Take(hits)),
        ]
        .into_iter()
        .collect(),
        dry: false,
    };
    assert!(ask(&first, take(3)).await.admitted);
    let cached = ask(&first, take(1)).await;
    assert_eq!(first.stats().deny_cache_hits.load(Relaxed), 1);
    let asked = ask(&second, take(1)).await;
    assert_eq!((cached.admitted, asked.admitted), (false, false));
    for (cached, asked) in cached.balances.iter().zip(&asked.balances) {
        assert_eq!(
            (cached.fits, cached.remaining()),
            (asked.fits, asked.remaining())
        );
        let ahead = cached.reset_after.abs_diff(asked.reset_after);
        assert!(ahead < Duration::from_secs(2), "{cached:?} {asked:?}");
    }
    // A refund through this replica shows at once, one through another replica within a second.
    let give = Take {
        items: [item(&empty, "a", Hits::Give(1))].into_iter().collect(),
        dry: false,
    };
    assert!(ask(&first, give.clone()).await.admitted);
    assert!(ask(&first, one(&empty, "a", 1)).await.admitted);
    assert!(ask(&second, give).await.admitted);
    let until = Instant::now() + Duration::from_millis(1_100);
    while !ask(&first, one(&empty, "a", 1)).await.admitted {
        assert!(Instant::now() < until, "the refund does not show");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_foreign_value_is_no_bucket_and_harms_no_other() {
    let server = RedisServer::start();
    let store = connected(patient(&server)).await;
    let limits = [
        rule("3/day"),
        rule("3/day sliding"),
        rule("3/day calendar"),
        rule("3/day fixed"),
    ];
    let mut admin = server.admin();
    // Text, a list, a float, a negative number, text in MessagePack, an array of one.
    let values: [&[u8]; 6] = [
        b"",
        b"hello",
        b"\xcb\x3f\xf8\0\0\0\0\0\0\x01\x02\x03",
        b"\xff\xff\xff\xff",
        b"\xa1a\x01\x02\x03",
        b"\x91\x01",
    ];
    for (number, value) in values.iter().enumerate() {
        for limit in &limits {
            let subject = number.to_string();
            let take = one(limit, &subject, 1);
            let key = take.items[0].key.as_bytes();
            if value.is_empty() {
                redis::cmd("RPUSH")
                    .arg(key)
                    .arg("x")
                    .exec(&mut admin)
                    .expect("a list");
            } else {
                redis::cmd("SET")
                    .arg(key)
                    .arg(*value)
                    .exec(&mut admin)
                    .expect("a value");
            }
            let taken = ask(&store, take).await;
            assert!(!taken.degraded, "{:?}", store.is_down());
            assert_eq!(
                (taken.admitted, taken.balances[0].remaining()),
                (true, 2),
                "{limit:?} {value:?}"
            );
        }
    }
}

#[tokio::test]
async fn keys_expire_once_their_bucket_is_full() {
    let server = RedisServer::start();
    let store = connected(patient(&server)).await;
    let expected = [
        ("10/second burst 100", 60, 61),
        ("6/minute sliding", 119, 122),
        ("2/day", 43_200, 43_262),
    ];
    for (text, least, most) in expected {
        let take = one(&rule(text), "x", 1);
        let key = take.items[0].key.clone();
        ask(&store, take).await;
        let ttl: i64 = redis::cmd("TTL")
            .arg(key.as_bytes())
            .query(&mut server.admin())
            .expect("a life");
        assert!((least..=most).contains(&ttl), "{text}: {ttl} s");
    }
}

#[tokio::test]
async fn the_key_of_a_fixed_window_lives_until_its_window_has_ended() {
    let server = RedisServer::start();
    let store = connected(patient(&server)).await;
    let take = one(&rule("9/year fixed"), "x", 1);
    // The first write says it, the later ones leave it as it is.
    for _ in 0..3 {
        let taken = ask(&store, take.clone()).await;
        let ttl: u64 = redis::cmd("TTL")
            .arg(take.items[0].key.as_bytes())
            .query(&mut server.admin())
            .expect("a life");
        let ends = taken.balances[0].reset_after.as_secs();
        assert!((ends + 55..=ends + 62).contains(&ttl), "{ttl} {ends}");
    }
}

/// A take of one hit of each of these, charged so.
fn charged(charge: Charge, limits: &[&Arc<RuleLimit>]) -> Take {
    let items = limits.iter().map(|limit| {
        let mut item = item(limit, "x", Hits::Take(1));
        item.charge = charge;
        item
    });
    Take {
        items: items.collect(),
        dry: false,
    }
}

/// Per item: whether it fits, what is left, whether the local cache said so.
fn told(taken: &Taken) -> Vec<(bool, i64, bool)> {
    let balances = taken.balances.iter();
    balances
        .map(|balance| (balance.fits, balance.left, balance.cached))
        .collect()
}

#[tokio::test]
async fn what_is_charged_though_refused_reaches_redis_each_time() {
    let server = RedisServer::start();
    let store = connected(patient(&server)).await;
    for (text, charge) in [
        ("1/year fixed", Charge::Independent),
        ("1/day", Charge::Independent),
        ("1/week calendar", Charge::StopWhenOver),
        ("1/2 days", Charge::Overdraw),
    ] {
        let take = charged(charge, &[&rule(text)]);
        assert_eq!(told(&ask(&store, take.clone()).await), [(true, 0, false)]);
        let over = ask(&store, take.clone()).await;
        assert_eq!(told(&over), [(false, -1, false)], "{text}");
        assert!(over.balances[0].charged);
    }
    assert_eq!(store.stats().deny_cache_hits.load(Relaxed), 0);
}

#[tokio::test]
async fn the_local_cache_refuses_overdrawn_windows_without_redis_and_marks_it() {
    let server = RedisServer::start();
    let settings = RedisSettings {
        local_cache: true,
        ..patient(&server)
    };
    let store = connected(settings).await;
    let (narrow, wide) = (rule("1/year fixed"), rule("9/year fixed"));
    let alone = charged(Charge::Independent, &[&narrow]);
    assert_eq!(told(&ask(&store, alone.clone()).await), [(true, 0, false)]);
    // Used up is not overdrawn: the first refusal is Redis' own.
    assert_eq!(
        told(&ask(&store, alone.clone()).await),
        [(false, -1, false)]
    );
    let before = calls(&store);
    for _ in 0..3 {
        let cached = ask(&store, alone.clone()).await;
        assert_eq!(
            (cached.admitted, told(&cached)),
            (false, vec![(false, -1, true)])
        );
        assert!(!cached.balances[0].charged);
    }
    assert_eq!(calls(&store), before);
    // Of a request only what is overdrawn is answered so; the rest is charged, or looked at if being over stops it.
    for (charge, left) in [
        (Charge::Independent, 8),
        (Charge::Independent, 7),
        (Charge::StopWhenOver, 7),
        (Charge::StopWhenOver, 7),
    ] {
        let taken = ask(&store, charged(charge, &[&wide, &narrow])).await;
        let expected = vec![(true, left, false), (false, -1, true)];
        assert_eq!((taken.admitted, told(&taken)), (false, expected));
    }
    // Where all or nothing binds items together, Redis decides.
    let mut bound = charged(Charge::Independent, &[&wide, &narrow]);
    bound.items[0].charge = Charge::AllOrNothing;
    let taken = ask(&store, bound).await;
    assert_eq!(told(&taken), [(true, 7, false), (false, -2, false)]);
}

#[tokio::test]
async fn with_the_local_cache_a_free_refusal_comes_from_redis_first() {
    let server = RedisServer::start();
    let settings = RedisSettings {
        local_cache: true,
        ..patient(&server)
    };
    let store = connected(settings).await;
    let take = one(&rule("1/day"), "x", 1);
    assert!(ask(&store, take.clone()).await.admitted);
    for cached in [false, true, true] {
        assert_eq!(told(&ask(&store, take.clone()).await), [(false, 0, cached)]);
    }
}

#[tokio::test]
async fn services_of_another_group_and_those_that_only_look_are_no_replicas() {
    let server = RedisServer::start();
    let looker = connected(RedisSettings {
        looks_only: true,
        ..patient(&server)
    })
    .await;
    let of_group = |group: &str| RedisSettings {
        group: group.into(),
        ..patient(&server)
    };
    // Replicas are counted when they connect, so each has counted those before it.
    let counted = [
        connected(of_group("")).await,
        connected(of_group("eu")).await,
        connected(of_group("us")).await,
        connected(of_group("eu")).await,
    ];
    let counts: Vec<u32> = counted.iter().map(RedisStore::replicas).collect();
    assert_eq!(counts, [1, 1, 1, 2]);
    assert_eq!(looker.replicas(), 1);
}
