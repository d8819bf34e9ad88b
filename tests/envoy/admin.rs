//! A customer helped while a real Envoy runs: a quota raised, a bucket filled, and the same call passes.

use std::{path::Path, process::Command};

use crate::{
    client::{Client, another_home},
    common::{Tollgate, plans, tollgate_command, wait_until},
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Upstream},
};

const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["5/day calendar"] } }
descriptors: [{ key: api_key, limits_from: tier }]
"#;

fn tollgate(args: &[&str], config: &Path, url: &str) -> Command {
    let mut command = tollgate_command();
    command
        .args(args)
        .args(["--output", "json", "--store", url]);
    command.arg("--config").arg(config);
    command
}

fn done(command: &mut Command) -> serde_json::Value {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asks until the answers are so: a change may take a second to reach every replica.
async fn until_passes(client: &mut Client, path: &'static str, passes: bool) {
    wait_until(path, async || {
        let answer = client.get(path, &[]).await;
        assert!(matches!(answer.status, 200 | 429), "{}", answer.status);
        (answer.status == 200) == passes
    })
    .await;
}

async fn passes(client: &mut Client, secret: &'static str) -> bool {
    let answer = client.get("/secure/stats", &[("x-api-key", secret)]).await;
    assert!(matches!(answer.status, 200 | 429), "{}", answer.status);
    answer.status == 200
}

#[tokio::test]
async fn a_quota_is_raised_live_and_the_same_call_passes() {
    let server = RedisServer::start();
    let ((folder, config), url) = (plans(PLANS), server.url());
    let made = tollgate(
        &["keys", "create", "--tier", "free", "--id", "ada"],
        &config,
        &url,
    )
    .output()
    .unwrap();
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let secret: &'static str = Box::leak(made["secret"].as_str().unwrap().to_owned().into());
    let args = ["--store", &url, "--store-timeout", "500ms"];
    let replicas = [
        Tollgate::start(&config, &args),
        Tollgate::start(&config, &args),
    ];
    let upstream = Upstream::fast_stats();
    let addresses = [replicas[0].grpc.as_str(), replicas[1].grpc.as_str()];
    let envoy = Envoy::start(&EnvoyConfig::new(&addresses, upstream.address)).await;
    let mut client = envoy.client().await;
    for _ in 0..5 {
        assert!(passes(&mut client, secret).await);
    }
    assert!(!passes(&mut client, secret).await, "the sixth");

    // One customer: tokens of today, within a second at every replica.
    let named = ["--descriptor", "api_key=ada"];
    done(&mut tollgate(
        &[&["buckets", "grant", "--hits", "1"][..], &named].concat(),
        &config,
        &url,
    ));
    wait_until("the granted call to pass", async || {
        passes(&mut client, secret).await
    })
    .await;
    wait_until("the grant's end", async || {
        !passes(&mut client, secret).await
    })
    .await;

    // All of the tier: another quota.
    let draft = folder.path().join("draft");
    std::fs::write(&draft, PLANS.replace("5/day", "50/day")).unwrap();
    done(&mut tollgate(
        &["plans", "put", draft.to_str().unwrap()],
        &config,
        &url,
    ));
    wait_until("the call to pass", async || {
        passes(&mut client, secret).await
    })
    .await;
    // And back: what is used stays used.
    done(&mut tollgate(&["plans", "reset"], &config, &url));
    wait_until("the old quota", async || !passes(&mut client, secret).await).await;
}

const OF_ADDRESSES: &str = r#"
domain: stats-api
descriptors:
  - { key: tier, value: anonymous, descriptors: [{ key: ip, limits: ["3/day sliding"] }] }
"#;

#[tokio::test]
async fn an_address_is_helped_and_stopped_and_plans_go_back_to_an_earlier_version() {
    let server = RedisServer::start();
    let ((folder, config), url) = (plans(OF_ADDRESSES), server.url());
    let args = ["--store", &url, "--store-timeout", "500ms"];
    let replicas = [
        Tollgate::start(&config, &args),
        Tollgate::start(&config, &args),
    ];
    let upstream = Upstream::fast_stats();
    let addresses = [replicas[0].grpc.as_str(), replicas[1].grpc.as_str()];
    let envoy = Envoy::start(&EnvoyConfig::new(&addresses, upstream.address)).await;
    let (here, there) = (another_home(21), another_home(22));
    let mut client = Client::connect_from(here, envoy.edge).await;
    let mut other = Client::connect_from(there, envoy.edge).await;
    for client in [&mut client, &mut other] {
        assert_eq!(
            client.statuses("/public/stats", 4).await,
            [200, 200, 200, 429]
        );
    }
    let named = ["--descriptor", "tier=anonymous,ip=127.0.0.21"];
    let buckets = |args: &[&str]| {
        done(&mut tollgate(
            &[&["buckets"], args, &named].concat(),
            &config,
            &url,
        ))[0]
            .clone()
    };
    assert_eq!(buckets(&["show"])["remaining"], 0);
    assert_eq!(buckets(&["reset"])["remaining"], 3);
    until_passes(&mut client, "/public/stats", true).await;
    assert_eq!(
        other.get("/public/stats", &[]).await.status,
        429,
        "nobody else is helped"
    );
    let left = buckets(&["show"])["remaining"].as_i64().unwrap();
    assert!((0..3).contains(&left), "{left}");
    buckets(&["grant", "--hits", "2"]);

    // Stopped by a document, let in again by the version before it.
    let draft = folder.path().join("draft");
    let put = |text: &str| {
        std::fs::write(&draft, text).unwrap();
        done(&mut tollgate(
            &["plans", "put", draft.to_str().unwrap()],
            &config,
            &url,
        ))
    };
    assert_eq!(
        put(&OF_ADDRESSES.replace("3/day", "1000/day"))["version"],
        1
    );
    until_passes(&mut client, "/public/stats", true).await;
    until_passes(&mut other, "/public/stats", true).await;
    let denied = format!("{OF_ADDRESSES}deny: {{ cidr: [127.0.0.21/32] }}\n");
    assert_eq!(put(&denied.replace("3/day", "1000/day"))["version"], 2);
    until_passes(&mut client, "/public/stats", false).await;
    until_passes(&mut other, "/public/stats", true).await;
    let rolled = done(&mut tollgate(&["plans", "rollback", "1"], &config, &url));
    assert_eq!(rolled["version"], 3);
    until_passes(&mut client, "/public/stats", true).await;

    // Who did what, newest first.
    let audit = done(&mut tollgate(&["audit"], &config, &url));
    let told: Vec<_> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "plans.rollback",
            "plans.put",
            "plans.put",
            "buckets.grant",
            "buckets.reset"
        ]
    );
    for replica in &replicas {
        assert_eq!(replica.metric("tollgate_degraded_total"), 0.0);
    }
}
