//! Redis killed, paused, read-only, full, locked, absent: decisions go on, and Redis is told afterwards.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::sleep};
use tollgate::{
    descriptor::Hits,
    plan::{Charge, OnStoreError, Role, RuleLimit},
    store::{
        RedisStore, StoreError, Take, Taken,
        redis::{RedisSettings, RedisUrl},
    },
};

use crate::{
    ask::{ask, connected, item, one, patient, rule},
    redis_server::RedisServer,
};

/// Settings as in production, but for a timeout that a busy machine keeps.
fn usual(server: &RedisServer) -> RedisSettings {
    let url: RedisUrl = server.url().parse().expect("a Redis URL");
    RedisSettings {
        timeout: Duration::from_millis(50),
        ..RedisSettings::new(url)
    }
}

/// Waits until the store decides by Redis again, and says how long that took.
pub async fn back(store: &RedisStore) -> Duration {
    let began = Instant::now();
    while store.is_down().is_some() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            store.is_down()
        );
        sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}

pub async fn down(store: &RedisStore) -> Arc<str> {
    let began = Instant::now();
    loop {
        if let Some(reason) = store.is_down() {
            return reason;
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "Redis is still used"
        );
        sleep(Duration::from_millis(2)).await;
    }
}

/// What Redis itself holds, once it has been told `expected` or time is up.
async fn settles_at(server: &RedisServer, limit: &Arc<RuleLimit>, subject: &str, expected: u64) {
    let fresh = connected(patient(server)).await;
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let look = Take {
            dry: true,
            ..one(limit, subject, 0)
        };
        let remaining = ask(&fresh, look).await.balances[0].remaining();
        if remaining == expected {
            return;
        }
        assert!(Instant::now() < end, "{remaining} left, not {expected}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_under_load_no_request_fails_and_limits_are_exact_again() {
    let mut server = RedisServer::start();
    let store = Arc::new(connected(usual(&server)).await);
    let take = one(&rule("1000000/day"), "busy", 1);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut load = JoinSet::new();
    for _ in 0..16 {
        let (store, take, stopped) = (store.clone(), take.clone(), stopped.clone());
        load.spawn(async move {
            let mut longest = Duration::ZERO;
            while !*stopped.borrow() {
                let began = Instant::now();
                assert!(ask(&store, take.clone()).await.admitted);
                longest = longest.max(began.elapsed());
                sleep(Duration::from_micros(500)).await;
            }
            longest
        });
    }
    sleep(Duration::from_millis(100)).await;
    server.kill();
    down(&store).await;
    sleep(Duration::from_millis(300)).await;
    server.restart();
    let took = back(&store).await;
    stop.send_replace(true);
    let longest = load.join_all().await.into_iter().max().expect("load");
    println!("exact again {took:?} after Redis was up; longest decision {longest:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(longest < Duration::from_millis(250), "{longest:?}");
    let limit = rule("5/day");
    for expected in [true, true, true, true, true, false] {
        let taken = ask(&store, one(&limit, "after", 1)).await;
        assert_eq!((taken.admitted, taken.degraded), (expected, false));
    }
    assert!(store.stats().degraded.load(Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_admitted_while_redis_pauses_is_charged_once() {
    let server = RedisServer::start();
    let store = Arc::new(connected(usual(&server)).await);
    let limit = rule("100/day");
    assert!(ask(&store, one(&limit, "paused", 10)).await.admitted);
    server.send("CLIENT PAUSE 600");
    let began = Instant::now();
    let mut waiting = JoinSet::new();
    // Some are sent and answered late, some wait in the queue, and some come when the breaker is open.
    for after in 0..30 {
        let (store, take) = (store.clone(), one(&limit, "paused", 1));
        waiting.spawn(async move {
            sleep(Duration::from_millis(10 * after)).await;
            ask(&store, take).await
        });
    }
    let taken = waiting.join_all().await;
    assert!(
        began.elapsed() < Duration::from_millis(550),
        "requests waited for Redis"
    );
    assert!(taken.iter().all(|taken| taken.admitted && taken.degraded));
    assert!(store.stats().timeouts.load(Relaxed) > 0);
    settles_at(&server, &limit, "paused", 60).await;
    assert!(store.stats().charged_back.load(Relaxed) > 0);
    back(&store).await;
    sleep(Duration::from_millis(50)).await;
    settles_at(&server, &limit, "paused", 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_takes_for_a_request_refused_meanwhile_is_given_back() {
    let server = RedisServer::start();
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(connected(usual(&server)).await);
    }
    let store = &replicas[0];
    while store.replicas() < 3 {
        sleep(Duration::from_millis(20)).await;
    }
    // A third of three is one, so the second of two is refused while Redis is silent.
    let limit = rule("3/day");
    server.send("CLIENT PAUSE 80");
    let (first, second) = tokio::join!(
        ask(store, one(&limit, "mine", 1)),
        ask(store, one(&limit, "mine", 1))
    );
    assert_eq!(u8::from(first.admitted) + u8::from(second.admitted), 1);
    assert!(first.degraded && second.degraded);
    settles_at(&server, &limit, "mine", 2).await;
    assert_eq!(store.stats().given_back.load(Relaxed), 1);
}

#[tokio::test]
async fn what_is_taken_for_a_caller_that_got_an_error_is_given_back() {
    let server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let limit = rule("3/day");
    let mut take = one(&limit, "mine", 1);
    take.items[0].on_store_error = OnStoreError::Error;
    server.send("CLIENT PAUSE 80");
    let deadline = Instant::now() + Duration::from_secs(1);
    assert!(store.take(take, deadline).await.is_err());
    settles_at(&server, &limit, "mine", 3).await;
    assert_eq!(store.stats().given_back.load(Relaxed), 1);
}

#[tokio::test]
async fn a_read_only_redis_is_not_waited_for_and_used_again_when_it_takes_writes() {
    let server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let limit = rule("100/day");
    assert!(!ask(&store, one(&limit, "a", 1)).await.degraded);
    server.send("REPLICAOF 127.0.0.1 1");
    let taken = ask(&store, one(&limit, "a", 1)).await;
    assert!(taken.degraded && taken.admitted);
    assert!(
        down(&store).await.to_lowercase().contains("read"),
        "{:?}",
        store.is_down()
    );
    sleep(Duration::from_millis(300)).await;
    server.send("REPLICAOF NO ONE");
    let took = back(&store).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!ask(&store, one(&limit, "a", 1)).await.degraded);
    settles_at(&server, &limit, "a", 97).await;
}

#[tokio::test]
async fn starts_without_redis_and_uses_it_once_it_is_there() {
    let mut server = RedisServer::reserve();
    let store = RedisStore::connect(usual(&server));
    assert!(!store.first_connection(Duration::from_millis(100)).await);
    let limit = rule("100/day");
    assert!(ask(&store, one(&limit, "early", 1)).await.degraded);
    server.restart();
    assert!(
        store.first_connection(Duration::from_secs(1)).await,
        "{:?}",
        store.is_down()
    );
    assert!(!ask(&store, one(&limit, "early", 1)).await.degraded);
    settles_at(&server, &limit, "early", 98).await;
}

#[tokio::test]
async fn a_full_redis_and_a_changed_password_are_named_and_survived() {
    let server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let limit = rule("100/day");
    server.send("CONFIG SET maxmemory 1");
    assert!(ask(&store, one(&limit, "a", 1)).await.degraded);
    assert!(down(&store).await.contains("OOM"), "{:?}", store.is_down());
    server.send("CONFIG SET maxmemory 0");
    back(&store).await;
    assert!(!ask(&store, one(&limit, "a", 1)).await.degraded);

    let mut admin = server.admin();
    let set = |admin: &mut redis::Connection, password: &str| {
        let mut command = redis::cmd("CONFIG");
        command
            .arg("SET")
            .arg("requirepass")
            .arg(password)
            .exec(admin)
            .expect("set");
    };
    set(&mut admin, "s3cret");
    redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .exec(&mut admin)
        .expect("killed");
    down(&store).await;
    sleep(Duration::from_millis(300)).await;
    assert!(
        store.is_down().expect("still down").contains("NOAUTH"),
        "{:?}",
        store.is_down()
    );
    set(&mut admin, "");
    assert!(back(&store).await < Duration::from_secs(1));
}

/// What keeps a primary that was cut off from deciding beside its successor.
#[tokio::test]
async fn a_primary_that_misses_its_replicas_is_not_used() {
    let server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let limit = rule("100/day");
    assert!(!ask(&store, one(&limit, "a", 1)).await.degraded);
    server.send("CONFIG SET min-replicas-to-write 1");
    let taken = ask(&store, one(&limit, "a", 1)).await;
    assert!(taken.degraded && taken.admitted);
    assert!(
        down(&store).await.contains("NOREPLICAS"),
        "{:?}",
        store.is_down()
    );
    server.send("CONFIG SET min-replicas-to-write 0");
    back(&store).await;
    settles_at(&server, &limit, "a", 98).await;
}

#[tokio::test]
async fn without_redis_each_item_answers_by_its_own_policy_and_all_or_nothing_holds() {
    let server = RedisServer::reserve();
    let store = RedisStore::connect(usual(&server));
    let limit = rule("2/day");
    let with = |role, policy, subject: &str| {
        let mut one = item(&limit, subject, Hits::Take(1));
        (one.role, one.on_store_error) = (role, policy);
        one
    };
    let take = |items: &[_]| Take {
        items: items.iter().cloned().collect(),
        dry: false,
    };
    let (enforced, quota, shadow) = (Role::Enforced, Role::Quota, Role::Shadow);
    let (local, allow) = (OnStoreError::Local, OnStoreError::Allow);
    let (deny, error) = (OnStoreError::Deny, OnStoreError::Error);
    let left = |taken: &Taken| taken.balances[0].remaining();

    // A denied item takes nothing from the others; an allowed one does not stop them.
    let denied = ask(
        &store,
        take(&[with(enforced, local, "a"), with(enforced, deny, "b")]),
    )
    .await;
    assert_eq!(
        (denied.admitted, denied.degraded, left(&denied)),
        (false, true, 2)
    );
    assert_eq!(
        (denied.balances[0].fits, denied.balances[1].fits),
        (true, false)
    );
    let allowed = ask(
        &store,
        take(&[with(enforced, local, "a"), with(enforced, allow, "b")]),
    )
    .await;
    assert_eq!((allowed.admitted, left(&allowed)), (true, 1));
    ask(&store, take(&[with(enforced, local, "a")])).await;
    let empty = ask(
        &store,
        take(&[with(enforced, local, "a"), with(enforced, allow, "b")]),
    )
    .await;
    assert!(!empty.admitted);

    // One quota item that passes is enough; shadow items never refuse.
    assert!(
        ask(
            &store,
            take(&[with(quota, local, "a"), with(quota, allow, "b")])
        )
        .await
        .admitted
    );
    assert!(
        ask(
            &store,
            take(&[with(quota, local, "c"), with(quota, deny, "b")])
        )
        .await
        .admitted
    );
    assert!(!ask(&store, take(&[with(quota, deny, "b")])).await.admitted);
    assert!(
        ask(
            &store,
            take(&[with(shadow, deny, "b"), with(shadow, error, "b")])
        )
        .await
        .admitted
    );

    let asked = take(&[with(enforced, local, "d"), with(enforced, error, "b")]);
    let answer = store
        .take(asked, Instant::now() + Duration::from_secs(1))
        .await;
    assert!(
        matches!(answer, Err(StoreError::Unavailable { .. })),
        "{answer:?}"
    );
    assert_eq!(
        left(&ask(&store, take(&[with(enforced, local, "d")])).await),
        1
    );
}

#[tokio::test]
async fn an_emptied_bucket_stays_empty_while_redis_is_away() {
    let mut server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let limit = rule("5/day");
    assert!(ask(&store, one(&limit, "a", 4)).await.admitted);
    server.kill();
    down(&store).await;
    let answers = [
        ask(&store, one(&limit, "a", 1)).await,
        ask(&store, one(&limit, "a", 1)).await,
    ];
    assert_eq!((answers[0].admitted, answers[1].admitted), (true, false));
    assert!(answers.iter().all(|taken| taken.degraded));
}

#[tokio::test]
async fn a_full_queue_sheds_at_once() {
    let server = RedisServer::start();
    let settings = RedisSettings {
        lanes: 1,
        queue: 4,
        ..patient(&server)
    };
    let store = connected(settings).await;
    let limit = rule("1000/day");
    let asking = (0..64).map(|_| ask(&store, one(&limit, "a", 1)));
    let answers = futures::future::join_all(asking).await;
    let shed = answers.iter().filter(|taken| taken.degraded).count() as u64;
    assert!(shed > 0 && answers.iter().all(|taken| taken.admitted));
    assert_eq!(store.stats().shed.load(Relaxed), shed);
    settles_at(&server, &limit, "a", 1_000 - 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_empty_bucket_is_charged_becomes_its_debt() {
    let server = RedisServer::start();
    let (other, store) = (
        connected(usual(&server)).await,
        connected(usual(&server)).await,
    );
    while store.replicas() < 2 {
        sleep(Duration::from_millis(20)).await;
    }
    let limit = rule("5/day");
    assert!(ask(&other, one(&limit, "a", 5)).await.admitted);
    // This replica has not seen the bucket: half of five is two.
    server.send("CLIENT PAUSE 300");
    for expected in [true, true, false] {
        assert_eq!(ask(&store, one(&limit, "a", 1)).await.admitted, expected);
    }
    while store.is_down().is_some() || store.stats().charged_back.load(Relaxed) < 2 {
        sleep(Duration::from_millis(5)).await;
    }
    let give = |hits| Take {
        items: [item(&limit, "a", Hits::Give(hits))].into_iter().collect(),
        dry: false,
    };
    // Two tokens pay the debt, the third is there to be taken.
    settles_at(&server, &limit, "a", 0).await;
    sleep(Duration::from_millis(1_200)).await;
    assert!(ask(&other, give(2)).await.admitted);
    settles_at(&server, &limit, "a", 0).await;
    assert!(ask(&other, give(1)).await.admitted);
    settles_at(&server, &limit, "a", 1).await;
}

#[tokio::test]
async fn what_was_charged_without_redis_is_told_to_it_though_it_was_refused() {
    let server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let take = |hits| {
        let mut item = item(&rule("5/year fixed"), "a", Hits::Take(hits));
        item.charge = Charge::Independent;
        Take {
            items: [item].into_iter().collect(),
            dry: false,
        }
    };
    assert!(ask(&store, take(1)).await.admitted);
    server.send("CLIENT PAUSE 1000");
    for (admitted, left) in [(true, 0), (false, -4), (false, -8)] {
        let taken = ask(&store, take(4)).await;
        assert!(taken.degraded);
        assert_eq!((taken.admitted, taken.balances[0].left), (admitted, left));
    }
    down(&store).await;
    let trips = store.stats().trips.load(Relaxed);
    let fresh = connected(patient(&server)).await;
    let begun = Instant::now();
    while ask(&fresh, take(0)).await.balances[0].left != -8 {
        assert!(begun.elapsed() < Duration::from_secs(20), "not settled");
        sleep(Duration::from_millis(10)).await;
    }
    back(&store).await;
    assert_eq!(ask(&store, take(0)).await.balances[0].left, -8);
    assert_eq!(store.stats().trips.load(Relaxed), trips);
}

/// Nobody asks any more: what was admitted is charged all the same, and soon.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_buckets_are_charged_back_at_once_and_those_beyond_are_counted() {
    let mut server = RedisServer::start();
    let store = connected(usual(&server)).await;
    let limit = rule("5/day");
    server.kill();
    down(&store).await;
    for subject in 0..10_100 {
        let taken = ask(&store, one(&limit, &subject.to_string(), 2)).await;
        assert!(taken.admitted && taken.degraded);
    }
    assert_eq!(store.stats().not_charged.load(Relaxed), 100);
    server.restart();
    back(&store).await;
    let began = Instant::now();
    let charged = || -> u64 { redis::from_redis_value(server.send("DBSIZE")).expect("a number") };
    // The replica itself has a key.
    while charged() < 10_000 + 1 {
        assert!(began.elapsed() < Duration::from_secs(20), "{}", charged());
        sleep(Duration::from_millis(10)).await;
    }
    println!("charged back within {:?}", began.elapsed());
    settles_at(&server, &limit, "0", 3).await;
}
