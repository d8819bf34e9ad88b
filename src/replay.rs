//! Replays a log of requests against plans, in the log's own time: who would have been refused?
//!
//! Requests go through the same [`Limiter`] and memory store as a server's do, on a clock that the log moves.

pub mod lines;
pub mod moment;
pub mod reader;
pub mod report;
mod tally;
pub mod template;

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Instant};

use crate::{
    clock::{Clock as _, ManualClock, Timestamp},
    decision::{Code, Decision},
    descriptor::{Descriptor, Query},
    keys::KeyTable,
    limit::MOST_DELAY,
    limiter::{Limiter, Pacing},
    plan::{Domain, Match, Plans, Rule, SharedPlans},
    store::{MemoryStore, Store},
};
use report::{Report, Versus};
use tally::Tally;

/// Requests that wait for earlier ones: a log is written when requests end, and a replay goes by when they began.
const MOST_WAITING: usize = 10_000;

/// Most bytes of keys and values that wait so.
const MOST_BYTES_WAITING: usize = 64 << 20;

/// A request of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// When it came.
    pub at: Timestamp,
    /// What Envoy would ask about it, in order; a later question is asked only if the earlier ones pass.
    pub queries: Vec<Query>,
    /// Whether a limit refused it when it came, if the log tells.
    pub refused_then: Option<bool>,
}

/// A replay under way.
#[derive(Debug)]
pub struct Replay {
    clock: Arc<ManualClock>,
    new: Side,
    old: Option<Side>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    bytes_waiting: usize,
    arrived: u64,
    tally: Tally,
    report: Report,
}

/// Plans, and buckets of their own.
#[derive(Debug)]
struct Side {
    plans: Arc<Plans>,
    limiter: Limiter,
    store: Arc<Store>,
}

/// A request by the time it came, and of one time by its place in the log.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    number: u64,
    request: Request,
}

