//! A quota beside a soft limit, as clients of a real Envoy meet them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    client::{Client, another_home},
    stack::Pair,
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
descriptors:
  - key: tier
    value: anonymous
    descriptors: [{{ key: ip, limits: [{quota}, {{ limit: 1/hour, mode: soft, name: hourly }}] }}]
"#
    )
}

#[tokio::test]
async fn over_two_replicas_the_sixth_call_of_a_day_exceeds_the_quota() {
    let pair = Pair::start(&beyond_plans(), &[], |_| {}).await;
    let mut client = Client::connect_from(another_home(5), pair.envoy.edge).await;
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
    assert_eq!(pair.metric("tollgate_degraded_total"), 0.0);
    let rule = r#"{domain="stats-api",rule="tier=anonymous/ip"}"#;
    let counted = pair.metric(&format!("tollgate_overage_hits_total{rule}"));
    assert_eq!(counted, 4.0);
}
