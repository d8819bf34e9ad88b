//! Tollgate or its Redis is gone, or stands still: who passes then, and that all is well again afterwards.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    client::{Client, Load, all_at_once, another_home, by_status},
    common::{Tollgate, free_port, plans, wait_until},
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Stack, Upstream, shipped_plans},
};

fn deny_on_failure(config: &mut EnvoyConfig) {
    config.rate_limit()["failure_mode_deny"] = true.into();
}

#[tokio::test]
async fn without_tollgate_envoy_lets_callers_pass_or_not_as_it_is_told() {
    let mut stack = Stack::start(&shipped_plans(), &[], Upstream::fast_stats(), |_| {}).await;
    let mut config = EnvoyConfig::new(&[&stack.tollgate.grpc], stack.upstream.address);
    deny_on_failure(&mut config);
    let closed = Envoy::start(&config).await;
    let (mut open_client, mut closed_client) = (stack.envoy.client().await, closed.client().await);
    assert_eq!(open_client.get("/public/stats", &[]).await.status, 200);
    assert_eq!(closed_client.get("/public/stats", &[]).await.status, 200);

    stack.tollgate.process.kill();
    for _ in 0..60 {
        let answer = open_client.get("/public/stats", &[]).await;
        assert_eq!(answer.status, 200, "open: beyond the limit, too");
        assert_eq!(answer.header("ratelimit"), None);
    }
    let let_through = "cluster.stats.ratelimit.failure_mode_allowed";
    assert_eq!(stack.envoy.stat(let_through).await, 60);

    assert_eq!(closed_client.get("/public/stats", &[]).await.status, 503);
    assert_eq!(closed.stat("cluster.stats.ratelimit.error").await, 1);
    // Who may enter is never guessed, whatever is done about limits.
    for client in [&mut open_client, &mut closed_client] {
        let key = [("x-api-key", "demo-premium-key")];
        assert_eq!(client.get("/secure/stats", &key).await.status, 503);
        assert_eq!(client.get("/unsecure/stats", &[]).await.status, 200);
    }
}

/// Addresses 127.0.0.1 to .4, each with another answer to a store that is gone.
fn plans_for_outages() -> (TempDir, PathBuf) {
    plans(
        r#"
domain: stats-api
descriptors:
  - key: tier
    descriptors:
      - { key: ip, value: 127.0.0.1, limits: ["3/hour"], on_store_error: allow }
      - { key: ip, value: 127.0.0.2, limits: ["3/hour"], on_store_error: deny }
      - { key: ip, value: 127.0.0.3, limits: ["3/hour"], on_store_error: error }
      - { key: ip, value: 127.0.0.4, limits: ["3/hour"], on_store_error: local }
"#,
    )
}

#[tokio::test]
async fn without_redis_each_rule_says_who_passes() {
    let (_folder, plans) = plans_for_outages();
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let stack = Stack::start(
        &plans,
        &["--store", &nobody],
        Upstream::fast_stats(),
        |_| {},
    )
    .await;
    let mut config = EnvoyConfig::new(&[&stack.tollgate.grpc], stack.upstream.address);
    deny_on_failure(&mut config);
    let closed = Envoy::start(&config).await;

    let mut seen = Vec::new();
    for edge in [stack.envoy.edge, closed.edge] {
        for last in 1..=4 {
            let mut client = Client::connect_from(another_home(last), edge).await;
            seen.push(client.statuses("/public/stats", 5).await);
        }
    }
    let expected = [
        // With failure_mode_deny off: allow, deny, error, and a bucket of Tollgate's own.
        [200, 200, 200, 200, 200],
        [429, 429, 429, 429, 429],
        [200, 200, 200, 200, 200],
        [200, 200, 200, 429, 429],
        // With it on, Envoy refuses what Tollgate leaves to it. The bucket is the same one.
        [200, 200, 200, 200, 200],
        [429, 429, 429, 429, 429],
        [503, 503, 503, 503, 503],
        [429, 429, 429, 429, 429],
    ];
    assert_eq!(seen, expected);
    for envoy in [&stack.envoy, &closed] {
        assert_eq!(envoy.stat("cluster.stats.ratelimit.error").await, 5);
    }
    assert!(stack.tollgate.metric("tollgate_degraded_total") >= 15.0);
}