/// Who was refused, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Refusal {
    domain: String,
    who: String,
    rule: String,
    limit: String,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.request.at, self.number).cmp(&(other.request.at, other.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Request {
    /// Of its keys and values.
    fn bytes(&self) -> usize {
        let descriptors = self.queries.iter().flat_map(|query| &query.descriptors);
        let entries = descriptors.flat_map(|descriptor| &descriptor.entries);
        entries
            .map(|entry| entry.key.len() + entry.value.len())
            .sum()
    }
}

impl Replay {
    /// A replay against `new`, side by side with `old` if there is one, with at most `max_buckets` buckets each.
    pub fn new(new: Plans, old: Option<Plans>, max_buckets: usize) -> Self {
        let clock = Arc::new(ManualClock::default());
        let side = |plans| Side::new(plans, &clock, max_buckets);
        Self {
            new: side(new),
            old: old.map(side),
            clock,
            waiting: BinaryHeap::new(),
            bytes_waiting: 0,
            arrived: 0,
            tally: Tally::default(),
            report: Report::default(),
        }
    }

    /// What is counted so far, for the reader of the log to add what it could not use.
    pub fn report(&mut self) -> &mut Report {
        &mut self.report
    }

    /// Takes the next request of the log.
    pub async fn take(&mut self, request: Request) {
        self.arrived += 1;
        self.bytes_waiting += request.bytes();
        self.waiting.push(Reverse(Waiting {
            number: self.arrived,
            request,
        }));
        while self.waiting.len() > MOST_WAITING || self.bytes_waiting > MOST_BYTES_WAITING {
            self.decide_first().await;
        }
    }

    /// Decides what still waits, and tells what came out; of those refused the `top` most refused.
    pub async fn finish(mut self, top: usize) -> Report {
        while !self.waiting.is_empty() {
            self.decide_first().await;
        }
        let sides = [Some(&self.new), self.old.as_ref()];
        self.report.forgotten_buckets = sides.into_iter().flatten().map(Side::forgotten).sum();
        self.report.rules = report::rules(&self.new.plans, &self.tally);
        (self.report.refusals, self.report.refusals_short_by) = self.tally.top(top);
        self.report
    }

    async fn decide_first(&mut self) {
        if let Some(Reverse(Waiting { request, .. })) = self.waiting.pop() {
            self.bytes_waiting -= request.bytes();
            self.decide(&request).await;
        }
    }

    async fn decide(&mut self, request: &Request) {
        self.report.late += u64::from(request.at < self.clock.now());
        // Buckets would not go back in time either.
        self.clock.set(request.at.max(self.clock.now()));
        let refusal = self.new.refusal(&request.queries).await;
        let before = match &self.old {
            Some(old) => Some(old.refusal(&request.queries).await.is_some()),
            None => None,
        };
        let report = &mut self.report;
        report.saw(request.at);
        report.requests += 1;
        report.refused += u64::from(refusal.is_some());
        if let Some(then) = request.refused_then {
            *report.refused_then.get_or_insert_default() += u64::from(then);
        }
        if let Some(before) = before {
            let versus = report.old.get_or_insert_with(Versus::default);
            versus.refused += u64::from(before);
            versus.newly_refused += u64::from(refusal.is_some() && !before);
            versus.newly_admitted += u64::from(refusal.is_none() && before);
        }
        if let Some(refusal) = refusal {
            self.tally.add(refusal, request.at, before == Some(false));
        }
    }
}

impl Side {
    fn new(plans: Plans, clock: &Arc<ManualClock>, max_buckets: usize) -> Self {
        let shared = Arc::new(SharedPlans::fixed(plans));
        let store = Store::Memory(MemoryStore::new(max_buckets, clock.clone()));
        let store = Arc::new(store);
        let pacing = Arc::new(Pacing::default().without_waiting());
        Self {
            plans: shared.load_full(),
            limiter: Limiter::new(shared, Arc::clone(&store)).with_pacing(pacing),
            store,
        }
    }

    fn forgotten(&self) -> u64 {
        match &*self.store {
            Store::Memory(memory) => memory.forgotten(),
            Store::Redis(_) | Store::Shards(_) => 0,
        }
    }

    /// Asks one question after the other; who is refused, and by what, if one is.
    async fn refusal(&self, queries: &[Query]) -> Option<Refusal> {
        for query in queries {
            // Memory answers at once, and reads another clock. Nobody's time is so short that a delay would be cut.
            let deadline = Instant::now() + 2 * MOST_DELAY;
            let decision = self.limiter.decide(query, deadline).await;
            let decision = decision.expect("memory answers, and queries from a log bring no limit");
            if decision.code == Code::OverLimit {
                return Some(self.told(query, &decision));
            }
        }
        None
    }

    fn told(&self, query: &Query, decision: &Decision) -> Refusal {
        let (domain, stored) = (self.plans.domain(&query.domain), self.plans.stored_keys());
        let by = decision.decided_by.as_ref();
        let rule = by.and_then(|by| by.rule.as_ref());
        let limit = by.and_then(|by| by.limit.as_ref());
        let who = domain.zip(rule).and_then(|(domain, rule)| {
            let descriptor = met_by(domain, query, rule, stored)?;
            Some(shown(domain, descriptor, stored))
        });
        Refusal {
            domain: query.domain.clone(),
            who: who.unwrap_or_default(),
            rule: rule.map_or(String::new(), |rule| rule.path.to_string()),
            limit: limit.map_or("refuses all".to_owned(), |limit| limit.limit.to_string()),
        }
    }
}

/// The first descriptor that meets `rule`.
fn met_by<'q>(
    domain: &Domain,
    query: &'q Query,
    rule: &Arc<Rule>,
    stored: &KeyTable,
) -> Option<&'q Descriptor> {
    let matches = domain.matches(query, stored);
    let place = matches.iter().position(|found| match found {
        Match::None => false,
        Match::Passes(met) | Match::Refuses(met) | Match::Limited { rule: met, .. } => {
            Arc::ptr_eq(met, rule)
        }
    });
    query.descriptors.get(place?)
}

/// `tier=free, ip=192.0.2.1`: an API key by its id, and no text longer than a line.
fn shown(domain: &Domain, descriptor: &Descriptor, stored: &KeyTable) -> String {
    let entries = descriptor.entries.iter();
    let entries: Vec<String> = entries
        .map(|entry| {
            let value = domain.reported_value(entry, stored);
            let value: String = value
                .chars()
                .filter(|c| !c.is_control())
                .take(100)
                .collect();
            format!("{}={value}", entry.key)
        })
        .collect();
    entries.join(", ")
}
