//! Buckets in this process: exact, all-or-nothing over any set of buckets, bounded.
//!
//! A full bucket equals no bucket, so full ones are forgotten first. Only when all are part-used does the store forget the
//! one nearest to full, which is counted, as its client then gets up to a burst too much. With a state directory buckets outlive
//! the process: [`kept`].

pub mod kept;
pub mod snapshot;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indexmap::IndexMap;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use super::{
    Item, Take, Taken,
    judge::{Places, judge},
    key::Prehashed,
};
use crate::{
    bucket::Bucket,
    clock::{Clock, Timestamp},
};

/// Fewest shards.
const SHARDS: usize = 64;

/// Between two warnings that buckets are forgotten.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The memory store. Cheap to share behind an `Arc`; one lock per shard.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: usize,
    clock: Arc<dyn Clock>,
    forgotten: AtomicU64,
    warned: Mutex<Option<Timestamp>>,
}

#[derive(Debug, Default)]
struct Shard {
    /// Entries stand in a dense list, and only their places in a table: it may grow without costing much, as it does when
    /// forgotten entries leave holes in it.
    buckets: IndexMap<Id, Entry, Prehashed>,
    /// One row per bucket, soonest full first. A row may be out of date, as a bucket in use fills later and later: it is
    /// put right when it comes up.
    by_full_at: BinaryHeap<Reverse<(Timestamp, Id)>>,
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    full_at: Timestamp,
}

/// A bucket's keyed hash, in halves so that it needs no 16-byte alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id([u64; 2]);

impl Id {
    /// Its shard out of `count`. The maps use the first half.
    fn shard(self, count: usize) -> usize {
        (self.0[1] % count as u64) as usize
    }
}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

impl MemoryStore {
    /// A store of at most `max_buckets` buckets (at least one per shard) that reads `clock`.
    pub fn new(max_buckets: usize, clock: Arc<dyn Clock>) -> Self {
        let count = shards_for(max_buckets);
        let shards = (0..count).map(|_| Mutex::default()).collect();
        let shard_capacity = (max_buckets / count).max(1);
        Self {
            shards,
            shard_capacity,
            clock,
            forgotten: AtomicU64::new(0),
            warned: Mutex::default(),
        }
    }

    /// Decides `take` now. Balances have the length and order of `take.items`.
    pub fn take(&self, take: &Take) -> Taken {
        self.take_prepared(take, |_, _, _| {})
    }

    /// Decides `take` now, on buckets that `prepare` may have lowered. It gets an item of each distinct bucket.
    pub fn take_prepared(
        &self,
        take: &Take,
        prepare: impl Fn(&Item, &mut Bucket, Timestamp),
    ) -> Taken {
        let now = self.clock.now();
        let (ids, places) = distinct(take);
        let mut shards = self.lock(&ids);
        let mut buckets: SmallVec<[Bucket; 2]> = ids
            .iter()
            .zip(first_items(&places))
            .map(|(id, item)| {
                let mut bucket = match shards.get(id).buckets.get(id) {
                    Some(entry) => entry.bucket.clone(),
                    None => Bucket::full(&take.items[item].limit.limit, now),
                };
                prepare(&take.items[item], &mut bucket, now);
                bucket
            })
            .collect();
        let (taken, changed) = judge(take, &places, &mut buckets, now);
        let mut forgot = false;
        for (place, item) in first_items(&places).enumerate() {
            if changed[place] {
                let (id, bucket) = (&ids[place], buckets[place].clone());
                let full_at = bucket.full_at(&take.items[item].limit.limit, now);
                forgot |= self.put(shards.get(id), *id, Entry { bucket, full_at }, now);
            }
        }
        drop(shards);
        if forgot {
            self.warn(now);
        }
        taken
    }

