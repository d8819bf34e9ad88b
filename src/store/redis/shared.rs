//! What requests, the lanes and the supervisor of one server share, and what becomes of a take that the server did not decide.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::RedisError;
use smallvec::SmallVec;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::{
    RedisSettings, StoreStats,
    breaker::{Breaker, Failure},
    checks::Finding,
    cluster::{Membership, Redirect},
    dial::Dialer,
    fallback,
    lane::{Asked, Job, Reply, Undecided},
    lease::Leases,
    ledger::Ledger,
    queue,
    replicated::Fences,
};
use crate::{
    clock::{Clock, SystemClock, Timestamp},
    descriptor::Hits,
    plan::Charge,
    statistics::counted,
    store::{
        Item, MemoryStore, StoreError, Take, Taken,
        key::{PREFIX, tag_text},
        seen::Seen,
    },
};

/// What requests, lanes and the supervisor share.
#[derive(Debug)]
pub struct Shared {
    pub node: Arc<str>,
    /// Of a node of a cluster.
    pub membership: Option<Membership>,
    pub settings: RedisSettings,
    pub breaker: Breaker,
    pub seen: Seen,
    pub local: MemoryStore,
    pub ledger: Ledger,
    pub leases: Arc<Leases>,
    pub stats: Arc<StoreStats>,
    pub replicas: AtomicU32,
    /// What the checks found at the last connection.
    pub findings: Mutex<Vec<Finding>>,
    pub dialer: Option<Arc<Dialer>>,
    pub fences: Fences,
    /// Microseconds that Redis' clock is ahead of this machine's, as far as that has mattered.
    pub ahead_us: AtomicI64,
    pub nudge: mpsc::WeakSender<Job>,
}

impl Shared {
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How long a batch may take before Redis counts as unwell: three timeouts in a row.
    pub fn patience(&self) -> Duration {
        (self.settings.timeout * 3).max(Duration::from_millis(30))
    }

    pub fn clock(&self) -> &dyn Clock {
        self.settings.clock.as_deref().unwrap_or(&SystemClock)
    }

    /// About what Redis' clock shows.
    pub fn redis_time(&self) -> Timestamp {
        let now = self.clock().now().as_micros();
        Timestamp::from_micros(now.saturating_add_signed(self.ahead_us.load(Relaxed)))
    }

    pub fn learn_time(&self, redis: Timestamp) {
        let (redis, here) = (redis.as_micros(), self.clock().now().as_micros());
        self.ahead_us
            .store(redis.wrapping_sub(here).cast_signed(), Relaxed);
    }

    pub fn cached_refusal(&self, take: &Take, now: Instant) -> Option<Taken> {
        if self.settings.clock.is_some() {
            return None;
        }
        for item in &take.items {
            if matches!(item.hits, Hits::Give(_)) && !take.dry {
                self.seen.forget(&item.key);
            }
        }
        let refusal = self.seen.refusal(take, now)?;
        self.stats.deny_cache_hits.fetch_add(1, Relaxed);
        Some(refusal)
    }

    /// Decides without Redis; what is admitted so is charged afterwards if `charge` says so.
    pub fn without_redis(
        &self,
        take: &Take,
        error: StoreError,
        charge: bool,
    ) -> Result<Taken, StoreError> {
        self.stats.degraded.fetch_add(1, Relaxed);
        let replicas = self.replicas.load(Relaxed);
        let taken = fallback::decide(take, &self.local, &self.seen, replicas).ok_or(error)?;
        if charge {
            self.charge_back(take, &taken, None);
        }
        Ok(taken)
    }

