//! A Redis cluster: which node has which tag's slot, kept up to date, and the way of a take to the node that decides it.
//!
//! Only 256 slots matter, those of the tags. A node's errors are its own: each has its breaker, its lanes and its ledger.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value, from_redis_value};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    RedisSettings, RedisStore, StoreStats,
    dial::{DIAL_TIMEOUT, DialError, Dialer, connect, within},
    lane::{Asked, Reply, Undecided, Way},
    lease::Leases,
    url::{Endpoint, RedisUrl},
};
use crate::store::{
    StoreError, Take,
    key::{TAGS, tag_text},
};

/// Slots of every cluster.
const SLOTS: u16 = 16_384;

/// Most servers that one take is sent to in a row.
const MOST_HOPS: usize = 16;

/// How long a node is kept that has no slot of ours: a slot that moves leads to it before the map does, and back.
const KEPT: Duration = Duration::from_secs(60);

/// How long calls keep to one slot each on a node where one about several failed: a slot is on its way, say.
const PARTED: Duration = Duration::from_secs(1);

/// Most nodes that are dialled.
const MOST_NODES: usize = 1_000;

/// How often the map is read while all is well, and while it is not.
const READ_EVERY: Duration = Duration::from_secs(30);
const READ_AGAIN: Duration = Duration::from_millis(200);

/// What a node knows of its cluster.
#[derive(Debug)]
pub struct Membership {
    endpoint: Endpoint,
    /// A tag whose slot it has, [`TAGS`] for none.
    tag: AtomicU16,
    /// Until when its calls keep to one slot each.
    parted_until: Mutex<Option<Instant>>,
    doubt: Arc<Notify>,
}

/// Where in a cluster a take belongs that a node did not decide.
#[derive(Debug, Clone)]
pub enum Redirect {
    /// To this node.
    To {
        /// Which.
        endpoint: Endpoint,
        /// The slot is on its way there.
        asking: bool,
    },
    /// Some of its keys are here and some are not, as their slot is on its way.
    TryAgain,
}

impl Membership {
    /// A tag whose slot the node has.
    pub fn tag(&self) -> Option<u8> {
        u8::try_from(self.tag.load(Relaxed)).ok()
    }

    /// Whether one script call may be about buckets of several of its slots.
    pub fn spans_slots(&self) -> bool {
        let parted_until = *self.parted_until.lock();
        parted_until.is_none_or(|end| Instant::now() >= end)
    }

    /// A call about several slots failed. It costs a round trip to find out, so calls keep to one slot for a while.
    pub fn parts_slots(&self) {
        *self.parted_until.lock() = Some(Instant::now() + PARTED);
    }

    /// Has the map read again.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// What an error of the node says of another.
    pub fn redirect(&self, error: &RedisError) -> Option<Redirect> {
        let asking = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved) => false,
            ErrorKind::Server(ServerErrorKind::Ask) => true,
            ErrorKind::Server(ServerErrorKind::TryAgain) => return Some(Redirect::TryAgain),
            _ => return None,
        };
        self.doubt();
        let endpoint = self.endpoint.redirected(error)?;
        Some(Redirect::To { endpoint, asking })
    }
}

impl Endpoint {
    /// The node that an error of this one names.
    pub fn redirected(&self, error: &RedisError) -> Option<Self> {
        let (address, _) = error.redirect_node()?;
        let (host, port) = address.rsplit_once(':')?;
        Some(self.beside(host, port.parse().ok()?))
    }

    /// An address as this node tells it: without a host, on the same host.
    fn beside(&self, host: &str, port: u16) -> Self {
        let host = match (host.trim_matches(['[', ']']), self) {
            ("" | "?", Self::Tcp { host, .. }) => host.clone(),
            (host, _) => host.to_owned(),
        };
        Self::Tcp { host, port }
    }
}

