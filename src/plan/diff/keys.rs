//! What a change of plans means for API keys.

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, ChangeKind, ChangeSubject, Effect, Pair, compare, many, tiers};
use crate::plan::ApiKey;

/// Most keys that a sentence names.
const MOST_NAMED: usize = 20;

impl Pair<'_> {
    /// Keys, in groups that the same happens to.
    pub(super) fn keys(&self, into: &mut Vec<Change>) {
        let (old, new) = (by_id(self.old.api_keys()), by_id(self.new.api_keys()));
        let mut moved: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (id, before) in &old {
            let Some(after) = new.get(id) else { continue };
            if before.tier != after.tier {
                moved
                    .entry((&before.tier, &after.tier))
                    .or_default()
                    .push(id);
            }
        }
        for ((from, to), ids) in &moved {
            into.push(self.keys_changed(ids, ChangeKind::Changed, self.moved(from, to)));
        }
        let mut resealed: Vec<&str> = self.old.keys.with_another_secret(&self.new.keys).collect();
        resealed.sort_unstable();
        if !resealed.is_empty() {
            let says = "another secret: the old one opens nothing any more";
            let said = (Effect::Depends, says.to_owned());
            into.push(self.keys_changed(&resealed, ChangeKind::Changed, said));
        }
        for (tier, ids) in only_in(&old, &new) {
            let said = (Effect::Tighter, format!("gone, were of tier `{tier}`"));
            into.push(self.keys_changed(&ids, ChangeKind::Removed, said));
        }
        for (tier, ids) in only_in(&new, &old) {
            let said = (Effect::Looser, format!("new, of tier `{tier}`"));
            into.push(self.keys_changed(&ids, ChangeKind::Added, said));
        }
    }

    fn moved(&self, from: &str, to: &str) -> (Effect, String) {
        let (old, new) = (tiers(self.old), tiers(self.new));
        let limits = old.get(from).copied().flatten();
        let limits = limits.zip(new.get(to).copied().flatten());
        let compared = limits.and_then(|(before, after)| compare(before, after));
        let (effect, says) = compared.unwrap_or((Effect::None, "the same limits".to_owned()));
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
