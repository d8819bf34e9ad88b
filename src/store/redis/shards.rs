//! Several Redis servers as one store: the nodes of a cluster, and a second Redis for limits per second.
//!
//! A take whose buckets are in one place is one script call, as on a single Redis. One that spans places takes from each in turn, the
//! tightest first, and gives back what it took if one refuses: never over, and until the gift arrives a little under. If all its
//! items are charged on their own, it takes from all places at once. What this
//! replica remembers of empty buckets refuses nobody here, as another request may be about to give back.

use std::{
    cmp::min,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures::future::join_all;
use smallvec::{SmallVec, smallvec};

use super::{
    RedisSettings, RedisStore, StoreStats, Task,
    checks::Finding,
    cluster::Cluster,
    lane::{Asked, Reply, Undecided, Way},
    lease::{self, Leases, Leasing},
    url::Topology,
};
use crate::{
    bucket::Balance,
    descriptor::Hits,
    plan::{Charge, OnStoreError, Role},
    statistics::counted,
    store::{
        Item, StoreError, Take, Taken,
        judge::{Flags, admits, charged, roles},
    },
};

/// Several Redis servers. Their tasks end when it is dropped.
#[derive(Debug)]
pub struct Shards {
    places: Arc<Places>,
    _tasks: Vec<Task>,
}

#[derive(Debug)]
struct Places {
    main: Place,
    per_second: Option<Place>,
    timeout: Duration,
    leases: Arc<Leases>,
    stats: Arc<StoreStats>,
    name: String,
}

#[derive(Debug)]
enum Place {
    One(Arc<RedisStore>),
    Cluster(Arc<Cluster>),
}

/// Where a bucket is: whether in the Redis of limits per second, and under which tag of a cluster.
type Home = (bool, u8);

/// What of a take one script call can decide.
struct Part {
    /// The places of its items in the whole.
    items: SmallVec<[usize; 2]>,
    take: Take,
}

/// Hits that put one bucket right, for the items at these places.
type Correction = (SmallVec<[usize; 2]>, Take);

impl Shards {
    /// Starts to connect in the background and returns at once. Needs a Tokio runtime.
    pub fn connect(settings: RedisSettings) -> Self {
        let stats = Arc::new(StoreStats::default());
        let leases = Arc::new(Leases::new(settings.clock.clone(), stats.clone()));
        let mut tasks = Vec::new();
        let name = settings.url.to_string();
        let mut place = |url: &_| {
            let mut settings = settings.clone();
            settings.url = Clone::clone(url);
            Place::start(settings, leases.clone(), stats.clone(), &mut tasks)
        };
        let places = Places {
            main: place(&settings.url),
            per_second: settings.per_second.as_ref().map(place),
            timeout: settings.timeout,
            leases: leases.clone(),
            stats,
            name,
        };
        let places = Arc::new(places);
        let lender = places.clone();
        let keeping = lease::keep(leases, move |item| lender.tell(item));
        tasks.push(Task(tokio::spawn(keeping)));
        Self {
            places,
            _tasks: tasks,
        }
    }

    /// Waits until every server is in use, at most `limit`. Returns whether they are.
    pub async fn first_connection(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        for place in self.places.all() {
            let rest = end.saturating_duration_since(Instant::now());
            let connected = match place {
                Place::One(node) => node.first_connection(rest).await,
                Place::Cluster(cluster) => cluster.first_connection(rest).await,
            };
            if !connected {
                return false;
            }
        }
        true
    }

    /// As [`RedisStore::take`], wherever the buckets are.
    ///
    /// # Errors
    /// As [`RedisStore::take`].
    pub async fn take(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        match lease::is_leasable(&take) {
            true => Box::pin(lease::take(self, take, deadline)).await,
            false => self.take_past_leases(take, deadline).await,
        }
    }

    async fn take_past_leases(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        let until = deadline.min(Instant::now() + self.places.timeout);
        let asked = Arc::new(Asked::new(take));
        if self.places.has_together(&asked.take) {
            match self.places.ask(&asked, until, Way::default()).await {
                Ok(taken) => return Ok(taken),
                Err(Undecided::Failed(error)) => return Err(error),
                Err(Undecided::Redirected(_)) => {}
            }
        }
        // A caller that goes away must not leave half of it taken.
        let places = self.places.clone();
        let spanning = tokio::spawn(async move { places.span(&asked.take, until).await });
        spanning.await.unwrap_or_else(|_| {
            Err(StoreError::Lost {
                node: self.places.name.as_str().into(),
                reason: "given up".into(),
            })
        })
    }

    /// Gives back what has been taken ahead and is not spent. Waits for that at most `limit`.
    pub async fn give_back_leases(&self, limit: Duration) {
        lease::give_back(self, limit).await;
    }

    /// What has been counted, over all servers.
    pub fn stats(&self) -> &StoreStats {
        &self.places.stats
    }

    /// Whether a server decides nothing now, and why.
    pub fn is_down(&self) -> Option<Arc<str>> {
        self.servers().iter().find_map(|node| node.is_down())
    }

    /// Replicas of Tollgate that use these servers, as last counted.
    pub fn replicas(&self) -> u32 {
        let replicas = self.servers().iter().map(|node| node.replicas()).max();
        replicas.unwrap_or(1)
    }

    /// What may harm on any of the servers, as found when they were last connected to.
    pub fn findings(&self) -> Vec<Finding> {
        let servers = self.servers().into_iter();
        servers.flat_map(|server| server.findings()).collect()
    }

    /// Takes that wait for a lane now.
    pub fn queued(&self) -> usize {
        self.servers().iter().map(|node| node.queued()).sum()
    }

    fn servers(&self) -> Vec<Arc<RedisStore>> {
        let servers = self.places.all().map(|place| match place {
            Place::One(node) => vec![node.clone()],
            Place::Cluster(cluster) => cluster.owners(),
        });
        servers.flatten().collect()
    }
}

impl Place {
    fn start(
        settings: RedisSettings,
        leases: Arc<Leases>,
        stats: Arc<StoreStats>,
        tasks: &mut Vec<Task>,
    ) -> Self {
        if let Topology::Cluster(seeds) = &settings.url.topology {
            let seeds = seeds.clone();
            let cluster = Arc::new(Cluster::new(settings, &seeds, leases, stats));
            tasks.push(Task(tokio::spawn(cluster.clone().keep_map())));
            return Self::Cluster(cluster);
        }
        Self::One(Arc::new(RedisStore::connect_beside(
            settings, leases, stats,
        )))
    }

    /// The server that has the bucket of `item`.
    fn server(&self, item: &Item) -> Arc<RedisStore> {
        match self {
            Self::One(node) => node.clone(),
            Self::Cluster(cluster) => cluster.owner(item.key.tag()),
        }
    }
}

impl Leasing for Shards {
    fn leases(&self) -> &Leases {
        &self.places.leases
    }

    fn timeout(&self) -> Duration {
        self.places.timeout
    }

    fn tell(&self, item: &Item) {
        self.places.tell(item);
    }

    async fn take_unleased(&self, take: Take, deadline: Instant) -> Result<Taken, StoreError> {
        self.take_past_leases(take, deadline).await
    }
}

impl Places {
    /// As [`Leasing::tell`].
    fn tell(&self, item: &Item) {
        self.place(item).1.server(item).tell(item);
    }

    fn all(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.main).chain(&self.per_second)
    }

    fn place(&self, item: &Item) -> (bool, &Place) {
        match &self.per_second {
            Some(place) if item.limit.limit.period().micros() == 1_000_000 => (true, place),
            _ => (false, &self.main),
        }
    }

    fn home(&self, item: &Item) -> Home {
        match self.place(item) {
            (second, Place::One(_)) => (second, 0),
            (second, Place::Cluster(_)) => (second, item.key.tag()),
        }
    }

    /// Whether one script call can decide the take.
    fn has_together(&self, take: &Take) -> bool {
        let mut homes = take.items.iter().map(|item| self.home(item));
        let first = homes.next();
        homes.all(|home| Some(home) == first)
    }

    /// Asks for what is in one place.
    async fn ask(&self, asked: &Arc<Asked>, until: Instant, way: Way) -> Reply {
        match asked.take.items.first().map(|item| self.place(item).1) {
            Some(Place::One(node)) => node.ask(asked, until, way).await,
            Some(Place::Cluster(cluster)) => cluster.ask(asked, until, way).await,
            None => Ok(Taken {
                admitted: true,
                balances: SmallVec::new(),
                degraded: false,
                not_replicated: false,
            }),
        }
    }

    /// Decides a take that is in several places; by its keys, where a slot is on its way to another server.
    async fn span(&self, take: &Take, until: Instant) -> Result<Taken, StoreError> {
        let together = self.parts(take, |item| (self.home(item), 0));
        if together.len() > 1 {
            match self.take_in_turn(take, together, until).await {
                Ok(taken) => return Ok(taken),
                Err(Undecided::Failed(error)) => return Err(error),
                Err(Undecided::Redirected(_)) => {}
            }
        }
        let apart = self.parts(take, |item| (self.home(item), item.key.hash()));
        let decided = self.take_in_turn(take, apart, until).await;
        decided.map_err(|undecided| match undecided {
            Undecided::Failed(error) => error,
            Undecided::Redirected(_) => StoreError::Unavailable {
                node: self.name.as_str().into(),
                reason: "the slot of a bucket is found nowhere".into(),
            },
        })
    }

    /// Items whose `same` is equal, in the order of the take.
    fn parts(&self, take: &Take, same: impl Fn(&Item) -> (Home, u128)) -> Vec<Part> {
        let mut parts: Vec<((Home, u128), Part)> = Vec::new();
        for (place, item) in take.items.iter().enumerate() {
            let home = same(item);
            let found = parts.iter().position(|(other, _)| *other == home);
            let at = found.unwrap_or_else(|| {
                let (items, dry) = (SmallVec::new(), take.dry);
                let (places, take) = (SmallVec::new(), Take { items, dry });
                parts.push((
                    home,
                    Part {
                        items: places,
                        take,
                    },
                ));
                parts.len() - 1
            });
            let part = &mut parts[at].1;
            part.items.push(place);
            part.take.items.push(item.clone());
        }
        let mut parts: Vec<Part> = parts.into_iter().map(|(_, part)| part).collect();
        let has_quota = |part: &&mut Part| part.take.items.iter().any(is_quota);
        if parts.iter_mut().filter(has_quota).count() > 1 {
            // One quota rule that passes lets all of them pass, wherever it is: no part can tell.
            for item in parts.iter_mut().flat_map(|part| &mut part.take.items) {
                if is_quota(item) {
                    item.role = Role::Shadow;
                }
            }
        }
        parts
    }

    async fn take_in_turn(&self, take: &Take, mut parts: Vec<Part>, until: Instant) -> Reply {
        if take.dry {
            return self.look(take, &parts, until).await;
        }
        let alone = |item: &Item| item.charge == Charge::Independent;
        if take.items.iter().all(alone) {
            return self.take_at_once(take, &parts, until).await;
        }
        let now = Instant::now();
        parts.sort_by_cached_key(|part| self.room(part, now));
        // What is charged though refused must be asked for, wherever it is.
        let stops = |item: &Item| item.charge == Charge::AllOrNothing;
        let stops = take.items.iter().all(stops);
        let nothing = Flags::from_elem(false, take.items.len());
        let mut answer = Answer::of(take);
        for (number, part) in parts.iter().enumerate() {
            let (before, after) = (&parts[..number], &parts[number + 1..]);
            let asked = Arc::new(Asked::new(part.without_gifts()));
            let taken = match self.ask(&asked, until, Way::default()).await {
                Ok(taken) => part.has_given_nothing(taken),
                Err(undecided) => {
                    self.correct(before, &mut answer, &nothing, until).await;
                    return Err(undecided);
                }
            };
            let refused = !taken.admitted;
            answer.add(part, taken);
            if refused && stops {
                self.correct(before, &mut answer, &nothing, until).await;
                for (part, seen) in after.iter().zip(self.ask_all(after, true, until).await) {
                    answer.add(part, seen?);
                }
                return Ok(answer.taken(false));
            }
        }
        let fits = answer.fits();
        let admitted = admits(roles(take).zip(fits.iter().copied()));
        let wanted = charged(take, &fits, admitted);
        self.correct(&parts, &mut answer, &wanted, until).await;
        Ok(answer.taken(admitted))
    }

    /// Items that are charged whatever the others say need not wait for each other.
    async fn take_at_once(&self, take: &Take, parts: &[Part], until: Instant) -> Reply {
        let mut answer = Answer::of(take);
        let mut undecided = None;
        for (part, reply) in parts.iter().zip(self.ask_all(parts, false, until).await) {
            match reply {
                Ok(taken) => answer.add(part, taken),
                Err(reason) => undecided = Some(reason),
            }
        }
        if let Some(reason) = undecided {
            let nothing = Flags::from_elem(false, take.items.len());
            self.correct(parts, &mut answer, &nothing, until).await;
            return Err(reason);
        }
        let admitted = admits(roles(take).zip(answer.fits()));
        Ok(answer.taken(admitted))
    }

    /// What the parts would say, together.
    async fn look(&self, take: &Take, parts: &[Part], until: Instant) -> Reply {
        let mut answer = Answer::of(take);
        for (part, seen) in parts.iter().zip(self.ask_all(parts, true, until).await) {
            answer.add(part, seen?);
        }
        let admitted = admits(roles(take).zip(answer.fits()));
        Ok(answer.taken(admitted))
    }

    async fn ask_all(&self, parts: &[Part], dry: bool, until: Instant) -> Vec<Reply> {
        join_all(parts.iter().map(|part| async move {
            let take = Take {
                dry,
                ..part.take.clone()
            };
            self.ask(&Arc::new(Asked::new(take)), until, Way::default())
                .await
        }))
        .await
    }

    /// Gives back what was charged of the parts and is not `wanted`, and charges what is, each bucket by itself. A correction
    /// that is not answered in time is on its way all the same.
    async fn correct(&self, parts: &[Part], answer: &mut Answer, wanted: &Flags, until: Instant) {
        let items = parts
            .iter()
            .flat_map(|part| part.items.iter().zip(&part.take.items));
        let mut wrong: SmallVec<[Correction; 2]> = SmallVec::new();
        for (place, item) in items {
            let Some(charged) = answer.balances[*place].map(|balance| balance.charged) else {
                continue;
            };
            // What is struck without a server stays here, and is never told to it. What a server has struck is taken back
            // by nobody.
            let stays = item.charge == Charge::Strike && (answer.degraded || charged);
            if charged == wanted[*place] || stays {
                continue;
            }
            let right = self.right(item, charged);
            let same = wrong
                .iter_mut()
                .find(|(_, take)| take.items[0].key == item.key);
            match same {
                Some((places, take)) => {
                    places.push(*place);
                    take.items.push(right);
                }
                None => {
                    let (places, items) = (smallvec![*place], smallvec![right]);
                    wrong.push((places, Take { items, dry: false }));
                }
            }
        }
        let told = wrong.into_iter().map(|(places, take)| async move {
            let way = Way {
                forced: true,
                ..Way::default()
            };
            let taken = self.ask(&Arc::new(Asked::new(take)), until, way).await;
            Some((places, taken.ok()?.balances))
        });
        for (places, balances) in join_all(told).await.into_iter().flatten() {
            for (place, after) in places.into_iter().zip(balances) {
                answer.correct(place, after);
            }
        }
    }

    /// What undoes `item`, which was charged, or charges it, which was not.
    fn right(&self, item: &Item, charged: bool) -> Item {
        let hits = match (item.hits, charged) {
            (Hits::Take(hits), true) => {
                self.stats.given_back.fetch_add(counted(hits), Relaxed);
                Hits::Give(hits)
            }
            (Hits::Give(hits), true) => Hits::Take(hits),
            (hits, false) => hits,
        };
        Item {
            hits,
            charge: Charge::AllOrNothing,
            // If the server is away by now, it is told afterwards.
            on_store_error: OnStoreError::Local,
            ..item.clone()
        }
    }

    /// Hits that would be left in the tightest bucket of a part, by what was last seen of it.
    fn room(&self, part: &Part, now: Instant) -> i64 {
        let mut room = i64::MAX;
        for item in &part.take.items {
            if let (Role::Enforced | Role::Quota, Hits::Take(hits)) = (item.role, item.hits)
                && item.charge != Charge::Independent
            {
                let limit = &item.limit.limit;
                let server = self.place(item).1.server(item);
                let last = server.shared.seen.last_balance(&item.key, limit, now);
                let balance = last.unwrap_or(i64::from(limit.capacity()));
                let hits = i64::try_from(hits).unwrap_or(i64::MAX);
                room = min(room, balance.saturating_sub(hits));
            }
        }
        room
    }
}

