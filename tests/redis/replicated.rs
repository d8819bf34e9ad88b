//! Rules that wait until replicas of Redis have what they charged.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tollgate::plan::{Durable, RuleLimit};

use crate::{
    ask::{ask, connected, one, patient, rule},
    common::{Tollgate, ask as ask_over_grpc, plans, request, wait_until},
    redis_server::RedisServer,
};

fn durable(text: &str, replicas: u8) -> Arc<RuleLimit> {
    let mut limit = Arc::into_inner(rule(text)).unwrap();
    limit.durable = Some(Durable {
        replicas,
        within_ms: 500,
    });
    Arc::new(limit)
}

/// Sends a signal to a server's process.
fn signal(server: u32, signal: Signal) {
    kill(Pid::from_raw(server.cast_signed()), signal).unwrap();
}

fn pid(server: &RedisServer) -> u32 {
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query(&mut server.admin())
        .unwrap();
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"));
    pid.unwrap().parse().unwrap()
}

/// A primary and its replica, which is in step.
async fn pair() -> (RedisServer, RedisServer) {
    let primary = RedisServer::start();
    let replica = RedisServer::start_replica(&primary);
    wait_until("the replica", async || {
        let reached: u64 = redis::cmd("WAIT")
            .arg(1)
            .arg(10)
            .query(&mut primary.admin())
            .unwrap();
        let link: String = redis::cmd("INFO")
            .arg("replication")
            .query(&mut replica.admin())
            .unwrap();
        reached == 1 && link.contains("master_link_status:up")
    })
    .await;
    (primary, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_what_was_answered() {
    let (primary, replica) = pair().await;
    let store = connected(patient(&primary)).await;
    let limit = durable("5/day", 1);
    for left in (0..5).rev() {
        let taken = ask(&store, one(&limit, "a", 1)).await;
        assert!(taken.admitted && !taken.degraded && !taken.not_replicated);
        assert_eq!(taken.balances[0].left, left);
    }
    let refused = ask(&store, one(&limit, "a", 1)).await;
    assert!(
        !refused.admitted && !refused.not_replicated,
        "it charged nothing"
    );
    // Whoever takes over goes on where the primary stopped.
    drop(primary);
    replica.send("REPLICAOF NO ONE");
    let store = connected(patient(&replica)).await;
    assert!(!ask(&store, one(&limit, "a", 1)).await.admitted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_still_is_said_and_nothing_is_charged_twice() {
    let (primary, replica) = pair().await;
    let store = connected(patient(&primary)).await;
    let (waits, plain) = (durable("5/day", 1), rule("5/hour"));
    assert!(!ask(&store, one(&waits, "a", 1)).await.not_replicated);
    let pid = pid(&replica);
    signal(pid, Signal::SIGSTOP);
    let late = ask(&store, one(&waits, "a", 1)).await;
    assert!(late.admitted && late.not_replicated);
    assert_eq!(store.stats().not_replicated.load(Relaxed), 1);
    // Others are not held up by who waits: both are under way together.
    let (late, other) = tokio::join!(
        ask(&store, one(&waits, "a", 1)),
        ask(&store, one(&plain, "b", 1))
    );
    assert!(late.not_replicated && !other.not_replicated);
    signal(pid, Signal::SIGCONT);
    wait_until("the replica", async || {
        !ask(&store, one(&waits, "c", 1)).await.not_replicated
    })
    .await;
    let taken = ask(&store, one(&waits, "a", 1)).await;
    assert_eq!(taken.balances[0].left, 1, "four were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_there_are_hold_up_only_who_waits_for_them() {
    let (primary, _replica) = pair().await;
    let store = connected(patient(&primary)).await;
    let (one_replica, two) = (durable("100/day", 1), durable("100/hour", 2));
    wait_until("the replica", async || {
        !ask(&store, one(&one_replica, "b", 1)).await.not_replicated
    })
    .await;
    let (first, second) = tokio::join!(
        ask(&store, one(&two, "a", 1)),
        ask(&store, one(&one_replica, "b", 1))
    );
    assert!(first.not_replicated && !second.not_replicated);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_such_a_rule_say_what_was_not_handed_on() {
    let server = RedisServer::start();
    let text = "domain: shop\ndescriptors: [{ key: id, limits: [5/day], durable: { replicas: 1, within: 5ms } }]\n";
    let (_folder, config) = plans(text);
    let args = ["--store", &server.url(), "--store-timeout", "10s"];
    let mut tollgate = Tollgate::start(&config, &args);
    tollgate.process.line_with("it has 0 replicas");
    let mut client = tollgate.client().await;
    let answer = ask_over_grpc(&mut client, request("shop", &[&[("id", "a")]]));
    let answer = answer.await.unwrap();
    assert_eq!(answer.statuses[0].limit_remaining, 4);
    let metadata = answer.dynamic_metadata.unwrap();
    assert!(
        metadata.fields.contains_key("not_replicated"),
        "{metadata:?}"
    );
    assert_eq!(tollgate.metric("tollgate_store_not_replicated_total"), 1.0);
    let memory = Tollgate::start(&config, &[]);
    let log = memory.process.log();
    assert!(
        log.contains("with the memory store it has no effect"),
        "{log}"
    );
}
