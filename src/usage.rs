//! What each API key has used of each limit, per hour and per day (UTC): admitted, refused, overage.
//!
//! Decisions count in a [`Meter`], in this process's memory. A [`Recorder`] takes what has gathered there every few seconds
//! and adds it to what a [`UsageStore`] keeps, a state directory or Redis. [`report`] reads it back. No secret is among it:
//! an API key is known by its id.

mod folder;
mod meter;
mod pending;
mod period;
mod recorder;
mod redis;
mod report;
mod store;

use serde::{Deserialize, Serialize};

pub use self::{
    meter::{Fate, Limited, MOST_ROWS, Meter, Requester, Tab},
    pending::{Chunk, MOST_PENDING, Pending},
    period::{Day, DayError, Period},
    recorder::{FlushCounts, Recorder},
    report::{By, Report, ReportError, ReportRow, UsageQuery, report},
    store::{Retention, UsageError, UsageStore},
};

/// What the texts of a row say that stands for those beyond a bound.
pub const OTHER: &str = "(other)";

/// Whose use of what. Of requests without a known API key, `key` and `tier` are empty, and all such requests share a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(String, String, String, String)")]
#[serde(into = "(String, String, String, String)")]
pub struct Row {
    /// The domain of the plans.
    pub domain: String,
    /// The API key's id.
    pub key: String,
    /// The tier that it had.
    pub tier: String,
    /// The limit's name; without one the rule's path and the limit, as `api_key:1/second`.
    pub limit: String,
}

impl Row {
    /// The row of those beyond a bound.
    pub fn other() -> Self {
        [OTHER; 4].into()
    }
}

impl From<[&str; 4]> for Row {
    fn from([domain, key, tier, limit]: [&str; 4]) -> Self {
        Self {
            domain: domain.to_owned(),
            key: key.to_owned(),
            tier: tier.to_owned(),
            limit: limit.to_owned(),
        }
    }
}

impl From<(String, String, String, String)> for Row {
    fn from((domain, key, tier, limit): (String, String, String, String)) -> Self {
        Self {
            domain,
            key,
            tier,
            limit,
        }
    }
}

impl From<Row> for (String, String, String, String) {
    fn from(row: Row) -> Self {
        (row.domain, row.key, row.tier, row.limit)
    }
}

/// Hits. What is given back counts below zero, in the hour in which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "(i64, i64, i64)", into = "(i64, i64, i64)")]
pub struct Counts {
    /// Those that passed.
    pub admitted: i64,
    /// Those that the limit refused.
    pub refused: i64,
    /// Those of `admitted` that were beyond the limit: it does not refuse, or nothing does now.
    pub overage: i64,
}

impl Counts {
    /// Adds `more`, up to what a number holds.
    pub fn add(&mut self, more: Self) {
        self.admitted = self.admitted.saturating_add(more.admitted);
        self.refused = self.refused.saturating_add(more.refused);
        self.overage = self.overage.saturating_add(more.overage);
    }

    /// Whether there is nothing to add.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl From<(i64, i64, i64)> for Counts {
    fn from((admitted, refused, overage): (i64, i64, i64)) -> Self {
        Self {
            admitted,
            refused,
            overage,
        }
    }
}

impl From<Counts> for (i64, i64, i64) {
    fn from(counts: Counts) -> Self {
        (counts.admitted, counts.refused, counts.overage)
    }
}
