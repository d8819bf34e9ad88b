//! Buckets in a Redis that replicas share: exact over all of them, one script call per batch of takes.
//!
//! `url.rs` says where Redis is, `dial.rs` reaches it, `connect.rs` keeps it reached and `breaker.rs` says whether it is used
//! now. `batch.rs` is what `take.lua` reads and writes, `lane.rs` sends it. `fallback.rs` decides without it and `ledger.rs` remembers what Redis must be told of that afterwards.
//! Refusals that are certain never leave the process: [`Seen`].

mod batch;
mod breaker;
mod connect;
mod dial;
mod fallback;
mod lane;
mod ledger;
mod stats;
mod url;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use smallvec::SmallVec;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinHandle,
    time::timeout_at,
};

use self::{
    breaker::Breaker,
    connect::supervise,
    dial::Dialer,
    lane::{Asked, Job, Reply},
    ledger::Ledger,
};
use super::{Item, MemoryStore, StoreError, Take, Taken, seen::Seen};
use crate::{
    clock::{Clock, SystemClock},
    descriptor::Hits,
};

pub use self::{
    stats::{Histogram, StoreStats},
    url::{Endpoint, Login, Password, RedisUrl, RedisUrlError, Tls, Topology},
};

/// How a Redis store works.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// Where Redis is.
    pub url: RedisUrl,
    /// Longest wait for Redis per decision.
    pub timeout: Duration,
    /// Connections, each with one batch in flight.
    pub lanes: usize,
    /// Takes that may wait for a lane; more are decided without Redis.
    pub queue: usize,
    /// Buckets remembered as last seen, and again as many kept here while Redis is unwell.
    pub max_local_buckets: usize,
    /// Takes the place of Redis' own time, for tests that move time; switches the deny cache off.
    pub clock: Option<Arc<dyn Clock>>,
}

impl RedisSettings {
    /// The defaults for `url`.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            timeout: Duration::from_millis(10),
            lanes: 2,
            queue: 4_096,
            max_local_buckets: 100_000,
            clock: None,
        }
    }
}

/// The Redis store. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
    queues: Vec<mpsc::Sender<Job>>,
    _tasks: Vec<Task>,
}

/// What requests, lanes and the supervisor share.
#[derive(Debug)]
struct Shared {
    node: Arc<str>,
    settings: RedisSettings,
    breaker: Breaker,
    seen: Seen,
    local: MemoryStore,
    ledger: Ledger,
    stats: StoreStats,
    replicas: AtomicU32,
    nudge: mpsc::WeakSender<Job>,
}

