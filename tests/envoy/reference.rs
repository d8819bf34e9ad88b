//! Envoy's own headers, when Tollgate stands where envoyproxy/ratelimit stood.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;

use crate::{
    client::{Answer, Client},
    common::{Process, Tollgate, ratelimit_command},
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Upstream},
};

const RULES: &str = "domain: stats-api
descriptors:
  - { key: page, rate_limit: { unit: year, requests_per_unit: 5 } }
  - { key: user, rate_limit: { unit: month, requests_per_unit: 3, name: users } }
";

const ACTIONS: &str = "
- actions: [{ generic_key: { descriptor_key: page, descriptor_value: stats } }]
- actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }]
";

// Source: envoyproxy/ratelimit: a month is 30 days, a year 365, and windows begin at multiples of them since 1970.
const MONTH: u64 = 30 * 86_400;
const YEAR: u64 = 365 * 86_400;

/// `tollgate ratelimit` with the reference's variables, and these.
fn ratelimit(folder: &TempDir, redis: &RedisServer, variables: &[(&str, &str)]) -> Tollgate {
    let config = folder.path().join("ratelimit/config");
    fs::create_dir_all(&config).expect("writable");
    fs::write(config.join("config.yaml"), RULES).expect("writable");
    let mut command = ratelimit_command();
    command
        .env("RUNTIME_ROOT", folder.path())
        .env("REDIS_URL", format!("127.0.0.1:{}", redis.port()))
        .envs([
            ("RUNTIME_SUBDIRECTORY", "ratelimit"),
            ("TOLLGATE_STORE_TIMEOUT", "20s"),
        ])
        .envs(variables.iter().copied());
    Tollgate::from_process(Process::start(&mut command))
}

async fn envoy(tollgate: &Tollgate, upstream: &Upstream) -> Envoy {
    let mut config = EnvoyConfig::new(&[&tollgate.grpc], upstream.address);
    config.rate_limit()["timeout"] = "30s".into();
    *config.public_actions() = serde_yaml::from_str(ACTIONS).expect("YAML");
    Envoy::start(&config).await
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// The status and what Envoy says of limits: the limit, what remains, the seconds until it is reset.
fn shown(answer: &Answer) -> (u16, &str, &str, u64) {
    let header = |name| answer.header(name).unwrap_or_else(|| panic!("no {name}"));
    let reset = header("x-ratelimit-reset").parse().expect("seconds");
    (
        answer.status,
        header("x-ratelimit-limit"),
        header("x-ratelimit-remaining"),
        reset,
    )
}

async fn get(client: &mut Client, user: &'static str) -> Answer {
    client.get("/public/stats", &[("x-user", user)]).await
}

const USERS: &str = r#"3, 5;w=31536000, 3;w=2592000;name="users""#;
const PAGE: &str = r#"5, 5;w=31536000, 3;w=2592000;name="users""#;

#[tokio::test]
async fn counting_as_the_reference_does_shows_its_values() {
    let (folder, redis) = (tempfile::tempdir().expect("a folder"), RedisServer::start());
    let parity = [
        ("TOLLGATE_ALGORITHM", "fixed_window"),
        ("TOLLGATE_CHARGE", "independent"),
    ];
    let tollgate = ratelimit(&folder, &redis, &parity);
    let upstream = Upstream::stats();
    let envoy = envoy(&tollgate, &upstream).await;
    let mut client = envoy.client().await;
    // The refused request is charged to the page too, so the second user's first is its last.
    for (user, status, limit, remaining, window) in [
        ("a", 200, USERS, "2", MONTH),
        ("a", 200, USERS, "1", MONTH),
        ("a", 200, USERS, "0", MONTH),
        ("a", 429, USERS, "0", MONTH),
        ("b", 200, PAGE, "0", YEAR),
        ("b", 429, PAGE, "0", YEAR),
    ] {
        let before = now();
        let answer = get(&mut client, user).await;
        let (got, limits, left, reset) = shown(&answer);
        assert_eq!((got, limits, left), (status, limit, remaining));
        let ends = [before, now()].map(|now| window - now % window);
        assert!((ends[1]..=ends[0]).contains(&reset), "{reset} of {ends:?}");
        // Nothing is added that the reference would not add.
        for name in ["ratelimit", "ratelimit-policy", "retry-after"] {
            assert_eq!(answer.header(name), None);
        }
    }
}

#[tokio::test]
async fn by_default_limits_and_what_remains_are_the_same_until_one_refuses() {
    let (folder, redis) = (tempfile::tempdir().expect("a folder"), RedisServer::start());
    let tollgate = ratelimit(&folder, &redis, &[("CACHE_KEY_PREFIX", "blue:")]);
    let upstream = Upstream::stats();
    let envoy = envoy(&tollgate, &upstream).await;
    let mut client = envoy.client().await;
    for (user, status, limit, remaining) in [
        ("a", 200, USERS, "2"),
        ("a", 200, USERS, "1"),
        ("a", 200, USERS, "0"),
        ("a", 429, USERS, "0"),
        // The refused request has cost the page nothing.
        ("b", 200, PAGE, "1"),
        ("b", 200, PAGE, "0"),
        ("b", 429, PAGE, "0"),
    ] {
        let answer = get(&mut client, user).await;
        let (got, limits, left, reset) = shown(&answer);
        assert_eq!((got, limits, left), (status, limit, remaining));
        assert!((1..=YEAR).contains(&reset), "{reset}");
    }
    let keys = redis.send("KEYS tollgate:2:{*}blue:=stats-api/*");
    let keys: Vec<String> = redis::from_redis_value(keys).expect("keys");
    assert_eq!(keys.len(), 3, "a page and two users: {keys:?}");
}
