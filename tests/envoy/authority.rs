//! Envoy calls Tollgate by the cluster's name where no `authority` is set, and any name is answered.

use tokio::task::JoinSet;

use crate::{
    certificates::Authority,
    client::Client,
    common::{Tollgate, plans},
    stack::{Envoy, EnvoyConfig, Upstream},
};

const ISTIO: &str = "outbound|8081||ratelimit.default.svc.cluster.local";

const RULES: &str = "
domain: stats-api
descriptors:
  - { key: user, value: many, limits: [1000000/day] }
  - { key: user, limits: [2/day] }
";

const ACTIONS: &str =
    "- actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }]";

const TLS: &str = r#"
name: tls
typed_config:
  "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
  common_tls_context: { alpn_protocols: [h2] }
"#;

/// The shipped configuration, with a cluster of that name for both questions, and no other name to call it by.
fn config(cluster: &str, tollgate: &str, upstream: &Upstream) -> EnvoyConfig {
    let mut config = EnvoyConfig::new(&[tollgate], upstream.address);
    *config.public_actions() = serde_yaml::from_str(ACTIONS).expect("YAML");
    // Room for a busy machine: an error would let the request pass.
    config.rate_limit()["timeout"] = "30s".into();
    let text = serde_json::to_string(&config.0).expect("JSON");
    let renamed = text.replace(r#""tollgate""#, &serde_json::json!(cluster).to_string());
    config.0 = serde_yaml::from_str(&renamed).expect("JSON is YAML");
    config
}

/// Two requests of `user` pass and one is refused, and what asks for a key is refused too: both services answer.
async fn assert_answers(config: &EnvoyConfig, user: &'static str) {
    let envoy = Envoy::start(config).await;
    let mut client = envoy.client().await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = client.get("/public/stats", &[("x-user", user)]).await;
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 429], "{user}");
    assert_eq!(client.get("/secure/stats", &[]).await.status, 403, "{user}");
}

#[tokio::test]
async fn a_cluster_of_any_name_is_answered_over_tcp_and_unix_sockets() {
    let (folder, rules) = plans(RULES);
    let unix = format!("unix:{}/rls.sock", folder.path().display());
    let tollgate = Tollgate::start(
        &rules,
        &["--grpc-listen", "127.0.0.1:0", "--grpc-listen", &unix],
    );
    let upstream = Upstream::fast_stats();
    for (user, cluster, address) in [
        ("a", ISTIO, &tollgate.grpc),
        ("b", "team a/rate limit", &tollgate.grpc),
        ("c", ISTIO, &unix),
        ("d", "default/eg/envoy-ratelimit:8081:grpc", &unix),
    ] {
        assert_answers(&config(cluster, address, &upstream), user).await;
    }
    let log = tollgate.process.log();
    let told = format!("a client calls this service `{ISTIO}`, which is no URI authority");
    assert!(log.contains(&told), "{log}");
    assert_eq!(log.matches("which is no URI authority").count(), 1, "{log}");
}

#[tokio::test]
async fn a_cluster_of_any_name_is_answered_over_tls() {
    let (folder, rules) = plans(RULES);
    let pair = Authority::new("ca").issue(&["localhost"]);
    pair.write(folder.path());
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| folder.path().join(name));
    let [cert, key] = [&cert, &key].map(|path| path.to_str().expect("text"));
    let flags = ["--grpc-tls-cert", cert, "--grpc-tls-key", key];
    let tollgate = Tollgate::start(&rules, &flags);
    let upstream = Upstream::fast_stats();
    let mut config = config(ISTIO, &tollgate.grpc, &upstream);
    config.cluster(ISTIO)["transport_socket"] = serde_yaml::from_str(TLS).expect("YAML");
    assert_answers(&config, "a").await;
}

/// Every call has another `x-request-id`, so what HPACK remembers is forgotten again and again, the name too.
#[tokio::test]
async fn thousands_of_calls_over_one_connection_are_answered() {
    let (_folder, rules) = plans(RULES);
    let tollgate = Tollgate::start(&rules, &[]);
    let upstream = Upstream::fast_stats();
    let envoy = Envoy::start(&config(ISTIO, &tollgate.grpc, &upstream)).await;
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        let mut client = Client::connect(envoy.edge).await;
        asking.spawn(async move {
            for _ in 0..400 {
                let answer = client.get("/public/stats", &[("x-user", "many")]).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                assert!(answer.header("ratelimit").is_some(), "Tollgate was asked");
            }
        });
    }
    asking.join_all().await;
    assert_eq!(envoy.stat("cluster.stats.ratelimit.ok").await, 3_200);
    assert_eq!(envoy.stat("cluster.stats.ratelimit.error").await, 0);
}
