//! What a client sees, and what nobody may see: codes, headers, bodies, the access log.

use crate::{
    client::{Answer, Header},
    common::{plans, wait_for},
    stack::{EnvoyConfig, Stack, Upstream, shipped_plans},
};

const FREE: Header = ("x-api-key", "demo-free-key");

/// An item of a `RateLimit` or `RateLimit-Policy` header: the limit's name, and its parameters.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    name: String,
    parameters: Vec<(String, u64)>,
}

impl Item {
    fn get(&self, parameter: &str) -> u64 {
        let found = self.parameters.iter().find(|(name, _)| name == parameter);
        found
            .unwrap_or_else(|| panic!("no {parameter} in {self:?}"))
            .1
    }
}

fn items(header: &str) -> Vec<Item> {
    let item = |text: &str| {
        let mut parts = text.split(';');
        let name = parts.next().expect("a name").trim_matches('"').to_owned();
        let parameters = parts
            .map(|part| part.split_once('=').expect("name=value"))
            .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
            .collect();
        Item { name, parameters }
    };
    header.split(", ").map(item).collect()
}

/// The names of an answer's headers, sorted.
fn names(answer: &Answer) -> Vec<&str> {
    let mut names: Vec<_> = answer.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    names
}

/// The free tier's three limits are named by Tollgate's headers, and Envoy's speak of the same state.
fn assert_headers_agree(answer: &Answer) {
    let header = |name| answer.header(name).unwrap_or_else(|| panic!("no {name}"));
    let (state, policy) = (
        items(header("ratelimit")),
        items(header("ratelimit-policy")),
    );
    let named = |list: &[Item]| -> Vec<String> { list.iter().map(|i| i.name.clone()).collect() };
    assert_eq!(named(&state), named(&policy));
    let sizes: Vec<_> = policy
        .iter()
        .map(|item| (item.get("q"), item.get("w")))
        .collect();
    assert_eq!(sizes, [(1, 1), (50, 60), (500, 3600)]);
    for (item, text) in state
        .iter()
        .zip(["1/second", "50/minute sliding", "500/hour sliding"])
    {
        assert!(item.name.ends_with(text), "{item:?}");
    }
    // Envoy shows one limit of each descriptor, and first the one with the least remaining.
    assert_eq!(header("x-ratelimit-limit"), "1, 1;w=1, 50;w=60");
    assert_eq!(
        header("x-ratelimit-remaining"),
        state[0].get("r").to_string()
    );
    assert_eq!(header("x-ratelimit-reset"), state[0].get("t").to_string());
    assert_eq!(state[0].get("r"), 0, "a burst of 1 is used up");
}

