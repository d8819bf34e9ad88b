//! Where buckets live.
//!
//! A request's limits are taken together or not at all, whatever store keeps them: [`memory`] in this process, [`redis`] by
//! one script. Both answer with the same [`Taken`].

pub mod judge;
pub mod key;
pub mod memory;
mod pace;
pub mod redis;
pub mod seen;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{
    bucket::Balance,
    descriptor::Hits,
    plan::{Charge, OnStoreError, Role, RuleLimit},
};

use self::redis::{RedisSettings, Shards, StoreStats, Topology, checks::Finding};

pub use self::{key::BucketKey, memory::MemoryStore, redis::RedisStore};

/// Everything one request wants from its buckets, decided whole.
#[derive(Debug, Clone)]
pub struct Take {
    /// One per bucket and descriptor, in the order in which they are judged. The same bucket may stand there twice.
    pub items: SmallVec<[Item; 2]>,
    /// Only judges: what it would answer, and nothing changes.
    pub dry: bool,
}

/// What a request wants from one bucket.
#[derive(Debug, Clone)]
pub struct Item {
    /// Which bucket.
    pub key: BucketKey,
    /// Its limit.
    pub limit: Arc<RuleLimit>,
    /// How many tokens.
    pub hits: Hits,
    /// Whether a refusal counts.
    pub role: Role,
    /// When the hits are charged.
    pub charge: Charge,
    /// How long the answer may wait for tokens of this bucket, in microseconds: at most the limit's delay. They are taken at
    /// once, and [`Balance::delay_us`] says when they are there.
    pub patience_us: u32,
    /// What answers if the store does not.
    pub on_store_error: OnStoreError,
}

/// The answer to a [`Take`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Whether the request passes: all of the enforced items fit, and at least one of the quota items if there are any. What
    /// is charged then, and what otherwise, each item's [`Charge`] says.
    pub admitted: bool,
    /// One per item, same order.
    pub balances: SmallVec<[Balance; 2]>,
    /// Decided without the store.
    pub degraded: bool,
    /// Decided and charged; but too few replicas had that in time for the rules that wait for them.
    pub not_replicated: bool,
}

/// Why a store did not decide.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer in time; the hits may or may not have been taken.
    #[error("the store at {node} did not answer within {timeout:?}")]
    Timeout {
        /// Host and port.
        node: Arc<str>,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// It cannot be reached or refuses to work; nothing was taken.
    #[error("the store at {node} is unavailable: {reason}")]
    Unavailable {
        /// Host and port.
        node: Arc<str>,
        /// What it or the connection said.
        reason: Arc<str>,
    },
    /// The connection broke after the take was sent; the hits may or may not have been taken.
    #[error("the answer of the store at {node} was lost: {reason}")]
    Lost {
        /// Host and port.
        node: Arc<str>,
        /// What the connection said.
        reason: Arc<str>,
    },
}

/// How a store outside this process does.
#[derive(Debug)]
pub struct StoreState<'a> {
    /// What has been counted.
    pub stats: &'a StoreStats,
    /// Why decisions are made without it, or without one of its servers, now.
    pub down: Option<Arc<str>>,
    /// Replicas of Tollgate on it, as last counted.
    pub replicas: u32,
    /// Takes that wait for it.
    pub queued: usize,
}

/// One of the stores.
#[derive(Debug)]
pub enum Store {
    /// In this process.
    Memory(MemoryStore),
    /// In a Redis that replicas share.
    Redis(RedisStore),
    /// In several.
    Shards(Shards),
}

impl Store {
    /// Whether it cannot be reached now.
    pub fn is_down(&self) -> bool {
        self.state().is_some_and(|state| state.down.is_some())
    }

    /// The store of these settings, which connects in the background. Needs a Tokio runtime.
    pub fn redis(settings: RedisSettings) -> Self {
        match (&settings.url.topology, &settings.per_second) {
            (Topology::Single(_) | Topology::Sentinel { .. }, None) => {
                Self::Redis(RedisStore::connect(settings))
            }
            _ => Self::Shards(Shards::connect(settings)),
        }
    }

    /// Waits until the store is in use, at most `limit`. Returns whether it is.
    pub async fn first_connection(&self, limit: Duration) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.first_connection(limit).await,
            Self::Shards(shards) => shards.first_connection(limit).await,
        }
    }

    /// How a store outside this process does.
    pub fn state(&self) -> Option<StoreState<'_>> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => Some(StoreState {
                stats: redis.stats(),
                down: redis.is_down(),
                replicas: redis.replicas(),
                queued: redis.queued(),
            }),
            Self::Shards(shards) => Some(StoreState {
                stats: shards.stats(),
                down: shards.is_down(),
                replicas: shards.replicas(),
                queued: shards.queued(),
            }),
        }
    }

    /// What may harm on the servers of a store outside this process, as they said when they were last connected to.
    pub fn findings(&self) -> Vec<Finding> {
        match self {
            Self::Memory(_) => Vec::new(),
            Self::Redis(redis) => redis.findings(),
            Self::Shards(shards) => shards.findings(),
        }
    }

    /// Gives back what has been taken ahead and is not spent. Waits for that at most `limit`.
    pub async fn give_back_leases(&self, limit: Duration) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(redis) => redis.give_back_leases(limit).await,
            Self::Shards(shards) => shards.give_back_leases(limit).await,
        }
    }

    /// Decides `take` whole. Balances have the length and order of `take.items`.
    ///
    /// # Errors
    /// Only where an item's `on_store_error` is [`OnStoreError::Error`] and the store did not decide by `deadline`.
    pub async fn take(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        match self {
            Self::Memory(memory) => Ok(memory.take(&take)),
            Self::Redis(redis) => redis.take(take, deadline).await,
            Self::Shards(shards) => Box::pin(shards.take(take, deadline)).await,
        }
    }
}
