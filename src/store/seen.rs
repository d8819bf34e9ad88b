//! What this replica last saw of the store's buckets: the deny cache, and where local decisions start from. Bounded; does no
//! I/O and reads no clock.
//!
//! A bucket as reported, refilled for the time since its report was asked for, holds at least what the store's bucket holds
//! now: others can only have taken. What does not fit into it would be refused by the store too. The exception is a refund
//! through another replica, which shows when the report is [`LIFE`] old.
//!
//! A refusal that charges something must reach the store, so this answers only for takes that are all or nothing; and where a
//! limit has a penalty, which counts refusals, only while a penalty runs. Settings may
//! ask for what envoyproxy/ratelimit calls its local cache: then a fixed window that is overdrawn is refused here until it
//! ends, uncharged, and other refusals come from here only once the store has refused too.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    BucketKey, Item, Take, Taken,
    judge::{Places, judge},
    key::Prehashed,
};
use crate::{
    bucket::{Balance, Bucket, Found, Strikes},
    clock::Timestamp,
    descriptor::Hits,
    limit::{Kind, Limit, Period},
    plan::{Charge, Role},
};

/// How long a report can refuse.
pub const LIFE: Duration = Duration::from_secs(1);

/// From this age on, one request renews a report that refuses, while it still refuses the others.
const RENEW: Duration = Duration::from_millis(990);

const SHARDS: usize = 64;

/// Takes of more items are not looked up: nobody's usual traffic.
const MOST_ITEMS: usize = 64;

/// Last reports by bucket.
#[derive(Debug)]
pub struct Seen {
    shards: Box<[Mutex<Shard>]>,
    half: usize,
    local_cache: bool,
}

/// What the store said of a bucket.
#[derive(Debug, Clone, Copy)]
pub struct News<'a> {
    /// The bucket after the decision.
    pub bucket: &'a Bucket,
    /// Whether the hits asked for did not fit.
    pub over: bool,
    /// The store's time of the decision.
    pub at: Timestamp,
    /// When the take was sent that was answered so.
    pub sent_at: Instant,
    /// Whether tokens may come back to it that replicas have taken ahead, so that it refuses nobody.
    pub lent: bool,
}

