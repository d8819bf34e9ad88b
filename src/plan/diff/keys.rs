//! What a change of plans means for API keys.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, ChangeKind, ChangeSubject, Effect, Pair, compare, many, texts};
use crate::{
    keys::KeyTable,
    plan::{ApiKey, Domain, Plans, RuleLimit},
};

/// Most keys that a sentence names.
const MOST_NAMED: usize = 20;

impl Pair<'_> {
    /// Keys, in groups that the same happens to.
    pub(super) fn keys(&self, into: &mut Vec<Change>) {
        let (old, new) = (by_id(self.old.api_keys()), by_id(self.new.api_keys()));
        let mut tell = |ids: &[&str], change, said| {
            into.extend((!ids.is_empty()).then(|| self.keys_changed(ids, change, said)));
        };
        let both = || {
            old.iter()
                .filter_map(|(id, key)| Some((*id, *key, *new.get(id)?)))
        };
        let mut moved: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (id, before, after) in both().filter(|(_, before, after)| before.tier != after.tier) {
            let way = (&*before.tier, &*after.tier);
            moved.entry(way).or_default().push(id);
        }
        for ((from, to), ids) in &moved {
            tell(ids, ChangeKind::Changed, self.moved(from, to));
        }
        let given = both().filter(|(_, before, after)| before.owner != after.owner);
        let given: Vec<&str> = given.map(|(id, ..)| id).collect();
        let said = (Effect::None, "another owner".to_owned());
        tell(&given, ChangeKind::Changed, said);
        let mut resealed: Vec<&str> = self.old.keys.with_another_secret(&self.new.keys).collect();
        resealed.sort_unstable();
        let says = "another secret: the old one opens nothing any more";
        tell(
            &resealed,
            ChangeKind::Changed,
            (Effect::Depends, says.to_owned()),
        );
        for (tier, ids) in only_in(&old, &new) {
            let says = format!("gone, were of tier `{tier}`");
            tell(&ids, ChangeKind::Removed, (Effect::Tighter, says));
        }
        for (tier, ids) in only_in(&new, &old) {
            let says = format!("new, of tier `{tier}`");
            tell(&ids, ChangeKind::Added, (Effect::Looser, says));
        }
    }

    /// For how many keys a tier's limits hold.
    pub(super) fn keys_of(&self, tier: &str) -> String {
        let listed = self.new.api_keys().filter(|key| &*key.tier == tier).count();
        counted(listed, self.stored_in(tier).limited)
    }

    pub(super) fn tier_new(&self, tier: &str, limits: &[Arc<RuleLimit>]) -> (Effect, String) {
        let says = format!("is new: {}", texts(limits));
        match self.stored_in(tier).all {
            0 => (Effect::None, says),
            stored => {
                let keys = many(stored, "stored API key");
                (
                    Effect::Looser,
                    format!("{says} (for {keys}, unknown before)"),
                )
            }
        }
    }

    pub(super) fn tier_gone(&self, tier: &str) -> (Effect, String) {
        match self.stored_in(tier).all {
            0 => (Effect::None, "is gone".to_owned()),
            stored => {
                let keys = many(stored, "stored API key");
                (
                    Effect::Tighter,
                    format!("is gone (with {keys}, unknown from then on)"),
                )
            }
        }
    }

    fn stored_in(&self, tier: &str) -> Stored {
        self.stored.get(tier).copied().unwrap_or_default()
    }

    fn moved(&self, from: &str, to: &str) -> (Effect, String) {
        let (old, new) = self.both_tiers();
        let limits = old.get(from).copied().flatten();
        let limits = limits.zip(new.get(to).copied().flatten());
        let compared = limits.and_then(|(before, after)| compare(before, after));
        let (mut effect, mut says) =
            compared.unwrap_or((Effect::None, "the same limits".to_owned()));
        let (left, met) = (of_tier(self.old, from), of_tier(self.new, to));
        if !left.is_empty() || !met.is_empty() {
            effect = effect.and(Effect::Depends);
            let told = |rules: Vec<&str>| match rules[..] {
                [] => "no rule".to_owned(),
                _ => rules.join(", "),
            };
            says += &format!(
                "; their `tier` entries met {}, and meet {}",
                told(left),
                told(met)
            );
        }
        (effect, format!("tier `{from}` → `{to}`: {says}"))
    }

    fn keys_changed(&self, ids: &[&str], change: ChangeKind, said: (Effect, String)) -> Change {
        let named = ids.iter().take(MOST_NAMED).copied();
        let mut names = named.collect::<Vec<_>>().join(", ");
        if ids.len() > MOST_NAMED {
            names += &format!(" and {} more", ids.len() - MOST_NAMED);
        }
        let (effect, says) = said;
        let says = format!("{}: {says}", many(ids.len(), "API key"));
        self.change(ChangeSubject::ApiKeys, &names, change, (effect, says))
    }
}

