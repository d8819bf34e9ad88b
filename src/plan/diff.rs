//! What a change of plans changes, and for whom. Pure: two loaded states in, sentences out.
//!
//! Loaded states are compared, not texts: comments, layout and names of files change nothing for anybody. A rule is known by
//! its path, a limit by its kind and period, as buckets are.

mod authentication;
mod keys;
mod limits;
mod lists;
mod rules;

use std::{cell::LazyCell, cmp::Ordering, collections::BTreeMap, fmt, sync::Arc};

use indexmap::IndexSet;
use serde::Serialize;

use super::{
    Plans,
    authentication::Authentication,
    domain::Domain,
    rule::{Allowance, Charge, Counting, ResponseOptions, Rule, RuleLimit},
};
use crate::keys::KeyTable;
use authentication::asked;
use keys::ByTier;
use limits::{compare, texts};
use rules::rules;

/// One thing that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// In which domain.
    pub domain: String,
    /// What kind of thing.
    pub subject: ChangeSubject,
    /// Its path or name.
    pub name: String,
    /// What becomes of it.
    pub change: ChangeKind,
    /// What that means for those it meets.
    pub effect: Effect,
    /// In a sentence.
    pub says: String,
}

/// What a [`Change`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum ChangeSubject {
    Domain,
    Tier,
    ApiKeys,
    Authentication,
    List,
    Rule,
    Order,
    Response,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

/// What a change means for those it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Less passes than before.
    Tighter,
    /// More passes than before.
    Looser,
    /// Less in one respect, more in another.
    Mixed,
    /// What it means depends on what those requests met before.
    Depends,
    /// As much passes as before.
    None,
}

impl Effect {
    /// Of two that hold together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (one, Self::None) => one,
            (Self::None, one) => one,
            (one, other) if one == other => one,
            (Self::Depends, _) | (_, Self::Depends) => Self::Depends,
            _ => Self::Mixed,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, says, .. } = self;
        match self.subject {
            ChangeSubject::Domain if self.change == ChangeKind::Changed => {
                write!(f, "{name}: {says}")
            }
            ChangeSubject::Domain => write!(f, "{says}"),
            ChangeSubject::Order => write!(f, "wildcard rule `{name}`: {says}"),
            ChangeSubject::Tier => write!(f, "tier `{name}`: {says}"),
            ChangeSubject::ApiKeys => write!(f, "{says}: {name}"),
            ChangeSubject::Authentication => write!(f, "authentication, {name}: {says}"),
            ChangeSubject::List => write!(f, "{name}: {says}"),
            ChangeSubject::Rule => write!(f, "rule `{name}`: {says}"),
            ChangeSubject::Response => write!(f, "response, {name}: {says}"),
        }
    }
}

/// All that changes from `old` to `new`, by domain; empty if nothing does. `stored` are the keys that are in no file.
pub fn diff(old: &Plans, new: &Plans, stored: &KeyTable) -> Vec<Change> {
    let mut changes = Vec::new();
    let stored_in_new = keys::stored_by_tier(new, stored);
    let stored_in_old = LazyCell::new(|| keys::stored_by_tier(old, stored));
    for domain in old.domains() {
        match new.domain(domain.name()) {
            Some(after) => Pair {
                old: domain,
                new: after,
                old_asks: asked(old, domain),
                new_asks: asked(new, after),
                stored: &stored_in_new,
            }
            .changes(&mut changes),
            None => changes.push(keys::domain_gone(domain, &stored_in_old, new)),
        }
    }
    let added = new
        .domains()
        .filter(|domain| old.domain(domain.name()).is_none());
    changes.extend(added.map(|domain| keys::domain_new(domain, &stored_in_new, old)));
    changes
}

/// A domain before and after.
struct Pair<'p> {
    old: &'p Domain,
    new: &'p Domain,
    /// How keys are asked for, said by the domain or not.
    old_asks: &'p Authentication,
    new_asks: &'p Authentication,
    stored: &'p ByTier<'p>,
}

