//! What is asked: a domain, its descriptors, their entries and hits.

use smallvec::SmallVec;

use crate::limit::Period;

/// One rate-limit question: may these hits pass?
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Which set of rules applies.
    pub domain: String,
    /// What the request is. Each descriptor is matched on its own; all are judged together.
    pub descriptors: Vec<Descriptor>,
}

/// One aspect of a request: `(tier, free), (ip, 192.0.2.1)`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// In the order sent; the order is part of what a rule matches.
    pub entries: Vec<Entry>,
    /// What to do with every bucket this descriptor names.
    pub hits: Hits,
    /// A limit that the request brings along; it replaces the rule's.
    pub limit: Option<LimitOverride>,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// For example `ip`.
    pub key: String,
    /// For example `192.0.2.1`; may be empty.
    pub value: String,
}

impl Entry {
    /// An entry of `key` and `value`.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }
}

/// How many hits, and in which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hits {
    /// Takes so many tokens. Zero only looks.
    Take(u64),
    /// Gives so many tokens back, at most up to a full bucket.
    Give(u64),
}

impl Default for Hits {
    fn default() -> Self {
        Self::Take(1)
    }
}

/// A limit sent with a descriptor: `requests` per `period`, as a token bucket of that burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitOverride {
    /// Requests per period.
    pub requests: u32,
    /// The period.
    pub period: Period,
}

/// The values of a descriptor's variable entries, in order; few, so they stay on the stack.
pub type Values<'a> = SmallVec<[&'a str; 4]>;