#[tokio::test]
async fn a_request_that_passes_and_one_that_does_not_carry_every_header_and_body() {
    let stack = Stack::shipped().await;
    let mut client = stack.envoy.client().await;
    let passed = client.get("/secure/stats/3", &[FREE]).await;
    let refused = client.get("/secure/stats/3", &[FREE]).await;

    assert_eq!(passed.status, 200);
    let body: serde_json::Value = serde_json::from_str(&passed.body).expect("JSON");
    assert!(body["timestamp"].is_string() && body["id"] == 3, "{body}");
    let both = [
        "content-length",
        "content-type",
        "date",
        "ratelimit",
        "ratelimit-policy",
        "server",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    let with = |more: &[&'static str]| {
        let mut all = [&both, more].concat();
        all.sort_unstable();
        all
    };
    assert_eq!(names(&passed), with(&["x-envoy-upstream-service-time"]));
    assert_headers_agree(&passed);

    assert_eq!(refused.status, 429);
    assert_eq!(refused.body, r#"{"message":"Too Many Requests"}"#);
    assert_eq!(
        names(&refused),
        with(&["retry-after", "x-envoy-ratelimited"])
    );
    assert_headers_agree(&refused);
    assert_eq!(refused.header("content-type"), Some("application/json"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("x-ratelimit-reset"), Some("1"));
    assert_eq!(refused.header("x-envoy-ratelimited"), Some("true"));

    // A refusal costs nothing: the address guard has lost one request, not two.
    let minute = |answer: &Answer| items(answer.header("ratelimit").unwrap())[1].get("r");
    assert_eq!((minute(&passed), minute(&refused)), (49, 49));
}

#[tokio::test]
async fn nobody_enters_without_a_valid_key_and_no_key_reaches_the_upstream() {
    let (upstream, seen) = Upstream::recording();
    let stack = Stack::start(&shipped_plans(), &[], upstream, |_| {}).await;
    let mut client = stack.envoy.client().await;
    let wrong: [&[Header]; 4] = [
        &[],
        &[("x-api-key", "wrong")],
        &[("x-api-key", "")],
        &[("x-api-key", "demo-free-key ,demo-free-key")],
    ];
    for headers in wrong {
        let answer = client.get("/secure/stats", headers).await;
        assert_eq!(answer.status, 403, "{headers:?}");
        assert_eq!(answer.body, r#"{"message":"Forbidden"}"#);
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    assert!(seen.lock().unwrap().is_empty(), "403 went to the upstream");

    // A known key is taken off where it is asked for, and one sent where none is asked for, too.
    for path in ["/secure/a", "/public/b", "/unsecure/c"] {
        let answer = client.get(path, &[FREE, ("x-mark", "kept")]).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    for headers in &*seen {
        assert_eq!(headers["x-mark"], "kept");
        assert!(!headers.contains_key("x-api-key"), "{headers:?}");
        let held = headers.values().any(|value| value == "demo-free-key");
        assert!(!held, "{headers:?}");
    }
}

#[tokio::test]
async fn headers_that_claim_a_tier_or_a_key_change_nothing() {
    let (upstream, seen) = Upstream::recording();
    let stack = Stack::start(&shipped_plans(), &[], upstream, |_| {}).await;
    let mut client = stack.envoy.client().await;
    let forged: [Header; 2] = [("x-tier", "premium"), ("x-api-key-id", "demo-premium")];

    let free = [FREE, forged[0], forged[1]];
    let (first, second) = (
        client.get("/secure/stats", &free).await,
        client.get("/secure/stats", &free).await,
    );
    assert_eq!((first.status, second.status), (200, 429));
    assert_headers_agree(&second);

    let nobody = client.get("/secure/stats", &forged).await;
    assert_eq!(nobody.status, 403);

    let anonymous = client.get("/public/stats", &forged).await;
    assert_eq!(anonymous.header("x-ratelimit-limit"), Some("50, 50;w=60"));
    assert_eq!(anonymous.header("x-ratelimit-remaining"), Some("49"));
    for headers in &*seen.lock().unwrap() {
        let told = ["x-tier", "x-api-key-id"].map(|name| headers.contains_key(name));
        assert_eq!(told, [false, false], "{headers:?}");
    }
}

#[tokio::test]
async fn a_limit_over_several_units_shows_its_whole_window() {
    let (_folder, plans) = plans(
        r#"
domain: stats-api
descriptors:
  - key: tier
    descriptors: [{ key: ip, limits: ["5/10 minutes"] }]
"#,
    );
    let stack = Stack::start(&plans, &[], Upstream::stats(), |_| {}).await;
    let answer = stack.envoy.client().await.get("/public/stats", &[]).await;
    assert_eq!(answer.header("x-ratelimit-limit"), Some("5, 5;w=600"));
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("4"));
    let policy = items(answer.header("ratelimit-policy").unwrap());
    assert_eq!((policy[0].get("q"), policy[0].get("w")), (5, 600));
}

#[tokio::test]
async fn the_access_log_names_the_key_and_the_rule_that_decided() {
    let stack = Stack::shipped().await;
    let mut client = stack.envoy.client().await;
    for _ in 0..2 {
        client.get("/secure/stats", &[FREE]).await;
    }
    client.get("/public/stats", &[]).await;
    let log = wait_for("three lines of the access log", || {
        Some(stack.envoy.access_log()).filter(|lines| lines.len() == 3)
    });
    let [passed, refused, anonymous] = &log[..] else {
        panic!("three lines: {log:?}");
    };
    for line in &log {
        assert_eq!(line["client"], "127.0.0.1");
    }
    assert_eq!(refused["status"], 429);
    assert_eq!(refused["details"], "request_rate_limited");
    assert_eq!(passed["status"], 200);
    for line in [passed, refused] {
        assert_eq!(line["authz"]["tier"], "free");
        assert_eq!(line["authz"]["api_key_id"], "demo-free");
    }
    assert_eq!(refused["ratelimit"]["domain"], "stats-api");
    assert_eq!(refused["ratelimit"]["rule"], "api_key");
    assert_eq!(refused["ratelimit"]["limit"], "api_key:1/second");
    let named = serde_json::json!({ "rule": "tier=anonymous/ip" });
    assert_eq!(anonymous["ratelimit"], named);
    let log = stack.envoy.process.output();
    assert!(!log.contains("demo-free-key"), "a secret is in the log");
}

#[tokio::test]
async fn a_plan_decides_whether_its_answers_name_limits_and_what_they_say() {
    let (_folder, plans) = plans(
        r#"
domain: stats-api
response: { ratelimit: false, retry_after: false, body: "slow down", content_type: text/plain }
descriptors:
  - key: tier
    descriptors: [{ key: ip, limits: ["1/hour"] }]
"#,
    );
    let no_headers = |config: &mut EnvoyConfig| {
        config.rate_limit()["enable_x_ratelimit_headers"] = "OFF".into();
    };
    let stack = Stack::start(&plans, &[], Upstream::stats(), no_headers).await;
    let mut client = stack.envoy.client().await;
    assert_eq!(client.get("/public/stats", &[]).await.status, 200);
    let refused = client.get("/public/stats", &[]).await;
    assert_eq!((refused.status, refused.body.as_str()), (429, "slow down"));
    assert_eq!(refused.header("content-type"), Some("text/plain"));
    let rest = [
        "content-length",
        "content-type",
        "date",
        "server",
        "x-envoy-ratelimited",
    ];
    assert_eq!(names(&refused), rest);
}
