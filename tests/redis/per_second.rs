//! A second Redis for limits per second.

use crate::{
    ask::{one, patient_at, rule},
    cluster::{admitted, ask, connected, left, several},
    redis_server::RedisServer,
};

fn keys(server: &RedisServer) -> Vec<String> {
    let keys: Vec<String> = redis::from_redis_value(server.send("KEYS *#*")).expect("keys");
    keys.into_iter()
        .map(|key| key.split('}').nth(1).expect("a tag").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_per_second_live_in_it_and_a_request_takes_from_both_or_none() {
    let (main, second) = (RedisServer::start(), RedisServer::start());
    let mut settings = patient_at(&main.url());
    settings.per_second = Some(second.url().parse().expect("a Redis URL"));
    let stores = [connected(settings.clone()).await, connected(settings).await];
    let (fast, day) = (rule("1000000/second"), rule("5/day"));
    let take = several(&[(&fast, "a"), (&day, "a")]);
    assert!(ask(&stores[0], take.clone()).await.admitted);
    assert_eq!(keys(&second), ["test/1000000/second#a"]);
    assert_eq!(keys(&main), ["test/5/day#a"]);
    let passed = admitted(&stores, &take, 40).await;
    // A refused request may hold a token that a request between take and gift wants.
    assert!(passed <= 4, "{passed}");
    assert_eq!(left(&stores[1], &day, "a").await, 4 - passed as u64);
    let rest = admitted(&stores[..1], &one(&day, "a", 1), 10).await;
    assert_eq!(passed + rest, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_only_its_limits_are_decided_alone() {
    let (main, mut second) = (RedisServer::start(), RedisServer::start());
    let mut settings = patient_at(&main.url());
    settings.per_second = Some(second.url().parse().expect("a Redis URL"));
    let store = connected(settings).await;
    let (fast, day) = (rule("3/second burst 3"), rule("5/day"));
    second.kill();
    while store.is_down().is_none() {
        ask(&store, one(&fast, "other", 0)).await;
    }
    assert!(!ask(&store, one(&day, "a", 1)).await.degraded);
    let both = several(&[(&fast, "a"), (&day, "a")]);
    let mut passed = 0;
    for _ in 0..6 {
        let taken = ask(&store, both.clone()).await;
        assert!(taken.degraded);
        passed += u64::from(taken.admitted);
    }
    assert!(passed >= 3);
    assert_eq!(left(&store, &day, "a").await, 4 - passed.min(4));
}