/// A cluster in use.
#[derive(Debug)]
pub struct Cluster {
    settings: RedisSettings,
    seeds: Vec<Endpoint>,
    leases: Arc<Leases>,
    stats: Arc<StoreStats>,
    /// By tag.
    owners: ArcSwap<Vec<Arc<RedisStore>>>,
    nodes: Mutex<HashMap<Endpoint, Known>>,
    /// Has the tags whose node was never known: decides without Redis, and remembers what to tell.
    nobody: Arc<RedisStore>,
    doubt: Arc<Notify>,
    well: watch::Sender<bool>,
}

#[derive(Debug)]
struct Known {
    node: Arc<RedisStore>,
    started_at: Instant,
    wanted_at: Instant,
}

/// Slots and the primary that has them.
type Range = (RangeInclusive<u16>, Endpoint);

impl Cluster {
    /// A cluster of which nothing but some nodes is known. [`Cluster::keep_map`] finds the others.
    pub fn new(
        settings: RedisSettings,
        seeds: &[Endpoint],
        leases: Arc<Leases>,
        stats: Arc<StoreStats>,
    ) -> Self {
        let name = Arc::from(settings.url.to_string());
        let (mine, counters) = (leases.clone(), stats.clone());
        let nobody = RedisStore::start(settings.clone(), name, None, None, mine, counters);
        let nobody = Arc::new(nobody);
        Self {
            owners: ArcSwap::from_pointee(vec![nobody.clone(); TAGS]),
            nodes: Mutex::default(),
            seeds: seeds.to_vec(),
            doubt: Arc::default(),
            well: watch::Sender::new(false),
            settings,
            leases,
            stats,
            nobody,
        }
    }

    /// Reads the map now and then, and soon when a node or an error casts doubt on it.
    pub async fn keep_map(self: Arc<Self>) {
        let mut failed = false;
        loop {
            let well = match self.read_map().await {
                Ok(ranges) => {
                    failed = false;
                    self.install(&ranges)
                }
                Err(error) => {
                    self.nobody.shared.breaker.explain(&error.to_string());
                    if !std::mem::replace(&mut failed, true) {
                        let node = self.nobody.node();
                        tracing::warn!(node, %error, "cannot read the map of the cluster; trying again in the background");
                    }
                    false
                }
            };
            self.well.send_replace(well);
            let wait = if well { READ_EVERY } else { READ_AGAIN };
            let wait = wait.mul_f64(rand::random_range(0.5..1.0));
            // It is read again in either case.
            let _ = timeout(wait, self.doubt.notified()).await;
            // Doubts come in crowds, and to all replicas at once.
            sleep(Duration::from_millis(rand::random_range(5..25))).await;
        }
    }

    /// Waits until every tag's node is in use.
    pub async fn first_connection(&self, limit: Duration) -> bool {
        let mut well = self.well.subscribe();
        timeout(limit, well.wait_for(|well| *well)).await.is_ok()
    }

    /// The nodes that have tags.
    pub fn owners(&self) -> Vec<Arc<RedisStore>> {
        let mut owners: Vec<Arc<RedisStore>> = Vec::new();
        for owner in self.owners.load().iter() {
            if !owners.iter().any(|other| Arc::ptr_eq(other, owner)) {
                owners.push(owner.clone());
            }
        }
        owners
    }

    /// The node that has the tag, as far as is known.
    pub fn owner(&self, tag: u8) -> Arc<RedisStore> {
        self.owners.load()[usize::from(tag)].clone()
    }

