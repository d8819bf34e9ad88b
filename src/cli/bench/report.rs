//! What a run showed, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{cpu::CpuTime, tally::Tally};
use crate::limit::Limit;

/// How many over-admitted keys the text names; JSON has them all.
const KEYS_IN_TEXT: usize = 10;

/// The result of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// Answers and errors per second.
    pub per_second: f64,
    /// Requests admitted.
    pub ok: u64,
    /// Requests refused.
    pub over_limit: u64,
    /// Answers with the code UNKNOWN, which Envoy lets pass.
    pub unknown: u64,
    /// Requests without a decision, by gRPC code.
    pub errors: BTreeMap<String, u64>,
    /// The message of the first error of each code.
    pub error_messages: BTreeMap<String, String>,
    /// From sending (closed loop) or from the time it was due (open loop) to the answer.
    pub latency_us: Latency,
    /// CPU used by each watched process, and by this client.
    pub cpu: Vec<Cpu>,
    /// What was admitted against the limit stated by `--limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitReport>,
}

/// Latency in microseconds.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// CPU that one process used during the run.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// Its label from `--pid`, or `client`.
    pub label: String,
    /// Seconds of CPU, user and system.
    pub seconds: f64,
    /// Microseconds of CPU per decision; absent when there was none.
    pub us_per_decision: Option<f64>,
}

/// Admissions against a stated limit. All numbers are sums over the keys.
#[derive(Debug, Clone, Serialize)]
pub struct LimitReport {
    /// The limit as stated.
    pub limit: String,
    /// Keys that were asked about.
    pub keys: usize,
    /// Requests admitted.
    pub admitted: u64,
    /// The most the limit allows: burst + rate × time for a bucket, per key.
    pub ceiling: u64,
    /// What clients that kept the bucket below full are owed. Only a statement about keys that are asked for all the time.
    pub floor: u64,
    /// Admitted above the ceiling of its key.
    pub over_admission: u64,
    /// The keys above their ceiling, the worst first.
    pub over_admitted: Vec<OverAdmitted>,
}

/// A key that got more than the limit allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverAdmitted {
    /// The number that stood for `{key}`.
    pub key: u64,
    /// What it got.
    pub admitted: u64,
    /// What the limit allows.
    pub ceiling: u64,
}

impl Report {
    pub(super) fn new(tally: Tally, cpu: &[CpuTime], limit: Option<&Limit>) -> Self {
        let decisions = tally.ok + tally.over_limit + tally.unknown;
        let seconds = tally.elapsed.as_secs_f64();
        Self {
            seconds,
            per_second: tally.latency_ns.len() as f64 / seconds,
            ok: tally.ok,
            over_limit: tally.over_limit,
            unknown: tally.unknown,
            latency_us: Latency::new(&tally.latency_ns),
            cpu: cpu
                .iter()
                .map(|process| Cpu::new(process, decisions))
                .collect(),
            limit: limit.map(|limit| LimitReport::new(&tally, limit)),
            errors: tally
                .errors
                .iter()
                .map(|(code, (count, _))| (code.clone(), *count))
                .collect(),
            error_messages: tally
                .errors
                .into_iter()
                .map(|(code, (_, message))| (code, message))
                .collect(),
        }
    }

    /// Requests that got an answer.
    pub fn decisions(&self) -> u64 {
        self.ok + self.over_limit + self.unknown
    }

    /// Requests that got none.
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self)
            .expect("a report has only numbers, texts and lists of them")
    }
}

impl Latency {
    fn new(latency_ns: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile| us(latency_ns.value_at_quantile(quantile));
        Self {
            mean: latency_ns.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(latency_ns.max()),
        }
    }
}

impl Cpu {
    fn new(process: &CpuTime, decisions: u64) -> Self {
        let us = |used: Duration| used.as_nanos() as f64 / 1000.0;
        Self {
            label: process.label.clone(),
            seconds: process.used.as_secs_f64(),
            us_per_decision: (decisions > 0).then(|| us(process.used) / decisions as f64),
        }
    }
}

impl LimitReport {
    fn new(tally: &Tally, limit: &Limit) -> Self {
        let keys = || tally.keys.values();
        let mut over_admitted: Vec<_> = tally
            .keys
            .iter()
            .map(|(&key, given)| OverAdmitted {
                key,
                admitted: given.admitted(),
                ceiling: given.ceiling(limit),
            })
            .filter(|key| key.admitted > key.ceiling)
            .collect();
        over_admitted.sort_by_key(|key| (std::cmp::Reverse(key.excess()), key.key));
        Self {
            limit: limit.to_string(),
            keys: tally.keys.len(),
            admitted: keys().map(|key| key.admitted()).sum(),
            ceiling: keys().map(|key| key.ceiling(limit)).sum(),
            floor: keys().map(|key| key.floor(limit)).sum(),
            over_admission: over_admitted.iter().map(OverAdmitted::excess).sum(),
            over_admitted,
        }
    }
}

impl OverAdmitted {
    fn excess(&self) -> u64 {
        self.admitted - self.ceiling
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = self.decisions() + self.errors_total();
        writeln!(
            f,
            "requests      {requests} in {:.3} s, {:.0} per second",
            self.seconds, self.per_second
        )?;
        writeln!(
            f,
            "decisions     OK {}, OVER_LIMIT {}, UNKNOWN {}",
            self.ok, self.over_limit, self.unknown
        )?;
        writeln!(f, "errors        {}", self.errors_total())?;
        for (code, count) in &self.errors {
            writeln!(f, "  {code}: {count} ({})", self.error_messages[code])?;
        }
        writeln!(f, "latency       {}", self.latency_us)?;
        for process in &self.cpu {
            writeln!(f, "cpu           {process}")?;
        }
        match &self.limit {
            Some(limit) => write!(f, "{limit}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mean,
            p50,
            p90,
            p99,
            p999,
            max,
        } = self;
        write!(
            f,
            "p50 {p50:.0} µs, p90 {p90:.0}, p99 {p99:.0}, p99.9 {p999:.0}, max {max:.0}, mean {mean:.0}"
        )
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.label)?;
        match self.us_per_decision {
            Some(us) => write!(f, "{us:.2} µs per decision ({:.3} s)", self.seconds),
            None => write!(f, "{:.3} s, no decision", self.seconds),
        }
    }
}

impl fmt::Display for LimitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            keys,
            admitted,
            ceiling,
            ..
        } = self;
        writeln!(f, "limit         {limit} per key, keys seen: {keys}")?;
        writeln!(f, "admitted      {admitted}, allowed at most {ceiling}")?;
        if self.keys == 1 {
            writeln!(
                f,
                "owed          {} to a client that never lets the bucket fill up",
                self.floor
            )?;
        }
        writeln!(
            f,
            "over-admitted {}, keys concerned: {}",
            self.over_admission,
            self.over_admitted.len()
        )?;
        for key in self.over_admitted.iter().take(KEYS_IN_TEXT) {
            writeln!(
                f,
                "  key {}: {} admitted, {} more than {}",
                key.key,
                key.admitted,
                key.excess(),
                key.ceiling
            )?;
        }
        Ok(())
    }
}
