//! What a change of limits means.

use std::{cmp::Ordering, sync::Arc};

use super::Effect;
use crate::{
    limit::{Kind, Limit},
    plan::{Mode, RuleLimit},
};

/// What changes between two lists of limits that hold together; none if nothing does.
pub(super) fn compare(old: &[Arc<RuleLimit>], new: &[Arc<RuleLimit>]) -> Option<(Effect, String)> {
    let same_bucket =
        |one: &RuleLimit, other: &RuleLimit| one.limit.identity() == other.limit.identity();
    let partner = |limit: &RuleLimit, among: &[Arc<RuleLimit>]| {
        among
            .iter()
            .find(|other| same_bucket(limit, other))
            .cloned()
    };
    let mut changes: Vec<(Effect, String)> = Vec::new();
    for before in old {
        if let Some(after) = partner(before, new) {
            changes.extend(changed(before, &after));
        }
    }
    let alone = |list: &[Arc<RuleLimit>], others: &[Arc<RuleLimit>]| -> Vec<Arc<RuleLimit>> {
        let alone = list.iter().filter(|limit| partner(limit, others).is_none());
        alone.cloned().collect()
    };
    match (&alone(old, new)[..], &alone(new, old)[..]) {
        ([before], [after]) => changes.push(replaced(before, after)),
        (gone, come) => {
            let gone = gone.iter();
            changes
                .extend(gone.map(|limit| (Effect::Looser, format!("`{limit}` no longer holds"))));
            let come = come.iter();
            changes.extend(come.map(|limit| (Effect::Tighter, format!("`{limit}` holds too"))));
        }
    }
    let effect = changes
        .iter()
        .fold(Effect::None, |all, (effect, _)| all.and(*effect));
    let says: Vec<String> = changes.into_iter().map(|(_, says)| says).collect();
    (!says.is_empty()).then(|| (effect, says.join("; ")))
}

/// A list of limits in words.
pub(super) fn texts(limits: &[Arc<RuleLimit>]) -> String {
    match limits {
        [] => "no limit".to_owned(),
        limits => {
            let texts: Vec<String> = limits.iter().map(|limit| format!("`{limit}`")).collect();
            texts.join(" and ")
        }
    }
}

/// One bucket, other numbers.
fn changed(before: &RuleLimit, after: &RuleLimit) -> Option<(Effect, String)> {
    let (old, new) = (&before.limit, &after.limit);
    if old != new {
        let effect = effect(old, new).and(mode_effect(before, after));
        let (old, new) = (before, after);
        let says = format!(
            "`{old}` → `{new}`, {}; buckets keep their tokens",
            word(effect)
        );
        return Some((effect, says));
    }
    if before.mode != after.mode {
        let says = format!("`{before}` → `{after}`; buckets keep their tokens");
        return Some((mode_effect(before, after), says));
    }
    if before.warns_from != after.warns_from {
        let hits = |limit: &RuleLimit| match limit.warns_from {
            Some(hits) => format!("from {hits} hits on"),
            None => "never".to_owned(),
        };
        let says = format!("`{old}`: warns {} → {}", hits(before), hits(after));
        return Some((Effect::None, says));
    }
    let name = |limit: &RuleLimit| limit.name.as_deref().unwrap_or("none").to_owned();
    let (was, is) = (name(before), name(after));
    (was != is).then(|| (Effect::None, format!("`{old}`: name {was} → {is}")))
}

/// Whether it refuses, before and after.
fn mode_effect(before: &RuleLimit, after: &RuleLimit) -> Effect {
    match (before.mode, after.mode) {
        (Mode::Enforce, Mode::Enforce) => Effect::None,
        (Mode::Enforce, _) => Effect::Looser,
        (_, Mode::Enforce) => Effect::Tighter,
        _ => Effect::None,
    }
}

/// Another bucket in its place.
fn replaced(old: &RuleLimit, new: &RuleLimit) -> (Effect, String) {
    let effect = effect(&old.limit, &new.limit).and(mode_effect(old, new));
    let says = format!(
        "`{old}` → `{new}`, {}; another kind, period or calendar, so buckets start anew, full",
        word(effect)
    );
    (effect, says)
}

fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Tighter => "tighter",
        Effect::Looser => "looser",
        Effect::None => "as much in the long run",
        Effect::Mixed | Effect::Depends => "tighter in one respect, looser in another",
    }
}

/// By the rate in the long run and by the most that pass at one moment; where both are alike, by the most within one period, and
/// then by what becomes of what is beyond.
fn effect(old: &Limit, new: &Limit) -> Effect {
    let rate = cross(new, old).cmp(&cross(old, new));
    let burst = new.capacity().cmp(&old.capacity());
    match (rate, burst) {
        (Ordering::Equal, Ordering::Equal) => {
            let most = most_per_period(new).cmp(&most_per_period(old));
            let delay = || new.delay().cmp(&old.delay());
            let penalty = || old.penalty().is_some().cmp(&new.penalty().is_some());
            of(most.then_with(delay).then_with(penalty))
        }
        (one, Ordering::Equal) | (Ordering::Equal, one) => of(one),
        (one, other) if one == other => of(one),
        _ => Effect::Mixed,
    }
}

/// `limit`'s rate, times both periods.
fn cross(limit: &Limit, other: &Limit) -> u128 {
    u128::from(limit.count()) * u128::from(other.period().seconds())
}

fn of(ordering: Ordering) -> Effect {
    match ordering {
        Ordering::Less => Effect::Tighter,
        Ordering::Equal => Effect::None,
        Ordering::Greater => Effect::Looser,
    }
}

/// Most that any interval of a period's length lets through. A limit that starts anew at fixed times lets two counts through
/// around such a moment.
fn most_per_period(limit: &Limit) -> u64 {
    let count = u64::from(limit.count());
    match limit.kind() {
        Kind::Bucket { burst } => count + u64::from(burst),
        Kind::Sliding => count,
        _ => 2 * count,
    }
}