/// A domain that goes with all that it has. `after` are the plans without it.
pub(super) fn domain_gone(domain: &Domain, stored: &ByTier<'_>, after: &Plans) -> Change {
    let (size, unknown) = (size(domain, stored), only_in_domain(domain, stored, after));
    let says = format!("is gone with its {size}: all its requests pass");
    let (effect, says) = match unknown {
        0 => (Effect::Looser, says),
        keys => {
            let keys = many(keys, "API key");
            (
                Effect::Mixed,
                format!("{says}; unknown from then on: {keys}"),
            )
        }
    };
    whole(domain, ChangeKind::Removed, (effect, says))
}

/// A domain that comes with all that it has. `before` are the plans without it.
pub(super) fn domain_new(domain: &Domain, stored: &ByTier<'_>, before: &Plans) -> Change {
    let (size, unknown) = (size(domain, stored), only_in_domain(domain, stored, before));
    let says = format!("is new, with {size}");
    let (effect, says) = match unknown {
        0 => (Effect::Tighter, says),
        keys => {
            let keys = many(keys, "API key");
            (Effect::Mixed, format!("{says}; unknown before: {keys}"))
        }
    };
    whole(domain, ChangeKind::Added, (effect, says))
}

fn whole(domain: &Domain, change: ChangeKind, (effect, says): (Effect, String)) -> Change {
    Change {
        domain: domain.name().to_owned(),
        subject: ChangeSubject::Domain,
        name: domain.name().to_owned(),
        change,
        effect,
        says,
    }
}

fn size(domain: &Domain, stored: &ByTier<'_>) -> String {
    let (rules, listed) = (domain.rules().count(), domain.api_keys().count());
    let stored = domain.tiers().iter().map(|tier| all_in(stored, tier)).sum();
    format!("{} and {}", many(rules, "rule"), counted(listed, stored))
}

/// How many of its keys open nothing by `plans`.
fn only_in_domain(domain: &Domain, stored: &ByTier<'_>, plans: &Plans) -> usize {
    let tiers = domain.tiers().iter().filter(|tier| !plans.has_tier(tier));
    let stored: usize = tiers.map(|tier| all_in(stored, tier)).sum();
    let listed = domain
        .api_keys()
        .filter(|key| plans.api_key_of_id(&key.id).is_none());
    listed.count() + stored
}

fn all_in(stored: &ByTier<'_>, tier: &str) -> usize {
    stored.get(tier).map_or(0, |keys| keys.all)
}

/// `5 API keys, 2 of them stored`.
fn counted(listed: usize, stored: usize) -> String {
    let all = many(listed + stored, "API key");
    match stored {
        0 => all,
        stored => format!("{all}, {stored} of them stored"),
    }
}

/// How many stored keys are in a tier.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stored {
    all: usize,
    /// Those that have its limits, and none of their own.
    limited: usize,
}

/// How many stored keys are in each tier.
pub(super) type ByTier<'k> = BTreeMap<&'k str, Stored>;

/// The stored keys by tier. Where a file has a key of their id, that one wins.
pub(super) fn stored_by_tier<'k>(plans: &Plans, stored: &'k KeyTable) -> ByTier<'k> {
    let mut tiers = ByTier::new();
    let shadowed = |id| plans.api_key_of_id(id).is_some();
    for key in stored.iter().filter(|key| !shadowed(key.id())) {
        let tier = tiers.entry(key.tier()).or_default();
        tier.all += 1;
        tier.limited += usize::from(key.limits().is_empty());
    }
    tiers
}

/// The rules for entries that name the tier.
fn of_tier<'p>(domain: &'p Domain, tier: &str) -> Vec<&'p str> {
    let element = format!("tier={tier}");
    let paths = domain.rules().map(|rule| &*rule.path);
    let below = |path: &&str| {
        let rest = path.strip_prefix(&element);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    paths.filter(below).collect()
}

fn by_id<'p>(keys: impl Iterator<Item = &'p Arc<ApiKey>>) -> BTreeMap<&'p str, &'p ApiKey> {
    keys.map(|key| (&*key.id, &**key)).collect()
}

/// The ids that stand in `one` and not in `other`, by tier.
fn only_in<'p>(
    one: &BTreeMap<&'p str, &'p ApiKey>,
    other: &BTreeMap<&str, &ApiKey>,
) -> BTreeMap<&'p str, Vec<&'p str>> {
    let mut ids: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (id, key) in one.iter().filter(|(id, _)| !other.contains_key(*id)) {
        ids.entry(&key.tier).or_default().push(id);
    }
    ids
}
