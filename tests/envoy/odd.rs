//! Requests that no honest client sends, through a real Envoy.

use crate::{
    client::{Client, Header},
    common::plans,
    stack::{EnvoyConfig, Stack, Upstream},
};

/// The key `demo-free-key` opens.
const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["1000/second"] } }
api_keys:
  - { id: listed, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
authentication: { error_style: plain, key_from: ["header:x-api-key", bearer, "query:api_key"] }
descriptors:
  - { key: api_key, limits_from: tier, unknown_key: deny }
"#;

/// Lets pass what Envoy would turn away itself, and shows Tollgate all of it.
fn wide_open(config: &mut EnvoyConfig) {
    let manager = config.connection_manager();
    manager["max_request_headers_kb"] = 8192.into();
    manager["common_http_protocol_options"]["max_headers_count"] = 20_000.into();
    let filters = manager["http_filters"].as_sequence_mut().expect("a list");
    let authz = &mut filters[0]["typed_config"];
    assert!(
        authz["allowed_headers"].is_mapping(),
        "the first is ext_authz"
    );
    authz
        .as_mapping_mut()
        .expect("a map")
        .remove("allowed_headers");
    // The public route asks the rate-limit service alone.
    let key =
        "[{ actions: [{ request_headers: { header_name: x-api-key, descriptor_key: api_key } }] }]";
    *config.public_actions() = serde_yaml::from_str(key).expect("YAML");
}

fn forever(text: String) -> &'static str {
    text.leak()
}

#[tokio::test]
async fn a_key_of_a_mebibyte_and_thousands_of_headers_are_answered_and_harm_nobody() {
    let (_folder, plans) = plans(PLANS);
    let mut stack = Stack::start(&plans, &[], Upstream::fast_stats(), wide_open).await;
    let mut neighbour = stack.envoy.client().await;
    let huge = forever("k".repeat(1 << 20));
    let bearer = forever(format!("Bearer {huge}"));
    // No client of ours writes a longer one.
    let query = format!("/secure/stats?api_key={}", &huge[..60_000]);
    let invalid = (403, "The API key is not valid.\n");
    let missing = (
        401,
        "An API key is needed: send it as the header x-api-key or Authorization: Bearer or the query parameter api_key.\n",
    );
    let many: Vec<Header> = (0..10_000)
        .map(|n| (forever(format!("x-{n}")), "v"))
        .collect();
    let cases: [(&str, &[Header], (u16, &str)); 5] = [
        ("/secure/stats", &[("x-api-key", huge)], invalid),
        ("/secure/stats", &[("authorization", bearer)], invalid),
        (&query, &[], invalid),
        ("/secure/stats", &many, missing),
        (
            "/public/stats",
            &[("x-api-key", huge)],
            (429, r#"{"message":"Too Many Requests"}"#),
        ),
    ];
    for (path, headers, expected) in cases {
        let answer = Client::connect(stack.envoy.edge)
            .await
            .get(path, headers)
            .await;
        let path = &path[..path.len().min(40)];
        assert_eq!((answer.status, answer.body.as_str()), expected, "{path}");
        let good = neighbour
            .get("/secure/stats", &[("x-api-key", "demo-free-key")])
            .await;
        assert_eq!(good.status, 200);
    }
    assert!(stack.tollgate.process.is_running());
    for filter in ["ext_authz", "ratelimit"] {
        let name = format!("cluster.stats.{filter}.error");
        assert_eq!(stack.envoy.stat(&name).await, 0, "{name}");
    }
    // None of it is repeated.
    let log = stack.tollgate.process.log();
    assert!(log.len() < 100_000, "{} bytes of log", log.len());
}

#[tokio::test]
async fn as_it_is_shipped_envoy_turns_them_away_before_anybody_is_asked() {
    let (_folder, plans) = plans(PLANS);
    let stack = Stack::start(&plans, &[], Upstream::fast_stats(), |_| {}).await;
    let huge = forever("k".repeat(1 << 20));
    let many: Vec<Header> = (0..5_000)
        .map(|n| (forever(format!("x-{n}")), "v"))
        .collect();
    let cases: [&[Header]; 2] = [&[("x-api-key", huge)], &many];
    for headers in cases {
        let mut client = Client::connect(stack.envoy.edge).await;
        // It may hang up before all of it is sent.
        if let Ok(answer) = client.try_get("/secure/stats", headers).await {
            assert_eq!(answer.status, 431);
        }
    }
    let checks = |result: &str| {
        let page = stack.tollgate.page("/metrics");
        page.contains(&format!("tollgate_key_checks_total{{result=\"{result}\"}}"))
    };
    assert!(!checks("unknown") && !checks("missing"));
    let good = stack
        .envoy
        .client()
        .await
        .get("/secure/stats", &[("x-api-key", "demo-free-key")])
        .await;
    assert_eq!(good.status, 200);
}
