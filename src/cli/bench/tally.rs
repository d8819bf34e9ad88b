//! What came back, counted.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tonic::Status;

use super::stated::KeyTally;
use crate::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;

/// What came back.
pub(super) struct Tally {
    pub(super) elapsed: Duration,
    pub(super) latency_ns: Histogram<u64>,
    pub(super) ok: u64,
    pub(super) over_limit: u64,
    pub(super) unknown: u64,
    /// By gRPC code: how many, and the message of the first.
    pub(super) errors: BTreeMap<String, (u64, String)>,
    pub(super) keys: HashMap<u64, KeyTally>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            elapsed: Duration::ZERO,
            latency_ns: Histogram::new(3).expect("three digits are within the histogram's range"),
            ok: 0,
            over_limit: 0,
            unknown: 0,
            errors: BTreeMap::new(),
            keys: HashMap::new(),
        }
    }
}

impl Tally {
    /// Whether the answer admits; `None` when it decides nothing.
    pub(super) fn count(&mut self, answer: Result<Code, Status>) -> Option<bool> {
        match answer {
            Ok(Code::Ok) => {
                self.ok += 1;
                Some(true)
            }
            Ok(Code::OverLimit) => {
                self.over_limit += 1;
                Some(false)
            }
            Ok(Code::Unknown) => {
                self.unknown += 1;
                None
            }
            Err(status) => {
                let code = format!("{:?}", status.code());
                self.errors
                    .entry(code)
                    .or_insert_with(|| (0, status.message().to_owned()))
                    .0 += 1;
                None
            }
        }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency_ns
            .record(latency_ns)
            .expect("the histogram grows as needed");
    }

    pub(super) fn count_key(&mut self, key: u64, sent: Instant, answered: Instant, admitted: bool) {
        let seen = self
            .keys
            .entry(key)
            .or_insert_with(|| KeyTally::new(sent, answered));
        seen.count(sent, answered, admitted);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.latency_ns
            .add(&other.latency_ns)
            .expect("the histogram grows as needed");
        self.ok += other.ok;
        self.over_limit += other.over_limit;
        self.unknown += other.unknown;
        for (code, (count, message)) in other.errors {
            self.errors.entry(code).or_insert((0, message)).0 += count;
        }
        for (key, tally) in other.keys {
            self.keys
                .entry(key)
                .and_modify(|own| own.merge(&tally))
                .or_insert(tally);
        }
    }
}