impl Part {
    /// What is asked first. Gifts that a refusal elsewhere would call back come when all have answered: a bucket that was nearly
    /// full has not taken in all that would be called back.
    fn without_gifts(&self) -> Take {
        let mut take = self.take.clone();
        for item in take.items.iter_mut().filter(|item| gives_if_admitted(item)) {
            item.hits = Hits::Give(0);
        }
        take
    }

    fn has_given_nothing(&self, mut taken: Taken) -> Taken {
        for (item, balance) in self.take.items.iter().zip(&mut taken.balances) {
            balance.charged &= !gives_if_admitted(item);
        }
        taken
    }
}

fn gives_if_admitted(item: &Item) -> bool {
    let if_admitted = matches!(item.charge, Charge::AllOrNothing | Charge::Overdraw);
    if_admitted && matches!(item.hits, Hits::Give(_))
}

fn is_quota(item: &Item) -> bool {
    item.role == Role::Quota
}

/// The answers of the parts, by the places of their items.
struct Answer {
    balances: Vec<Option<Balance>>,
    degraded: bool,
    not_replicated: bool,
}

impl Answer {
    fn of(take: &Take) -> Self {
        Self {
            balances: vec![None; take.items.len()],
            degraded: false,
            not_replicated: false,
        }
    }

    fn add(&mut self, part: &Part, taken: Taken) {
        self.degraded |= taken.degraded;
        self.not_replicated |= taken.not_replicated;
        for (place, balance) in part.items.iter().zip(taken.balances) {
            self.balances[*place] = Some(balance);
        }
    }

    /// The item at `place` is charged if it was not, and the other way round; its bucket is `after` it.
    fn correct(&mut self, place: usize, after: Balance) {
        let before = self.balances[place].expect("it was answered");
        self.balances[place] = Some(Balance {
            fits: before.fits,
            charged: !before.charged,
            delay_us: 0,
            ..after
        });
    }

    fn fits(&self) -> Flags {
        let fits = |balance: &Option<Balance>| balance.is_some_and(|balance| balance.fits);
        self.balances.iter().map(fits).collect()
    }

    fn taken(self, admitted: bool) -> Taken {
        let balances = self.balances.into_iter();
        Taken {
            admitted,
            balances: balances
                .map(|balance| balance.expect("every part has answered"))
                .collect(),
            degraded: self.degraded,
            not_replicated: self.not_replicated,
        }
    }
}
