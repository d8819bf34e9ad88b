//! What the Redis store counts. Cheap to count; whoever exports it reads it.

use std::sync::atomic::AtomicU64;

use crate::histogram::Histogram;

/// Counters since the store was made.
#[derive(Debug)]
pub struct StoreStats {
    /// Decisions made without the store.
    pub degraded: AtomicU64,
    /// Of these, those whose take found its lane's queue full.
    pub shed: AtomicU64,
    /// Of these, those that Redis did not answer in time.
    pub timeouts: AtomicU64,
    /// Decisions whose charge too few replicas of Redis had in time.
    pub not_replicated: AtomicU64,
    /// Refusals from the deny cache.
    pub deny_cache_hits: AtomicU64,
    /// Calls of `take.lua`: one per batch.
    pub script_calls: AtomicU64,
    /// Takes per batch.
    pub batch_size: Histogram,
    /// Microseconds from sending a batch to its answer.
    pub latency_us: Histogram,
    /// Times that the breaker opened.
    pub trips: AtomicU64,
    /// Hits admitted without the store that are charged afterwards.
    pub charged_back: AtomicU64,
    /// Hits taken in Redis for requests that were refused without it, and are given back.
    pub given_back: AtomicU64,
    /// Buckets that could not be charged afterwards, as too many had to be remembered.
    pub not_charged: AtomicU64,
    /// Leases taken.
    pub leases: AtomicU64,
    /// Their tokens.
    pub leased: AtomicU64,
    /// Decisions made from leases alone.
    pub lease_decisions: AtomicU64,
    /// Tokens of leases that were not spent and are given back.
    pub lease_returned: AtomicU64,
    /// Tokens of leases that were neither spent nor given back in time.
    pub lease_lost: AtomicU64,
}

impl Default for StoreStats {
    fn default() -> Self {
        Self {
            degraded: AtomicU64::default(),
            shed: AtomicU64::default(),
            timeouts: AtomicU64::default(),
            not_replicated: AtomicU64::default(),
            deny_cache_hits: AtomicU64::default(),
            script_calls: AtomicU64::default(),
            batch_size: Histogram::new(&[1, 2, 4, 8, 16, 32, 64, 128]),
            latency_us: Histogram::new(&[
                50, 100, 150, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000,
                100_000, 1_000_000,
            ]),
            trips: AtomicU64::default(),
            charged_back: AtomicU64::default(),
            given_back: AtomicU64::default(),
            not_charged: AtomicU64::default(),
            leases: AtomicU64::default(),
            leased: AtomicU64::default(),
            lease_decisions: AtomicU64::default(),
            lease_returned: AtomicU64::default(),
            lease_lost: AtomicU64::default(),
        }
    }
}