impl Pair<'_> {
    fn changes(&self, into: &mut Vec<Change>) {
        self.defaults(into);
        self.tiers(into);
        self.keys(into);
        self.authentication(into);
        lists::changes(self, into);
        self.rules(into);
        self.order(into);
        self.response(into);
    }

    fn change(
        &self,
        subject: ChangeSubject,
        name: &str,
        change: ChangeKind,
        (effect, says): (Effect, String),
    ) -> Change {
        Change {
            domain: self.new.name().to_owned(),
            subject,
            name: name.to_owned(),
            change,
            effect,
            says,
        }
    }

    /// What holds for limits that requests bring along; rules tell of themselves.
    fn defaults(&self, into: &mut Vec<Change>) {
        let (old, new) = (domain_facts(self.old), domain_facts(self.new));
        for (says, name) in differences(&old, &new) {
            let means = match name {
                "charge" => charges(self.old.counting(), self.new.counting()),
                _ => Effect::None,
            };
            let says = (means, says);
            into.push(self.change(ChangeSubject::Domain, name, ChangeKind::Changed, says));
        }
    }

    /// Tiers, told once and not again with each rule that takes its limits from them.
    fn tiers(&self, into: &mut Vec<Change>) {
        let (old, new) = self.both_tiers();
        for (name, before) in &old {
            let Some(after) = new.get(name) else {
                let says = self.tier_gone(name);
                into.push(self.change(ChangeSubject::Tier, name, ChangeKind::Removed, says));
                continue;
            };
            if let (Some(before), Some(after)) = (before, after)
                && let Some((effect, says)) = compare(before, after)
            {
                let says = (effect, format!("{says} (for {})", self.keys_of(name)));
                into.push(self.change(ChangeSubject::Tier, name, ChangeKind::Changed, says));
            }
        }
        for (name, limits) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
            let says = self.tier_new(name, limits.unwrap_or_default());
            into.push(self.change(ChangeSubject::Tier, name, ChangeKind::Added, says));
        }
    }

    /// Tiers before and after by name, with their limits as one rule counts them that counts alike before and after. Without
    /// such a rule, as the first one does.
    fn both_tiers(&self) -> (Tiers<'_>, Tiers<'_>) {
        let alike = |one: &Rule, other: &Rule| {
            one.path == other.path && one.counting.algorithm == other.counting.algorithm
        };
        let both = by_tier(self.old).find_map(|old| {
            let new = by_tier(self.new).find(|new| alike(old, new))?;
            Some((old, new))
        });
        let (old, new) = match both {
            Some((old, new)) => (Some(old), Some(new)),
            None => (by_tier(self.old).next(), by_tier(self.new).next()),
        };
        (tiers(self.old, old), tiers(self.new, new))
    }

    fn rules(&self, into: &mut Vec<Change>) {
        let (old, new) = (rules(self.old), rules(self.new));
        for (path, before) in &old {
            let (change, said) = match new.get(path) {
                None => (ChangeKind::Removed, before.removed()),
                Some(after) => match before.changed(after) {
                    Some(said) => (ChangeKind::Changed, said),
                    None => continue,
                },
            };
            into.push(self.change(ChangeSubject::Rule, path, change, said));
        }
        for (path, rule) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
            into.push(self.change(ChangeSubject::Rule, path, ChangeKind::Added, rule.added()));
        }
    }

    /// Of wildcards the first that fits counts, so the order of those that could fit alike means something.
    fn order(&self, into: &mut Vec<Change>) {
        let (before, after) = (wildcards(self.old), wildcards(self.new));
        let place = |path: &str| before.iter().position(|known| *known == path);
        let common: Vec<_> = after
            .iter()
            .filter_map(|path| Some((*path, place(path)?)))
            .collect();
        let swapped: Vec<_> = common
            .iter()
            .enumerate()
            .flat_map(|(index, first)| common[index + 1..].iter().map(move |next| (first, next)))
            .filter(|(first, next)| first.1 > next.1 && compete(first.0, next.0))
            .collect();
        let Some(((first, _), (next, _))) = swapped.first() else {
            return;
        };
        let more = match swapped.len() - 1 {
            0 => String::new(),
            more => format!(" (and {} more)", many(more, "such pair")),
        };
        let says = format!("now stands before `{next}`, and the first that fits counts{more}");
        let says = (Effect::Depends, says);
        into.push(self.change(ChangeSubject::Order, first, ChangeKind::Changed, says));
    }

    fn response(&self, into: &mut Vec<Change>) {
        let (old, new) = (self.old.response(), self.new.response());
        for (says, name) in differences(&response_facts(old), &response_facts(new)) {
            let says = (Effect::None, says);
            into.push(self.change(ChangeSubject::Response, name, ChangeKind::Changed, says));
        }
    }
}

