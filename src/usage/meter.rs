//! Counts in memory, at the moment of the decision: a hash of who and what, a lock of one of many shards, three numbers.
//!
//! A row that is there costs no allocation. A shard that is full counts what is new as [`Row::other`]. Rows that nobody has
//! used since they were taken the last time make room.

use std::{collections::HashMap, hash::Hasher as _, sync::Arc};

use parking_lot::Mutex;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::{Counts, Row, period::hour_of};
use crate::{
    clock::Clock,
    plan::{Rule, RuleLimit},
    statistics::HitSum,
    store::key::Prehashed,
};

/// Most rows that are in use at a time, unless told otherwise. A row takes some 250 bytes.
pub const MOST_ROWS: usize = 1 << 17;

const SHARDS: usize = 64;

/// Hours for which a shard keeps what is beyond its bound apart. There are more only where a clock goes astray.
const OTHER_HOURS: usize = 4;

/// What became of hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They passed.
    Admitted,
    /// They passed, and were beyond the limit.
    Overage,
    /// The limit refused them.
    Refused,
}

/// What was used.
#[derive(Debug, Clone, Copy)]
pub enum Limited<'a> {
    /// A limit, of the rule of that path or brought by the request.
    Limit(Option<&'a Rule>, &'a RuleLimit),
    /// A rule that lets everything pass.
    Unlimited(&'a Rule),
    /// A rule that refuses without counting.
    Denied(&'a Rule),
}

/// Counts of one process that nobody has taken yet.
#[derive(Debug)]
pub struct Meter {
    shards: Box<[Mutex<Shard>]>,
    most_per_shard: usize,
    clock: Arc<dyn Clock>,
    /// Drawn anew for each process, so that no client can make two rows collide.
    hash_key: (u64, u64),
    other_hits: HitSum,
}

#[derive(Debug, Default)]
struct Shard {
    rows: HashMap<u128, Entry, Prehashed>,
    /// What is beyond the bound, by hour.
    other: Vec<(u32, Counts)>,
}

#[derive(Debug)]
struct Entry {
    hour: u32,
    row: Arc<Row>,
    counts: Counts,
}

/// A requester's page of the meter, for one decision.
#[derive(Debug)]
pub struct Tab<'a> {
    meter: &'a Meter,
    hasher: SipHasher13,
    hour: u32,
    domain: &'a str,
    key: &'a str,
    tier: &'a str,
}

impl Meter {
    /// A meter of at most `most_rows` rows, in the hours of `clock`.
    pub fn new(most_rows: usize, clock: Arc<dyn Clock>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most_per_shard: most_rows.div_ceil(SHARDS),
            clock,
            hash_key: (rand::random(), rand::random()),
            other_hits: HitSum::default(),
        }
    }

    /// Where a decision in `domain` counts, made now for an API key: its id and its tier, or two empty texts.
    pub fn open<'a>(&'a self, domain: &'a str, key: &'a str, tier: &'a str) -> Tab<'a> {
        let hour = hour_of(self.clock.now());
        let mut hasher = SipHasher13::new_with_keys(self.hash_key.0, self.hash_key.1);
        hasher.write_u32(hour);
        hasher.write_usize(key.len());
        hasher.write(key.as_bytes());
        hasher.write_usize(tier.len());
        hasher.write(tier.as_bytes());
        Tab {
            meter: self,
            hasher,
            hour,
            domain,
            key,
            tier,
        }
    }

    /// Takes what was counted since the last time: hours since 1970, whose use of what, and how much. Rows of one hour and
    /// name may come twice.
    pub fn drain(&self, mut into: impl FnMut(u32, Arc<Row>, Counts)) {
        for shard in &self.shards {
            // What is done with it must not keep decisions waiting.
            let mut taken = Vec::new();
            let mut shard = shard.lock();
            shard.rows.retain(|_, entry| {
                let used = !entry.counts.is_zero();
                if used {
                    let counts = std::mem::take(&mut entry.counts);
                    taken.push((entry.hour, Arc::clone(&entry.row), counts));
                }
                used
            });
            let other = std::mem::take(&mut shard.other);
            drop(shard);
            for (hour, row, counts) in taken {
                into(hour, row, counts);
            }
            for (hour, counts) in other {
                into(hour, Arc::new(Row::other()), counts);
            }
        }
    }

    /// Rows in memory.
    pub fn rows(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().rows.len())
            .sum()
    }

    /// Most of them.
    pub fn most_rows(&self) -> usize {
        self.most_per_shard * SHARDS
    }

    /// Hits so far that no row of their own had room for, here or on their way to the store.
    pub fn other_hits(&self) -> u64 {
        self.other_hits.get()
    }

    /// Counts hits that lose their row on the way to the store.
    pub(super) fn lose_row(&self, counts: Counts) {
        self.other_hits.add(counts.admitted.unsigned_abs());
        self.other_hits.add(counts.refused.unsigned_abs());
    }
}

impl Tab<'_> {
    /// Counts `hits` on a limit; below zero those that are given back.
    pub fn count(&self, what: Limited<'_>, fate: Fate, hits: i64) {
        let mut counts = Counts::default();
        match fate {
            Fate::Admitted => counts.admitted = hits,
            Fate::Overage => (counts.admitted, counts.overage) = (hits, hits),
            Fate::Refused => counts.refused = hits,
        }
        if counts.is_zero() {
            return;
        }
        let hash = self.hash(what);
        let meter = self.meter;
        let mut shard = meter.shards[(hash >> 64) as usize % SHARDS].lock();
        if let Some(entry) = shard.rows.get_mut(&hash) {
            entry.counts.add(counts);
        } else if shard.rows.len() < meter.most_per_shard {
            let entry = Entry {
                hour: self.hour,
                row: Arc::new(self.row(what)),
                counts,
            };
            shard.rows.insert(hash, entry);
        } else {
            shard.count_other(self.hour, counts);
            meter.lose_row(counts);
        }
    }

    /// Stands for the row and its hour.
    fn hash(&self, what: Limited<'_>) -> u128 {
        let mut hasher = self.hasher;
        let (kind, rule) = match what {
            Limited::Limit(_, limit) => {
                // The domain and the rule's path are in it.
                hasher.write(limit.identity().as_bytes());
                return hasher.finish128().as_u128();
            }
            Limited::Unlimited(rule) => (0, rule),
            Limited::Denied(rule) => (1, rule),
        };
        // No limit's identity begins so.
        hasher.write_u8(kind);
        for text in [&*rule.domain, &*rule.path] {
            hasher.write_usize(text.len());
            hasher.write(text.as_bytes());
        }
        hasher.finish128().as_u128()
    }

    fn row(&self, what: Limited<'_>) -> Row {
        let limit = match what {
            Limited::Limit(rule, limit) => match (&limit.name, rule) {
                (None, Some(rule)) => format!("{}:{}", rule.path, limit.limit),
                _ => limit.label().to_owned(),
            },
            Limited::Unlimited(rule) => format!("{}:unlimited", rule.path),
            Limited::Denied(rule) => format!("{}:denied", rule.path),
        };
        Row::from([self.domain, self.key, self.tier, &limit])
    }
}

impl Shard {
    fn count_other(&mut self, hour: u32, counts: Counts) {
        let full = self.other.len() >= OTHER_HOURS;
        match self.other.iter_mut().find(|(known, _)| *known == hour) {
            Some((_, known)) => known.add(counts),
            None if full => self.other[OTHER_HOURS - 1].1.add(counts),
            None => self.other.push((hour, counts)),
        }
    }
}

#[cfg(test)]
mod tests;
