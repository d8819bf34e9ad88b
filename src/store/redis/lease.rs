//! Leases: tokens that this replica has taken ahead of a bucket in Redis, to spend them without asking.
//!
//! A rule says `lease: { portion: 5%, for: 200ms }`. Once its bucket is asked for often, this replica asks for some tokens more than
//! requests want, `portion` at most, and spends them for the time `for`. What it has not spent by then it gives back; what it
//! took is charged all the while. Leases grow while they are used up early, and shrink to what was used of them.
//!
//! # Never over
//! A quota counts per period: leased tokens are in its count, and are spent before the period ends. So no more than the quota
//! passes in any period. A gift takes from the count what is not lent.
//!
//! A token bucket of burst B and rate r promises more: in any interval (a, b] at most B + r (b − a) pass. Tokens that were charged
//! before a and are spent after it must not come on top of a bucket that has filled up meanwhile. So Redis remembers with the
//! bucket what is *lent*: the tokens leased of which nobody has said yet that they were spent or come back, and whose lease is
//! less than twice `for` old (rounded up by a quarter of `for`, so that there are few of them to remember). The bucket fills up to
//! B − lent only. At any moment
//!
//! > balance + lent ≤ B,
//!
//! since a lease moves tokens from the one to the other, as one that comes back does; spending, telling of it and forgetting a
//! lease only take from the sum; and refilling stops at the bound, at each moment of the past as the bucket is brought up to the
//! present in steps, from the end of one lease to that of the next. A lease is spent for `for` from before it was asked for, on a
//! clock that does not jump, so what is spent after a of earlier leases is lent at a. What else passes in (a, b] is taken from the balance
//! in that time, by a request or by a lease: from balance(a), from r (b − a), or from what comes back of leases that were lent at a and were
//! not spent. Together at most balance(a) + lent(a) + r (b − a) ≤ B + r (b − a).
//!
//! A sliding window counts a hit when it passes, so no lease goes with it.
//!
//! A gift fills a bucket up to what is not lent. A quota remembers when that was: what Redis had forgotten by then has come back with
//! the gift, and is not taken back once more.
//!
//! # Under
//! A request may be refused for tokens that lie in leases: per replica `portion` at most, for as long as `for`; a replica that
//! dies takes its own along, for 9/4 of `for`, and then they are refilled. Those of a quota are lost until its period ends. A
//! refusal while tokens are lent is never remembered by the deny cache. A replica that was granted nothing asks again a quarter of `for` later;
//! until then Redis decides its requests, so that a gift is used at once.
//!
//! `row.rs` is one bucket's leases here, `wire.rs` what `take.lua` reads and tells of them, `spend.rs` decides a take from them.

mod row;
mod spend;
mod wire;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use self::row::Row;
use super::StoreStats;
use crate::{
    bucket::{Balance, Bucket},
    clock::{Clock, Timestamp},
    descriptor::Hits,
    plan::{Charge, Lease, Role},
    store::{Item, Take, key::Prehashed},
};

pub use self::{
    row::Settled,
    spend::{Leasing, give_back, keep, take},
    wire::{Rows, Told},
};

const SHARDS: usize = 16;

/// Most buckets that are looked after; those beyond are asked for as without leases.
const MOST_ROWS: usize = 4_096;

/// This replica's leases, by bucket.
#[derive(Debug)]
pub struct Leases {
    shards: Box<[Mutex<Shard>]>,
    /// Takes the place of the machine's monotonic clock, for tests that move time.
    clock: Option<Arc<dyn Clock>>,
    /// What `clock` counts from.
    epoch: Instant,
    /// Something is there to look after.
    wake: Notify,
    /// Asks that are not answered yet.
    on_the_way: AtomicUsize,
    stats: Arc<StoreStats>,
}

type Shard = HashMap<u128, Row, Prehashed>;

/// Tokens set apart for a request that is not decided yet.
#[derive(Debug)]
pub struct Hold {
    key: u128,
    lease: u64,
    hits: u64,
    /// What the bucket holds if they are spent.
    pub balance: Balance,
    /// Until when they may be spent by a request that has to wait.
    pub dead_at: Instant,
}

/// What this replica tells Redis of one bucket's leases, and how many tokens it asks for.
#[derive(Debug)]
pub struct Ask {
    /// The bucket and its limit.
    pub item: Item,
    /// Most tokens to take ahead; 0 only tells.
    pub portion: u64,
    /// What became of earlier leases.
    pub settled: SmallVec<[Settled; 2]>,
    /// When it was sent.
    pub sent_at: Instant,
}

/// What an [`Ask`] was answered.
#[derive(Debug)]
pub struct Grant {
    /// Tokens taken ahead.
    pub tokens: u64,
    /// Redis' name of the lease: the time at which it forgets it, in microseconds.
    pub date_us: u64,
    /// The bucket afterwards.
    pub bucket: Bucket,
    /// Redis' time.
    pub at: Timestamp,
}

/// The tokens of an item that may be leased, and how; none where each decision must be Redis' own.
fn leasable(item: &Item) -> Option<(Lease, u64)> {
    let plain = item.role == Role::Enforced && item.charge == Charge::AllOrNothing;
    match (item.limit.lease, item.hits) {
        (Some(lease), Hits::Take(hits @ 1..)) if plain => Some((lease, hits)),
        _ => None,
    }
}

/// Whether leases may decide some of `take`.
pub fn is_leasable(take: &Take) -> bool {
    !take.dry && take.items.iter().any(|item| item.limit.lease.is_some())
}