/// Ends with the store.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RedisStore {
    /// Starts to connect in the background and returns at once. Needs a Tokio runtime.
    pub fn connect(settings: RedisSettings) -> Self {
        let (queues, receivers): (Vec<_>, Vec<_>) = (0..settings.lanes.max(1))
            .map(|_| mpsc::channel(settings.queue.max(1)))
            .unzip();
        let lanes = queues.len();
        let dialer = match &settings.url.topology {
            Topology::Single(endpoint) => Dialer::of_server(&settings.url, endpoint.clone(), lanes),
            Topology::Sentinel { service, sentinels } => {
                Dialer::of_primary(&settings.url, service, sentinels, lanes)
            }
        };
        let shared = Arc::new(Shared {
            node: settings.url.to_string().into(),
            breaker: Breaker::new(),
            seen: Seen::new(settings.max_local_buckets),
            local: MemoryStore::new(settings.max_local_buckets, Arc::new(SystemClock)),
            ledger: Ledger::default(),
            stats: StoreStats::default(),
            replicas: AtomicU32::new(1),
            nudge: queues[0].downgrade(),
            settings,
        });
        let supervisor = tokio::spawn(supervise(shared.clone(), dialer));
        let lanes = receivers
            .into_iter()
            .enumerate()
            .map(|(index, queue)| tokio::spawn(lane::run(shared.clone(), index, queue)));
        let tasks = std::iter::once(supervisor).chain(lanes).map(Task).collect();
        Self {
            shared,
            queues,
            _tasks: tasks,
        }
    }

    /// Waits until Redis is in use, at most `limit`. Returns whether it is.
    pub async fn first_connection(&self, limit: Duration) -> bool {
        let mut wires = self.shared.breaker.wires();
        let connected = wires.wait_for(Option::is_some);
        tokio::time::timeout(limit, connected).await.is_ok()
    }

    /// Takes all of `take`, or nothing. Waits for Redis until `deadline` or for the store timeout, whichever ends sooner;
    /// then decides without it, as each item's `on_store_error` says. Balances have the length and order of `take.items`.
    ///
    /// # Errors
    /// As Redis did not decide in time and an item's `on_store_error` is
    /// [`OnStoreError::Error`](crate::plan::OnStoreError::Error).
    pub async fn take(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        let shared = &self.shared;
        if shared.breaker.is_open() {
            return shared.without_redis(&take, shared.unavailable(), true);
        }
        let now = Instant::now();
        if let Some(refusal) = shared.cached_refusal(&take, now) {
            return Ok(refusal);
        }
        let asked = Arc::new(Asked {
            take,
            meanwhile: <_>::default(),
        });
        let (sender, mut answer) = oneshot::channel();
        let job = Job {
            asked: asked.clone(),
            forced: false,
            reply: Some(sender),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = self.queue().try_send(job) {
            shared.stats.shed.fetch_add(1, Relaxed);
            return shared.without_redis(&asked.take, shared.overloaded(), true);
        }
        let until = deadline.min(now + shared.settings.timeout);
        match timeout_at(until.into(), &mut answer).await {
            Ok(Ok(reply)) => shared.replied(&asked.take, reply),
            // A lane that gives a batch up drops it.
            Ok(Err(_)) => shared.without_redis(&asked.take, shared.lost("given up"), false),
            Err(_) => shared.timed_out(&asked, &mut answer),
        }
    }

    /// What has been counted.
    pub fn stats(&self) -> &StoreStats {
        &self.shared.stats
    }

    /// Whether decisions are made without Redis now, and why.
    pub fn is_down(&self) -> Option<Arc<str>> {
        let breaker = &self.shared.breaker;
        breaker.is_open().then(|| breaker.reason())
    }

    /// Replicas of Tollgate that use this Redis, as last counted.
    pub fn replicas(&self) -> u32 {
        self.shared.replicas.load(Relaxed)
    }

    /// Takes that wait for a lane now.
    pub fn queued(&self) -> usize {
        let waiting = |queue: &mpsc::Sender<Job>| queue.max_capacity() - queue.capacity();
        self.queues.iter().map(waiting).sum()
    }

    /// Host and port of Redis, or its socket.
    pub fn node(&self) -> &str {
        self.shared.node()
    }

    /// The first lane whose next batch has room, so that batches are large before they are many; else the one with the
    /// shortest queue.
    fn queue(&self) -> &mpsc::Sender<Job> {
        let has_room =
            |queue: &&mpsc::Sender<Job>| queue.max_capacity() - queue.capacity() < lane::BATCH;
        let shortest = || self.queues.iter().max_by_key(|queue| queue.capacity());
        self.queues
            .iter()
            .find(has_room)
            .or_else(shortest)
            .expect("there is a lane")
    }
}

impl Shared {
    fn node(&self) -> &str {
        &self.node
    }

    /// How long a batch may take before Redis counts as unwell: three timeouts in a row.
    fn patience(&self) -> Duration {
        (self.settings.timeout * 3).max(Duration::from_millis(30))
    }

