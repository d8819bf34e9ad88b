//! Finds what the rules of a domain say about each descriptor of a request.

use smallvec::SmallVec;

use super::{
    domain::{Domain, KeyRule, Node, Unmatched},
    keys::KnownKey,
    level::Met,
    rule::{Allowance, Match, Role, Rule, RuleLimit, Subject},
    subject::{Variable, push_hashed, push_mark, push_plain, push_value},
};
use crate::{
    descriptor::{Descriptor, Entry, Query},
    keys::KeyTable,
};
use std::{borrow::Cow, sync::Arc};

/// The key whose entries are read as the tier of a known API key.
const TIER: &str = "tier";

/// Where a walk through the rules ended.
struct Walk<'p> {
    end: Option<(&'p Node, Subject)>,
    /// The tier whose limits hold, if the last entry is an API key.
    tier: Option<u32>,
    /// The rule that refuses an unknown API key.
    denied: Option<&'p Arc<Rule>>,
    /// The known API key that the descriptor names.
    key: Option<KnownKey<'p>>,
    /// The limits that hold in place of the tier's, if the last entry is an API key that has its own.
    own_limits: Option<Vec<Arc<RuleLimit>>>,
}

impl Domain {
    /// What the rules say: one answer per descriptor, in order. Descriptors that bring a limit along meet no rule.
    ///
    /// Once one descriptor names a known API key, every `tier` entry is read as that key's tier. Rules that another matched
    /// rule replaces are left out. Who stands in the deny or allow list meets the rule that stands for it, with every descriptor. Where no descriptor meets a rule, `unmatched` answers. `stored` are the keys that are in no
    /// file.
    pub fn matches<'p>(&'p self, query: &Query, stored: &'p KeyTable) -> SmallVec<[Match<'p>; 2]> {
        self.matches_and_key(query, stored).0
    }

    /// The same, and the first known API key that a descriptor names.
    pub fn matches_and_key<'p>(
        &'p self,
        query: &Query,
        stored: &'p KeyTable,
    ) -> (SmallVec<[Match<'p>; 2]>, Option<KnownKey<'p>>) {
        let (walks, key) = self.walks(query, stored);
        if let Some(rule) = self.listed(query, stored) {
            let found = match rule.allowance {
                Allowance::Denied => Match::Refuses(rule),
                _ => Match::Passes(rule),
            };
            let matches = query.descriptors.iter().map(|_| found.clone());
            return (matches.collect(), key);
        }
        let mut met = false;
        let mut matches: SmallVec<[Match<'p>; 2]> = query
            .descriptors
            .iter()
            .zip(walks)
            .map(|(descriptor, walk)| {
                let found = match descriptor.limit {
                    Some(_) => Match::None,
                    None => walk.into_match(),
                };
                met |= descriptor.limit.is_some() || !matches!(found, Match::None);
                found
            })
            .collect();
        if self.replaces {
            replace(&mut matches);
        }
        if !met {
            self.unmatched(&mut matches);
        }
        (matches, key)
    }

    /// The tier of the first known API key that a descriptor names.
    pub fn known_tier<'p>(&'p self, query: &Query, stored: &'p KeyTable) -> Option<&'p str> {
        if self.key_names.is_empty() {
            return None;
        }
        let key_of = |descriptor: &Descriptor| self.walk(&descriptor.entries, None, stored).key;
        let key = query.descriptors.iter().find_map(key_of)?;
        Some(key.tier())
    }

    fn walks<'p>(
        &'p self,
        query: &Query,
        stored: &'p KeyTable,
    ) -> (SmallVec<[Walk<'p>; 2]>, Option<KnownKey<'p>>) {
        let mut walks: SmallVec<[Walk<'p>; 2]> = query
            .descriptors
            .iter()
            .map(|descriptor| self.walk(&descriptor.entries, None, stored))
            .collect();
        let key = match self.key_names.is_empty() {
            true => None,
            false => walks.iter().find_map(|walk| walk.key),
        };
        if let Some(tier) = key.map(KnownKey::tier) {
            for (walk, descriptor) in walks.iter_mut().zip(&query.descriptors) {
                if names_another_tier(descriptor, tier) {
                    *walk = self.walk(&descriptor.entries, Some(tier), stored);
                }
            }
        }
        (walks, key)
    }

    /// Follows the entries from the top. Source: envoyproxy/ratelimit: a branch once taken is never left again, and only a
    /// rule at the last entry counts.
    fn walk<'p>(&'p self, entries: &[Entry], tier: Option<&str>, stored: &'p KeyTable) -> Walk<'p> {
        let mut node = self.top();
        let mut joined: SmallVec<[u8; 128]> = SmallVec::new();
        let mut walk = Walk {
            end: None,
            tier: None,
            denied: None,
            key: None,
            own_limits: None,
        };
        let mut subject = Subject::new();
        for entry in entries {
            let key = &entry.key;
            let value = read_as(entry, tier);
            joined.clear();
            joined.extend_from_slice(key.as_bytes());
            joined.push(b'_');
            joined.extend_from_slice(value.as_bytes());
            let Some((index, met)) = node.find(key, value, &joined) else {
                return walk;
            };
            node = self.node(index);
            match &node.key_rule {
                Some(rule) => self.identify((node, rule), value, stored, &mut subject, &mut walk),
                None => {
                    walk.tier = None;
                    walk.own_limits = None;
                    push_variable(&mut subject, node.variable, met, value, &joined);
                }
            }
        }
        if !entries.is_empty() {
            walk.end = Some((node, subject));
        }
        walk
    }

    /// Reads a value as an API key. Its id names the buckets, whether it came as id or as secret.
    fn identify<'p>(
        &'p self,
        (node, rule): (&'p Node, &KeyRule),
        value: &str,
        stored: &'p KeyTable,
        subject: &mut Subject,
        walk: &mut Walk<'p>,
    ) {
        walk.own_limits = None;
        match self.api_key(stored, value, rule.secret_only) {
            Some(key) => {
                push_plain(subject, key.id());
                walk.key = walk.key.or(Some(key));
                walk.tier = self.tier_of(key);
                if !key.limits().is_empty() {
                    walk.own_limits =
                        Some(rule.names.limits(&self.buckets, key.limits(), rule.beyond));
                }
            }
            None => {
                push_hashed(subject, value);
                walk.tier = rule.unknown;
                // In shadow mode it hides no rule below it.
                let denies = |denying: &&Arc<Rule>| denying.role != Role::Shadow;
                if rule.unknown.is_none() {
                    walk.denied = walk.denied.or(node.rule.as_ref().filter(denies));
                }
            }
        }
    }

    /// Answers for a request that meets no rule. A limit is charged once, whatever the number of descriptors.
    fn unmatched<'p>(&'p self, matches: &mut [Match<'p>]) {
        match &self.unmatched {
            Unmatched::Allow => {}
            Unmatched::Deny(rule) => matches.fill(Match::Refuses(rule)),
            Unmatched::Limit(rule) => {
                if let (Allowance::Limits(limits), Some(first)) =
                    (&rule.allowance, matches.first_mut())
                {
                    *first = Match::Limited {
                        rule,
                        limits: Cow::Borrowed(limits),
                        subject: Subject::new(),
                    };
                }
            }
        }
    }
}

impl<'p> Walk<'p> {
    fn into_match(self) -> Match<'p> {
        if let Some(rule) = self.denied {
            return Match::Refuses(rule);
        }
        let Some((node, subject)) = self.end else {
            return Match::None;
        };
        let Some(rule) = &node.rule else {
            return Match::None;
        };
        let limits: Cow<'p, [_]> = match &rule.allowance {
            Allowance::Unlimited | Allowance::Listed => return Match::Passes(rule),
            Allowance::Denied => return Match::Refuses(rule),
            Allowance::Limits(limits) => Cow::Borrowed(limits),
            Allowance::Tiers(tiers) => {
                let tier = self.tier.and_then(|tier| tiers.get(tier as usize));
                match (self.own_limits, tier) {
                    (Some(own), _) => Cow::Owned(own),
                    (None, Some(limits)) => Cow::Borrowed(limits),
                    (None, None) => return Match::Refuses(rule),
                }
            }
        };
        match limits.is_empty() {
            true => Match::Passes(rule),
            false => Match::Limited {
                rule,
                limits,
                subject,
            },
        }
    }
}

