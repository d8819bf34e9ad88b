//! Counts in memory, at the moment of the decision: the stamps of who and what, a lock of one of many shards, three numbers.
//!
//! A row that is there costs no allocation, and for a key of a file no hash. A shard that is full counts what is new as
//! [`Row::other`]. Rows that nobody has used since they were taken the last time make room.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{Counts, Row, period::hour_of};
use crate::{
    clock::Clock,
    plan::{KnownKey, Rule, RuleLimit, stamp},
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

/// Who asks. By default somebody without a known API key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Requester<'a> {
    id: &'a str,
    tier: &'a str,
    stamp: u128,
}

/// A requester's page of the meter, for one decision.
#[derive(Debug)]
pub struct Tab<'a> {
    meter: &'a Meter,
    hour: u32,
    domain: &'a str,
    requester: Requester<'a>,
}

impl<'a> Requester<'a> {
    /// Who has an API key of that id, in that tier.
    pub fn new(id: &'a str, tier: &'a str) -> Self {
        let stamp = stamp(&[id, tier]);
        Self { id, tier, stamp }
    }
}

impl<'a> From<KnownKey<'a>> for Requester<'a> {
    fn from(key: KnownKey<'a>) -> Self {
        Self {
            id: key.id(),
            tier: key.tier(),
            stamp: key.stamp(),
        }
    }
}

impl Meter {
    /// A meter of at most `most_rows` rows, in the hours of `clock`.
    pub fn new(most_rows: usize, clock: Arc<dyn Clock>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most_per_shard: most_rows.div_ceil(SHARDS),
            clock,
            other_hits: HitSum::default(),
        }
    }

    /// Where a decision in `domain` counts that is made now.
    pub fn open<'a>(&'a self, domain: &'a str, requester: Requester<'a>) -> Tab<'a> {
        Tab {
            meter: self,
            hour: hour_of(self.clock.now()),
            domain,
            requester,
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
        let place = self.place(what);
        let meter = self.meter;
        let mut shard = meter.shards[(place >> 64) as usize % SHARDS].lock();
        if let Some(entry) = shard.rows.get_mut(&place) {
            entry.counts.add(counts);
        } else if shard.rows.len() < meter.most_per_shard {
            let entry = Entry {
                hour: self.hour,
                row: Arc::new(self.row(what)),
                counts,
            };
            shard.rows.insert(place, entry);
        } else {
            shard.count_other(self.hour, counts);
            meter.lose_row(counts);
        }
    }

    /// Stands for the row and its hour.
    fn place(&self, what: Limited<'_>) -> u128 {
        let what = match what {
            // The domain and the rule's path are in it.
            Limited::Limit(_, limit) => limit.stamp(),
            Limited::Unlimited(rule) => stamp(&[&rule.domain, &rule.path, "unlimited"]),
            Limited::Denied(rule) => stamp(&[&rule.domain, &rule.path, "denied"]),
        };
        // Stamps are as random as drawn, so their sum is.
        self.requester
            .stamp
            .wrapping_add(what)
            .wrapping_add(self.hour.into())
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
        let Requester { id, tier, .. } = self.requester;
        Row::from([self.domain, id, tier, &limit])
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
