//! Short ways to ask a store.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::test_runner::Config as ProptestConfig;
use tokio::runtime::{Builder, Runtime};
use tollgate::{
    descriptor::Hits,
    limit::{Limit, Penalty},
    plan::{Charge, OnStoreError, Role, RuleLimit},
    store::{
        BucketKey, Item, RedisStore, Take, Taken,
        redis::{RedisSettings, RedisUrl},
    },
};

use crate::{redis_server::RedisServer, zones};

/// A limit as a rule has it.
pub fn rule(text: &str) -> Arc<RuleLimit> {
    rule_of(zones::limit(text), text)
}

/// The same, on which an answer waits at most `delay`.
pub fn rule_with_delay(text: &str, delay: Duration) -> Arc<RuleLimit> {
    let limit = zones::limit(text).with_delay(delay);
    rule_of(limit.expect("it may be waited for"), text)
}

/// The same, with a penalty.
pub fn rule_with_penalty(text: &str, penalty: Penalty) -> Arc<RuleLimit> {
    let limit = zones::limit(text).with_penalty(penalty);
    rule_of(limit.expect("a penalty"), text)
}

fn rule_of(limit: Limit, text: &str) -> Arc<RuleLimit> {
    let key_prefix = format!("test/{text}#");
    Arc::new(RuleLimit::new(limit, None, &key_prefix, text))
}

/// An enforced item, charged all or nothing.
pub fn item(limit: &Arc<RuleLimit>, subject: &str, hits: Hits) -> Item {
    Item {
        key: BucketKey::new(limit.key_prefix(), subject.as_bytes()),
        limit: limit.clone(),
        hits,
        role: Role::Enforced,
        charge: Charge::AllOrNothing,
        patience_us: 0,
        on_store_error: OnStoreError::Local,
    }
}

/// A take of one item.
pub fn one(limit: &Arc<RuleLimit>, subject: &str, hits: u64) -> Take {
    Take {
        items: [item(limit, subject, Hits::Take(hits))]
            .into_iter()
            .collect(),
        dry: false,
    }
}

/// Settings for `server` with a timeout that the machine's noise does not reach.
pub fn patient(server: &RedisServer) -> RedisSettings {
    patient_at(&server.url())
}

/// The same for the Redis of a URL.
pub fn patient_at(url: &str) -> RedisSettings {
    let url: RedisUrl = url.parse().expect("a Redis URL");
    RedisSettings {
        timeout: Duration::from_secs(20),
        ..RedisSettings::new(url)
    }
}

/// A store that is connected.
pub async fn connected(settings: RedisSettings) -> RedisStore {
    let store = RedisStore::connect(settings);
    assert!(
        store.first_connection(Duration::from_secs(10)).await,
        "{:?}",
        store.is_down()
    );
    store
}

/// Asks, with a deadline that only the store's own timeout comes before.
pub async fn ask(store: &RedisStore, take: Take) -> Taken {
    let deadline = Instant::now() + Duration::from_secs(60);
    store.take(take, deadline).await.expect("a decision")
}

/// Takes one of `limit` again and again, until a take is refused by Redis itself, and counts those before.
pub async fn admitted_until_refused(store: &RedisStore, limit: &Arc<RuleLimit>) -> u64 {
    let mut admitted = 0;
    loop {
        let taken = ask(store, one(limit, "same", 1)).await;
        assert!(!taken.degraded, "{:?}", store.is_down());
        if !taken.admitted {
            return admitted;
        }
        admitted += 1;
    }
}

/// So many cases of a property, of which none is written to a file.
pub fn cases(number: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(number)
    }
}

/// A runtime on one thread: tasks run in the order in which they are ready.
pub fn one_thread() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}
