//! Finds what the rules of a domain say about each descriptor of a request.

use smallvec::SmallVec;

use super::{
    domain::{Domain, Node, Unmatched},
    keys::ApiKey,
    level::Met,
    rule::{Allowance, Match, Role, Rule, Subject},
    subject::{Variable, push_hashed, push_mark, push_plain, push_value},
};
use crate::descriptor::{Descriptor, Entry, Query};
use std::sync::Arc;

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
    key: Option<&'p ApiKey>,
}

impl Domain {
    /// What the rules say: one answer per descriptor, in order. Descriptors that bring a limit along meet no rule.
    ///
    /// Once one descriptor names a known API key, every `tier` entry is read as that key's tier. Rules that another matched
    /// rule replaces are left out. Where no descriptor meets a rule, `unmatched` answers.
    pub fn matches(&self, query: &Query) -> SmallVec<[Match<'_>; 2]> {
        let walks = self.walks(query);
        let mut met = false;
        let mut matches: SmallVec<[Match<'_>; 2]> = query
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
        matches
    }

    /// The tier of the first known API key that a descriptor names.
    pub fn known_tier(&self, query: &Query) -> Option<&str> {
        if self.key_names.is_empty() {
            return None;
        }
        let key_of = |descriptor: &Descriptor| self.walk(&descriptor.entries, None).key;
        let key = query.descriptors.iter().find_map(key_of)?;
        Some(&key.tier)
    }

    fn walks(&self, query: &Query) -> SmallVec<[Walk<'_>; 2]> {
        let mut walks: SmallVec<[Walk<'_>; 2]> = query
            .descriptors
            .iter()
            .map(|descriptor| self.walk(&descriptor.entries, None))
            .collect();
        let tier = match self.key_names.is_empty() {
            true => None,
            false => walks.iter().find_map(|walk| walk.key).map(|key| &*key.tier),
        };
        if let Some(tier) = tier {
            for (walk, descriptor) in walks.iter_mut().zip(&query.descriptors) {
                if names_another_tier(descriptor, tier) {
                    *walk = self.walk(&descriptor.entries, Some(tier));
                }
            }
        }
        walks
    }

    /// Follows the entries from the top. Source: envoyproxy/ratelimit: a branch once taken is never left again, and only a
    /// rule at the last entry counts.
    fn walk(&self, entries: &[Entry], tier: Option<&str>) -> Walk<'_> {
        let mut node = self.top();
        let mut joined: SmallVec<[u8; 128]> = SmallVec::new();
        let mut walk = Walk {
            end: None,
            tier: None,
            denied: None,
            key: None,
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
                Some(_) => self.identify(node, value, &mut subject, &mut walk),
                None => {
                    walk.tier = None;
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
        node: &'p Node,
        value: &str,
        subject: &mut Subject,
        walk: &mut Walk<'p>,
    ) {
        let Some(rule) = &node.key_rule else { return };
        let key = match rule.secret_only {
            true => self.keys.of_secret(value),
            false => self.keys.of_id_or_secret(value),
        };
        match key {
            Some(key) => {
                push_plain(subject, &key.id);
                walk.key = walk.key.or(Some(key));
                walk.tier = Some(key.tier_index);
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
                        limits,
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
        let limits: &[_] = match &rule.allowance {
            Allowance::Unlimited | Allowance::Listed => return Match::Passes(rule),
            Allowance::Denied => return Match::Refuses(rule),
            Allowance::Limits(limits) => limits,
            Allowance::Tiers(tiers) => match self.tier.and_then(|tier| tiers.get(tier as usize)) {
                Some(limits) => limits,
                None => return Match::Refuses(rule),
            },
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
