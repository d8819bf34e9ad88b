//! A limiter on a clock of the test's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use tollgate::{
    clock::{ManualClock, Timestamp},
    decision::{Code, Decision},
    descriptor::{Descriptor, Entry, Hits, Query},
    explain::Question,
    limiter::{Limiter, Pacing},
    plan::{Plans, SharedPlans},
    store::{MemoryStore, Store},
};

const START: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

/// A limiter of the domain `shop` on a clock of the test's.
pub struct Shop {
    pub clock: Arc<ManualClock>,
    pub pacing: Arc<Pacing>,
    pub limiter: Arc<Limiter>,
}

impl Shop {
    /// By a rule for `ip` with these limits; nobody waits in truth.
    pub fn of(limits: &str) -> Self {
        let rules = format!("domain: shop\ndescriptors: [{{ key: ip, limits: [{limits}] }}]");
        Self::by(&rules, Pacing::default().without_waiting())
    }

    pub fn by(text: &str, pacing: Pacing) -> Self {
        let plans =
            Plans::from_texts(&[("plans.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let clock = Arc::new(ManualClock::at(START));
        let store = Store::Memory(MemoryStore::new(1_000, clock.clone()));
        let pacing = Arc::new(pacing);
        let limiter = Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store))
            .with_pacing(pacing.clone());
        Self {
            clock,
            pacing,
            limiter: Arc::new(limiter),
        }
    }

    pub fn ask(&self, hits: u64) -> Decision {
        self.ask_for(Duration::from_secs(600), hits)
    }

    /// Asks as one who waits at most so long.
    pub fn ask_for(&self, left: Duration, hits: u64) -> Decision {
        let deadline = Instant::now() + left;
        block_on(self.limiter.decide(&query(hits), deadline)).expect("memory answers")
    }

    /// Gives back.
    pub fn give(&self, hits: u64) {
        let deadline = Instant::now() + Duration::from_secs(600);
        let given = block_on(self.limiter.decide(&query_of(Hits::Give(hits)), deadline));
        assert_eq!(given.expect("memory answers").code, Code::Ok);
    }

    /// What would be answered now.
    pub fn preview(&self, hits: u64) -> Decision {
        let plans = self.limiter.plans().load_full();
        let deadline = Instant::now() + Duration::from_secs(600);
        block_on(self.limiter.preview(&plans, &query(hits), deadline)).expect("memory answers")
    }
}

pub fn query(hits: u64) -> Query {
    query_of(Hits::Take(hits))
}

pub fn query_of(hits: Hits) -> Query {
    Query {
        domain: "shop".to_owned(),
        descriptors: vec![Descriptor {
            entries: vec![Entry::new("ip", "192.0.2.1")],
            hits,
            ..Descriptor::default()
        }],
    }
}

/// The same question, for `explain`.
pub fn question() -> Question {
    let text = r#"{ "domain": "shop", "descriptors": [{ "entries": [{ "key": "ip", "value": "192.0.2.1" }] }] }"#;
    serde_json::from_str(text).expect("a question")
}
