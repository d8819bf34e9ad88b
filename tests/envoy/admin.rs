//! A customer helped while a real Envoy runs: a quota raised, a bucket filled, and the same call passes.

use std::{path::Path, process::Command};

use crate::{
    client::Client,
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
