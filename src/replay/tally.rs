//! Counts refusals by who and by what, in bounded memory.

use std::collections::{BTreeMap, HashMap};

use super::{
    Refusal,
    moment::written,
    report::{Decided, Refused},
};
use crate::clock::Timestamp;

/// Most of those refused that are told apart at a time.
const MOST: usize = 100_000;

/// Refusals so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    by_who: HashMap<Refusal, Count>,
    /// By domain, rule and limit: no more than the plans have.
    by_limit: BTreeMap<(String, String, String), Count>,
    /// Most that any of those in `by_who` may lack.
    short_by: u64,
}

#[derive(Debug, Clone, Default)]
struct Count {
    refused: u64,
    newly: u64,
    first: Timestamp,
    last: Timestamp,
}

impl Count {
    fn add(&mut self, at: Timestamp, newly: bool) {
        if self.refused == 0 {
            self.first = at;
        }
        self.refused += 1;
        self.newly += u64::from(newly);
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }
}

impl Tally {
    pub(super) fn add(&mut self, refusal: Refusal, at: Timestamp, newly: bool) {
        let limit = (
            refusal.domain.clone(),
            refusal.rule.clone(),
            refusal.limit.clone(),
        );
        self.by_limit.entry(limit).or_default().add(at, newly);
        if self.by_who.len() >= MOST && !self.by_who.contains_key(&refusal) {
            self.forget_half();
        }
        self.by_who.entry(refusal).or_default().add(at, newly);
    }

    /// Forgets the half that is refused least. One that comes back starts at nothing, so counts may be short by as much.
    fn forget_half(&mut self) {
        let mut counts: Vec<u64> = self.by_who.values().map(|count| count.refused).collect();
        let middle = counts.len() / 2;
        let median = *counts.select_nth_unstable(middle).1;
        self.by_who.retain(|_, count| count.refused > median);
        self.short_by += median;
    }

    /// The limits of a rule that refused.
    pub(super) fn decided(&self, domain: &str, rule: &str) -> Vec<Decided> {
        let from = (domain.to_owned(), rule.to_owned(), String::new());
        let of_rule = self
            .by_limit
            .range(from..)
            .take_while(|((of, path, _), _)| (of.as_str(), path.as_str()) == (domain, rule));
        of_rule
            .map(|((_, _, limit), count)| Decided {
                limit: limit.clone(),
                refused: count.refused,
                newly_refused: count.newly,
                first: written(count.first),
                last: written(count.last),
            })
            .collect()
    }

    /// Those most refused, and how much their counts may be short by.
    pub(super) fn top(&self, most: usize) -> (Vec<Refused>, u64) {
        let mut all: Vec<(&Refusal, &Count)> = self.by_who.iter().collect();
        all.sort_by(|(one, count), (other, more)| (more.refused, one).cmp(&(count.refused, other)));
        let top = all.into_iter().take(most).map(|(refusal, count)| Refused {
            domain: refusal.domain.clone(),
            who: refusal.who.clone(),
            rule: refusal.rule.clone(),
            limit: refusal.limit.clone(),
            refused: count.refused,
            newly_refused: count.newly,
            first: written(count.first),
            last: written(count.last),
        });
        (top.collect(), self.short_by)
    }
}
