//! Buckets in a Redis that replicas share: exact over all of them, one script call per batch of takes.
//!
//! `url.rs` says where Redis is (`reference.rs` as envoyproxy/ratelimit says it), `dial.rs` reaches it, `connect.rs` keeps it
//! reached, `checks.rs` looks at what it says of itself and `breaker.rs` says whether it is used now. `lane.rs` gathers takes,
//! `call.rs` sends them, `batch.rs` is what `take.lua` reads and writes, `replicated.rs` waits until replicas of Redis have it.
//! `shared.rs` is what all of these share. `fallback.rs` decides without Redis and `ledger.rs` remembers what it must be told of
//! that afterwards. Refusals that are certain never leave the process: [`Seen`], and `lease.rs` spends what was taken ahead.
//! `cluster.rs` knows the nodes of a cluster, `shards.rs` decides over several servers.

mod batch;
mod breaker;
mod call;
pub mod checks;
mod cluster;
mod connect;
mod dial;
mod fallback;
mod lane;
mod lease;
mod ledger;
mod local_cache;
mod reference;
mod replicated;
mod shards;
mod shared;
mod stats;
mod url;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinHandle,
    time::timeout_at,
};

use self::{
    breaker::Breaker,
    checks::{Finding, Needs},
    cluster::Membership,
    connect::supervise,
    dial::Dialer,
    lane::{Asked, Job, Reply, Undecided, Way},
    lease::{Leases, Leasing},
    ledger::Ledger,
    local_cache::Split,
    replicated::Fences,
    shared::Shared,
};
use super::{Item, MemoryStore, StoreError, Take, Taken, seen::Seen};
use crate::clock::{Clock, SystemClock};

pub use self::{
    reference::{ReferenceKind, ReferenceRedis},
    shards::Shards,
    stats::StoreStats,
    url::{Endpoint, Login, Password, RedisUrl, RedisUrlError, Tls, Topology},
};

/// How a Redis store works.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// Where Redis is.
    pub url: RedisUrl,
    /// Where the buckets of limits per second are instead.
    pub per_second: Option<RedisUrl>,
    /// Longest wait for Redis per decision.
    pub timeout: Duration,
    /// Connections, each with one batch in flight.
    pub lanes: usize,
    /// Takes that may wait for a lane; more are decided without Redis.
    pub queue: usize,
    /// Buckets remembered as last seen, and again as many kept here while Redis is unwell.
    pub max_local_buckets: usize,
    /// Whether what is remembered of overdrawn fixed windows refuses until they end: envoyproxy/ratelimit's local cache.
    pub local_cache: bool,
    /// What the plans ask of it, for the checks after a connection is made and when that changes.
    pub needs: watch::Receiver<Needs>,
    /// The services that share buckets, and count as replicas of each other, have the same; empty for those that name none.
    pub group: Box<str>,
    /// Whether it only looks at buckets: it is no replica then, and no limit is divided by it.
    pub looks_only: bool,
    /// Takes the place of Redis' own time, for tests that move time; switches the deny cache off.
    pub clock: Option<Arc<dyn Clock>>,
}

impl RedisSettings {
    /// The defaults for `url`.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            per_second: None,
            timeout: Duration::from_millis(10),
            lanes: 2,
            queue: 4_096,
            max_local_buckets: 100_000,
            local_cache: false,
            needs: watch::channel(Needs::default()).1,
            group: "".into(),
            looks_only: false,
            clock: None,
        }
    }
}

