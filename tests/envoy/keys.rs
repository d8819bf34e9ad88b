//! Who a request is from, with a real Envoy: keys from every place, forged headers, nothing of the secret at the upstream.

use std::process::Command;

use crate::{
    client::Header,
    common::{Tollgate, plans, tollgate_command, wait_until},
    stack::{Envoy, EnvoyConfig, Stack, Upstream},
};

const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["1000/second"] }, premium: { limits: ["1000/second"] } }
authentication:
  key_from: ["header:x-api-key", bearer, "query:api_key"]
  error_style: problem+json
  upstream_headers: { api_key_id: x-key-id, tier: x-key-tier, owner: x-key-owner }
descriptors:
  - { key: api_key, limits_from: tier }
"#;

/// Makes a key: its secret.
fn make(config: &std::path::Path, state: &std::path::Path, args: &[&str]) -> String {
    let output = keys(&["create"], config, state)
        .args(args)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    made["secret"].as_str().unwrap().to_owned()
}

fn keys(args: &[&str], config: &std::path::Path, state: &std::path::Path) -> Command {
    let mut command = tollgate_command();
    command
        .arg("keys")
        .args(args)
        .args(["--output", "json", "--config"]);
    command.arg(config).arg("--state-dir").arg(state);
    command
}

/// For headers of requests, which live as long as the test.
fn forever(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

#[tokio::test]
async fn a_key_is_taken_from_every_place_and_goes_no_further_and_forged_headers_change_nothing() {
    let (_folder, config) = plans(PLANS);
    let state = tempfile::tempdir().unwrap();
    let owned = make(
        &config,
        state.path(),
        &["--tier", "free", "--id", "ada", "--owner", "Ada"],
    );
    let bare = make(&config, state.path(), &["--tier", "free", "--id", "bob"]);
    let (upstream, seen) = Upstream::recording();
    let args = ["--state-dir", state.path().to_str().unwrap()];
    let stack = Stack::start(&config, &args, upstream, |_| {}).await;
    let mut client = stack.envoy.client().await;
    let forged: [Header; 3] = [
        ("x-key-id", "root"),
        ("x-key-tier", "premium"),
        ("x-key-owner", "Mallory"),
    ];
    for (id, secret, owner) in [("ada", &owned, Some("Ada")), ("bob", &bare, None)] {
        let secret = forever(secret);
        let bearer = forever(&format!("Bearer {secret}"));
        let path = format!("/secure/a?x=1&api_key={secret}&y=2");
        for (path, header) in [
            ("/secure/a?x=1&y=2", Some(("x-api-key", secret))),
            ("/secure/a?x=1&y=2", Some(("authorization", bearer))),
            (&*path, None),
            // Every copy goes.
            (&*path, Some(("x-api-key", secret))),
        ] {
            let mut headers = forged.to_vec();
            headers.extend(header);
            assert_eq!(
                client.get(path, &headers).await.status,
                200,
                "{path} {header:?}"
            );
            let got = seen.lock().unwrap().pop().unwrap();
            let said = |name: &str| got.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(said("x-key-id"), Some(id));
            assert_eq!(said("x-key-tier"), Some("free"));
            assert_eq!(said("x-key-owner"), owner);
            assert_eq!(said("test-path"), Some("/a?x=1&y=2"));
            assert!(!format!("{got:?}").contains(secret), "{got:?}");
        }
    }
    // A token of somebody else is the upstream's to judge.
    let secret = forever(&owned);
    client
        .get(
            "/secure/a",
            &[("x-api-key", secret), ("authorization", "Bearer a.b.c")],
        )
        .await;
    let got = seen.lock().unwrap().pop().unwrap();
    assert_eq!(got.get("authorization").unwrap(), "Bearer a.b.c");
    let shown = format!(
        "{}\n{}",
        stack.tollgate.process.log(),
        stack.envoy.process.output()
    );
    assert!(!shown.contains(&owned) && !shown.contains(&bare), "{shown}");
}

#[tokio::test]
async fn a_problem_document_tells_who_has_no_key_or_a_wrong_one() {
    let (_folder, config) = plans(PLANS);
    let stack = Stack::start(&config, &[], Upstream::fast_stats(), |_| {}).await;
    let mut client = stack.envoy.client().await;
    let missing = client.get("/secure/stats", &[]).await;
    assert_eq!(missing.status, 401);
    assert_eq!(
        missing.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
    let wrong = client.get("/secure/stats?api_key=nobodys", &[]).await;
    assert_eq!(wrong.status, 403);
    assert!(
        wrong.body.contains("The API key is not valid."),
        "{}",
        wrong.body
    );
}

#[tokio::test]
async fn a_key_revoked_while_envoy_runs_opens_no_replica_any_more() {
    let (_folder, config) = plans(PLANS);
    let state = tempfile::tempdir().unwrap();
    let secret = forever(&make(
        &config,
        state.path(),
        &["--tier", "free", "--id", "ada"],
    ));
    let args = ["--state-dir", state.path().to_str().unwrap()];
    let replicas = [
        Tollgate::start(&config, &args),
        Tollgate::start(&config, &args),
    ];
    let upstream = Upstream::fast_stats();
    let addresses: Vec<&str> = replicas
        .iter()
        .map(|tollgate| tollgate.grpc.as_str())
        .collect();
    let envoy = Envoy::start(&EnvoyConfig::new(&addresses, upstream.address)).await;
    let mut client = envoy.client().await;
    let headers = [("x-api-key", secret)];
    for _ in 0..8 {
        assert_eq!(client.get("/secure/stats", &headers).await.status, 200);
    }
    let revoked = keys(&["revoke", "ada"], &config, state.path())
        .status()
        .unwrap();
    assert!(revoked.success());
    wait_until("all replicas to refuse", async || {
        let mut refused = true;
        for _ in 0..8 {
            refused &= client.get("/secure/stats", &headers).await.status == 403;
        }
        refused
    })
    .await;
}

#[tokio::test]
async fn a_route_that_names_a_domain_is_opened_by_its_keys_only_and_a_name_that_is_none_by_nobodys()
{
    let (folder, config) = plans(PLANS);
    let other = PLANS.replace("stats-api", "other").replace("free", "basic");
    std::fs::write(folder.path().join("other.yaml"), other).unwrap();
    let state = tempfile::tempdir().unwrap();
    let [ours, others] = [("free", "ada"), ("basic", "bob")]
        .map(|(tier, id)| forever(&make(&config, state.path(), &["--tier", tier, "--id", id])));
    let tollgate = Tollgate::start(&config, &["--state-dir", state.path().to_str().unwrap()]);
    let upstream = Upstream::fast_stats();
    for (domain, expected) in [
        ("stats-api", [200, 403]),
        ("other", [403, 200]),
        ("shpo", [403, 403]),
    ] {
        let mut config = EnvoyConfig::new(&[&tollgate.grpc], upstream.address);
        config.rate_limit()["domain"] = domain.into();
        let routes = &mut config.connection_manager()["route_config"]["virtual_hosts"][0]["routes"];
        let routes = routes.as_sequence_mut().unwrap();
        let secure = routes
            .iter_mut()
            .find(|route| route["name"] == "secure")
            .unwrap();
        let named = format!(
            r#"{{ "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute, check_settings: {{ context_extensions: {{ domain: {domain} }} }} }}"#
        );
        secure["typed_per_filter_config"]["envoy.filters.http.ext_authz"] =
            serde_yaml::from_str(&named).unwrap();
        let envoy = Envoy::start(&config).await;
        let mut client = envoy.client().await;
        let mut statuses = Vec::new();
        for key in [ours, others] {
            let answer = client.get("/secure/stats", &[("x-api-key", key)]).await;
            statuses.push(answer.status);
        }
        assert_eq!(statuses, expected, "{domain}");
    }
}