    /// Buckets that are kept now.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().buckets.len())
            .sum()
    }

    /// Whether no bucket is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most buckets that are kept.
    pub fn capacity(&self) -> usize {
        self.shard_capacity * self.shards.len()
    }

    /// Part-used buckets that had to be forgotten since the start, for want of room.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// Locks the shards of these buckets in index order, so that no two takes wait for each other.
    fn lock(&self, ids: &[Id]) -> Locked<'_> {
        let mut indices: SmallVec<[usize; 2]> =
            ids.iter().map(|id| id.shard(self.shards.len())).collect();
        indices.sort_unstable();
        indices.dedup();
        let lock = |index: usize| (index, self.shards[index].lock());
        Locked {
            guards: indices.into_iter().map(lock).collect(),
            of: self.shards.len(),
        }
    }

    /// Keeps a bucket; answers whether a part-used one had to be forgotten for it, or was itself.
    fn put(&self, shard: &mut Shard, id: Id, entry: Entry, now: Timestamp) -> bool {
        if let Some(known) = shard.buckets.get_mut(&id) {
            *known = entry;
            return false;
        }
        shard.forget_full(now);
        let mut forgot = false;
        if shard.buckets.len() >= self.shard_capacity {
            let nearest = shard.nearest_to_full();
            forgot = nearest.min(entry.full_at) > now;
            self.forgotten
                .fetch_add(u64::from(forgot), Ordering::Relaxed);
            if entry.full_at <= nearest {
                return forgot;
            }
            shard.settle(nearest);
        }
        shard.by_full_at.push(Reverse((entry.full_at, id)));
        shard.buckets.insert(id, entry);
        forgot
    }

    /// Says that buckets are forgotten, now and then.
    fn warn(&self, now: Timestamp) {
        let mut warned = self.warned.lock();
        if warned.is_some_and(|last| now.since(last) < WARN_EVERY) {
            return;
        }
        *warned = Some(now);
        drop(warned);
        tracing::warn!(
            buckets = self.capacity(),
            forgotten = self.forgotten(),
            "the buckets in memory are too few: those nearest to full are forgotten, so that short limits admit too much; \
             with `--store memory`, raise --max-buckets"
        );
    }
}

impl Shard {
    /// Forgets up to two full buckets: each new bucket clears more than it adds.
    fn forget_full(&mut self, now: Timestamp) {
        for _ in 0..2 {
            match self.by_full_at.peek() {
                Some(Reverse((full_at, _))) if *full_at <= now => self.settle(now),
                _ => return,
            }
        }
    }

    /// Takes the first row: forgets its bucket if that is full by `until`, else puts the row right.
    fn settle(&mut self, until: Timestamp) {
        let Some(Reverse((_, id))) = self.by_full_at.pop() else {
            return;
        };
        match self.buckets.get(&id) {
            Some(entry) if entry.full_at > until => {
                self.by_full_at.push(Reverse((entry.full_at, id)))
            }
            _ => drop(self.buckets.swap_remove(&id)),
        }
    }

    /// When the bucket nearest to full will be; its row comes first afterwards, and is true.
    fn nearest_to_full(&mut self) -> Timestamp {
        while let Some(Reverse((full_at, id))) = self.by_full_at.peek().copied() {
            if self
                .buckets
                .get(&id)
                .is_some_and(|entry| entry.full_at <= full_at)
            {
                return full_at;
            }
            self.settle(full_at);
        }
        Timestamp::default()
    }
}

/// The shards of one take, by index, out of so many.
struct Locked<'a> {
    guards: SmallVec<[(usize, MutexGuard<'a, Shard>); 2]>,
    of: usize,
}

impl Locked<'_> {
    fn get(&mut self, id: &Id) -> &mut Shard {
        let index = id.shard(self.of);
        let place = self.guards.iter().position(|(locked, _)| *locked == index);
        &mut self.guards[place.expect("every bucket's shard is locked")].1
    }
}

/// So many shards, [`SHARDS`] at least, that each one's list is nearly full when the store is. Lists double: one that had to
/// grow once more would stand half empty.
fn shards_for(max_buckets: usize) -> usize {
    let shards_of = |places: u32| max_buckets.div_ceil((7 << places) >> 3);
    let tight = (3..40)
        .map(shards_of)
        .take_while(|count| *count >= SHARDS)
        .last();
    tight.unwrap_or(SHARDS)
}

/// The distinct buckets of a take in order of appearance, and the place of each item's bucket among them.
fn distinct(take: &Take) -> (SmallVec<[Id; 2]>, Places) {
    let mut ids: SmallVec<[Id; 2]> = SmallVec::new();
    let places = take
        .items
        .iter()
        .map(|item| {
            let hash = item.key.hash();
            let id = Id([hash as u64, (hash >> 64) as u64]);
            ids.iter()
                .position(|known| *known == id)
                .unwrap_or_else(|| {
                    ids.push(id);
                    ids.len() - 1
                })
        })
        .collect();
    (ids, places)
}

/// For each place, the first item that stands there.
fn first_items(places: &[usize]) -> impl Iterator<Item = usize> {
    let mut seen = 0;
    places.iter().enumerate().filter_map(move |(item, place)| {
        let first = *place == seen;
        seen += usize::from(first);
        first.then_some(item)
    })
}
