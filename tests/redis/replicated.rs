//! Rules that wait until replicas of Redis have what they charged.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tollgate::plan::{Durable, RuleLimit};

use crate::{
    ask::{ask, connected, one, patient, patient_at, rule},
    auth::RIGHTS,
    cluster::{self, Nodes, several},
    common::{Tollgate, ask as ask_over_grpc, plans, request, wait_until},
    faults::{back, down},
    outages::proxy::Proxy,
    redis_server::RedisServer,
    sentinel,
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
fn pair() -> (RedisServer, RedisServer) {
    let primary = RedisServer::start_primary();
    let replica = RedisServer::start_replica(&primary);
    replica.wait_until_it_follows();
    primary.wait_until_followed();
    (primary, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_what_was_answered() {
    let (primary, replica) = pair();
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
    let (primary, replica) = pair();
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
    let (primary, _replica) = pair();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_wait_is_warned_of_and_all_else_holds() {
    let (primary, _replica) = pair();
    primary.send(&format!(
        "ACL SETUSER limiter on >secret ~tollgate:* {RIGHTS}"
    ));
    let url = primary.url().replace("redis://", "redis://limiter:secret@");
    let text = "domain: shop\ndescriptors: [{ key: id, limits: [30/day], durable: { replicas: 1, within: 50ms } }]\n";
    let (_folder, config) = plans(text);
    let args = ["--store", &url, "--store-timeout", "10s"];
    let mut tollgate = Tollgate::start(&config, &args);
    let line = tollgate.process.line_with("may not run WAIT");
    assert!(
        line.contains("WARN") && line.contains("grant +wait"),
        "{line}"
    );
    assert_eq!(
        tollgate.metric("tollgate_store_warnings{check=\"replicas\"}"),
        1.0
    );
    let connections = || -> u64 {
        let info = primary.info("stats");
        let count = |line: &str| {
            line.strip_prefix("total_connections_received:")?
                .parse()
                .ok()
        };
        info.lines().find_map(count).unwrap()
    };
    let mut client = tollgate.client().await;
    let before = connections();
    for left in (10..30).rev() {
        let answer = ask_over_grpc(&mut client, request("shop", &[&[("id", "a")]]));
        let answer = answer.await.unwrap();
        assert_eq!(answer.statuses[0].limit_remaining, left);
        let metadata = answer.dynamic_metadata.unwrap().fields;
        assert!(metadata.contains_key("not_replicated") && !metadata.contains_key("degraded"));
    }
    // The fence's, and those of this test.
    let dialled = connections() - before;
    assert!(dialled < 5, "{dialled} connections for twenty answers");
    primary.send("ACL SETUSER limiter +wait");
    wait_until("the right to wait", async || {
        let answer = ask_over_grpc(&mut client, request("shop", &[&[("id", "b")]]));
        let metadata = answer.await.unwrap().dynamic_metadata;
        metadata.is_none_or(|metadata| !metadata.fields.contains_key("not_replicated"))
    })
    .await;
}

/// Two servers behind one address, each sure to be the primary: what the lanes charge is on the one, the fence would be on the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_replicas_of_another_server_behind_the_same_address_do_not_count() {
    let ((here, _here), (there, _there)) = (pair(), pair());
    let proxy = Proxy::start(0, here.port()).await;
    let store = connected(patient_at(&proxy.url())).await;
    let limit = durable("5/day", 1);
    proxy.lead_newcomers_to(there.port());
    let taken = ask(&store, one(&limit, "a", 1)).await;
    assert!(taken.admitted && !taken.degraded && taken.not_replicated);
    assert_eq!((here.calls("evalsha"), there.calls("evalsha")), (1, 0));
    proxy.lead_newcomers_to(here.port());
    let taken = ask(&store, one(&limit, "a", 1)).await;
    assert!(taken.admitted && !taken.not_replicated, "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_takes_the_fence_along_to_the_new_primary() {
    let (mut primary, replica) = pair();
    let sentinels: Vec<_> = (0..3)
        .map(|_| RedisServer::start_sentinel("main", &primary, 2))
        .collect();
    sentinel::agree(&sentinels).await;
    let ports: Vec<_> = sentinels.iter().map(RedisServer::port).collect();
    let store = connected(patient_at(&(sentinel::url(&ports) + "main"))).await;
    let limit = durable("9/day", 1);
    for _ in 0..3 {
        assert!(!ask(&store, one(&limit, "a", 1)).await.not_replicated);
    }
    primary.kill();
    down(&store).await;
    back(&store).await;
    // It has all that was promised, and nobody who follows it.
    let taken = ask(&store, one(&limit, "a", 1)).await;
    assert!(!taken.degraded && taken.not_replicated);
    assert_eq!(taken.balances[0].left, 5);
    let next = RedisServer::start_replica(&replica);
    next.wait_until_it_follows();
    wait_until("the new replica", async || {
        !ask(&store, one(&limit, "b", 1)).await.not_replicated
    })
    .await;
    let taken = ask(&store, one(&limit, "a", 1)).await;
    assert!(!taken.degraded && !taken.not_replicated);
    assert!(replica.calls("wait") > 0, "the new primary is asked");
    drop(replica);
    next.send("REPLICAOF NO ONE");
    let store = connected(patient(&next)).await;
    assert_eq!(ask(&store, one(&limit, "a", 1)).await.balances[0].left, 3);
}

/// A cluster of which one primary has a replica and the others none.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_each_node_waits_for_its_own_replicas() {
    let mut nodes = Nodes::start(1).await;
    nodes.replicate().await;
    for server in &nodes.servers {
        server.send("ACL SETUSER limiter +wait");
    }
    let store = cluster::connected(patient_at(&nodes.url())).await;
    let limit = durable("9/day", 1);
    let (safe, alone) = (nodes.subject_on(0, 0), nodes.subject_on(1, 0));
    wait_until("the replica", async || {
        let taken = cluster::ask(&store, one(&durable("9/hour", 1), &safe, 1)).await;
        !taken.not_replicated
    })
    .await;
    let safely = cluster::ask(&store, one(&limit, &safe, 1)).await;
    assert!(safely.admitted && !safely.not_replicated);
    let alone_taken = cluster::ask(&store, one(&limit, &alone, 1)).await;
    assert!(alone_taken.admitted && alone_taken.not_replicated);
    // Over both it is as safe as its weaker part.
    let both = several(&[(&limit, &safe), (&limit, &alone)]);
    let taken = cluster::ask(&store, both.clone()).await;
    assert!(taken.admitted && !taken.degraded && taken.not_replicated);
    let plain = rule("9/day");
    let taken = cluster::ask(&store, several(&[(&limit, &safe), (&plain, &alone)])).await;
    assert!(taken.admitted && !taken.not_replicated, "{taken:?}");
    // A refusal has charged nothing, what was taken before it is given back.
    let used_up = one(&limit, &alone, 6);
    assert!(cluster::ask(&store, used_up).await.admitted);
    let refused = cluster::ask(&store, both).await;
    assert!(!refused.admitted && !refused.degraded);
    assert_eq!(cluster::left(&store, &limit, &safe).await, 6);
    assert_eq!(cluster::left(&store, &limit, &alone).await, 0);
    // What was answered is there when its node dies.
    nodes.servers[0].kill();
    nodes.takes_over().await;
    wait_until("the replica to decide", async || {
        store.is_down().is_none() && !cluster::ask(&store, one(&plain, &safe, 0)).await.degraded
    })
    .await;
    assert_eq!(cluster::left(&store, &limit, &safe).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_second_redis_each_waits_for_its_own_replicas() {
    let (main, _replica) = pair();
    let seconds = RedisServer::start();
    let mut settings = patient(&main);
    settings.per_second = Some(seconds.url().parse().unwrap());
    let store = cluster::connected(settings).await;
    let (day, second) = (durable("9/day", 1), durable("9/second", 1));
    let taken = cluster::ask(&store, one(&day, "a", 1)).await;
    assert!(taken.admitted && !taken.not_replicated);
    let taken = cluster::ask(&store, one(&second, "a", 1)).await;
    assert!(taken.admitted && taken.not_replicated);
    let taken = cluster::ask(&store, several(&[(&day, "a"), (&second, "a")])).await;
    assert!(taken.admitted && taken.not_replicated);
    assert_eq!(cluster::left(&store, &day, "a").await, 7);
}
