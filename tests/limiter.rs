//! What the limiter makes of matches, without a server around it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tollgate::{
    clock::SystemClock,
    decision::{Code, Decision},
    descriptor::{Descriptor, Entry, LimitOverride, Query},
    limit::{Period, Unit},
    limiter::Limiter,
    plan::{Plans, SharedPlans},
    store::{
        MemoryStore, Store,
        redis::{RedisSettings, RedisStore},
    },
};

fn memory() -> Store {
    Store::Memory(MemoryStore::new(1_000, Arc::new(SystemClock)))
}

/// A store that answers nothing: nobody listens there, as the port was taken and left.
fn dead() -> Store {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let url = format!("redis://{}", port.unwrap());
    Store::Redis(RedisStore::connect(RedisSettings::new(
        url.parse().unwrap(),
    )))
}

fn limiter(text: &str, store: Store) -> Limiter {
    let plans =
        Plans::from_texts(&[("plans.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
    Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store))
}

fn query(descriptors: &[&[(&str, &str)]]) -> Query {
    let descriptor = |entries: &&[(&str, &str)]| Descriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry::new(*key, *value))
            .collect(),
        ..Descriptor::default()
    };
    Query {
        domain: "shop".to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
    }
}

async fn decide(limiter: &Limiter, descriptors: &[&[(&str, &str)]]) -> Decision {
    let deadline = Instant::now() + Duration::from_secs(1);
    limiter.decide(&query(descriptors), deadline).await.unwrap()
}

fn codes(decision: &Decision) -> Vec<Code> {
    decision.statuses.iter().map(|status| status.code).collect()
}

/// Counters of the rule at `path`: passed, refused, would have refused.
fn counts(limiter: &Limiter, path: &str) -> [u64; 3] {
    let plans = limiter.plans().load();
    let domain = plans.domain("shop").unwrap();
    let rule = domain.rules().find(|rule| &*rule.path == path).unwrap();
    let counters = &rule.counters;
    [
        &counters.ok,
        &counters.over_limit,
        &counters.shadow_over_limit,
    ]
    .map(|counter| counter.load(Ordering::Relaxed))
}

const KEYS: &str = r#"
domain: shop
on_store_error: error
tiers: { free: { limits: ["5/hour"] } }
descriptors:
  - { key: api_key, limits_from: tier }
  - { key: ip, limits: ["5/hour"] }
"#;

#[tokio::test]
async fn an_unknown_key_is_refused_whatever_the_store_does() {
    for store in [memory(), dead()] {
        let limiter = limiter(KEYS, store);
        let decision = decide(&limiter, &[&[("ip", "a")], &[("api_key", "x")]]).await;
        assert_eq!(decision.code, Code::OverLimit);
        assert_eq!(codes(&decision), [Code::Ok, Code::OverLimit]);
        assert!(!decision.degraded && decision.limits.is_empty());
        assert_eq!(decision.retry_after, None);
        assert_eq!(counts(&limiter, "api_key"), [0, 1, 0]);
        assert_eq!(
            counts(&limiter, "ip"),
            [0, 0, 0],
            "its bucket was not asked"
        );
    }
}

#[tokio::test]
async fn in_shadow_mode_an_unknown_key_passes_is_counted_and_hides_no_rule() {
    let text = KEYS.replace(
        "limits_from: tier }",
        "limits_from: tier, shadow_mode: true, descriptors: [{ key: path, limits: [1/hour] }] }",
    );
    let limiter = limiter(&text, memory());
    let alone = decide(&limiter, &[&[("api_key", "x")]]).await;
    assert_eq!(alone.code, Code::Ok);
    assert_eq!(counts(&limiter, "api_key"), [0, 0, 1]);
    let below: &[&[(&str, &str)]] = &[&[("api_key", "x"), ("path", "/")]];
    assert_eq!(decide(&limiter, below).await.code, Code::Ok);
    assert_eq!(decide(&limiter, below).await.code, Code::OverLimit);
}

#[tokio::test]
async fn what_meets_no_rule_may_be_refused_and_asks_no_store() {
    let limiter = limiter(&format!("{KEYS}unmatched: deny\n"), dead());
    let decision = decide(&limiter, &[&[("who", "a")], &[("where", "b")]]).await;
    assert_eq!(decision.code, Code::OverLimit);
    assert_eq!(codes(&decision), [Code::OverLimit, Code::OverLimit]);
    let by = decision.decided_by.unwrap();
    assert_eq!(&*by.rule.unwrap().path, "(unmatched)");
}

#[tokio::test]
async fn a_forged_tier_opens_no_bucket_of_its_own_where_the_request_brings_a_limit() {
    let text = format!(
        "{KEYS}api_keys: [{{ id: ann, tier: free, sha256: {:064x} }}]\n",
        1
    );
    let limiter = limiter(&text, memory());
    let mut passed = 0;
    for tier in ["free", "premium", "zzz"] {
        let mut query = query(&[&[("api_key", "ann")], &[("tier", tier)]]);
        query.descriptors[1].limit = Some(LimitOverride {
            requests: 1,
            period: Period::of(Unit::Hour),
        });
        let deadline = Instant::now() + Duration::from_secs(1);
        let decision = limiter.decide(&query, deadline).await.unwrap();
        passed += usize::from(decision.code == Code::Ok);
    }
    assert_eq!(passed, 1);
}
