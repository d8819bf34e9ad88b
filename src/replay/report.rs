//! What a replay found.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use serde::Serialize;

use super::{moment::written, tally::Tally};
use crate::{clock::Timestamp, envoy::Missing, plan::Plans};

/// Most lines that are quoted as bad, and most kinds of missing knowledge that are told apart.
const MOST_EXAMPLES: usize = 5;
const MOST_MISSING: usize = 50;

/// What a replay found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Lines of the log.
    pub lines: u64,
    /// Lines that are no requests, and the first of them.
    pub bad: u64,
    /// The first bad lines: place and reason.
    pub bad_lines: Vec<String>,
    /// Requests about which nobody would be asked: no descriptor, or refused before.
    pub not_asked: u64,
    /// Requests that the log tells too little of, by what is missing.
    pub not_judged: BTreeMap<String, u64>,
    /// Requests that were decided.
    pub requests: u64,
    /// Those of them that are refused.
    pub refused: u64,
    /// Those that a limit refused when they came, if the log tells.
    pub refused_then: Option<u64>,
    /// What the old plans say to the same requests, if they are asked too.
    pub old: Option<Versus>,
    /// When the first request came.
    pub first: Option<String>,
    /// When the last request came.
    pub last: Option<String>,
    /// Requests that came so far out of order that they were decided as of a later moment.
    pub late: u64,
    /// Part-used buckets that were forgotten for want of room; they refuse too little.
    pub forgotten_buckets: u64,
    /// Every rule that some request met.
    pub rules: Vec<RuleReport>,
    /// Who was refused most, and by what.
    pub refusals: Vec<Refused>,
    /// Most that any count in `refusals` may lack: there were too many to tell all apart.
    pub refusals_short_by: u64,
    #[serde(skip)]
    span: Option<(Timestamp, Timestamp)>,
}

/// Old plans against new ones.
#[derive(Debug, Default, Serialize)]
pub struct Versus {
    /// Requests that the old plans refuse.
    pub refused: u64,
    /// Requests that only the new plans refuse.
    pub newly_refused: u64,
    /// Requests that only the old plans refuse.
    pub newly_admitted: u64,
}

/// What a rule did.
#[derive(Debug, Serialize)]
pub struct RuleReport {
    /// Its domain.
    pub domain: String,
    /// Its path.
    pub rule: String,
    /// Descriptors that met it and were judged.
    pub asked: u64,
    /// Those that were over.
    pub over: u64,
    /// Those that would have been over, were it not in shadow mode.
    pub shadow_over: u64,
    /// Its limits that decided a refusal.
    pub decided: Vec<Decided>,
}

/// A limit that decided refusals.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Decided {
    pub limit: String,
    pub refused: u64,
    pub newly_refused: u64,
    pub first: String,
    pub last: String,
}

/// One who was refused, and by what.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Refused {
    pub domain: String,
    pub who: String,
    pub rule: String,
    pub limit: String,
    pub refused: u64,
    pub newly_refused: u64,
    pub first: String,
    pub last: String,
}

impl Report {
    /// Counts a line that is no request.
    pub fn bad_line(&mut self, place: &str, why: &str) {
        self.bad += 1;
        if self.bad_lines.len() < MOST_EXAMPLES {
            self.bad_lines.push(format!("{place}: {why}"));
        }
    }

    /// Counts a request that the log tells too little of.
    pub fn unknown(&mut self, Missing(what): Missing) {
        let known = self.not_judged.contains_key(&what);
        let what = match known || self.not_judged.len() < MOST_MISSING {
            true => what,
            false => "and more".to_owned(),
        };
        *self.not_judged.entry(what).or_default() += 1;
    }

    /// Requests that could not be judged.
    pub fn unjudged(&self) -> u64 {
        self.not_judged.values().sum()
    }

    pub(super) fn saw(&mut self, at: Timestamp) {
        let (first, last) = self.span.unwrap_or((at, at));
        let (first, last) = (first.min(at), last.max(at));
        if self.span != Some((first, last)) {
            self.span = Some((first, last));
            self.first = Some(written(first));
            self.last = Some(written(last));
        }
    }
}

/// What each rule of `plans` did that some request met.
pub(super) fn rules(plans: &Plans, tally: &Tally) -> Vec<RuleReport> {
    let mut reports = Vec::new();
    for domain in plans.domains() {
        for rule in domain.rules() {
            let count = &rule.counters;
            let [ok, over, shadow_over] = [&count.ok, &count.over_limit, &count.shadow_over_limit]
                .map(|counter| counter.load(Ordering::Relaxed));
            let report = RuleReport {
                domain: domain.name().to_owned(),
                rule: rule.path.to_string(),
                asked: ok + over + shadow_over,
                over,
                shadow_over,
                decided: tally.decided(domain.name(), &rule.path),
            };
            if report.asked > 0 {
                reports.push(report);
            }
        }
    }
    reports
}
