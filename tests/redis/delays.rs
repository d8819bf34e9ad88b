//! Delays that replicas share: whoever is asked, requests are let go in the order in which they came, and never more than the
//! limit allows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*};
use tollgate::{
    clock::{Clock, ManualClock, Timestamp},
    decision::Code,
    descriptor::{Descriptor, Entry, Hits, Query},
    limiter::{Limiter, Pacing},
    plan::{Plans, SharedPlans},
    store::{Store, redis::RedisSettings},
};

use crate::{
    ask::{cases, connected, patient},
    redis_server::RedisServer,
};

/// A token comes every 100 ms.
const PLANS: &str = "domain: shop\ndescriptors: [{ key: ip, limits: [{ limit: 10/second burst 5, delay: up to 500ms }] }]";
const BURST: u64 = 5;
const TOKEN_US: u64 = 100_000;
const DELAY_US: u64 = 500_000;

fn query(ip: &str, hits: u64) -> Query {
    Query {
        domain: "shop".to_owned(),
        descriptors: vec![Descriptor {
            entries: vec![Entry::new("ip", ip)],
            hits: Hits::Take(hits),
            ..Descriptor::default()
        }],
    }
}

#[test]
fn two_replicas_let_go_in_the_order_of_arrival_and_never_too_many() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
        1_795_000_000_000_000,
    )));
    let replicas = [(); 2].map(|()| {
        let settings = RedisSettings {
            clock: Some(clock.clone()),
            ..patient(&server)
        };
        let store = Store::Redis(runtime.block_on(connected(settings)));
        let plans = Plans::from_texts(&[("plans.yaml", PLANS)]).expect("plans");
        // Nobody waits in truth.
        let pacing = Arc::new(Pacing::default().without_waiting());
        Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store)).with_pacing(pacing)
    });
    let (case, waited) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    proptest!(cases(60), |(steps in vec((0..2_usize, 0..3 * TOKEN_US / 2, 1_u64..4), 1..40))| {
        case.set(case.get() + 1);
        let ip = format!("192.0.2.{}", case.get());
        // When each was let go, and its hits.
        let mut released: Vec<(u64, u64)> = Vec::new();
        for (replica, pause, hits) in steps {
            clock.advance(Duration::from_micros(pause));
            let deadline = Instant::now() + Duration::from_secs(60);
            let query = query(&ip, hits);
            let decision = replicas[replica].decide(&query, deadline);
            let decision = runtime.block_on(decision).expect("Redis is well");
            prop_assert!(!decision.degraded);
            if decision.code != Code::Ok {
                continue;
            }
            let delay = decision.delay().as_micros() as u64;
            prop_assert!(delay <= DELAY_US);
            waited.set(waited.get() + u32::from(delay > 0));
            let release = clock.now().as_micros() + delay;
            let last = released.last().map_or(0, |(at, _)| *at);
            prop_assert!(release >= last, "who came later goes first");
            released.push((release, hits));
        }
        for (first, (begin, _)) in released.iter().enumerate() {
            let mut sum = 0;
            for (end, hits) in &released[first..] {
                sum += hits;
                // Who waits is let go at a whole microsecond.
                prop_assert!(sum * TOKEN_US <= BURST * TOKEN_US + end - begin + 1, "{:?}", released);
            }
        }
    });
    assert!(waited.get() > 100, "{}", waited.get());
}
