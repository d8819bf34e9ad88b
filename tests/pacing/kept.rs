//! A restart in the middle of penalties, lines of waiting requests and quotas of time zones: who goes on with a kept file answers
//! as who never stopped.

use std::{
    cell::Cell,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use proptest::{collection::vec, prelude::*};
use tollgate::{
    clock::{ManualClock, Timestamp},
    decision::Decision,
    descriptor::{Descriptor, Entry, Hits, Query},
    limiter::{Limiter, Pacing},
    plan::{Plans, SharedPlans},
    store::{
        MemoryStore, Store,
        memory::{kept::KeptBuckets, snapshot},
    },
};

/// An hour before clocks change in Berlin, at two in the night.
const START: Timestamp = Timestamp::from_micros(1_774_742_400_000_000);

const RULES: &str = "
domain: shop
descriptors:
  - { key: penalty, limits: [{ limit: 2/30s, penalty: { after: 2, within: 60s, for: 20s, longest: 80s } }] }
  - { key: delay, limits: [{ limit: 2/second, delay: up to 60s }] }
  - { key: hour, limits: [{ limit: 3/hour calendar, time_zone: Asia/Kolkata }] }
  - { key: day, limits: [{ limit: 4/day calendar, time_zone: Europe/Berlin, offset: 3h }] }
  - { key: month, limits: [{ limit: 20/month calendar, time_zone: America/New_York }] }
";

const KEYS: [&str; 5] = ["penalty", "delay", "hour", "day", "month"];

/// A limiter whose process may end.
struct Life {
    clock: Arc<ManualClock>,
    plans: Arc<SharedPlans>,
    store: Arc<Store>,
    limiter: Limiter,
}

impl Life {
    fn begin() -> Self {
        let plans = Plans::from_texts(&[("plans.yaml", RULES)]).expect("plans");
        let clock = Arc::new(ManualClock::at(START));
        let store = MemoryStore::new(1_000, clock.clone());
        Self::with(clock, Arc::new(SharedPlans::fixed(plans)), store)
    }

    fn with(clock: Arc<ManualClock>, plans: Arc<SharedPlans>, store: MemoryStore) -> Self {
        let store = Arc::new(Store::Memory(store));
        let pacing = Arc::new(Pacing::default().without_waiting());
        let limiter = Limiter::new(plans.clone(), store.clone()).with_pacing(pacing);
        Self {
            clock,
            plans,
            store,
            limiter,
        }
    }

    fn ask(&self, key: usize, hits: u64) -> Decision {
        let query = Query {
            domain: "shop".to_owned(),
            descriptors: vec![Descriptor {
                entries: vec![Entry::new(KEYS[key], "192.0.2.1")],
                hits: Hits::Take(hits),
                ..Descriptor::default()
            }],
        };
        let deadline = Instant::now() + Duration::from_secs(600);
        block_on(self.limiter.decide(&query, deadline)).expect("memory answers")
    }

    fn file(&self) -> Vec<u8> {
        let Store::Memory(store) = &*self.store else {
            unreachable!("it was made so");
        };
        let mut file = Vec::new();
        snapshot::write(store, &mut file).expect("a vector takes every byte");
        file
    }

    /// Ends, and begins again so much later with what was kept.
    fn again(self, down: Duration) -> Self {
        let file = self.file();
        self.clock.advance(down);
        let store = MemoryStore::new(1_000, self.clock.clone());
        snapshot::read(&file[..], &store).expect("it was just written");
        Self::with(self.clock, self.plans, store)
    }

    /// One with a penalty that runs, a line of half a minute, and quotas used up.
    fn busy() -> Self {
        let life = Self::begin();
        for key in 0..KEYS.len() {
            for _ in 0..60 {
                life.ask(key, 1);
            }
        }
        assert!(life.ask(0, 1).is_penalised());
        assert!(life.ask(1, 0).delay() > Duration::from_secs(20));
        life
    }
}

/// What an answer says of the bucket.
fn told(decision: &Decision) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        decision.code,
        decision.is_penalised(),
        decision.delay(),
        decision.retry_after,
        decision.statuses.clone(),
    )
}

