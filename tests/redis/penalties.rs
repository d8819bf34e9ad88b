//! Penalties that replicas share: begun by refusals of both, told by both, kept without Redis.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tollgate::{
    decision::{Code, Decision},
    descriptor::{Descriptor, Entry, Hits, Query},
    limiter::Limiter,
    plan::{Plans, SharedPlans},
    store::Store,
};

use crate::{
    ask::{connected, patient},
    redis_server::RedisServer,
};

/// The bucket refills in half a day, the penalty is over in an hour.
const PLANS: &str = "domain: shop\ndescriptors: [{ key: ip, limits: [{ limit: 2/day, penalty: { after: 3, for: 1h } }] }]";

struct Replica {
    limiter: Limiter,
    store: Arc<Store>,
}

impl Replica {
    async fn on(server: &RedisServer) -> Self {
        let plans = Plans::from_texts(&[("plans.yaml", PLANS)]).expect("plans");
        let store = Arc::new(Store::Redis(connected(patient(server)).await));
        let limiter = Limiter::new(Arc::new(SharedPlans::fixed(plans)), store.clone());
        Self { limiter, store }
    }

    async fn ask(&self, hits: Hits) -> Decision {
        let query = Query {
            domain: "shop".to_owned(),
            descriptors: vec![Descriptor {
                entries: vec![Entry::new("ip", "192.0.2.1")],
                hits,
                ..Descriptor::default()
            }],
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        self.limiter
            .decide(&query, deadline)
            .await
            .expect("an answer")
    }

    /// Whether one more is refused, and by the penalty.
    async fn refuses(&self) -> (bool, bool) {
        let decision = self.ask(Hits::Take(1)).await;
        (decision.code == Code::OverLimit, decision.is_penalised())
    }

    fn calls(&self) -> u64 {
        let state = self.store.state().expect("it is Redis");
        state.stats.script_calls.load(Relaxed)
    }
}

#[tokio::test]
async fn replicas_count_refusals_together_and_both_refuse_while_the_penalty_runs() {
    let server = RedisServer::start();
    let (one, other) = (Replica::on(&server).await, Replica::on(&server).await);
    assert_eq!(one.ask(Hits::Take(2)).await.code, Code::Ok);
    assert_eq!(one.refuses().await, (true, false));
    assert_eq!(other.refuses().await, (true, false));
    assert_eq!(
        one.refuses().await,
        (true, true),
        "the third of both begins it"
    );

    // Tokens are there again, by a refund, which ends no penalty.
    assert_eq!(one.ask(Hits::Give(2)).await.code, Code::Ok);
    for replica in [&other, &one] {
        let decision = replica.ask(Hits::Take(1)).await;
        assert!(decision.is_penalised() && decision.code == Code::OverLimit);
        let wait = decision.retry_after.expect("it ends");
        let hour = Duration::from_secs(3_600);
        assert!(
            wait <= hour && wait > hour - Duration::from_secs(60),
            "{wait:?}"
        );
    }

    // What is known of it refuses without a call, but for one a second.
    let (before, began) = (other.calls(), Instant::now());
    for _ in 0..200 {
        assert_eq!(other.refuses().await, (true, true));
    }
    let seconds = began.elapsed().as_secs();
    assert!(other.calls() - before <= 2 * (seconds + 1), "{seconds} s");
}

#[tokio::test]
async fn a_penalty_that_was_seen_runs_on_without_redis() {
    let server = RedisServer::start();
    let (one, other) = (Replica::on(&server).await, Replica::on(&server).await);
    for _ in 0..5 {
        one.ask(Hits::Take(1)).await;
    }
    assert_eq!(one.refuses().await, (true, true));
    drop(server);
    loop {
        let decision = one.ask(Hits::Take(1)).await;
        assert!(decision.is_penalised());
        if decision.degraded {
            break;
        }
    }
    // This one has seen nothing of it, and counts for itself.
    assert_eq!(other.refuses().await, (false, false));
}
