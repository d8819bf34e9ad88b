//! What is found out about a Redis when it is connected to, and by `tollgate check --store`.

use std::time::Duration;

use tollgate::{
    proto::ratelimit::config::ratelimit::v3::{
        RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitUnit,
    },
    store::{
        RedisStore,
        redis::{
            RedisUrl,
            checks::{Check, Finding, Needs},
        },
    },
};

use crate::{
    ask::{connected, patient},
    auth::RIGHTS,
    cluster::Nodes,
    common::{Process, Tollgate, plans, tollgate_command, wait_until},
    control_plane::ControlPlane,
    fake::{Fake, Says},
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
    // Buckets expire, so those that look at such keys alone forget them as well.
    for policy in [
        "allkeys-lru",
        "allkeys-lfu",
        "allkeys-random",
        "volatile-lru",
        "volatile-lfu",
        "volatile-random",
        "volatile-ttl",
    ] {
        server.send(&format!("CONFIG SET maxmemory-policy {policy}"));
        let found = examined(&server.url(), Needs::default()).await;
        assert_eq!(checks(&found), [Check::Eviction]);
        let text = found[0].to_string();
        assert!(
            text.contains(&format!("is {policy}: "))
                && text.contains("set `maxmemory-policy noeviction`"),
            "{text}"
        );
    }
    server.send("CONFIG SET maxmemory-policy noeviction");
    assert_eq!(examined(&server.url(), Needs::default()).await, []);
}