#[test]
fn who_begins_again_with_a_kept_file_answers_as_who_never_stopped() {
    let wait = prop_oneof![
        3 => 0..500_000_u64,
        2 => 0..30_000_000_u64,
        1 => 0..5_400_000_000_u64,
        1 => 0..1_000_000_000_000_u64,
    ];
    let step = (wait, 0..KEYS.len(), 0..4_u64, prop::bool::weighted(0.1));
    let (penalised, delayed) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(500)
    };
    proptest!(config, |(steps in vec(step, 1..120))| {
        let (never, mut again) = (Life::begin(), Life::begin());
        let mut just_began = false;
        for (wait, key, hits, ends) in steps {
            let wait = Duration::from_micros(wait);
            never.clock.advance(wait);
            if ends {
                again = again.again(wait);
                just_began = true;
            } else {
                again.clock.advance(wait);
            }
            let answer = again.ask(key, hits);
            prop_assert_eq!(told(&never.ask(key, hits)), told(&answer), "{} of {}", hits, KEYS[key]);
            if just_began {
                penalised.set(penalised.get() + u32::from(answer.is_penalised()));
                delayed.set(delayed.get() + u32::from(!answer.delay().is_zero()));
            }
        }
    });
    let seen = (penalised.get(), delayed.get());
    assert!(seen.0 > 50 && seen.1 > 50, "{seen:?}");
}

#[test]
fn a_penalty_ends_and_a_line_moves_on_to_the_microsecond() {
    let life = Life::busy();
    let until = life.ask(0, 1).retry_after.expect("it ends");
    let line = life.ask(1, 0).delay();
    let life = life.again(Duration::from_secs(5));
    assert_eq!(
        life.ask(0, 1).retry_after,
        Some(until - Duration::from_secs(5))
    );
    assert_eq!(life.ask(1, 0).delay(), line - Duration::from_secs(5));
    life.clock
        .advance(until - Duration::from_secs(5) - Duration::from_micros(1));
    assert!(life.ask(0, 1).is_penalised());
    life.clock.advance(Duration::from_micros(1));
    assert!(!life.ask(0, 1).is_penalised());
}

/// Of each of its bits, and of each of its lengths.
#[test]
fn a_file_with_times_to_come_is_used_whole_or_not_at_all() {
    let life = Life::busy();
    let good = life.file();
    let read = |file: &[u8]| {
        let store = MemoryStore::new(1_000, life.clock.clone());
        snapshot::read(file, &store).map(|_| store.len())
    };
    assert_eq!(read(&good).expect("it is whole"), 6, "and a penalty");
    for length in 0..good.len() {
        assert!(read(&good[..length]).is_err(), "the first {length} bytes");
    }
    for bit in 0..8 * good.len() {
        let mut file = good.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&file).is_err(), "bit {bit}");
    }
}

#[test]
fn a_file_that_is_refused_leaves_nothing_in_the_store_and_is_kept_aside() {
    let life = Life::busy();
    let good = life.file();
    let mut newer = good.clone();
    newer[8..12].copy_from_slice(&(snapshot::FORMAT + 1).to_be_bytes());
    let torn = good[..good.len() - 1].to_vec();
    let foreign = b"{\"buckets\": []}".to_vec();
    for file in [newer, torn, foreign] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("buckets.snapshot");
        fs::write(&path, &file).expect("writable");
        let open = || KeptBuckets::open(folder.path(), 1_000, life.clock.clone());
        let (store, kept) = open().expect("it begins all the same");
        assert_eq!(store.len(), 0);
        assert!(!path.exists());
        let aside = fs::read(folder.path().join("buckets.refused"));
        assert_eq!(aside.expect("it is there"), file);
        drop(kept);
    }
}