    /// Asks the node that decides. All keys of the take carry one tag. Follows redirections, on which nothing was taken.
    ///
    /// A take of several keys whose slot is on its way comes back as [`Redirect::TryAgain`]: each key is somewhere, but they
    /// are not together.
    pub async fn ask(&self, asked: &Arc<Asked>, until: Instant, mut way: Way) -> Reply {
        let tag = asked.take.items.first().map_or(0, |item| item.key.tag());
        let mut node = self.owner(tag);
        for _ in 0..MOST_HOPS {
            match node.ask(asked, until, way).await {
                Err(Undecided::Redirected(Redirect::To { endpoint, asking })) => {
                    let (other, is_new) = self.node_at(&endpoint, None);
                    if is_new {
                        let rest = until.saturating_duration_since(Instant::now());
                        other.first_connection(rest).await;
                    }
                    node = other;
                    way.asking = asking;
                    way.alone |= asking;
                }
                Err(Undecided::Redirected(Redirect::TryAgain)) => {
                    if way.alone && has_several_keys(&asked.take) {
                        return Err(Undecided::Redirected(Redirect::TryAgain));
                    }
                    if way.alone {
                        sleep(Duration::from_millis(1)).await;
                    }
                    way.alone = true;
                    way.asking = false;
                    node = self.owner(tag);
                }
                decided => return decided,
            }
        }
        let error = StoreError::Unavailable {
            node: node.node().into(),
            reason: "the slot of these buckets is found nowhere".into(),
        };
        let decided = node.shared.without_redis(&asked.take, error, true);
        decided.map_err(Undecided::Failed)
    }

    /// The node there, and whether it is so new that it may not have been reached yet.
    fn node_at(&self, endpoint: &Endpoint, tag: Option<u8>) -> (Arc<RedisStore>, bool) {
        let mut nodes = self.nodes.lock();
        if nodes.len() >= MOST_NODES && !nodes.contains_key(endpoint) {
            return (self.nobody.clone(), false);
        }
        let known = nodes.entry(endpoint.clone()).or_insert_with(|| Known {
            node: Arc::new(self.start(endpoint, tag)),
            started_at: Instant::now(),
            wanted_at: Instant::now(),
        });
        known.wanted_at = Instant::now();
        let is_new = known.started_at.elapsed() < DIAL_TIMEOUT;
        (known.node.clone(), is_new)
    }

    fn start(&self, endpoint: &Endpoint, tag: Option<u8>) -> RedisStore {
        let settings = self.settings.clone();
        let dialer = Dialer::of_server(&settings.url, endpoint.clone(), settings.lanes.max(1));
        let membership = Membership {
            endpoint: endpoint.clone(),
            tag: AtomicU16::new(tag.map_or(TAGS as u16, u16::from)),
            parted_until: Mutex::default(),
            doubt: self.doubt.clone(),
        };
        let name = Arc::from(endpoint.to_string());
        let (leases, stats) = (self.leases.clone(), self.stats.clone());
        let (dialer, membership) = (Some(dialer), Some(membership));
        RedisStore::start(settings, name, dialer, membership, leases, stats)
    }

    /// What the first node says that answers; those in use are asked first.
    async fn read_map(&self) -> Result<Vec<Range>, DialError> {
        let mut well = Vec::new();
        let mut others = self.seeds.clone();
        for (endpoint, known) in self.nodes.lock().iter() {
            let list = match known.node.is_down() {
                None => &mut well,
                Some(_) => &mut others,
            };
            list.push(endpoint.clone());
        }
        well.shuffle(&mut rand::rng());
        others.shuffle(&mut rand::rng());
        let mut last = DialError::NoMap;
        for endpoint in well.into_iter().chain(others) {
            match self.ask_for_map(&endpoint).await {
                Ok(ranges) if !ranges.is_empty() => return Ok(ranges),
                Ok(_) => {}
                Err(error) => last = error.at(endpoint.to_string()),
            }
        }
        Err(last)
    }

    async fn ask_for_map(&self, endpoint: &Endpoint) -> Result<Vec<Range>, DialError> {
        ask_for_map(&self.settings.url, endpoint).await
    }

