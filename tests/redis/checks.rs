//! What is found out about a Redis when it is connected to, and by `tollgate check --store`.

use std::time::Duration;

use tollgate::store::{
    RedisStore,
    redis::{
        RedisUrl,
        checks::{Check, Finding, Needs},
    },
};

use crate::{
    ask::{connected, patient},
    auth::RIGHTS,
    cluster::Nodes,
    common::{Tollgate, plans, tollgate_command, wait_until},
    redis_server::RedisServer,
};

async fn examined(url: &str, needs: Needs) -> Vec<Finding> {
    let url: RedisUrl = url.parse().unwrap();
    let servers = url.examine(needs).await.unwrap();
    servers
        .into_iter()
        .flat_map(|server| server.findings)
        .collect()
}

fn checks(findings: &[Finding]) -> Vec<Check> {
    findings.iter().map(|finding| finding.check).collect()
}

#[tokio::test]
async fn a_redis_as_it_should_be_gives_nothing_to_say() {
    let server = RedisServer::start();
    assert_eq!(examined(&server.url(), Needs::default()).await, []);
}

#[tokio::test]
async fn a_redis_that_evicts_is_said_with_what_to_change() {
    let server = RedisServer::start();
    server.send("CONFIG SET maxmemory-policy allkeys-lru");
    let found = examined(&server.url(), Needs::default()).await;
    assert_eq!(checks(&found), [Check::Eviction]);
    let text = found[0].to_string();
    assert!(
        text.contains("is allkeys-lru") && text.contains("set `maxmemory-policy noeviction`"),
        "{text}"
    );
}

#[tokio::test]
async fn a_replica_and_missing_replicas_are_told_apart() {
    let primary = RedisServer::start();
    let needs = Needs {
        replicas: 1,
        ..Needs::default()
    };
    let found = examined(&primary.url(), needs).await;
    assert_eq!(checks(&found), [Check::Replicas]);
    let replica = RedisServer::start_replica(&primary);
    wait_until("the replica", async || {
        examined(&primary.url(), needs).await.is_empty()
    })
    .await;
    let found = examined(&replica.url(), needs).await;
    assert_eq!(checks(&found), [Check::Role]);
    assert!(found[0].text.contains("it is a replica of 127.0.0.1"));
}

#[tokio::test]
async fn a_redis_without_a_disk_matters_only_to_long_limits() {
    let server = RedisServer::start();
    let needs = Needs {
        long_limits: true,
        ..Needs::default()
    };
    let found = examined(&server.url(), needs).await;
    assert_eq!(checks(&found), [Check::Persistence]);
    server.send("CONFIG SET appendonly yes");
    assert_eq!(examined(&server.url(), needs).await, []);
}

#[tokio::test]
async fn a_user_who_may_not_ask_is_said_and_counts_all_the_same() {
    let server = RedisServer::start();
    server.send("CONFIG SET maxmemory-policy allkeys-lru");
    let rights = RIGHTS.replace("+info ", "");
    server.send(&format!(
        "ACL SETUSER limiter on >pass ~tollgate:* {rights}"
    ));
    let url = server.url().replace("redis://", "redis://limiter:pass@");
    let found = examined(&url, Needs::default()).await;
    assert_eq!(checks(&found), [Check::Rights]);
    let text = found[0].to_string();
    assert!(
        text.contains("may not run INFO") && text.ends_with("grant +info"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_wants_another_url() {
    let nodes = Nodes::start(0).await;
    let found = examined(&nodes.url(), Needs::default()).await;
    // These tests' user has no more rights than it needs.
    assert!(
        checks(&found).iter().all(|check| *check == Check::Rights),
        "{found:?}"
    );
    let seed = nodes.url().replace("redis+cluster://", "redis://");
    let seed = seed.split(',').next().unwrap().to_owned();
    let found = examined(&seed, Needs::default()).await;
    assert_eq!(checks(&found), [Check::Cluster]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_looks_again_when_it_connects_again() {
    let mut server = RedisServer::start();
    server.send("CONFIG SET maxmemory-policy allkeys-lru");
    let store = connected(patient(&server)).await;
    let finds = async |store: &RedisStore, wanted: &[Check]| {
        wait_until("what the checks find", async || {
            checks(&store.findings()) == wanted
        })
        .await;
    };
    finds(&store, &[Check::Eviction]).await;
    // The new one has no such policy.
    server.restart();
    finds(&store, &[]).await;
    assert!(store.first_connection(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_and_the_command_say_what_is_found() {
    let server = RedisServer::start();
    server.send("CONFIG SET maxmemory-policy allkeys-lru");
    let text = "domain: shop\ndescriptors: [{ key: id, limits: [3/day] }]\n";
    let (_folder, config) = plans(text);
    let mut tollgate = Tollgate::start(&config, &["--store", &server.url()]);
    tollgate
        .process
        .line_with("set `maxmemory-policy noeviction`");
    tollgate.process.line_with("set `appendonly yes`");
    let warnings =
        |check| tollgate.metric(&format!("tollgate_store_warnings{{check=\"{check}\"}}"));
    wait_until("the metric", async || warnings("eviction") == 1.0).await;
    assert_eq!((warnings("persistence"), warnings("role")), (1.0, 0.0));

    let check = |args: &[&str]| {
        let mut command = tollgate_command();
        let output = command.arg("check").args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let url = server.url();
    let node = url.trim_start_matches("redis://");
    let (code, text) = check(&["--store", &url]);
    assert_eq!(code, 0, "{text}");
    let warning = format!("warning: {node}: maxmemory-policy is allkeys-lru");
    assert!(text.starts_with(&warning), "{text}");
    assert!(text.contains(&format!("store: {node}: ")), "{text}");
    assert_eq!(check(&["--store", &url, "--strict"]).0, 1);
    let config = config.to_str().unwrap();
    let (code, text) = check(&[config, "--store", &url]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("ok: shop") && text.contains("note: ") && text.contains("appendonly"),
        "{text}"
    );
    server.send("CONFIG SET maxmemory-policy noeviction");
    assert_eq!(check(&["--store", &url, "--strict"]).0, 0);
    drop(server);
    assert_eq!(check(&["--store", &url]).0, 2);
}