/// Buckets on one Redis server. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
    queues: Vec<mpsc::Sender<Job>>,
    _tasks: Vec<Task>,
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
    ///
    /// # Panics
    /// If the settings name a cluster, which is for [`Shards`].
    pub fn connect(settings: RedisSettings) -> Self {
        let stats = Arc::<StoreStats>::default();
        let leases = Arc::new(Leases::new(settings.clock.clone(), stats.clone()));
        let mut store = Self::connect_beside(settings, leases, stats);
        let (shared, queues) = (store.shared.clone(), store.queues.clone());
        let tell = move |item: &Item| shared.tell(&queues, item);
        let keeping = lease::keep(store.shared.leases.clone(), tell);
        store._tasks.push(Task(tokio::spawn(keeping)));
        store
    }

    /// The same, with leases, which somebody else keeps, and counters that others share.
    fn connect_beside(
        settings: RedisSettings,
        leases: Arc<Leases>,
        stats: Arc<StoreStats>,
    ) -> Self {
        let (url, lanes) = (&settings.url, settings.lanes.max(1));
        let dialer = match &url.topology {
            Topology::Single(endpoint) => Dialer::of_server(url, endpoint.clone(), lanes),
            Topology::Sentinel { service, sentinels } => {
                Dialer::of_primary(url, service, sentinels, lanes)
            }
            Topology::Cluster(_) => panic!("a cluster is for shards"),
        };
        let node = url.to_string().into();
        Self::start(settings, node, Some(dialer), None, leases, stats)
    }

    /// A store that dials by `dialer`; without one it is never in use, and remembers what another must be told.
    fn start(
        settings: RedisSettings,
        node: Arc<str>,
        dialer: Option<Dialer>,
        membership: Option<Membership>,
        leases: Arc<Leases>,
        stats: Arc<StoreStats>,
    ) -> Self {
        let dialer = dialer.map(Arc::new);
        let (queues, receivers): (Vec<_>, Vec<_>) = (0..settings.lanes.max(1))
            .map(|_| mpsc::channel(settings.queue.max(1)))
            .unzip();
        let shared = Arc::new(Shared {
            node,
            membership,
            breaker: Breaker::new(),
            seen: Seen::new(settings.max_local_buckets).as_local_cache(settings.local_cache),
            local: MemoryStore::new(settings.max_local_buckets, Arc::new(SystemClock)),
            ledger: Ledger::default(),
            leases,
            stats,
            replicas: AtomicU32::new(1),
            findings: Mutex::default(),
            dialer: dialer.clone(),
            fences: Fences::default(),
            ahead_us: AtomicI64::new(0),
            nudge: queues[0].downgrade(),
            settings,
        });
        let supervisor = dialer.map(|dialer| tokio::spawn(supervise(shared.clone(), dialer)));
        let lanes = receivers
            .into_iter()
            .enumerate()
            .map(|(index, queue)| tokio::spawn(lane::run(shared.clone(), index, queue)));
        let tasks = supervisor.into_iter().chain(lanes).map(Task).collect();
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

    /// Decides `take` whole. Waits for Redis until `deadline` or for the store timeout, whichever ends sooner;
    /// then decides without it, as each item's `on_store_error` says. Balances have the length and order of `take.items`.
    ///
    /// # Errors
    /// As Redis did not decide in time and an item's `on_store_error` is
    /// [`OnStoreError::Error`](crate::plan::OnStoreError::Error).
    pub async fn take(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        if lease::is_leasable(&take) {
            // Apart, so that the future of the usual way stays small.
            return Box::pin(lease::take(self, take, deadline)).await;
        }
        self.take_past_leases(take, deadline).await
    }

    async fn take_past_leases(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        let settings = &self.shared.settings;
        // Redis' time is not that of tests that bring a clock.
        if settings.local_cache && settings.clock.is_none() {
            // Apart, so that the future of the usual way stays small.
            return Box::pin(self.take_past_cache(take, deadline)).await;
        }
        self.take_from_redis(take, deadline).await
    }

    /// Takes what the local cache does not refuse.
    async fn take_past_cache(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        let shared = &self.shared;
        let Some((split, rest)) = Split::of(&take, &shared.seen, Instant::now()) else {
            return self.take_from_redis(take, deadline).await;
        };
        shared.stats.deny_cache_hits.fetch_add(1, Relaxed);
        let rest = match rest {
            Some(rest) => Some(self.take_from_redis(rest, deadline).await?),
            None => None,
        };
        Ok(split.join(&take, rest))
    }

    async fn take_from_redis(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        let shared = &self.shared;
        if shared.breaker.is_open() {
            return shared.without_redis(&take, shared.unavailable(), true);
        }
        let now = Instant::now();
        if let Some(refusal) = shared.cached_refusal(&take, now) {
            return Ok(refusal);
        }
        let asked = Arc::new(Asked::new(take));
        let until = deadline.min(now + shared.settings.timeout);
        match self.ask(&asked, until, Way::default()).await {
            Ok(taken) => Ok(taken),
            Err(Undecided::Failed(error)) => Err(error),
            Err(Undecided::Redirected(_)) => {
                shared.without_redis(&asked.take, shared.unavailable(), true)
            }
        }
    }

    /// Asks Redis, whatever is remembered of refusals, and decides without it if it does not answer by `until`.
    async fn ask(&self, asked: &Arc<Asked>, until: Instant, way: Way) -> Reply {
        if let Some(durable) = replicated::asked_by(&asked.take) {
            // Apart, so that the future of the usual way stays small.
            return Box::pin(self.ask_durably(asked, until, way, durable)).await;
        }
        self.ask_now(asked, until, way).await
    }

    async fn ask_now(&self, asked: &Arc<Asked>, until: Instant, way: Way) -> Reply {
        let shared = &self.shared;
        let alone = |error, charge| {
            let decided = shared.without_redis(&asked.take, error, charge);
            decided.map_err(Undecided::Failed)
        };
        if shared.breaker.is_open() {
            return alone(shared.unavailable(), true);
        }
        let (sender, mut answer) = oneshot::channel();
        let job = Job {
            asked: asked.clone(),
            way,
            reply: Some(sender),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) =
            queue(&self.queues).try_send(job)
        {
            shared.stats.shed.fetch_add(1, Relaxed);
            return alone(shared.overloaded(), true);
        }
        match timeout_at(until.into(), &mut answer).await {
            Ok(Ok(Err(Undecided::Failed(error)))) => {
                // Whether a lost take was taken is not known, so it is not charged again.
                let lost = matches!(error, StoreError::Lost { .. });
                alone(error, !lost)
            }
            Ok(Ok(reply)) => reply,
            // A lane that gives a batch up drops it.
            Ok(Err(_)) => alone(shared.lost("given up"), false),
            Err(_) => {
                let decided = shared.timed_out(asked, &mut answer);
                decided.map_err(Undecided::Failed)
            }
        }
    }

    /// Gives back what has been taken ahead and is not spent. Waits for that at most `limit`.
    pub async fn give_back_leases(&self, limit: Duration) {
        lease::give_back(self, limit).await;
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

    /// What may harm on this server, as found when it was last connected to.
    pub fn findings(&self) -> Vec<Finding> {
        self.shared.findings.lock().clone()
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
}

impl Leasing for RedisStore {
    fn leases(&self) -> &Leases {
        &self.shared.leases
    }

    fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    fn tell(&self, item: &Item) {
        self.shared.tell(&self.queues, item);
    }

    async fn take_unleased(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        self.take_past_leases(take, deadline).await
    }
}

/// The first lane whose next batch has room, so that batches are large before they are many; else the one with the
/// shortest queue.
fn queue(queues: &[mpsc::Sender<Job>]) -> &mpsc::Sender<Job> {
    let has_room =
        |queue: &&mpsc::Sender<Job>| queue.max_capacity() - queue.capacity() < lane::BATCH;
    let shortest = || queues.iter().max_by_key(|queue| queue.capacity());
    let room = queues.iter().find(has_room);
    room.or_else(shortest).expect("there is a lane")
}
