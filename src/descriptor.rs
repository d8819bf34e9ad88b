//! What is asked: a domain, its descriptors, their entries and hits.

use smallvec::SmallVec;

use crate::limit::Period;

/// Most descriptors of a query; Envoy's own filter sends a handful.
pub const MAX_DESCRIPTORS: usize = 1_000;

/// Most entries of a descriptor.
pub const MAX_ENTRIES: usize = 100;

/// One rate-limit question: may these hits pass?
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Which set of rules applies.
    pub domain: String,
    /// What the request is. Each descriptor is matched on its own; all are judged together.
    pub descriptors: Vec<Descriptor>,
}

/// Why a query cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum QueryError {
    #[error("rate limit domain must not be empty")]
    EmptyDomain,
    #[error("rate limit descriptor list must not be empty")]
    NoDescriptors,
    #[error("{count} descriptors are too many: at most {MAX_DESCRIPTORS} are judged together")]
    TooManyDescriptors { count: usize },
    #[error("descriptors[{index}] has {count} entries: at most {MAX_ENTRIES} are matched")]
    TooManyEntries { index: usize, count: usize },
}

impl Query {
    /// Whether it can be judged.
    ///
    /// # Errors
    /// [`QueryError`], for what the caller must mend.
    pub fn check(&self) -> Result<(), QueryError> {
        if self.domain.is_empty() {
            return Err(QueryError::EmptyDomain);
        }
        match self.descriptors.len() {
            0 => return Err(QueryError::NoDescriptors),
            1..=MAX_DESCRIPTORS => {}
            count => return Err(QueryError::TooManyDescriptors { count }),
        }
        let counts = self.descriptors.iter().map(|asked| asked.entries.len());
        match counts.enumerate().find(|(_, count)| *count > MAX_ENTRIES) {
            Some((index, count)) => Err(QueryError::TooManyEntries { index, count }),
            None => Ok(()),
        }
    }
}

/// One aspect of a request: `(tier, free), (ip, 192.0.2.1)`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// In the order sent; the order is part of what a rule matches.
    pub entries: Vec<Entry>,
    /// What to do with every bucket this descriptor names.
    pub hits: Hits,
    /// Whether the descriptor itself says how many hits. Else the request does, or nobody.
    pub says_hits: bool,
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

/// A limit sent with a descriptor: `requests` per `period`, counted as the domain says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitOverride {
    /// Requests per period.
    pub requests: u32,
    /// The period.
    pub period: Period,
}

/// The values of a descriptor's variable entries, in order; few, so they stay on the stack.
pub type Values<'a> = SmallVec<[&'a str; 2]>;
