//! How many requests pass, to the last one: bounds come from the time that was measured, never from a guess.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client::{Answer, Client, Header, all_at_once, another_home, by_status},
    stack::{Stack, Upstream, shipped_plans},
};

const FREE: &[Header] = &[("x-api-key", "demo-free-key")];
const PREMIUM: &[Header] = &[("x-api-key", "demo-premium-key")];

/// What a bucket may let through in `elapsed`, from full: the burst and what refills.
fn at_most(burst: u64, per_second: u64, elapsed: Duration) -> u64 {
    burst + elapsed.as_millis() as u64 * per_second / 1000
}

#[tokio::test]
async fn of_30_free_requests_at_once_one_passes_and_what_refilled() {
    let stack = Stack::shipped().await;
    let start = Instant::now();
    let answers = all_at_once(stack.envoy.edge, 30, "/secure/stats", FREE).await;
    let most = at_most(1, 1, start.elapsed()) as usize;
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((1..=most).contains(&passed), "{passed} of at most {most}");
    assert_eq!(by_status(&answers).get(&429), Some(&(30 - passed)));
}

#[tokio::test]
async fn of_30_premium_requests_at_once_tollgate_refuses_none() {
    let stack = Stack::shipped().await;
    let answers = all_at_once(stack.envoy.edge, 30, "/secure/stats", PREMIUM).await;
    for answer in &answers {
        match answer.status {
            200 => {}
            // The stats service's own limit of 20 at once.
            500 => assert_eq!(answer.body, r#"{"message":"Internal server error"}"#),
            other => panic!("{other}: {answer:?}"),
        }
        assert!(answer.header("ratelimit").is_some(), "Tollgate was asked");
    }
    assert_eq!(stack.envoy.stat("cluster.stats.ratelimit.ok").await, 30);
    assert_eq!(stack.envoy.stat("cluster.stats.ratelimit.error").await, 0);
}

/// When requests passed, each counted from when the first was sent, and the time between the first and the last decision.
struct Hammered {
    passed: Vec<Duration>,
    least: Duration,
    most: Duration,
}

/// Asks without pause until a refusal that comes `at_least` so long after the first answer.
async fn hammer(to: SocketAddr, key: &'static [Header], at_least: Duration) -> Hammered {
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::connect(to).await);
    }
    let (start, path) = (Instant::now(), "/secure/stats");
    let mut first = Client::connect(to).await;
    assert_eq!(first.get(path, key).await.status, 200);
    let passed = Arc::new(Mutex::new(vec![start.elapsed()]));
    let answered = Instant::now();

    let emptying: JoinSet<()> = clients
        .into_iter()
        .map(|mut client| {
            let passed = passed.clone();
            async move {
                while client.get(path, key).await.status == 200 {
                    passed.lock().unwrap().push(start.elapsed());
                }
            }
        })
        .collect();
    emptying.join_all().await;
    loop {
        let least = answered.elapsed();
        let status = first.get(path, key).await.status;
        let most = start.elapsed();
        match status {
            200 => passed.lock().unwrap().push(most),
            _ if least >= at_least => {
                let mut passed = passed.lock().unwrap().clone();
                passed.sort_unstable();
                return Hammered {
                    passed,
                    least,
                    most,
                };
            }
            _ => sleep(Duration::from_millis(2)).await,
        }
    }
}

impl Hammered {
    /// Never over `burst + rate × t`, and never under: after the last refusal less than one token was left, so nothing
    /// is missing but what a full bucket could not take in.
    fn assert_exact(&self, burst: u64, per_second: u64) {
        let rate = per_second as f64;
        let passed = self.passed.len() as u64;
        assert!(passed > burst, "something refilled");
        let most = at_most(burst, per_second, self.most);
        // Between the k-th and the next the bucket was full only if k tokens had refilled since the start.
        let spilled = (1..).zip(&self.passed[1..]);
        let spilled = spilled.map(|(k, next): (u32, _)| rate * next.as_secs_f64() - f64::from(k));
        let spilled = spilled.fold(0.0, f64::max);
        let least = burst as f64 - 1.0 + rate * self.least.as_secs_f64() - spilled;
        assert!(
            passed <= most && passed as f64 > least,
            "{passed} passed, not above {least} and at most {most}"
        );
    }
}

