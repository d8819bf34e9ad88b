//! Several servers: a failover, a cluster that changes, a replica of ours that dies.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::time::sleep;
use tollgate::proto::envoy::service::ratelimit::v3::{
    rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
};
use tonic::transport::Channel;

use super::{Bounds, Run, Server, durable_redis, foreign::is_foreign, has_decided, outage};
use crate::{
    cluster::Nodes,
    common::{Tollgate, ask, client, request, wait_until},
    redis_server::RedisServer,
    sentinel,
};

/// Waits until that server takes writes for others, and says when that was.
async fn promoted(server: &RedisServer) -> Instant {
    let is_primary = async || server.info("replication").contains("role:master");
    wait_until("a failover", is_primary).await;
    Instant::now()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_failover() {
    let mut primary = RedisServer::start_primary();
    let replica = RedisServer::start_replica(&primary);
    let sentinels: Vec<_> = (0..3)
        .map(|_| RedisServer::start_sentinel("main", &primary, 2))
        .collect();
    sentinel::agree(&sentinels).await;
    replica.wait_until_it_follows();
    primary.wait_until_followed();
    let ports: Vec<_> = sentinels.iter().map(RedisServer::port).collect();
    let url = sentinel::url(&ports) + "main";
    let title = "Sentinel: the primary killed, the replica promoted";
    let run = Run::start("sentinel_failover", title, &url).await;
    assert_eq!(replica.calls("evalsha"), 0);
    sleep(outage()).await;
    primary.kill();
    run.feel().await;
    // Until a sentinel says so, nobody can know.
    let is_named = |sentinel: &RedisServer| sentinel::primary_port(sentinel) == replica.port();
    wait_until("a failover", async || sentinels.iter().any(is_named)).await;
    run.finish(Instant::now(), Bounds::FAILOVER).await;
    assert!(replica.info("replication").contains("role:master"));
    assert!(has_decided(&replica), "the new primary decides");
}

/// The URL of a cluster. Our user has no rights but those that Tollgate needs.
fn store(nodes: &Nodes) -> String {
    let url = nodes.url();
    match url.split_once('@') {
        Some((_, hosts)) if is_foreign() => format!("redis+cluster://{hosts}"),
        _ => url,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_failover() {
    let mut nodes = Nodes::start(1).await;
    nodes.replicate().await;
    let title = "Cluster: a node killed, its replica takes over";
    let run = Run::start("cluster_failover", title, &store(&nodes)).await;
    sleep(outage()).await;
    nodes.servers[0].kill();
    run.feel().await;
    let moment = promoted(&nodes.servers[3]).await;
    run.finish(moment, Bounds::FAILOVER).await;
    assert!(has_decided(&nodes.servers[3]), "it decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_moved() {
    let nodes = Nodes::start(1).await;
    let title = "Cluster: slots moved to a new node";
    let run = Run::start("slots_moved", title, &store(&nodes)).await;
    let keys = |index: usize| -> Vec<String> {
        redis::from_redis_value(nodes.servers[index].send("KEYS *quota*")).expect("keys")
    };
    let first = (0..3).find(|index| !keys(*index).is_empty());
    let first = first.expect("a node has a bucket");
    for key in keys(first) {
        nodes.move_slot(nodes.slot_of(&key), first, 3).await;
    }
    let (from, to) = (&nodes.servers[first], &nodes.servers[3]);
    run.finish(Instant::now(), Bounds::NONE).await;
    assert!(from.errors("ASK") + from.errors("MOVED") > 0);
    assert!(has_decided(to), "the new node decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_killed() {
    let mut redis = durable_redis();
    redis.restart();
    let title = "two replicas of ours, one killed (SIGKILL)";
    let mut run = Run::start_cold("replica_killed", title, &redis.url(), 2).await;
    run.begin().await;
    sleep(outage()).await;
    run.ours.remove(0).service.process.kill();
    run.servers.remove(0);
    run.finish(Instant::now(), Bounds::broken(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_two() {
    let mut redis = durable_redis();
    redis.restart();
    let title = "Redis killed and restarted under two replicas of ours";
    let run = Run::start_cold("killed_under_two", title, &redis.url(), 2).await;
    run.begin().await;
    let know = |ours: &Server| is_foreign() || ours.service.metric("tollgate_replicas") == 2.0;
    wait_until("each to know the other", async || run.ours.iter().all(know)).await;
    redis.kill();
    run.endure().await;
    redis.restart();
    run.finish(Instant::now(), Bounds::broken(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_slows_nobody_else() {
    let nodes = Nodes::start(0).await;
    let plans = Path::new("tests/redis/outages/plans.yaml");
    let args = ["--store", &nodes.url(), "--store-timeout", "50ms"];
    let ours = Tollgate::start(plans, &args);
    let client = &mut client(&ours.grpc).await;
    let still = subject_on(&nodes, 0, client, "quota").await;
    let other = subject_on(&nodes, 1, client, "quota").await;
    let mut degraded = async |subject: &str| {
        let answer = ask(client, request("faults", &[&[("quota", subject)]])).await;
        super::is_degraded(&answer.expect("an answer"))
    };
    nodes.servers[0].signal(Signal::SIGSTOP);
    let end = Instant::now() + Duration::from_millis(700);
    let (mut longest, mut without, mut all) = (Duration::ZERO, 0, 0);
    while Instant::now() < end {
        assert!(degraded(&still).await);
        let began = Instant::now();
        without += u32::from(degraded(&other).await);
        longest = longest.max(began.elapsed());
        all += 1;
        sleep(Duration::from_millis(1)).await;
    }
    nodes.servers[0].signal(Signal::SIGCONT);
    println!("{without} of {all} without the other node, the longest {longest:?}");
    // A busy machine may keep one or the other waiting.
    assert!(without * 20 <= all, "{without} of {all}");
    wait_until("the node to decide again", async || !degraded(&still).await).await;
}

/// What docs/reliability.md says is lost, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_take_and_gift_a_request_loses_what_it_had_taken() {
    let nodes = Nodes::start(0).await;
    let plans = Path::new("tests/redis/outages/plans.yaml");
    let start = || {
        let args = ["--store", &nodes.url(), "--store-timeout", "10s"];
        let ours = Tollgate::start(plans, &args);
        assert_eq!(ours.metric("tollgate_store_up"), 1.0);
        ours
    };
    let (ours, mut doomed) = (start(), start());
    let client = &mut client(&ours.grpc).await;
    let taken = subject_on(&nodes, 0, client, "five").await;
    let refusing = subject_on(&nodes, 1, client, "local").await;
    // Five have least room, as far as the other replica knows, so it takes from them first.
    let spend = request("faults", &[&[("local", &refusing)]]);
    while ask(client, spend.clone())
        .await
        .expect("an answer")
        .overall_code()
        == Code::Ok
    {}
    nodes.servers[1].signal(Signal::SIGSTOP);
    let mut asking = crate::common::client(&doomed.grpc).await;
    let both = request("faults", &[&[("five", &taken)], &[("local", &refusing)]]);
    let asked = tokio::spawn(async move { ask(&mut asking, both).await });
    let left = async || {
        let answer = super::look(&ours.grpc, "five", &taken, 0).await;
        answer.expect("by Redis").statuses[0].limit_remaining
    };
    wait_until("one of five to be taken", async || left().await == 4).await;
    doomed.process.kill();
    assert!(asked.await.expect("no panic").is_err());
    nodes.servers[1].signal(Signal::SIGCONT);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(left().await, 4, "nobody is left to give it back");
}

/// Whose full bucket of a rule is on that primary.
async fn subject_on(
    nodes: &Nodes,
    index: usize,
    client: &mut RateLimitServiceClient<Channel>,
    rule: &str,
) -> String {
    for number in 0..100 {
        let subject = format!("on-{index}-{number}");
        let mut question = request("faults", &[&[(rule, &subject)]]);
        ask(client, question.clone()).await.expect("an answer");
        let keys = nodes.servers[index].send(&format!("KEYS *{rule}*{subject}*"));
        let keys: Vec<String> = redis::from_redis_value(keys).expect("keys");
        question.descriptors[0].is_negative_hits = true;
        ask(client, question).await.expect("an answer");
        if !keys.is_empty() {
            return subject;
        }
    }
    panic!("the node has no bucket of a hundred");
}
