//! Several replicas on one Redis.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::{
    client::{Client, Header, Load, another_home},
    common::Tollgate,
    stack::Pair,
};

/// A key that no load exhausts. Its hash: `printf load-key | sha256sum`.
const PLANS: &str = r#"
domain: stats-api
tiers: { big: { limits: ["1000000/minute burst 1000000"] } }
api_keys:
  - { id: load, sha256: fd52c3bcf1d6a473c274a3ec97f5976e15a937e15781b72b402048e071e45a3f, tier: big }
descriptors:
  - { key: api_key, limits_from: tier }
  - key: tier
    value: anonymous
    descriptors: [{ key: ip, limits: ["50/minute sliding"] }]
"#;
const LOAD_KEY: &[Header] = &[("x-api-key", "load-key")];

/// The drain delay is the product's own.
async fn pair() -> Pair {
    Pair::start(PLANS, &["--drain-delay", "5s"], |_| {}).await
}

/// Requests that it let pass.
fn passed_by(replica: &Tollgate) -> f64 {
    replica.metric(r#"tollgate_decisions_total{code="OK"}"#)
}

#[tokio::test]
async fn two_replicas_count_as_one_to_the_last_request() {
    let pair = pair().await;
    let start = Instant::now();
    let mut client = Client::connect_from(another_home(2), pair.envoy.edge).await;
    client.exhaust("/public/stats", 50).await;
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "too slow to tell"
    );
    for replica in &pair.replicas {
        assert!(passed_by(replica) > 0.0, "each replica has decided");
        assert_eq!(replica.metric("tollgate_degraded_total"), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_replica_that_is_told_to_stop_under_load_fails_no_request() {
    let mut pair = pair().await;
    let load = Load::start(pair.envoy.edge, 4, "/secure/stats", LOAD_KEY).await;
    let [leaving, staying] = &mut pair.replicas;
    assert!(passed_by(leaving) > 0.0 && passed_by(staying) > 0.0);
    leaving.process.signal(Signal::SIGTERM);
    while leaving.process.is_running() {
        load.more(10).await;
    }
    assert_eq!(leaving.process.wait(), Some(0));
    load.more(200).await;
    load.stop().await.all_passed();
    for name in ["ratelimit.error", "ext_authz.error", "ratelimit.over_limit"] {
        let name = format!("cluster.stats.{name}");
        assert_eq!(pair.envoy.stat(&name).await, 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_replica_that_is_killed_under_load_fails_little_more_than_what_it_was_being_asked() {
    const CONNECTIONS: usize = 4;
    let mut pair = pair().await;
    let load = Load::start(pair.envoy.edge, CONNECTIONS, "/secure/stats", LOAD_KEY).await;
    pair.replicas[0].process.kill();
    load.more(400).await;
    let tally = load.stop().await;
    assert_eq!(tally.unanswered, Vec::<String>::new());
    let failed = tally.by_status.get(&503).copied().unwrap_or(0);
    // One question of each connection may have been under way, and some find the dead replica before all workers know.
    assert!(failed <= 3 * CONNECTIONS, "{tally:?}");
    let passed = tally.by_status.get(&200).copied().unwrap_or(0);
    assert_eq!(
        passed + failed,
        tally.by_status.values().sum::<usize>(),
        "{tally:?}"
    );
}
