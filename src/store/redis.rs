//! Buckets in a Redis that replicas share: exact over all of them, one script call per batch of takes.
//!
//! `url.rs` says where Redis is (`reference.rs` as envoyproxy/ratelimit says it), `dial.rs` reaches it, `connect.rs` keeps it
//! reached, `checks.rs` looks at what it says of itself and `breaker.rs` says whether it is used now. `batch.rs` is what `take.lua` reads and writes, `lane.rs` sends it,
//! `replicated.rs` waits until replicas of Redis have it.
//! `fallback.rs` decides without it and `ledger.rs` remembers what Redis must be told of that afterwards. Refusals that are certain
//! never leave the process: [`Seen`], and `lease.rs` spends what was taken ahead. `cluster.rs` knows the nodes of a cluster, `shards.rs` decides over several servers.

mod batch;
mod breaker;
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
use redis::RedisError;
use smallvec::SmallVec;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinHandle,
    time::timeout_at,
};

use self::{
    breaker::{Breaker, Failure},
    checks::{Finding, Needs},
    cluster::{Membership, Redirect},
    connect::supervise,
    dial::Dialer,
    lane::{Asked, Job, Reply, Undecided, Way},
    lease::{Leases, Leasing},
    ledger::Ledger,
    local_cache::Split,
    replicated::Fences,
};
use super::{
    Item, MemoryStore, StoreError, Take, Taken,
    key::{PREFIX, TAGS, tag_text},
    seen::Seen,
};
use crate::{
    clock::{Clock, SystemClock, Timestamp},
    descriptor::Hits,
    plan::Charge,
};

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

/// What requests, lanes and the supervisor share.
#[derive(Debug)]
struct Shared {
    node: Arc<str>,
    /// Of a node of a cluster.
    membership: Option<Membership>,
    settings: RedisSettings,
    breaker: Breaker,
    seen: Seen,
    local: MemoryStore,
    ledger: Ledger,
    leases: Arc<Leases>,
    stats: Arc<StoreStats>,
    replicas: AtomicU32,
    /// What the checks found at the last connection.
    findings: Mutex<Vec<Finding>>,
    dialer: Option<Arc<Dialer>>,
    fences: Fences,
    /// Microseconds that Redis' clock is ahead of this machine's, as far as that has mattered.
    ahead_us: AtomicI64,
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

impl Shared {
    fn node(&self) -> &str {
        &self.node
    }

    /// How long a batch may take before Redis counts as unwell: three timeouts in a row.
    fn patience(&self) -> Duration {
        (self.settings.timeout * 3).max(Duration::from_millis(30))
    }

    fn clock(&self) -> &dyn Clock {
        self.settings.clock.as_deref().unwrap_or(&SystemClock)
    }

    /// About what Redis' clock shows.
    fn redis_time(&self) -> Timestamp {
        let now = self.clock().now().as_micros();
        Timestamp::from_micros(now.saturating_add_signed(self.ahead_us.load(Relaxed)))
    }

    fn learn_time(&self, redis: Timestamp) {
        let (redis, here) = (redis.as_micros(), self.clock().now().as_micros());
        self.ahead_us
            .store(redis.wrapping_sub(here).cast_signed(), Relaxed);
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

    /// Decides without Redis; what is admitted so is charged afterwards if `charge` says so.
    fn without_redis(
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
    fn timed_out(
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
            self.charge_back(&job.asked.take, meanwhile, Some(&taken));
        } else if taken.admitted && !meanwhile.admitted {
            self.undo(&job.asked.take, &taken, meanwhile);
        }
    }

    /// Tells whoever waits that the take was not decided.
    fn failed(&self, job: Job, why: &Undecided) {
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
    fn not_sent(&self, job: Job, why: &Undecided) {
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
    fn charge_back(&self, take: &Take, taken: &Taken, by_redis: Option<&Taken>) {
        for (index, (item, balance)) in take.items.iter().zip(&taken.balances).enumerate() {
            let charged = by_redis.is_some_and(|taken| charged(taken, index));
            if balance.charged && !charged && fallback::is_local(item) {
                if let Hits::Take(hits) = item.hits {
                    self.stats.charged_back.fetch_add(hits, Relaxed);
                }
                self.correct(item, item.hits);
            }
        }
    }

    /// Undoes in Redis what it charged for a request that was refused meanwhile, and would not have been charged then.
    fn undo(&self, take: &Take, taken: &Taken, meanwhile: &Taken) {
        for (index, item) in take.items.iter().enumerate() {
            // Strikes stay: giving would forget all of them.
            let stays = item.charge == Charge::Strike;
            if charged(taken, index) && !charged(meanwhile, index) && !stays {
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

    /// Sends corrections that no batch has taken along: one, or one per tag of a cluster.
    fn nudge_ledger(&self) {
        let most = self.membership.as_ref().map_or(1, |_| TAGS);
        for _ in 0..most {
            if self.ledger.is_empty() || self.breaker.is_open() {
                return;
            }
            let (Some(queue), Some(take)) = (self.nudge.upgrade(), self.next_correction()) else {
                return;
            };
            if let Err(TrySendError::Full(job) | TrySendError::Closed(job)) =
                queue.try_send(Job::correction(take))
            {
                return self.not_sent(job, &Undecided::Failed(self.overloaded()));
            }
        }
    }

    /// Has Redis told of a bucket's leases and asked for one, unless that has to wait.
    fn tell(&self, queues: &[mpsc::Sender<Job>], item: &Item) {
        if !self.breaker.is_open() {
            // What is not told now is told by a later job.
            let _ = queue(queues).try_send(Job::lease(item));
        }
    }

    /// The key of the replicas that have said lately that they live; none on a node that has no slot for it.
    fn replicas_key(&self) -> Option<String> {
        self.own_key("replicas")
    }

    /// A key of no bucket; none on a node that has no slot for it.
    fn own_key(&self, name: &str) -> Option<String> {
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

    fn next_correction(&self) -> Option<Take> {
        self.ledger.next_correction(self.membership.is_some())
    }

    /// What an error of Redis or of the connection means for the takes it answers; trips the breaker unless it only redirects.
    fn undecided(&self, generation: u64, error: &RedisError) -> Undecided {
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
    fn redirect(&self, error: &RedisError) -> Option<Redirect> {
        self.membership.as_ref()?.redirect(error)
    }

    fn count_replicas(&self, replicas: u32) {
        self.replicas.store(replicas.max(1), Relaxed);
    }

    fn trip(&self, generation: u64, reason: &str) {
        if self.breaker.trip(generation, reason) {
            self.stats.trips.fetch_add(1, Relaxed);
            if let Some(membership) = &self.membership {
                membership.doubt();
            }
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

    fn without_time(&self) -> StoreError {
        StoreError::Unavailable {
            node: self.node.clone(),
            reason: "its clock jumps from period to period".into(),
        }
    }

    fn lost(&self, reason: &str) -> StoreError {
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
