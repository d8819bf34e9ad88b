//! All counters of the statistics, by key. Bounded: what requests bring along gets no key of its own once there are many.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, RwLock};

use super::{
    counts::Counts,
    key::{StatKey, sanitized},
};

/// Most keys made of values that requests bring along. Further ones of a domain count together, as its [`OTHER`].
pub const MOST_REQUEST_KEYS: usize = 10_000;

/// Most unknown domains that are told apart; further ones count together, as [`OTHER`].
pub const MOST_UNKNOWN_DOMAINS: usize = 1_000;

/// Longest key or domain in bytes that is told apart; longer ones count as [`OTHER`].
pub const LONGEST_NAME: usize = 1_024;

/// What is counted together.
pub const OTHER: &str = "other";

/// Keys of rules up to which none is forgotten; beyond that, those of rules that are gone.
const KEPT_RULE_KEYS: usize = 1_000;

/// The counters of all rules, and a few of the whole service.
#[derive(Debug)]
pub struct Statistics {
    near_limit_ratio: f32,
    keys: RwLock<Keys>,
    unknown_domains: Mutex<HashMap<Box<str>, u64>>,
    global_shadow: AtomicU64,
}

#[derive(Debug)]
struct Keys {
    counts: HashMap<StatKey, Entry>,
    from_requests: usize,
    /// Number of entries at which those of rules that are gone are forgotten.
    forget_at: usize,
}

#[derive(Debug)]
struct Entry {
    counts: Arc<Counts>,
    from_request: bool,
}

impl Statistics {
    /// No counter yet. Hits beyond `near_limit_ratio` of a capacity count as near the limit.
    pub fn new(near_limit_ratio: f32) -> Self {
        Self {
            near_limit_ratio,
            keys: RwLock::new(Keys {
                counts: HashMap::new(),
                from_requests: 0,
                forget_at: KEPT_RULE_KEYS,
            }),
            unknown_domains: Mutex::default(),
            global_shadow: AtomicU64::default(),
        }
    }

    /// The part of a capacity beyond which hits are near the limit.
    pub fn near_limit_ratio(&self) -> f32 {
        self.near_limit_ratio
    }

    /// The counters of a rule's own key. Whoever keeps them keeps the key.
    pub fn of_rule(&self, key: &StatKey) -> Arc<Counts> {
        let mut keys = self.keys.write();
        if keys.counts.len() >= keys.forget_at {
            keys.forget();
        }
        keys.get_or_add(key.clone(), false)
    }

    /// The counters of a key made of what a request brought along, or of the domain's [`OTHER`] if there are too many
    /// keys or this one is too long.
    pub fn of_request(&self, key: StatKey) -> Arc<Counts> {
        let keys = self.keys.read();
        if let Some(known) = keys.counts.get(&key) {
            return Arc::clone(&known.counts);
        }
        let key = match keys.from_requests < MOST_REQUEST_KEYS && key.text().len() <= LONGEST_NAME {
            true => key,
            // Only known domains come here, so these are as few as the domains.
            false => StatKey::new(key.domain(), [OTHER]),
        };
        let known = keys.counts.get(&key).map(|known| Arc::clone(&known.counts));
        drop(keys);
        known.unwrap_or_else(|| self.keys.write().get_or_add(key, true))
    }

    /// All keys and their counters, in no order.
    pub fn all(&self) -> Vec<(StatKey, Arc<Counts>)> {
        let keys = self.keys.read();
        keys.counts
            .iter()
            .map(|(key, entry)| (key.clone(), Arc::clone(&entry.counts)))
            .collect()
    }

    /// Counts descriptors of a domain that no plan has.
    pub fn unknown_domain(&self, domain: &str, descriptors: usize) {
        let mut domains = self.unknown_domains.lock();
        let full = domains.len() >= MOST_UNKNOWN_DOMAINS;
        let clean = match sanitized(domain) {
            clean if clean.len() > LONGEST_NAME => OTHER.into(),
            clean if full && !domains.contains_key(&*clean) => OTHER.into(),
            clean => clean,
        };
        match domains.get_mut(&*clean) {
            Some(count) => *count += descriptors as u64,
            None => {
                domains.insert(clean.into(), descriptors as u64);
            }
        }
    }

