//! What changes under load: the plans, and the way to Tollgate.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    client::Client,
    common::{Tollgate, plans, wait_until},
    stack::{Envoy, EnvoyConfig, Stack, Upstream, shipped_plans},
};

/// Plans whose two limits both tell the version.
fn version(number: u32) -> String {
    let (minute, hour) = (1_000_000 + number, 2_000_000 + number);
    format!(
        r#"
domain: stats-api
descriptors:
  - key: tier
    descriptors:
      - key: ip
        limits: ["{minute}/minute burst {minute}", "{hour}/hour burst {hour}"]
"#
    )
}

/// The versions that the limits of an answer come from.
fn versions_of(policy: &str) -> Vec<u32> {
    let quotas = policy.split(", ").map(|item| {
        let (_, quota) = item.split_once("q=").expect("a quota");
        quota
            .split(';')
            .next()
            .expect("a number")
            .parse::<u32>()
            .expect("a number")
    });
    quotas.map(|quota| quota % 1_000_000).collect()
}

/// Replaces the file as editors and deployments do: at once, never half written.
fn replace(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    fs::write(&beside, text).expect("writable");
    fs::rename(beside, file).expect("the same folder");
}

/// Asks until told to stop. Each answer is of one version, and none is of an older one than that before it.
async fn watch_versions(mut client: Client, stop: Arc<AtomicBool>) -> usize {
    let (mut asked, mut newest) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let answer = client.get("/public/stats", &[]).await;
        assert_eq!(answer.status, 200);
        let versions = versions_of(answer.header("ratelimit-policy").expect("limits are named"));
        let [first, second] = versions[..] else {
            panic!("two limits: {versions:?}");
        };
        assert!(
            first == second && first >= newest,
            "{versions:?} after {newest}"
        );
        (asked, newest) = (asked + 1, first);
        sleep(Duration::from_millis(2)).await;
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_plans_hold_within_a_second_under_load_and_no_request_sees_half_of_them() {
    let (folder, config) = plans(&version(0));
    let file = folder.path().join("plans.yaml");
    let stack = Stack::start(&config, &[], Upstream::fast_stats(), |_| {}).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    for _ in 0..4 {
        let client = stack.envoy.client().await;
        load.push(tokio::spawn(watch_versions(client, stop.clone())));
    }

    let mut client = stack.envoy.client().await;
    let mut fastest = Duration::MAX;
    for number in 1..=6 {
        let changed = Instant::now();
        if number == 4 {
            // A bad file in between changes nothing but what is said about it.
            replace(&file, "domain: stats-api\ndescriptors: [{ kee: tier }]\n");
            wait_until("the bad file to be noticed", async || {
                stack.tollgate.page("/plans").contains("kee")
            })
            .await;
        }
        replace(&file, &version(number));
        let mut newest = 0;
        while newest != number {
            let answer = client.get("/public/stats", &[]).await;
            newest = versions_of(answer.header("ratelimit-policy").expect("limits"))[0];
            // Far below the slow poll: it is the watching that is tested.
            assert!(
                changed.elapsed() < Duration::from_secs(10),
                "still {newest}, not {number}"
            );
        }
        fastest = fastest.min(changed.elapsed());
    }
    // The machine may stand still for a while, but not each time.
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    stop.store(true, Ordering::Relaxed);
    for watching in load {
        assert!(watching.await.expect("each answer was of one version") > 10);
    }
    assert_eq!(stack.envoy.stat("cluster.stats.ratelimit.error").await, 0);
}

#[tokio::test]
async fn a_unix_socket_between_envoy_and_tollgate_serves_as_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("unix:{}", folder.path().join("tollgate.sock").display());
    let upstream = Upstream::stats();
    let mut tollgate = Tollgate::start(&shipped_plans(), &["--grpc-listen", &address]);
    let envoy = Envoy::start(&EnvoyConfig::new(&[&address], upstream.address)).await;
    let mut client = envoy.client().await;
    let free = [("x-api-key", "demo-free-key")];
    let first = client.get("/secure/stats", &free).await;
    let second = client.get("/secure/stats", &free).await;
    assert_eq!((first.status, second.status), (200, 429));
    assert_eq!(client.get("/secure/stats", &[]).await.status, 403);

    // A Tollgate that was killed leaves its socket behind; the next one takes the place and Envoy finds it.
    tollgate.process.kill();
    drop(tollgate);
    let _next = Tollgate::start(&shipped_plans(), &["--grpc-listen", &address]);
    wait_until("Envoy to find the new Tollgate", async || {
        let answer = client.get("/public/stats", &[]).await;
        answer.header("ratelimit").is_some()
    })
    .await;
}
