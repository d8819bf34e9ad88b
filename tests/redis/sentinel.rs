//! A primary that real sentinels watch.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tollgate::store::RedisStore;

use crate::{
    ask::{admitted_until_refused, ask, connected, one, patient_at, rule},
    faults::{back, down},
    redis_server::RedisServer,
};

/// What the sentinel takes for the primary's port.
pub fn primary_port(sentinel: &RedisServer) -> u16 {
    let answer = sentinel.send("SENTINEL GET-MASTER-ADDR-BY-NAME main");
    let (_, port): (String, u16) = redis::from_redis_value(answer).expect("an address");
    port
}

/// Waits until every sentinel knows the replica and the other sentinels, without which nothing fails over.
pub async fn agree(sentinels: &[RedisServer]) {
    let end = Instant::now() + Duration::from_secs(30);
    let knows = |sentinel: &RedisServer| {
        let answer = sentinel.send("SENTINEL MASTER main");
        let facts: std::collections::HashMap<String, String> =
            redis::from_redis_value(answer).expect("facts");
        facts["num-slaves"] == "1" && facts["num-other-sentinels"] == "2"
    };
    while !sentinels.iter().all(knows) {
        assert!(Instant::now() < end, "the sentinels do not see each other");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_is_killed_and_the_new_one_is_found_without_a_restart() {
    let mut primary = RedisServer::start();
    let replica = RedisServer::start_replica(&primary);
    let sentinels: Vec<_> = (0..3)
        .map(|_| RedisServer::start_sentinel("main", &primary, 2))
        .collect();
    agree(&sentinels).await;
    let ports: Vec<_> = sentinels.iter().map(RedisServer::port).collect();
    let mut settings = patient_at(&(url(&ports) + "main"));
    settings.timeout = Duration::from_millis(50);
    let store = Arc::new(connected(settings).await);
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 5);

    let load = spawn_load(&store);
    primary.kill();
    down(&store).await;
    let took = back(&store).await;
    println!("the new primary decided {took:?} after the old one was missed");
    assert!(
        sentinels
            .iter()
            .any(|one| primary_port(one) == replica.port())
    );
    for (admitted, degraded) in load.join_all().await {
        assert!(admitted, "a request failed (degraded: {degraded})");
    }
    assert_eq!(admitted_until_refused(&store, &rule("7/day")).await, 7);
    assert!(replica.calls("evalsha") > 0, "the new primary decides");
}

/// Requests without a pause, until the store has been away and is back.
fn spawn_load(store: &Arc<RedisStore>) -> JoinSet<(bool, bool)> {
    let mut load = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        load.spawn(async move {
            let limit = rule("1000000/day");
            let mut was_degraded = false;
            loop {
                let taken = ask(&store, one(&limit, "busy", 1)).await;
                if !taken.admitted || (was_degraded && !taken.degraded) {
                    return (taken.admitted, taken.degraded);
                }
                was_degraded |= taken.degraded;
                sleep(Duration::from_millis(1)).await;
            }
        });
    }
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sentinel_of_three_is_enough_and_an_unknown_service_is_named() {
    let primary = RedisServer::start();
    let sentinel = RedisServer::start_sentinel("main", &primary, 1);
    let gone = [RedisServer::reserve().port(), RedisServer::reserve().port()];
    let url = url(&[gone[0], sentinel.port(), gone[1]]);
    let store = connected(patient_at(&format!("{url}main"))).await;
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 5);

    let other = RedisStore::connect(patient_at(&format!("{url}other")));
    while !down(&other)
        .await
        .contains("no sentinel knows a primary called `other`")
    {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_have_a_password_of_their_own() {
    let primary = RedisServer::start();
    let sentinel = RedisServer::start_sentinel("main", &primary, 1);
    sentinel.send("ACL SETUSER default resetpass >watch");
    let url = url(&[sentinel.port()]) + "main";
    let store = connected(patient_at(&format!("{url}?sentinel_password=watch"))).await;
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 5);
    let without = RedisStore::connect(patient_at(&url));
    while !down(&without).await.contains("NOAUTH") {
        sleep(Duration::from_millis(5)).await;
    }
}

/// `redis+sentinel://127.0.0.1:A,127.0.0.1:B/`
pub fn url(ports: &[u16]) -> String {
    let hosts: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    format!("redis+sentinel://{}/", hosts.join(","))
}