/// The paths of rules with a wildcard, in file order.
fn wildcards(domain: &Domain) -> Vec<&str> {
    let paths = domain.rules().map(|rule| &*rule.path);
    paths.filter(|path| path.contains('*')).collect()
}

/// Whether one entry could fit both: the literal beginning of one is that of the other.
fn compete(one: &str, other: &str) -> bool {
    let one = one.split('*').next().unwrap_or(one);
    let other = other.split('*').next().unwrap_or(other);
    one.starts_with(other) || other.starts_with(one)
}

/// Tiers by name; their limits, where a rule takes its limits from them.
type Tiers<'p> = BTreeMap<&'p str, Option<&'p [Arc<RuleLimit>]>>;

/// The rules that take their limits from tiers.
fn by_tier(domain: &Domain) -> impl Iterator<Item = &Rule> {
    let rules = domain.rules().map(|rule| &**rule);
    rules.filter(|rule| matches!(rule.allowance, Allowance::Tiers(_)))
}

/// A domain's tiers, as `rule` counts their limits.
fn tiers<'p>(domain: &'p Domain, rule: Option<&'p Rule>) -> Tiers<'p> {
    let limits = rule.and_then(|rule| match &rule.allowance {
        Allowance::Tiers(tiers) => Some(tiers),
        _ => None,
    });
    let of = |index: usize| limits.map(|tiers| &*tiers[index]);
    let tiers = domain.tiers().iter().enumerate();
    tiers.map(|(index, name)| (&**name, of(index))).collect()
}

/// What holds for limits that requests bring along.
fn domain_facts(domain: &Domain) -> Vec<(&'static str, String)> {
    let counting = domain.counting();
    vec![
        ("on_store_error", lower(domain.on_store_error())),
        ("algorithm", counting.algorithm.name().to_owned()),
        ("charge", charge(counting).name().to_owned()),
    ]
}

/// When hits are charged that a descriptor brings: what all settings about it come to.
fn charge(counting: Counting) -> Charge {
    counting.charge_if(true)
}

/// Whoever is charged more passes less.
fn charges(old: Counting, new: Counting) -> Effect {
    match charge(new).cmp(&charge(old)) {
        Ordering::Greater => Effect::Tighter,
        Ordering::Equal => Effect::None,
        Ordering::Less => Effect::Looser,
    }
}

fn response_facts(response: &ResponseOptions) -> Vec<(&'static str, String)> {
    vec![
        ("retry_after", response.retry_after.to_string()),
        ("ratelimit", response.ratelimit.to_string()),
        ("x_ratelimit", response.x_ratelimit.to_string()),
        ("degraded", response.degraded.to_string()),
        ("metadata", lower(response.metadata)),
        ("body", format!("`{}`", response.body)),
        ("quota_body", format!("`{}`", response.quota_body)),
        ("content_type", response.content_type.to_string()),
        ("warning_header", format!("`{}`", response.warning_header)),
        ("warn_at", response.warn_at.to_string()),
        ("overage_header", format!("`{}`", response.overage_header)),
    ]
}

/// What differs between two lists of facts: `old → new`, and the fact's name.
fn differences(
    old: &[(&'static str, String)],
    new: &[(&'static str, String)],
) -> Vec<(String, &'static str)> {
    let value = |facts: &[(&'static str, String)], name: &str| {
        let found = facts.iter().find(|(known, _)| *known == name);
        found.map_or("none".to_owned(), |(_, value)| value.clone())
    };
    let names: IndexSet<&'static str> = old.iter().chain(new).map(|(name, _)| *name).collect();
    names
        .into_iter()
        .map(|name| (value(old, name), value(new, name), name))
        .filter(|(old, new, _)| old != new)
        .map(|(old, new, name)| (format!("{old} → {new}"), name))
        .collect()
}

fn lower(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// `1 rule`, `2 rules`.
fn many(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}