/// Two halves: when the young one is full it becomes the old one, whose reports nobody has renewed for longest.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u128, Report, Prehashed>,
    old: HashMap<u128, Report, Prehashed>,
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
    /// Whether the store refused when it reported.
    over: bool,
    renewing: bool,
    lent: bool,
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
            local_cache: false,
        }
    }

    /// The same, as envoyproxy/ratelimit's local cache if `on`: its refusals are marked, as [`Balance::cached`].
    pub fn as_local_cache(self, on: bool) -> Self {
        Self {
            local_cache: on,
            ..self
        }
    }

    /// Notes the bucket of `item` as the store reported it.
    pub fn report(&self, item: &Item, news: News<'_>) {
        let report = Report {
            numbers: numbers(&item.limit.limit),
            bucket: news.bucket.clone(),
            at: news.at,
            sent_at: news.sent_at,
            over: news.over,
            renewing: false,
            lent: news.lent,
        };
        let mut shard = self.shard(&item.key).lock();
        shard.put(item.key.hash(), report, self.half);
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

    /// The penalty that was last seen, however long ago.
    pub fn last_penalty(&self, key: &BucketKey) -> Option<Strikes> {
        let mut shard = self.shard(key).lock();
        match shard.get(key.hash())?.bucket {
            Bucket::Penalty(strikes) => Some(strikes),
            _ => None,
        }
    }

    /// The store's refusal of `take`, if it is certain and every balance of it is known.
    pub fn refusal(&self, take: &Take, now: Instant) -> Option<Taken> {
        let certain = !take.dry
            && take.items.len() <= MOST_ITEMS
            && take.items.iter().all(|item| {
                matches!(item.hits, Hits::Take(_))
                    && matches!(item.charge, Charge::AllOrNothing | Charge::Strike)
            });
        if !certain || !self.refuses_one(take, now) {
            return None;
        }
        let mut buckets = SmallVec::<[Bucket; 2]>::new();
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
        let (mut taken, _) = judge(take, &places, &mut buckets, asked_at);
        if taken.balances.iter().any(|balance| balance.charged) {
            return None;
        }
        for balance in &mut taken.balances {
            balance.cached = self.local_cache && !balance.fits;
        }
        (!taken.admitted).then_some(taken)
    }

    /// The local cache's answer to `item`: its fixed window is overdrawn, so that nothing fits until it ends.
    pub fn overdrawn(&self, item: &Item, now: Instant) -> Option<Balance> {
        let limit = &item.limit.limit;
        if !self.local_cache || limit.kind() != Kind::FixedWindow {
            return None;
        }
        let Hits::Take(hits) = item.hits else {
            return None;
        };
        let mut shard = self.shard(&item.key).lock();
        let report = shard.get(item.key.hash())?;
        let bucket = report.refilled(limit, now);
        let left = bucket.balance(limit);
        if left >= 0 || !report.fits_limit(item) {
            return None;
        }
        let found = Found {
            fits: false,
            charged: false,
            left,
        };
        let at = report
            .at
            .after(now.saturating_duration_since(report.sent_at));
        let balance = bucket.conclude(limit, found, hits, at);
        Some(Balance {
            cached: true,
            ..balance
        })
    }

    /// Whether some item that can refuse does not fit. Most requests pass, so this is asked first, without a copy of the rest.
    fn refuses_one(&self, take: &Take, now: Instant) -> bool {
        let is_guard = |item: &Item| item.charge == Charge::Strike;
        let guarded = take.items.iter().any(is_guard);
        take.items.iter().any(|item| {
            item.role != Role::Shadow
                && (!guarded || is_guard(item))
                && !self.certainly_fits(item)
                && self
                    .fresh(item, now)
                    .is_some_and(|(bucket, at)| !fits_in_time(item, &bucket, at))
        })
    }

    /// Whether no report could refuse, as the bucket of the last one has room without any refill.
    fn certainly_fits(&self, item: &Item) -> bool {
        let mut shard = self.shard(&item.key).lock();
        let report = shard.get(item.key.hash());
        report.is_none_or(|report| report.bucket.fits(&item.limit.limit, item.hits))
    }

    /// The bucket and the store's time at `now`, from a report that may still refuse.
    fn fresh(&self, item: &Item, now: Instant) -> Option<(Bucket, Timestamp)> {
        let mut shard = self.shard(&item.key).lock();
        let report = shard.get(item.key.hash())?;
        let age = now.saturating_duration_since(report.sent_at);
        let useless = report.lent || self.local_cache && !report.over;
        if age >= LIFE || useless || !report.fits_limit(item) {
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

/// Whether the hits of `item` fit into a refilled bucket at `now`, or within its patience.
fn fits_in_time(item: &Item, bucket: &Bucket, now: Timestamp) -> bool {
    let limit = &item.limit.limit;
    let later = |hits| {
        let until = now.after(Duration::from_micros(item.patience_us.into()));
        hits <= u64::from(limit.capacity()) && bucket.fits_by(limit, hits, until)
    };
    match item.hits {
        Hits::Take(hits) if item.patience_us > 0 => later(hits),
        hits => bucket.fits(limit, hits),
    }
}

impl Shard {
    fn get(&mut self, id: u128) -> Option<&mut Report> {
        match self.young.get_mut(&id) {
            Some(report) => Some(report),
            None => self.old.get_mut(&id),
        }
    }

    /// Keeps `report`, unless what is known is newer.
    fn put(&mut self, id: u128, report: Report, half: usize) {
        if let Some(known) = self.young.get_mut(&id) {
            if report.replaces(known) {
                *known = report;
            }
            return;
        }
        if self
            .old
            .get(&id)
            .is_some_and(|known| !report.replaces(known))
        {
            return;
        }
        if self.young.len() >= half {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        clock::{Clock, ManualClock},
        plan::{OnStoreError, RuleLimit},
        store::MemoryStore,
    };

    const LIMITS: [&str; 5] = [
        "10/second burst 20",
        "3/2s sliding",
        "2/second calendar",
        "1/second",
        "4/second delayed",
    ];

    fn rule(text: &str) -> Arc<RuleLimit> {
        let limit: Limit = match text.strip_suffix(" delayed") {
            Some(text) => text.parse::<Limit>().expect("a limit").with_delay(LIFE / 2),
            None => text.parse(),
        }
        .expect("a limit");
        Arc::new(RuleLimit::new(limit, None, text, ""))
    }

    #[derive(Debug, Clone)]
    struct Step {
        moves_us: u64,
        latency_us: u64,
        replica: usize,
        wants: Vec<(usize, Hits, Role)>,
        /// Whether the answer arrives only after that of a later step.
        late: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        let hits =
            prop_oneof![9 => (1_u64..6).prop_map(Hits::Take), 1 => (1_u64..4).prop_map(Hits::Give)];
        let role =
            prop_oneof![4 => Just(Role::Enforced), 1 => Just(Role::Shadow), 1 => Just(Role::Quota)];
        let moves_us = prop_oneof![4 => 0..20_000_u64, 1 => 0..1_500_000_u64];
        let want = (0..LIMITS.len(), hits, role);
        (
            moves_us,
            0..5_000_u64,
            0..2_usize,
            vec(want, 1..4),
            prop::bool::weighted(0.2),
        )
            .prop_map(|(moves_us, latency_us, replica, wants, late)| Step {
                moves_us,
                latency_us,
                replica,
                wants,
                late,
            })
    }

    fn take(wants: &[(usize, Hits, Role)], rules: &[Arc<RuleLimit>]) -> Take {
        let items = wants.iter().map(|(limit, hits, role)| Item {
            key: BucketKey::new(rules[*limit].key_prefix(), b""),
            limit: rules[*limit].clone(),
            hits: *hits,
            role: *role,
            charge: Charge::AllOrNothing,
            patience_us: match hits {
                Hits::Take(hits) if *role != Role::Shadow => {
                    rules[*limit].limit.delay_us() / *hits as u32
                }
                _ => 0,
            },
            on_store_error: OnStoreError::Local,
        });
        Take {
            items: items.collect(),
            dry: false,
        }
    }

    fn news(bucket: &Bucket, at: Timestamp, sent_at: Instant) -> News<'_> {
        News {
            bucket,
            over: false,
            at,
            sent_at,
            lent: false,
        }
    }

    /// A report that has not arrived yet: to whom, about what, and the rest of [`Seen::report`].
    type Report = (usize, Item, Bucket, Timestamp, Instant);

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        /// Two replicas on one store, whose answers overtake each other.
        #[test]
        fn never_refuses_what_the_store_would_admit(steps in vec(step(), 1..200)) {
            let rules: Vec<_> = LIMITS.iter().map(|text| rule(text)).collect();
            let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_700_000_000_000_000)));
            let store = MemoryStore::new(10_000, clock.clone());
            let replicas = [Seen::new(10_000), Seen::new(10_000)];
            let mut now = Instant::now() + LIFE;
            let mut given: HashMap<u128, [Option<Instant>; 2]> = HashMap::new();
            let mut late: Vec<Report> = Vec::new();
            for step in steps {
                clock.advance(Duration::from_micros(step.moves_us));
                now += Duration::from_micros(step.moves_us);
                let take = take(&step.wants, &rules);
                if let Some(refusal) = replicas[step.replica].refusal(&take, now) {
                    let truth = store.take(&Take { dry: true, ..take.clone() });
                    // A refund through the other replica may stay unseen for a report's life.
                    let refunded = take.items.iter().any(|item| {
                        let by_other = given.get(&item.key.hash()).and_then(|by| by[1 - step.replica]);
                        by_other.is_some_and(|at| now.duration_since(at) <= LIFE)
                    });
                    prop_assert!(!refusal.admitted);
                    prop_assert!(!truth.admitted || refunded, "{:?} {:?}", refusal, truth);
                    continue;
                }
                let sent_at = now - Duration::from_micros(step.latency_us);
                for item in &take.items {
                    if matches!(item.hits, Hits::Give(_)) {
                        replicas[step.replica].forget(&item.key);
                        given.entry(item.key.hash()).or_default()[step.replica] = Some(now);
                    }
                }
                let gives = take.items.iter().any(|item| matches!(item.hits, Hits::Give(_)));
                let buckets = std::sync::Mutex::new(HashMap::new());
                store.take(&take);
                // The take has been decided; a look shows what its answer reports.
                store.take_prepared(&Take { dry: true, ..take.clone() }, |item, bucket, at| {
                    let mut bucket = bucket.clone();
                    bucket.refill(&item.limit.limit, at);
                    buckets.lock().expect("one thread").insert(item.key.hash(), bucket);
                });
                let buckets = buckets.into_inner().expect("one thread");
                let reports = take.items.iter().map(|item| {
                    (step.replica, item.clone(), buckets[&item.key.hash()].clone(), clock.now(), sent_at)
                });
                if step.late && !gives {
                    late.extend(reports);
                } else {
                    for (replica, item, bucket, at, sent_at) in reports.chain(late.drain(..)) {
                        replicas[replica].report(&item, news(&bucket, at, sent_at));
                    }
                }
            }
        }
    }

    #[test]
    fn a_report_refuses_for_a_second_and_is_renewed_by_one() {
        let rules = [rule("1/second"), rule("9/second")];
        let seen = Seen::new(100);
        let start = Instant::now();
        let at = Timestamp::from_micros(1_700_000_000_000_000);
        let ask = take(&[(0, Hits::Take(5), Role::Enforced)], &rules);
        let item = &ask.items[0];
        assert!(seen.refusal(&ask, start).is_none());
        seen.report(item, news(&Bucket::full(&item.limit.limit, at), at, start));
        let after = |millis| start + Duration::from_millis(millis);
        assert!(seen.refusal(&ask, after(949)).is_some());
        assert!(seen.refusal(&ask, after(990)).is_none(), "one renews");
        assert!(
            seen.refusal(&ask, after(991)).is_some(),
            "the others need not"
        );
        assert!(seen.refusal(&ask, after(1_000)).is_none());
    }

    #[test]
    fn a_raised_limit_shows_at_once() {
        let seen = Seen::new(100);
        let (now, at) = (
            Instant::now(),
            Timestamp::from_micros(1_700_000_000_000_000),
        );
        let [low, high] = ["1/second", "9/second"].map(|text| {
            let mut take = take(&[(0, Hits::Take(5), Role::Enforced)], &[rule(text)]);
            take.items[0].key = BucketKey::new("", b"same");
            take
        });
        seen.report(
            &low.items[0],
            news(&Bucket::full(&low.items[0].limit.limit, at), at, now),
        );
        assert!(seen.refusal(&low, now).is_some());
        assert!(seen.refusal(&high, now).is_none());
    }

    #[test]
    fn room_is_bounded() {
        let rules = [rule("1/second")];
        let seen = Seen::new(1_000);
        let (now, at) = (
            Instant::now(),
            Timestamp::from_micros(1_700_000_000_000_000),
        );
        let mut item = take(&[(0, Hits::Take(1), Role::Enforced)], &rules)
            .items
            .remove(0);
        for number in 0..100_000_u32 {
            item.key = BucketKey::new("", &number.to_be_bytes());
            seen.report(&item, news(&Bucket::full(&item.limit.limit, at), at, now));
        }
        let kept: usize = seen
            .shards
            .iter()
            .map(|shard| shard.lock())
            .map(|shard| shard.young.len() + shard.old.len())
            .sum();
        assert!(kept <= 1_000, "{kept}");
    }
}
