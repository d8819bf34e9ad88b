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

    /// Takes some rows out, as one take to be forced; only such whose keys carry one tag, if `of_one_tag` says so.
    pub fn next_correction(&self, of_one_tag: bool) -> Option<Take> {
        if self.is_empty() {
            return None;
        }
        let mut rows = self.rows.lock();
        let tag = rows.values().next().map(|(item, _)| item.key.tag());
        let ids: SmallVec<[u128; PER_BATCH]> = rows
            .iter()
            .filter(|(_, (item, _))| !of_one_tag || Some(item.key.tag()) == tag)
            .map(|(id, _)| *id)
            .take(PER_BATCH)
            .collect();
        let items: SmallVec<[Item; 2]> = ids
            .iter()
            .filter_map(|id| rows.remove(id))
            .filter_map(|(item, change)| with_change(item, change))
            .collect();
        self.count.store(rows.len(), Relaxed);
        (!items.is_empty()).then_some(Take { items, dry: false })
    }

    /// Takes every row out whose bucket is not `kept` here any more: the items with the hits to apply.
    pub fn moved(&self, kept: impl Fn(&Item) -> bool) -> Vec<Item> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut rows = self.rows.lock();
        let moved = rows.extract_if(|_, (item, _)| !kept(item));
        let moved = moved.filter_map(|(_, (item, change))| with_change(item, change));
        let moved = moved.collect();
        self.count.store(rows.len(), Relaxed);
        moved
    }
}

/// The item with the hits to apply, unless they cancel out.
fn with_change(mut item: Item, change: i64) -> Option<Item> {
    item.hits = match change {
        0 => return None,
        change @ 1.. => Hits::Take(change.unsigned_abs()),
        change => Hits::Give(change.unsigned_abs()),
    };
    Some(item)
}

fn clamp(hits: u64) -> i64 {
    i64::try_from(hits).unwrap_or(i64::MAX)
}