#[tokio::test]
async fn premium_keys_get_their_burst_of_100_and_10_a_second_exactly() {
    let stack = Stack::start(&shipped_plans(), &[], Upstream::fast_stats(), |_| {}).await;
    let hammered = hammer(stack.envoy.edge, PREMIUM, Duration::from_millis(1500)).await;
    hammered.assert_exact(100, 10);
}

#[tokio::test]
async fn free_keys_get_1_a_second_exactly_however_they_hammer() {
    let stack = Stack::start(&shipped_plans(), &[], Upstream::fast_stats(), |_| {}).await;
    let hammered = hammer(stack.envoy.edge, FREE, Duration::from_millis(2500)).await;
    hammered.assert_exact(1, 1);
}

#[tokio::test]
async fn an_address_has_50_a_minute_to_the_last_and_another_has_its_own() {
    let stack = Stack::start(&shipped_plans(), &[], Upstream::fast_stats(), |_| {}).await;
    let start = Instant::now();
    for source in [another_home(1), another_home(2)] {
        let mut client = Client::connect_from(source, stack.envoy.edge).await;
        client.exhaust("/public/stats", 50).await;
    }
    // Another connection, another path and a header are still the same address.
    let mut again = stack.envoy.client().await;
    let forwarded = [("x-forwarded-for", "10.1.2.3")];
    assert_eq!(again.get("/public/stats/1", &forwarded).await.status, 429);
    // In any minute at most 50: nothing could come back before this moment.
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "too slow to tell"
    );
}

#[tokio::test]
async fn what_has_no_limit_has_none() {
    let stack = Stack::start(&shipped_plans(), &[], Upstream::fast_stats(), |_| {}).await;
    let mut client = stack.envoy.client().await;
    for _ in 0..150 {
        let answer = client.get("/unsecure/stats", &[]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit"), None);
    }
    let asked = ["ok", "over_limit", "error"].map(|what| format!("cluster.stats.ratelimit.{what}"));
    for name in asked {
        assert_eq!(stack.envoy.stat(&name).await, 0, "{name}");
    }
}

/// The shipped plans and `count` more keys `key-0`, `key-1`, … of the free tier.
fn plans_with_free_keys(count: usize) -> TempDir {
    let text = std::fs::read_to_string(shipped_plans()).expect("it is shipped");
    let mut plans: serde_yaml::Value = serde_yaml::from_str(&text).expect("YAML");
    let keys = plans["api_keys"].as_sequence_mut().expect("a list");
    for index in 0..count {
        let hash = Sha256::digest(format!("key-{index}"));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{{ id: id-{index}, sha256: '{hash}', tier: free }}");
        keys.push(serde_yaml::from_str(&key).expect("YAML"));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = serde_yaml::to_string(&plans).expect("it was YAML");
    std::fs::write(folder.path().join("plans.yaml"), text).expect("writable");
    folder
}

#[tokio::test]
async fn free_callers_share_their_address_whatever_key_they_use_apart_from_the_anonymous() {
    let plans = plans_with_free_keys(60);
    let stack = Stack::start(plans.path(), &[], Upstream::fast_stats(), |_| {}).await;
    let start = Instant::now();
    let mut client = stack.envoy.client().await;
    let mut answers: Vec<Answer> = Vec::new();
    for index in 0..60 {
        let key: &'static str = format!("key-{index}").leak();
        answers.push(client.get("/secure/stats", &[("x-api-key", key)]).await);
    }
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [vec![200; 50], vec![429; 10]].concat());

    // The keys that were refused have lost nothing: from another address they pass.
    let mut elsewhere = Client::connect_from(another_home(2), stack.envoy.edge).await;
    let key = [("x-api-key", "key-59")];
    assert_eq!(elsewhere.get("/secure/stats", &key).await.status, 200);
    // Nor has the anonymous caller of the address, or a partner.
    assert_eq!(client.get("/secure/stats", PREMIUM).await.status, 200);
    client.exhaust("/public/stats", 50).await;
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "too slow to tell"
    );
}