    /// Decides a take that Redis has not answered yet. The lane sets things right when the answer comes.
    pub fn timed_out(
        &self,
        asked: &Asked,
        answer: &mut oneshot::Receiver<Reply>,
    ) -> Result<Taken, StoreError> {
        let error = StoreError::Timeout {
            node: self.node.clone(),
            timeout: self.settings.timeout,
        };
        let decided = self.without_redis(&asked.take, error, false);
        // The lane reads this once it finds nobody waiting, which is after `close`. A caller that got an error was not
        // admitted, so what Redis takes for it is given back.
        asked.meanwhile.get_or_init(|| match &decided {
            Ok(taken) => taken.clone(),
            Err(_) => Taken {
                admitted: false,
                balances: SmallVec::new(),
                degraded: true,
                not_replicated: false,
            },
        });
        answer.close();
        // What the lane has handed over by now, it does not look after any more.
        match answer.try_recv() {
            Ok(Ok(taken)) => {
                self.stats.degraded.fetch_sub(1, Relaxed);
                return Ok(taken);
            }
            Ok(Err(Undecided::Failed(StoreError::Lost { .. }))) | Err(_) => {}
            Ok(Err(_)) => {
                if let Ok(taken) = &decided {
                    self.charge_back(&asked.take, taken, None);
                }
            }
        }
        self.stats.timeouts.fetch_add(1, Relaxed);
        decided
    }

    /// Hands Redis' decision to whoever waits; nobody does if another one was made meanwhile.
    pub fn answered(&self, job: Job, taken: Taken) {
        let Some(sender) = job.reply else {
            return;
        };
        let Err(Ok(taken)) = sender.send(Ok(taken)) else {
            return;
        };
        let Some(meanwhile) = job.asked.meanwhile.get() else {
            return;
        };
        if meanwhile.admitted && !taken.admitted {
            self.charge_back(&job.asked.take, meanwhile, Some(&taken));
        } else if taken.admitted && !meanwhile.admitted {
            self.undo(&job.asked.take, &taken, meanwhile);
        }
    }

    /// Tells whoever waits that the take was not decided.
    pub fn failed(&self, job: Job, why: &Undecided) {
        match why {
            Undecided::Failed(StoreError::Lost { .. }) => {
                if let Some(sender) = job.reply {
                    // Whoever has gone did not wait for this.
                    let _ = sender.send(Err(why.clone()));
                }
            }
            _ => self.not_sent(job, why),
        }
    }

    /// As `failed`, where Redis certainly took nothing.
    pub fn not_sent(&self, job: Job, why: &Undecided) {
        let take = &job.asked.take;
        let Some(sender) = job.reply else {
            for item in &take.items {
                self.correct(item, item.hits);
            }
            return;
        };
        if sender.send(Err(why.clone())).is_err()
            && let Some(meanwhile) = job.asked.meanwhile.get()
        {
            self.charge_back(take, meanwhile, None);
        }
    }

    /// Charges what in-process buckets did, but for what Redis has charged itself.
    pub fn charge_back(&self, take: &Take, taken: &Taken, by_redis: Option<&Taken>) {
        for (index, (item, balance)) in take.items.iter().zip(&taken.balances).enumerate() {
            let charged = by_redis.is_some_and(|taken| charged(taken, index));
            if balance.charged && !charged && fallback::is_local(item) {
                if let Hits::Take(hits) = item.hits {
                    self.stats.charged_back.fetch_add(counted(hits), Relaxed);
                }
                self.correct(item, item.hits);
            }
        }
    }

    /// Undoes in Redis what it charged for a request that was refused meanwhile, and would not have been charged then.
    pub fn undo(&self, take: &Take, taken: &Taken, meanwhile: &Taken) {
        for (index, item) in take.items.iter().enumerate() {
            // Strikes stay: giving would forget all of them.
            let stays = item.charge == Charge::Strike;
            if charged(taken, index) && !charged(meanwhile, index) && !stays {
                let inverse = match item.hits {
                    Hits::Take(hits) => {
                        self.stats.given_back.fetch_add(counted(hits), Relaxed);
                        Hits::Give(hits)
                    }
                    Hits::Give(hits) => Hits::Take(hits),
                };
                self.correct(item, inverse);
            }
        }
    }