fn push_variable(subject: &mut Subject, variable: Variable, met: Met, value: &str, joined: &[u8]) {
    match variable {
        Variable::Nothing => {}
        Variable::Value if met == Met::Exactly => push_mark(subject),
        Variable::Value => push_value(subject, value),
        Variable::Joined(skip) => {
            // The skipped part is whole characters of the rule's own key, and both parts of an entry are UTF-8.
            let rest = std::str::from_utf8(&joined[skip as usize..]);
            push_value(subject, rest.expect("cut after a whole key"));
        }
    }
}

/// An entry's value, or the `tier` of a known API key in its place.
pub(super) fn read_as<'a>(entry: &'a Entry, tier: Option<&'a str>) -> &'a str {
    match tier {
        Some(tier) if entry.key == TIER => tier,
        _ => &entry.value,
    }
}

fn names_another_tier(descriptor: &Descriptor, tier: &str) -> bool {
    descriptor
        .entries
        .iter()
        .any(|entry| entry.key == TIER && entry.value != tier)
}

/// Leaves out the rules that others replace, in two passes, so that their order does not matter.
fn replace(matches: &mut [Match<'_>]) {
    let replaced: SmallVec<[&str; 2]> = matches
        .iter()
        .filter_map(rule_of)
        .flat_map(|rule| rule.replaces.iter().map(AsRef::as_ref))
        .collect();
    if replaced.is_empty() {
        return;
    }
    for found in matches {
        let name = rule_of(found).and_then(|rule| rule.name.as_deref());
        if name.is_some_and(|name| replaced.contains(&name)) {
            *found = Match::None;
        }
    }
}

fn rule_of<'p>(found: &Match<'p>) -> Option<&'p Arc<Rule>> {
    match found {
        Match::None => None,
        Match::Passes(rule) | Match::Refuses(rule) | Match::Limited { rule, .. } => Some(rule),
    }
}
