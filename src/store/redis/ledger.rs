//! What was decided without the store and must be told to it: hits to charge or to give back, per bucket. Bounded.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::{
    descriptor::Hits,
    store::{Item, Take},
};

/// Most buckets with something to tell.
const CAPACITY: usize = 10_000;

/// Most buckets told per batch.
const PER_BATCH: usize = 64;

/// Corrections by bucket; hits of one bucket add up.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: Mutex<HashMap<u128, (Item, i64)>>,
    /// Rows, to be read without the lock.
    count: AtomicUsize,
}

impl Ledger {
    /// Remembers to apply `hits` to the bucket of `item`. Returns false if there is no room.
    #[must_use]
    pub fn add(&self, item: &Item, hits: Hits) -> bool {
        let change = match hits {
            Hits::Take(hits) => clamp(hits),
            Hits::Give(hits) => -clamp(hits),
        };
        if change == 0 {
            return true;
        }
        let mut rows = self.rows.lock();
        if rows.len() >= CAPACITY && !rows.contains_key(&item.key.hash()) {
            return false;
        }
        let row = rows
            .entry(item.key.hash())
            .or_insert_with(|| (item.clone(), 0));
        row.0.limit = item.limit.clone();
        row.1 = row.1.saturating_add(change);
        self.count.store(rows.len(), Relaxed);
        true
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    /// Takes some rows out, as one take to be forced.
    pub fn next_correction(&self) -> Option<Take> {
        if self.is_empty() {
            return None;
        }
        let mut rows = self.rows.lock();
        let ids: SmallVec<[u128; PER_BATCH]> = rows.keys().take(PER_BATCH).copied().collect();
        let items: SmallVec<[Item; 2]> = ids
            .iter()
            .filter_map(|id| rows.remove(id))
            .filter(|(_, change)| *change != 0)
            .map(|(mut item, change)| {
                item.hits = match change {
                    change @ 1.. => Hits::Take(change.unsigned_abs()),
                    change => Hits::Give(change.unsigned_abs()),
                };
                item
            })
            .collect();
        self.count.store(rows.len(), Relaxed);
        (!items.is_empty()).then_some(Take { items, dry: false })
    }
}

fn clamp(hits: u64) -> i64 {
    i64::try_from(hits).unwrap_or(i64::MAX)
}