#[tokio::test]
async fn a_stall_costs_a_request_its_timeout_and_the_connection_survives_the_resets() {
    let short = |config: &mut EnvoyConfig| {
        config.rate_limit()["timeout"] = "0.5s".into();
    };
    let stack = Stack::start(&shipped_plans(), &[], Upstream::fast_stats(), short).await;
    let (envoy, tollgate) = (&stack.envoy, &stack.tollgate.process);
    let mut client = envoy.client().await;
    assert_eq!(client.get("/public/stats", &[]).await.status, 200);
    let connections = "cluster.tollgate.upstream_cx_total";
    let before = envoy.stat(connections).await;

    tollgate.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let stalled = all_at_once(envoy.edge, 100, "/public/stats", &[]).await;
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(by_status(&stalled), [(200, 100)].into());
    for answer in &stalled {
        assert_eq!(answer.header("ratelimit"), None, "let through unasked");
    }
    assert_eq!(envoy.stat("cluster.stats.ratelimit.error").await, 100);
    // A caller whose timeout has passed leaves a stream behind that Tollgate finds reset when it wakes.
    assert!(envoy.stat("cluster.tollgate.upstream_rq_tx_reset").await >= 60);
    tollgate.signal(Signal::SIGCONT);

    wait_until("Tollgate to answer again", async || {
        let mut client = envoy.client().await;
        let answer = client.get("/public/stats", &[]).await;
        answer.header("ratelimit").is_some()
    })
    .await;
    let mut elsewhere = Client::connect_from(another_home(2), envoy.edge).await;
    elsewhere.exhaust("/public/stats", 50).await;
    for (name, expected) in [
        (connections, before),
        ("cluster.tollgate.upstream_cx_close_notify", 0),
        ("cluster.tollgate.upstream_cx_destroy", 0),
    ] {
        assert_eq!(envoy.stat(name).await, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn redis_may_die_and_come_back_under_load_and_nobody_notices() {
    let (_folder, plans) = plans(
        r#"
domain: stats-api
descriptors:
  - key: tier
    descriptors:
      - { key: ip, value: 127.0.0.1, limits: ["1000000/minute burst 1000000"] }
      - { key: ip, limits: ["50/minute sliding"] }
"#,
    );
    let mut redis = RedisServer::start();
    let args = ["--store", &redis.url(), "--store-timeout", "500ms"];
    let mut stack = Stack::start(&plans, &args, Upstream::fast_stats(), |_| {}).await;
    let degraded = |tollgate: &Tollgate| tollgate.metric("tollgate_degraded_total");
    assert_eq!(degraded(&stack.tollgate), 0.0);

    let load = Load::start(stack.envoy.edge, 4, "/public/stats", &[]).await;
    assert_eq!(degraded(&stack.tollgate), 0.0, "Redis answers");
    redis.kill();
    wait_until("decisions without Redis", async || {
        degraded(&stack.tollgate) > 0.0
    })
    .await;
    load.more(100).await;
    redis.restart();
    wait_until("decisions by Redis again", async || {
        let before = degraded(&stack.tollgate);
        load.more(40).await;
        degraded(&stack.tollgate) == before
    })
    .await;
    let stands_at = degraded(&stack.tollgate);
    load.more(100).await;
    assert_eq!(degraded(&stack.tollgate), stands_at);
    load.stop().await.all_passed();

    // Exact again: a new address has its 50, and the last of them is kept by Redis.
    let mut client = Client::connect_from(another_home(2), stack.envoy.edge).await;
    client.exhaust("/public/stats", 50).await;
    assert_eq!(degraded(&stack.tollgate), stands_at);
    assert_eq!(stack.envoy.stat("cluster.stats.ratelimit.error").await, 0);
    assert!(
        stack.tollgate.process.is_running(),
        "without a restart of ours"
    );
    assert!(redis.calls("evalsha") > 0);
    drop(stack.envoy);
    stack.tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(stack.tollgate.process.wait(), Some(0));
}
