//! What becomes of requests beyond a limit, other than that they are refused; over two replicas that share a Redis.

use std::time::{Duration, Instant};

use crate::{
    client::{Client, all_at_once, another_home, by_status},
    common::wait_until,
    stack::Pair,
};

/// Plans for the public route, where an address has these limits.
fn of_addresses(limits: &str) -> String {
    format!(
        "domain: stats-api\ndescriptors: [{{ key: tier, value: anonymous, descriptors: [{{ key: ip, limits: [{limits}] }}] }}]"
    )
}

#[tokio::test]
async fn a_delayed_request_comes_through_later_and_a_longer_wait_than_envoys_is_refused() {
    let plans = of_addresses("{ limit: 30/minute burst 1, delay: up to 40s }");
    let pair = Pair::start(&plans, &[], |config| {
        config.rate_limit()["timeout"] = "4.5s".into();
    })
    .await;
    let mut client = pair.envoy.client().await;
    let began = Instant::now();
    assert_eq!(client.get("/public/stats", &[]).await.status, 200);
    assert_eq!(client.get("/public/stats", &[]).await.status, 200);
    let took = began.elapsed();
    // No store timeout, half a second here, cuts the wait.
    assert!(
        took >= Duration::from_secs(2),
        "a token comes every two seconds: {took:?}"
    );
    // Three at once would wait for two, four and six seconds, and Envoy would hang up before the last.
    let statuses = by_status(&all_at_once(pair.envoy.edge, 3, "/public/stats", &[]).await);
    assert_eq!(
        (statuses.get(&200), statuses.get(&429)),
        (Some(&2), Some(&1))
    );
    assert_eq!(pair.envoy.stat("cluster.stats.ratelimit.error").await, 0);
    assert_eq!(pair.metric("tollgate_degraded_total"), 0.0);
}

#[tokio::test]
async fn a_penalised_address_stays_refused_though_its_bucket_has_refilled() {
    let plans = of_addresses("{ limit: 20/second burst 1, penalty: { after: 2, for: 1h } }");
    let pair = Pair::start(&plans, &[], |_| {}).await;
    // Twenty a second pass and no more, so two of a hundred at once are refused.
    all_at_once(pair.envoy.edge, 100, "/public/stats", &[]).await;
    let mut client = pair.envoy.client().await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        let answer = client.get("/public/stats", &[]).await;
        assert_eq!(answer.status, 429, "{answer:?}");
        let wait = answer
            .header("retry-after")
            .and_then(|wait| wait.parse::<u64>().ok());
        assert!(wait > Some(3_500), "until the penalty ends: {answer:?}");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let mut neighbour = Client::connect_from(another_home(2), pair.envoy.edge).await;
    assert_eq!(neighbour.get("/public/stats", &[]).await.status, 200);
}

#[tokio::test]
async fn who_does_not_stop_is_kept_out_longer_each_time() {
    let plans = of_addresses("{ limit: 20/second burst 1, penalty: { after: 1, for: 1s } }");
    let pair = Pair::start(&plans, &[], |_| {}).await;
    // The first lasts a second and the second two, so who is told to wait for three has the third.
    wait_until("the third penalty", async || {
        let answers = all_at_once(pair.envoy.edge, 30, "/public/stats", &[]).await;
        let mut waits = answers
            .iter()
            .filter_map(|answer| answer.header("retry-after"));
        waits.any(|wait| wait.parse::<u64>().is_ok_and(|wait| wait >= 3))
    })
    .await;
    assert!(pair.metric("tollgate_penalties_total") >= 3.0);
}
