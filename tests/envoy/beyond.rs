//! Quotas, soft limits and lists, as clients of a real Envoy meet them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    client::{Client, another_home},
    common::{Tollgate, plans},
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Upstream},
};

/// A day of Berlin that ends in half a day from now, so that no test runs over its end.
fn quota() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let far_hour = (since.as_secs() / 3_600 + 12) % 24;
    format!("{{ limit: 5/day calendar, time_zone: Europe/Berlin, offset: {far_hour}h }}")
}

fn beyond_plans() -> String {
    let quota = quota();
    format!(
        r#"
domain: stats-api
deny: {{ cidr: [127.0.0.66/32] }}
descriptors:
  - key: tier
    value: anonymous
    descriptors: [{{ key: ip, limits: [{quota}, {{ limit: 1/hour, mode: soft, name: hourly }}] }}]
"#
    )
}

#[tokio::test]
async fn over_two_replicas_the_sixth_call_of_a_day_exceeds_the_quota() {
    let (_folder, plans) = plans(&beyond_plans());
    let redis = RedisServer::start();
    let upstream = Upstream::fast_stats();
    let url = redis.url();
    let args = ["--store", &url, "--store-timeout", "500ms"];
    let replicas = [
        Tollgate::start(&plans, &args),
        Tollgate::start(&plans, &args),
    ];
    let addresses = [&replicas[0], &replicas[1]].map(|replica| replica.grpc.as_str());
    let config = EnvoyConfig::new(&addresses, upstream.address);
    let envoy = Envoy::start_with_workers(&config, 2).await;
    let mut client = Client::connect_from(another_home(5), envoy.edge).await;
    for used in 1..=5 {
        let answer = client.get("/public/stats", &[]).await;
        assert_eq!(answer.status, 200);
        let warning = answer.header("x-ratelimit-warning");
        assert_eq!(warning.is_some(), used >= 4, "{warning:?}");
        assert!(
            warning.is_none_or(|text| text.ends_with(&format!(";used={used};q=5"))),
            "{warning:?}"
        );
        let overage = answer.header("x-ratelimit-overage");
        assert_eq!(overage, (used > 1).then_some("\"hourly\""));
    }
    let sixth = client.get("/public/stats", &[]).await;
    assert_eq!(
        (sixth.status, sixth.body.as_str()),
        (429, r#"{"message":"Limit Exceeded"}"#)
    );
    assert_eq!(sixth.header("content-type"), Some("application/json"));
    assert_eq!(sixth.header("x-ratelimit-overage"), None);
    let counted = replicas.iter().map(|replica| {
        assert_eq!(replica.metric("tollgate_degraded_total"), 0.0);
        replica
            .metric(r#"tollgate_overage_hits_total{domain="stats-api",rule="tier=anonymous/ip"}"#)
    });
    assert_eq!(counted.sum::<f64>(), 4.0);
}

#[tokio::test]
async fn a_denied_address_is_refused_by_both_questions() {
    let (_folder, plans) = plans(&beyond_plans());
    let tollgate = Tollgate::start(&plans, &[]);
    let upstream = Upstream::fast_stats();
    let config = EnvoyConfig::new(&[&tollgate.grpc], upstream.address);
    let envoy = Envoy::start(&config).await;
    let mut denied = Client::connect_from(another_home(66), envoy.edge).await;
    let limited = denied.get("/public/stats", &[]).await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, None));
    let asked = denied.get("/secure/stats", &[("x-api-key", "any")]).await;
    assert_eq!(
        (asked.status, asked.body.as_str()),
        (403, r#"{"message":"Forbidden"}"#)
    );
    assert_eq!(
        tollgate.metric(r#"tollgate_key_checks_total{result="denied"}"#),
        1.0
    );
    let mut other = Client::connect_from(another_home(6), envoy.edge).await;
    assert_eq!(other.get("/public/stats", &[]).await.status, 200);
}
