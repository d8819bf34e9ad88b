//! What this replica last saw of the store's buckets: the deny cache, and where local decisions start from. Bounded; does no
//! I/O and reads no clock.
//!
//! A bucket as reported, refilled for the time since its report was asked for, holds at least what the store's bucket holds
//! now: others can only have taken. What does not fit into it would be refused by the store too. The exception is a refund
//! through another replica, which shows when the report is [`LIFE`] old.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    BucketKey, Item, Take, Taken,
    judge::{Places, judge},
};
use crate::{
    bucket::Bucket,
    clock::Timestamp,
    descriptor::Hits,
    limit::{Kind, Limit, Period},
    plan::Role,
};

/// How long a report can refuse.
pub const LIFE: Duration = Duration::from_secs(1);

/// From this age on, one request renews a report that refuses, while it still refuses the others.
const RENEW: Duration = Duration::from_millis(980);

const SHARDS: usize = 64;

/// Last reports by bucket.
#[derive(Debug)]
pub struct Seen {
    shards: Box<[Mutex<Shard>]>,
    half: usize,
}

/// Two halves: when the young one is full it becomes the old one, whose reports nobody has renewed for longest.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u128, Report, BuildHasherDefault<TakeLow>>,
    old: HashMap<u128, Report, BuildHasherDefault<TakeLow>>,
}

#[derive(Debug)]
struct Report {
    /// A bucket says nothing about another limit, as after a reload.
    numbers: Numbers,
    bucket: Bucket,
    /// The store's time of the report.
    at: Timestamp,
    /// When the take was sent that was answered so.
    sent_at: Instant,
    renewing: bool,
}

type Numbers = (u32, Period, Kind);

fn numbers(limit: &Limit) -> Numbers {
    (limit.count(), limit.period(), limit.kind())
}

impl Seen {
    /// Room for about `capacity` reports.
    pub fn new(capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            half: (capacity / SHARDS / 2).max(1),
        }
    }

    /// Notes the bucket of `item` as the store reported it at its time `at`, answering a take that was sent at `sent_at`.
    pub fn report(&self, item: &Item, bucket: &Bucket, at: Timestamp, sent_at: Instant) {
        let report = Report {
            numbers: numbers(&item.limit.limit),
            bucket: bucket.clone(),
            at,
            sent_at,
            renewing: false,
        };
        let mut shard = self.shard(&item.key).lock();
        let id = item.key.hash();
        if shard.get(id).is_none_or(|known| report.replaces(known)) {
            shard.put(id, report, self.half);
        }
    }

    /// Forgets a bucket that this replica is about to give to.
    pub fn forget(&self, key: &BucketKey) {
        let mut shard = self.shard(key).lock();
        shard.young.remove(&key.hash());
        shard.old.remove(&key.hash());
    }

    /// What the bucket would hold at `now` under `limit` if nobody had taken from it since its last report, however old.
    pub fn last_balance(&self, key: &BucketKey, limit: &Limit, now: Instant) -> Option<i64> {
        let mut shard = self.shard(key).lock();
        let report = shard.get(key.hash())?;
        Some(report.refilled(limit, now).balance(limit))
    }

    /// The store's refusal of `take`, if it is certain and every balance of it is known.
    pub fn refusal(&self, take: &Take, now: Instant) -> Option<Taken> {
        let certain = !take.dry
            && take
                .items
                .iter()
                .all(|item| matches!(item.hits, Hits::Take(_)));
        if !certain || !self.refuses_one(take, now) {
            return None;
        }
        let mut buckets = SmallVec::<[Bucket; 4]>::new();
        let mut places = Places::new();
        let mut asked_at = Timestamp::default();
        for (place, item) in take.items.iter().enumerate() {
            // A shadow item that fits into the upper bound but not into the bucket would leave more for a second item on
            // the same bucket, so what is said here holds for distinct buckets only.
            let twice = take.items[..place]
                .iter()
                .any(|other| other.key.hash() == item.key.hash());
            if twice {
                return None;
            }
            let (bucket, at) = self.fresh(item, now)?;
            asked_at = asked_at.max(at);
            buckets.push(bucket);
            places.push(place);
        }
        let (taken, _) = judge(take, &places, &mut buckets, asked_at);
        (!taken.admitted).then_some(taken)
    }

    /// Whether some item that can refuse does not fit. Most requests pass, so this is asked first, without a copy of the rest.
    fn refuses_one(&self, take: &Take, now: Instant) -> bool {
        take.items.iter().any(|item| {
            item.role != Role::Shadow
                && self
                    .fresh(item, now)
                    .is_some_and(|(bucket, _)| !bucket.fits(&item.limit.limit, item.hits))
        })
    }

    /// The bucket and the store's time at `now`, from a report that may still refuse.
    fn fresh(&self, item: &Item, now: Instant) -> Option<(Bucket, Timestamp)> {
        let mut shard = self.shard(&item.key).lock();
        let report = shard.get(item.key.hash())?;
        let age = now.saturating_duration_since(report.sent_at);
        if age >= LIFE || !report.fits_limit(item) {
            return None;
        }
        if age >= RENEW && !report.renewing {
            report.renewing = true;
            return None;
        }
        Some((
            report.refilled(&item.limit.limit, now),
            report.at.after(age),
        ))
    }

    fn shard(&self, key: &BucketKey) -> &Mutex<Shard> {
        // The maps use the low half.
        &self.shards[(key.hash() >> 64) as usize % SHARDS]
    }
}

impl Shard {
    fn get(&mut self, id: u128) -> Option<&mut Report> {
        match self.young.get_mut(&id) {
            Some(report) => Some(report),
            None => self.old.get_mut(&id),
        }
    }

    fn put(&mut self, id: u128, report: Report, half: usize) {
        if self.young.len() >= half && !self.young.contains_key(&id) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, report);
    }
}

impl Report {
    /// Answers may overtake each other. A store whose clock went back is believed once the old report is out of date.
    fn replaces(&self, known: &Self) -> bool {
        self.at >= known.at
            || self.sent_at.saturating_duration_since(known.sent_at) >= LIFE
            || self.numbers != known.numbers
    }

    fn fits_limit(&self, item: &Item) -> bool {
        self.numbers == numbers(&item.limit.limit)
    }

    fn refilled(&self, limit: &Limit, now: Instant) -> Bucket {
        let mut bucket = self.bucket.clone();
        let age = now.saturating_duration_since(self.sent_at);
        bucket.refill(limit, self.at.after(age));
        bucket
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct TakeLow(u64);

impl Hasher for TakeLow {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys are u128");
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}