    fn cached_refusal(&self, take: &Take, now: Instant) -> Option<Taken> {
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

    /// A lane's reply to a request that still waits.
    fn replied(&self, take: &Take, reply: Reply) -> Reply {
        match reply {
            Ok(taken) => Ok(taken),
            // Whether a lost take was taken is not known, so it is not charged again.
            Err(error @ StoreError::Lost { .. }) => self.without_redis(take, error, false),
            Err(error) => self.without_redis(take, error, true),
        }
    }

    /// Decides without Redis; what is admitted so is charged afterwards if `charge` says so.
    fn without_redis(&self, take: &Take, error: StoreError, charge: bool) -> Reply {
        self.stats.degraded.fetch_add(1, Relaxed);
        let replicas = self.replicas.load(Relaxed);
        let taken = fallback::decide(take, &self.local, &self.seen, replicas).ok_or(error)?;
        if charge {
            self.charge_back(take, &taken);
        }
        Ok(taken)
    }

    /// Decides a take that Redis has not answered yet. The lane sets things right when the answer comes.
    fn timed_out(&self, asked: &Asked, answer: &mut oneshot::Receiver<Reply>) -> Reply {
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
            },
        });
        answer.close();
        // What the lane has handed over by now, it does not look after any more.
        match answer.try_recv() {
            Ok(Ok(taken)) => {
                self.stats.degraded.fetch_sub(1, Relaxed);
                return Ok(taken);
            }
            Ok(Err(StoreError::Lost { .. })) | Err(_) => {}
            Ok(Err(_)) => {
                if let Ok(taken) = &decided {
                    self.charge_back(&asked.take, taken);
                }
            }
        }
        self.stats.timeouts.fetch_add(1, Relaxed);
        decided
    }

    /// Hands Redis' decision to whoever waits; nobody does if another one was made meanwhile.
    fn answered(&self, job: Job, taken: Taken) {
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
            self.charge_back(&job.asked.take, meanwhile);
        } else if taken.admitted && !meanwhile.admitted {
            self.undo(&job.asked.take, &taken);
        }
    }

    /// Tells whoever waits that the take was not decided.
    fn failed(&self, job: Job, error: &StoreError) {
        match error {
            StoreError::Lost { .. } => {
                if let Some(sender) = job.reply {
                    // Whoever has gone did not wait for this.
                    let _ = sender.send(Err(error.clone()));
                }
            }
            _ => self.not_sent(job, error),
        }
    }

    /// As `failed`, where Redis certainly took nothing.
    fn not_sent(&self, job: Job, error: &StoreError) {
        let take = &job.asked.take;
        let Some(sender) = job.reply else {
            for item in &take.items {
                self.correct(item, item.hits);
            }
            return;
        };
        if sender.send(Err(error.clone())).is_err()
            && let Some(meanwhile) = job.asked.meanwhile.get()
        {
            self.charge_back(take, meanwhile);
        }
    }

    /// Charges what in-process buckets admitted.
    fn charge_back(&self, take: &Take, taken: &Taken) {
        if take.dry || !taken.admitted {
            return;
        }
        for (item, balance) in take.items.iter().zip(&taken.balances) {
            if balance.fits && fallback::is_local(item) {
                if let Hits::Take(hits) = item.hits {
                    self.stats.charged_back.fetch_add(hits, Relaxed);
                }
                self.correct(item, item.hits);
            }
        }
    }

    /// Undoes in Redis what it took for a request that was refused meanwhile.
    fn undo(&self, take: &Take, taken: &Taken) {
        if take.dry {
            return;
        }
        for (item, balance) in take.items.iter().zip(&taken.balances) {
            if balance.fits {
                let inverse = match item.hits {
                    Hits::Take(hits) => {
                        self.stats.given_back.fetch_add(hits, Relaxed);
                        Hits::Give(hits)
                    }
                    Hits::Give(hits) => Hits::Take(hits),
                };
                self.correct(item, inverse);
            }
        }
    }

    fn correct(&self, item: &Item, hits: Hits) {
        if matches!(hits, Hits::Give(_)) {
            self.seen.forget(&item.key);
        }
        if !self.ledger.add(item, hits) {
            self.stats.not_charged.fetch_add(1, Relaxed);
        }
    }

    /// Sends corrections that no batch has taken along.
    fn nudge_ledger(&self) {
        if self.ledger.is_empty() || self.breaker.is_open() {
            return;
        }
        let (Some(queue), Some(take)) = (self.nudge.upgrade(), self.ledger.next_correction())
        else {
            return;
        };
        if let Err(TrySendError::Full(job) | TrySendError::Closed(job)) =
            queue.try_send(Job::correction(take))
        {
            self.not_sent(job, &self.overloaded());
        }
    }

    fn count_replicas(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Relaxed);
    }

    fn trip(&self, generation: u64, reason: &str) {
        if self.breaker.trip(generation, reason) {
            self.stats.trips.fetch_add(1, Relaxed);
        }
    }

    fn unavailable(&self) -> StoreError {
        StoreError::Unavailable {
            node: self.node.clone(),
            reason: self.breaker.reason(),
        }
    }

    fn overloaded(&self) -> StoreError {
        StoreError::Unavailable {
            node: self.node.clone(),
            reason: "too many takes wait for it".into(),
        }
    }

    fn lost(&self, reason: &str) -> StoreError {
        StoreError::Lost {
            node: self.node.clone(),
            reason: reason.into(),
        }
    }
}