#[tokio::test]
async fn a_redis_that_is_too_old_is_said() {
    for (version, old) in [
        ("3.2.13", true),
        ("6.2.14", true),
        ("7.0.0", false),
        ("8.2.1", false),
        ("10.0.0", false),
        ("unstable", false),
    ] {
        let fake = Fake::start(Says {
            version,
            ..Says::default()
        })
        .await;
        let found = examined(&fake.url(), Needs::default()).await;
        assert_eq!(checks(&found), vec![Check::Version; usize::from(old)]);
        if let [found] = &found[..] {
            let text = found.to_string();
            let wanted = format!("it is version {version}, and Tollgate is made for Redis 7");
            assert!(text.starts_with(&wanted), "{text}");
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_or_behind_is_said_and_by_how_much() {
    for (ahead_s, words) in [
        (3_600, "s ahead of this machine's"),
        (-3_600, "s behind this machine's"),
    ] {
        let fake = Fake::start(Says {
            ahead_s,
            ..Says::default()
        })
        .await;
        let found = examined(&fake.url(), Needs::default()).await;
        assert_eq!(checks(&found), [Check::Clock]);
        let text = found[0].to_string();
        let (told, _) = text.split_once(words).unwrap_or_else(|| panic!("{text}"));
        let told: u64 = told.rsplit(' ').next().unwrap().parse().unwrap();
        // Its seconds are whole, and the machine may be busy.
        assert!(told.abs_diff(3_600) < 60, "{text}");
    }
}

#[tokio::test]
async fn a_cluster_that_is_not_well_is_said() {
    for (cluster_state, wanted) in [("ok", &[][..]), ("fail", &[Check::Cluster])] {
        let fake = Fake::start(Says {
            clustered: true,
            cluster_state,
            ..Says::default()
        })
        .await;
        let url = fake.url().replace("redis://", "redis+cluster://");
        let found = examined(&url, Needs::default()).await;
        assert_eq!(checks(&found), wanted);
        assert!(
            found
                .iter()
                .all(|found| found.text.contains("see CLUSTER INFO"))
        );
    }
}

#[tokio::test]
async fn commands_that_a_service_has_taken_away_are_named() {
    let fake = Fake::start(Says {
        unknown: &["INFO", "TIME", "WAIT"],
        ..Says::default()
    })
    .await;
    let needs = Needs {
        replicas: 2,
        ..Needs::default()
    };
    let found = examined(&fake.url(), needs).await;
    assert_eq!(checks(&found), [Check::Replicas, Check::Rights]);
    assert!(found[0].text.contains("may not run WAIT"), "{found:?}");
    assert!(found[1].text.contains("INFO, TIME"), "{found:?}");
}

#[tokio::test]
async fn the_command_says_what_it_found_and_exits_by_it() {
    let fake = Fake::start(Says {
        version: "6.2.14",
        clustered: true,
        cluster_state: "fail",
        ahead_s: 3_600,
        ..Says::default()
    })
    .await;
    let url = fake.url().replace("redis://", "redis+cluster://");
    let check = async |args: &[&str]| {
        let mut command = tokio::process::Command::from(tollgate_command());
        let command = command.args(["check", "--store", &url]).args(args);
        let output = command.output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = check(&[]).await;
    assert_eq!(code, 0, "{text}");
    for word in [
        "warning: 127.0.0.1:",
        ": it is version 6.2.14",
        "warning: 127.0.0.1:",
        ": its cluster is not well",
        "note: 127.0.0.1:",
        "ahead of this machine's",
        ": Redis 6.2.14",
    ] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    assert_eq!(check(&["--strict"]).await.0, 1);
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

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_come_later_are_looked_at_too() {
    let server = RedisServer::start();
    let plain = "domain: shop\ndescriptors: [{ key: id, limits: [3/hour] }]\n";
    let durable = |replicas| {
        plain.replace(
            "[3/hour]",
            &format!("[3/day], durable: {{ replicas: {replicas}, within: 5ms }}"),
        )
    };
    let (_folder, config) = plans(plain);
    let file = config.join("plans.yaml");
    let put = |text: &str| {
        let draft = config.join("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, &file).unwrap();
    };
    let mut tollgate = Tollgate::start(&config, &["--store", &server.url()]);
    let mut memory = Tollgate::start(&config, &[]);
    assert!(!tollgate.process.log().contains("replicas"));
    put(&durable(1));
    tollgate.process.line_with("waits for 1: its decisions");
    tollgate.process.line_with("set `appendonly yes`");
    memory
        .process
        .line_with("with the memory store it has no effect");
    put(&durable(2));
    tollgate.process.line_with("waits for 2: its decisions");
    let warnings = || tollgate.metric("tollgate_store_warnings{check=\"replicas\"}");
    assert_eq!(warnings(), 1.0);
    put(plain);
    wait_until("the metric", async || warnings() == 0.0).await;
    put(&plain.replace(
        "[3/hour]",
        "[1000/hour], lease: { portion: 10%, for: 200ms }",
    ));
    memory
        .process
        .line_with("`lease` has no effect with the memory store");
    // Each was said once: on the way from 1 replica to 2, nothing was new to a memory store.
    let said = |log: String, what: &str| log.matches(what).count();
    assert_eq!(said(memory.process.log(), "`durable`"), 1);
    assert_eq!(said(tollgate.process.log(), "appendonly"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_of_a_control_plane_are_looked_at_when_they_come() {
    let server = RedisServer::start();
    let plane = ControlPlane::start();
    let shop = |unit: RateLimitUnit| RateLimitConfig {
        name: "shop".to_owned(),
        domain: "shop".to_owned(),
        descriptors: vec![RateLimitDescriptor {
            key: "id".to_owned(),
            rate_limit: Some(RateLimitPolicy {
                unit: unit.into(),
                requests_per_unit: 3,
                ..RateLimitPolicy::default()
            }),
            ..RateLimitDescriptor::default()
        }],
    };
    plane.publish("1", &[shop(RateLimitUnit::Hour)]);
    let mut command = tollgate_command();
    command.args(["serve", "--xds", &plane.address.to_string()]);
    command.args(["--store", &server.url(), "--drain-delay", "0s"]);
    let free = "127.0.0.1:0";
    command.args(["--grpc-listen", free, "--http-listen", free]);
    let mut tollgate = Tollgate::from_process(Process::start(&mut command));
    plane.accepted("1").await;
    assert!(!tollgate.process.log().contains("appendonly"));
    plane.publish("2", &[shop(RateLimitUnit::Day)]);
    tollgate.process.line_with("set `appendonly yes`");
}