    pub fn correct(&self, item: &Item, hits: Hits) {
        if matches!(hits, Hits::Give(_)) {
            self.seen.forget(&item.key);
        }
        if !self.ledger.add(item, hits) {
            self.stats.not_charged.fetch_add(1, Relaxed);
        }
    }

    /// Sends some corrections that no batch has taken along.
    pub fn nudge_ledger(&self) {
        if self.ledger.is_empty() || self.breaker.is_open() {
            return;
        }
        let (Some(queue), Some(take)) = (self.nudge.upgrade(), self.next_correction()) else {
            return;
        };
        if let Err(TrySendError::Full(job) | TrySendError::Closed(job)) =
            queue.try_send(Job::correction(take))
        {
            self.not_sent(job, &Undecided::Failed(self.overloaded()));
        }
    }

    /// Has Redis told of a bucket's leases and asked for one, unless that has to wait.
    pub fn tell(&self, queues: &[mpsc::Sender<Job>], item: &Item) {
        if !self.breaker.is_open() {
            // What is not told now is told by a later job.
            let _ = queue(queues).try_send(Job::lease(item));
        }
    }

    /// The key of the replicas that have said lately that they live; none on a node that has no slot for it.
    pub fn replicas_key(&self) -> Option<String> {
        self.own_key("replicas")
    }

    /// A key of no bucket; none on a node that has no slot for it.
    pub fn own_key(&self, name: &str) -> Option<String> {
        let tag = match &self.membership {
            Some(membership) => membership.tag()?,
            None => 0,
        };
        let tag = tag_text(tag);
        let tag = tag.escape_ascii();
        Some(match &*self.settings.group {
            "" => format!("{PREFIX}{tag}{name}"),
            group => format!("{PREFIX}{tag}{group}={name}"),
        })
    }

    pub fn next_correction(&self) -> Option<Take> {
        self.ledger.next_correction(self.membership.is_some())
    }

    /// What an error of Redis or of the connection means for the takes it answers; trips the breaker unless it only redirects.
    pub fn undecided(&self, generation: u64, error: &RedisError) -> Undecided {
        if let Some(redirect) = self.redirect(error) {
            return Undecided::Redirected(redirect);
        }
        let reason = error.to_string();
        self.trip(generation, &reason);
        Undecided::Failed(match Failure::of(error).answered() {
            true => self.unavailable(),
            false => self.lost(&reason),
        })
    }

    /// Where else in the cluster a take or a sign of life belongs.
    pub fn redirect(&self, error: &RedisError) -> Option<Redirect> {
        self.membership.as_ref()?.redirect(error)
    }

    pub fn count_replicas(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Relaxed);
    }

    pub fn trip(&self, generation: u64, reason: &str) {
        if self.breaker.trip(generation, reason) {
            self.stats.trips.fetch_add(1, Relaxed);
            if let Some(membership) = &self.membership {
                membership.doubt();
            }
        }
    }

    pub fn unavailable(&self) -> StoreError {
        StoreError::Unavailable {
            node: self.node.clone(),
            reason: self.breaker.reason(),
        }
    }

    pub fn overloaded(&self) -> StoreError {
        StoreError::Unavailable {
            node: self.node.clone(),
            reason: "too many takes wait for it".into(),
        }
    }

    pub fn without_time(&self) -> StoreError {
        StoreError::Unavailable {
            node: self.node.clone(),
            reason: "its clock jumps from period to period".into(),
        }
    }

    pub fn lost(&self, reason: &str) -> StoreError {
        StoreError::Lost {
            node: self.node.clone(),
            reason: reason.into(),
        }
    }
}

/// Whether the hits of an item were charged. A caller that got an error got no balances, and was not charged.
fn charged(taken: &Taken, index: usize) -> bool {
    let balance = taken.balances.get(index);
    balance.is_some_and(|balance| balance.charged)
}
