//! A rule's place in the statistics: under which key it counts.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
};

use super::{
    counts::{Counts, Judged},
    key::{StatKey, level},
    table::Statistics,
};
use crate::descriptor::Entry;

/// One level of a rule's path, as the plan file has it.
#[derive(Debug, Clone)]
pub struct KeyLevel {
    /// Its key, with its value or pattern if it has one.
    pub text: Box<str>,
    /// Whether it stands for many values.
    pub open: bool,
    /// Whether it says `value_to_metric`.
    pub value_to_metric: bool,
    /// Whether it says `share_threshold`.
    pub share_threshold: bool,
}

/// Where a rule counts.
#[derive(Debug)]
pub struct RuleStatistics {
    key: Key,
    /// Those of a key that never changes, once they were looked up.
    counts: OnceLock<Arc<Counts>>,
}

#[derive(Debug)]
enum Key {
    Fixed(StatKey),
    /// Made anew for each request.
    Made {
        parts: Box<[Part]>,
        /// Whether an empty value leaves its underscore behind.
        underscored: bool,
    },
}

#[derive(Debug)]
enum Part {
    /// As the plan file has it.
    Text(Box<str>),
    /// As the request has it.
    Entry,
}

/// The key without the domain, for people.
impl fmt::Display for RuleStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, each) = match &self.key {
            Key::Fixed(key) => {
                let levels = &key.text()[key.domain().len()..];
                return f.write_str(levels.trim_start_matches('.'));
            }
            Key::Made { parts, underscored } => match underscored {
                false => (parts, "(each value)"),
                true => (parts, "(each value, empty too)"),
            },
        };
        let parts = parts.iter().map(|part| match part {
            Part::Text(text) => text,
            Part::Entry => each,
        });
        f.write_str(&parts.collect::<Vec<_>>().join("."))
    }
}

impl RuleStatistics {
    /// The place of the rule at the end of `levels`; `detailed` if it says `detailed_metric`.
    ///
    /// Source: envoyproxy/ratelimit: a shared threshold shows its pattern, whatever else is said; a detailed rule shows every
    /// value, others those of levels that ask for it.
    pub fn new(domain: &str, levels: &[KeyLevel], detailed: bool) -> Self {
        let shows = |level: &KeyLevel| {
            level.open && !level.share_threshold && (detailed || level.value_to_metric)
        };
        if !levels.iter().any(shows) {
            return Self::fixed(domain, levels.iter().map(|level| &*level.text));
        }
        let part = |level: &KeyLevel| match shows(level) {
            true => Part::Entry,
            false => Part::Text(level.text.clone()),
        };
        Self {
            key: Key::Made {
                parts: levels.iter().map(part).collect(),
                underscored: detailed && !levels.iter().any(|level| level.share_threshold),
            },
            counts: OnceLock::new(),
        }
    }

    /// The place of a rule whose key never changes.
    pub fn fixed<'l>(domain: &str, levels: impl IntoIterator<Item = &'l str>) -> Self {
        Self {
            key: Key::Fixed(StatKey::new(domain, levels)),
            counts: OnceLock::new(),
        }
    }

    /// Counts what was judged of a descriptor with these entries. `shown` is what of a value may be seen.
    pub fn count<'e>(
        &self,
        statistics: &Statistics,
        domain: &str,
        entries: &'e [Entry],
        shown: impl Fn(&'e Entry) -> &'e str,
        judged: &Judged,
    ) {
        let ratio = statistics.near_limit_ratio();
        match &self.key {
            Key::Fixed(key) => {
                let counts = self.counts.get_or_init(|| statistics.of_rule(key));
                counts.count(judged, ratio);
            }
            Key::Made { parts, underscored } => {
                let levels = parts.iter().zip(entries).map(|(part, entry)| match part {
                    Part::Text(text) => Cow::Borrowed(&**text),
                    Part::Entry if *underscored => format!("{}_{}", entry.key, shown(entry)).into(),
                    Part::Entry => level(&entry.key, shown(entry)),
                });
                let key = StatKey::new(domain, levels);
                statistics.of_request(key).count(judged, ratio);
            }
        }
    }
}
