//! Soft and shadow limits beside one that refuses: memory store, Redis and a plain model give the same answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*};
use tollgate::{
    clock::{ManualClock, Timestamp},
    decision::{Code, Decision},
    descriptor::{Descriptor, Entry, Hits, Query},
    limiter::Limiter,
    plan::{Plans, SharedPlans},
    store::{MemoryStore, Store, redis::RedisSettings},
};

use crate::{
    ask::{cases, connected, one_thread, patient},
    redis_server::RedisServer,
};

const PLANS: &str = "
domain: shop
descriptors:
  - key: user
    limits:
      - { limit: 10/day calendar, time_zone: Europe/Berlin }
      - { limit: 4/2 days calendar, mode: soft }
      - { limit: 3/3 days calendar, mode: shadow }
";

/// What each limit allows, and whether it refuses.
const LIMITS: [(u64, bool); 3] = [(10, true), (4, false), (3, false)];

fn limiter(store: Store) -> Limiter {
    let plans = Plans::from_texts(&[("plans.yaml", PLANS)]).expect("plans");
    Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store))
}

async fn decide(limiter: &Limiter, user: &str, hits: u64) -> Decision {
    let descriptor = Descriptor {
        entries: [Entry::new("user", user)].into_iter().collect(),
        hits: Hits::Take(hits),
        ..Descriptor::default()
    };
    let query = Query {
        domain: "shop".to_owned(),
        descriptors: [descriptor].into_iter().collect(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    limiter.decide(&query, deadline).await.expect("a decision")
}

fn fits_and_left(decision: &Decision) -> Vec<(bool, i64)> {
    let limits = decision.limits.iter();
    limits
        .map(|state| (state.balance.fits, state.balance.left))
        .collect()
}

/// Whether the request passes, and of each limit whether the hits fit it and what is left.
fn expected(used: &mut [u64; 3], hits: u64) -> (Code, Vec<(bool, i64)>) {
    let fits: Vec<bool> = LIMITS
        .iter()
        .zip(&*used)
        .map(|((most, _), used)| used + hits <= *most)
        .collect();
    let passes = LIMITS
        .iter()
        .zip(&fits)
        .all(|((_, refuses), fits)| *fits || !refuses);
    let rows = LIMITS
        .iter()
        .zip(used)
        .zip(fits)
        .map(|(((most, _), used), fits)| {
            if passes && fits {
                *used += hits;
            }
            (fits, *most as i64 - *used as i64)
        });
    let rows = rows.collect();
    (if passes { Code::Ok } else { Code::OverLimit }, rows)
}

#[test]
fn soft_and_shadow_limits_never_block_and_take_nothing_beyond_themselves() {
    let server = RedisServer::start();
    let runtime = one_thread();
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
        1_795_000_000_000_000,
    )));
    let settings = RedisSettings {
        clock: Some(clock.clone()),
        ..patient(&server)
    };
    let memory = limiter(Store::Memory(MemoryStore::new(100_000, clock)));
    let redis = limiter(Store::Redis(runtime.block_on(connected(settings))));
    let (case, overage) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    proptest!(cases(100), |(steps in vec(1_u64..4, 1..12))| {
        case.set(case.get() + 1);
        let user = format!("u{}", case.get());
        let mut used = [0; 3];
        for hits in steps {
            let expected = expected(&mut used, hits);
            if expected.0 == Code::Ok && !expected.1[1].0 {
                overage.set(overage.get() + hits);
            }
            for limiter in [&memory, &redis] {
                let decision = runtime.block_on(decide(limiter, &user, hits));
                prop_assert!(!decision.degraded);
                prop_assert_eq!(&(decision.code, fits_and_left(&decision)), &expected);
            }
        }
    });
    for limiter in [&memory, &redis] {
        let plans = limiter.plans().load();
        let rule = plans
            .domain("shop")
            .and_then(|domain| domain.rules().next().cloned())
            .expect("a rule");
        assert_eq!(rule.counters.overage.get(), overage.get());
    }
    assert!(overage.get() > 100, "{}", overage.get());
}