impl Leases {
    /// No leases yet.
    pub fn new(clock: Option<Arc<dyn Clock>>, stats: Arc<StoreStats>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            clock,
            epoch: Instant::now(),
            wake: Notify::new(),
            on_the_way: AtomicUsize::new(0),
            stats,
        }
    }

    /// The time that leases are spent by.
    pub fn now(&self) -> Instant {
        match &self.clock {
            None => Instant::now(),
            Some(clock) => self.epoch + Duration::from_micros(clock.now().as_micros()),
        }
    }

    /// Sets the tokens of `item` apart, if a lease has them; a `final_` hold is spent at once. Says too whether Redis is to be asked for
    /// another lease.
    fn hold(&self, item: &Item, now: Instant, is_final: bool) -> (Option<Hold>, bool) {
        let Some((_, hits)) = leasable(item) else {
            return (None, false);
        };
        let key = item.key.hash();
        let mut shard = self.shard(key).lock();
        if !shard.contains_key(&key) {
            if shard.len() >= MOST_ROWS / SHARDS {
                shard.retain(|_, row| !row.is_idle(now));
            }
            if shard.len() >= MOST_ROWS / SHARDS {
                return (None, false);
            }
        }
        let row = shard.entry(key).or_insert_with(|| Row::new(item, now));
        row.follow(item);
        row.expire(now);
        let held = row.hold(hits, now, is_final);
        let wants = row.wants(now, held.is_none());
        let hold = held.map(|(lease, balance, dead_at)| Hold {
            key,
            lease,
            hits,
            balance,
            dead_at,
        });
        (hold, wants)
    }

    /// Ends a hold: its tokens are spent, or are the lease's again.
    fn end(&self, hold: &Hold, spent: bool) {
        let mut shard = self.shard(hold.key).lock();
        if let Some(row) = shard.get_mut(&hold.key) {
            row.end(hold.lease, hold.hits, spent);
        }
    }

    /// What to tell Redis of the bucket of `item`, and to ask for; none if there is nothing.
    pub fn ask(&self, item: &Item) -> Option<Ask> {
        let now = self.now();
        let mut shard = self.shard(item.key.hash()).lock();
        let row = shard.get_mut(&item.key.hash())?;
        row.expire(now);
        let (portion, settled) = row.ask(now);
        let back = settled.iter().map(|settled| settled.back).sum();
        self.stats.lease_returned.fetch_add(back, Relaxed);
        if portion == 0 && settled.is_empty() {
            return None;
        }
        self.on_the_way.fetch_add(1, Relaxed);
        Some(Ask {
            item: row.item().clone(),
            portion,
            settled,
            sent_at: now,
        })
    }

    /// Redis has answered what only told.
    pub fn told(&self) {
        self.on_the_way.fetch_sub(1, Relaxed);
    }

    /// Redis has answered.
    pub fn granted(&self, ask: &Ask, grant: Grant) {
        let now = self.now();
        self.on_the_way.fetch_sub(1, Relaxed);
        if grant.tokens > 0 {
            self.stats.leases.fetch_add(1, Relaxed);
            self.stats.leased.fetch_add(grant.tokens, Relaxed);
        }
        let mut shard = self.shard(ask.item.key.hash()).lock();
        match shard.get_mut(&ask.item.key.hash()) {
            Some(row) => row.granted(ask, grant, now),
            // The answer came so late that the row was let go of.
            None => {
                self.stats.lease_lost.fetch_add(grant.tokens, Relaxed);
            }
        }
        drop(shard);
        self.wake.notify_one();
    }

    /// Redis has certainly not heard of it.
    pub fn not_heard(&self, ask: Ask) {
        self.on_the_way.fetch_sub(1, Relaxed);
        let back = ask.settled.iter().map(|settled| settled.back).sum();
        self.stats.lease_returned.fetch_sub(back, Relaxed);
        let mut shard = self.shard(ask.item.key.hash()).lock();
        if let Some(row) = shard.get_mut(&ask.item.key.hash()) {
            row.not_heard(ask.settled);
        }
    }

    /// Nobody knows whether Redis has heard of it, so none of it is said again.
    pub fn lost(&self, ask: &Ask) {
        self.on_the_way.fetch_sub(1, Relaxed);
        let back = ask.settled.iter().map(|settled| settled.back).sum();
        self.stats.lease_returned.fetch_sub(back, Relaxed);
        self.stats.lease_lost.fetch_add(back, Relaxed);
    }

    /// Buckets that something comes back to, and whether there is anything else to look after.
    fn due(&self) -> (Vec<Item>, bool) {
        let now = self.now();
        let (mut due, mut busy) = (Vec::new(), false);
        for shard in &self.shards {
            shard.lock().retain(|_, row| {
                row.expire(now);
                let lost = row.forget(now);
                self.stats.lease_lost.fetch_add(lost, Relaxed);
                if row.is_due() {
                    due.push(row.item().clone());
                }
                busy |= row.has_leases();
                !row.is_idle(now)
            });
        }
        (due, busy)
    }

    /// Ends every lease now.
    fn end_all(&self) {
        for shard in &self.shards {
            shard.lock().values_mut().for_each(Row::end_all);
        }
    }

    fn shard(&self, key: u128) -> &Mutex<Shard> {
        // The maps use the low half.
        &self.shards[(key >> 64) as usize % SHARDS]
    }
}