    /// Descriptors by domain that no plan has, in no order.
    pub fn unknown_domains(&self) -> Vec<(Box<str>, u64)> {
        let domains = self.unknown_domains.lock();
        let all = domains.iter().map(|(name, count)| (name.clone(), *count));
        all.collect()
    }

    /// Counts a refusal that became an OK since the whole service is in shadow mode.
    pub fn count_global_shadow(&self) {
        self.global_shadow.fetch_add(1, Relaxed);
    }

    /// Refusals that became an OK since the whole service is in shadow mode.
    pub fn global_shadow(&self) -> u64 {
        self.global_shadow.load(Relaxed)
    }
}

impl Keys {
    fn get_or_add(&mut self, key: StatKey, from_request: bool) -> Arc<Counts> {
        let entry = self.counts.entry(key).or_insert_with(|| {
            self.from_requests += usize::from(from_request);
            Entry {
                counts: Arc::default(),
                from_request,
            }
        });
        Arc::clone(&entry.counts)
    }

    /// Forgets the keys of rules that are gone.
    fn forget(&mut self) {
        self.counts
            .retain(|_, entry| entry.from_request || Arc::strong_count(&entry.counts) > 1);
        self.forget_at = (2 * self.counts.len()).max(KEPT_RULE_KEYS);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::counts::Counter, *};
    use crate::{descriptor::Hits, statistics::Judged};

    fn hit(counts: &Counts) {
        let judged = Judged {
            hits: Hits::Take(1),
            capacity: 1,
            left: 1,
            fits: true,
            shadow: false,
            by_cache: false,
        };
        counts.count(&judged, 0.8);
    }

    #[test]
    fn keys_from_requests_are_bounded_and_what_is_beyond_counts_as_other() {
        let statistics = Statistics::new(0.8);
        for user in 0..MOST_REQUEST_KEYS + 5 {
            hit(&statistics.of_request(StatKey::new("shop", [format!("user_{user}")])));
        }
        let all = statistics.all();
        assert_eq!(all.len(), MOST_REQUEST_KEYS + 1);
        let other = all.iter().find(|(key, _)| key.text() == "shop.other");
        assert_eq!(other.unwrap().1.get(Counter::TotalHits), 5);
        hit(&statistics.of_request(StatKey::new("long", ["x".repeat(LONGEST_NAME)])));
        let other = StatKey::new("long", [OTHER]);
        assert_eq!(statistics.of_rule(&other).get(Counter::TotalHits), 1);
        let rule = statistics.of_rule(&StatKey::new("shop", ["late"]));
        hit(&rule);
        assert!(
            statistics
                .all()
                .iter()
                .any(|(key, _)| key.text() == "shop.late")
        );
    }

    #[test]
    fn a_rule_and_a_request_of_one_key_count_together() {
        let statistics = Statistics::new(0.8);
        let key = StatKey::new("shop", ["user_vip"]);
        hit(&statistics.of_rule(&key));
        hit(&statistics.of_request(key.clone()));
        assert_eq!(statistics.of_rule(&key).get(Counter::TotalHits), 2);
    }

    #[test]
    fn keys_of_rules_that_are_gone_are_forgotten() {
        let statistics = Statistics::new(0.8);
        let kept = statistics.of_rule(&StatKey::new("shop", ["kept"]));
        for rule in 0..10 * KEPT_RULE_KEYS {
            drop(statistics.of_rule(&StatKey::new("shop", [format!("gone_{rule}")])));
        }
        assert!(statistics.all().len() <= KEPT_RULE_KEYS);
        assert!(Arc::ptr_eq(
            &kept,
            &statistics.of_rule(&StatKey::new("shop", ["kept"]))
        ));
    }

    #[test]
    fn unknown_domains_are_bounded() {
        let statistics = Statistics::new(0.8);
        for domain in 0..MOST_UNKNOWN_DOMAINS + 5 {
            statistics.unknown_domain(&format!("d{domain}"), 1);
        }
        statistics.unknown_domain("d0", 2);
        statistics.unknown_domain(&"x".repeat(LONGEST_NAME + 1), 1);
        let domains: HashMap<_, _> = statistics.unknown_domains().into_iter().collect();
        assert_eq!(domains.len(), MOST_UNKNOWN_DOMAINS + 1);
        assert_eq!((domains["d0"], domains[OTHER]), (3, 6));
    }
}