    /// Uses a map. Returns whether every tag has a node, and each of them is in use.
    fn install(&self, ranges: &[Range]) -> bool {
        let before = self.owners.load_full();
        let mut covered = true;
        let owners: Vec<Arc<RedisStore>> = (0..=u8::MAX)
            .zip(slots_of_tags())
            .map(|(tag, slot)| {
                let range = ranges.iter().find(|(slots, _)| slots.contains(slot));
                match range {
                    Some((_, endpoint)) => self.node_at(endpoint, Some(tag)).0,
                    None => {
                        covered = false;
                        before[usize::from(tag)].clone()
                    }
                }
            })
            .collect();
        self.owners.store(Arc::new(owners.clone()));
        let nodes = self.keep_nodes(&owners);
        for node in nodes.iter().chain([&self.nobody]) {
            let is_owner = |tag: u8| Arc::ptr_eq(&owners[usize::from(tag)], node);
            if let Some(membership) = &node.shared.membership {
                let tag = (0..=u8::MAX).find(|tag| is_owner(*tag));
                let tag = tag.map_or(TAGS as u16, u16::from);
                membership.tag.store(tag, Relaxed);
            }
            for item in node.shared.ledger.moved(|item| is_owner(item.key.tag())) {
                let owner = &owners[usize::from(item.key.tag())];
                owner.shared.correct(&item, item.hits);
            }
        }
        covered && owners.iter().all(|owner| owner.is_down().is_none())
    }

    /// Lets go of nodes that nobody wanted for a while, and lists them all.
    fn keep_nodes(&self, owners: &[Arc<RedisStore>]) -> Vec<Arc<RedisStore>> {
        let mut nodes = self.nodes.lock();
        let listed = nodes.values().map(|known| known.node.clone()).collect();
        nodes.retain(|_, known| {
            let owns = owners.iter().any(|owner| Arc::ptr_eq(owner, &known.node));
            owns || known.wanted_at.elapsed() < KEPT
        });
        listed
    }
}

async fn ask_for_map(url: &RedisUrl, endpoint: &Endpoint) -> Result<Vec<Range>, DialError> {
    let mut connection = connect(url, endpoint).await?;
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let answer = command.query_async::<Vec<Vec<Value>>>(&mut connection);
    let rows = within(DIAL_TIMEOUT, "CLUSTER SLOTS", answer).await?;
    rows.iter()
        .map(|row| range(row, endpoint).ok_or(DialError::NoMap))
        .collect()
}

/// The primaries of a cluster, as the first of `seeds` says that answers.
pub async fn primaries(url: &RedisUrl, seeds: &[Endpoint]) -> Result<Vec<Endpoint>, DialError> {
    let mut last = DialError::NoMap;
    for seed in seeds {
        match ask_for_map(url, seed).await {
            Ok(ranges) if !ranges.is_empty() => {
                let mut found: Vec<Endpoint> = Vec::new();
                for (_, endpoint) in ranges {
                    if !found.contains(&endpoint) {
                        found.push(endpoint);
                    }
                }
                return Ok(found);
            }
            Ok(_) => {}
            Err(error) => last = error.at(seed.to_string()),
        }
    }
    Err(last)
}

fn has_several_keys(take: &Take) -> bool {
    take.items.iter().any(|item| item.key != take.items[0].key)
}

/// A row of CLUSTER SLOTS: first slot, last slot, the primary, its replicas.
fn range(row: &[Value], asked: &Endpoint) -> Option<Range> {
    let [first, last, Value::Array(primary), ..] = row else {
        return None;
    };
    let [host, port, ..] = &primary[..] else {
        return None;
    };
    let number = |value: &Value| from_redis_value::<u16>(value.clone()).ok();
    let host = from_redis_value::<Option<String>>(host.clone()).ok()?;
    let endpoint = asked.beside(host.as_deref().unwrap_or_default(), number(port)?);
    Some((number(first)?..=number(last)?, endpoint))
}

/// The slot of each tag.
fn slots_of_tags() -> &'static [u16; TAGS] {
    static SLOTS_OF_TAGS: OnceLock<[u16; TAGS]> = OnceLock::new();
    SLOTS_OF_TAGS.get_or_init(|| {
        std::array::from_fn(|tag| {
            let text = tag_text(tag as u8);
            // Redis hashes what stands between the braces.
            crc16::State::<crc16::XMODEM>::calculate(&text[1..3]) % SLOTS
        })
    })
}
