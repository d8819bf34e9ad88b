//! Puts the penalties of limits into a take, each behind the item of its limit, and their answers together with those of
//! the limits.

use smallvec::SmallVec;

use crate::{
    descriptor::Hits,
    plan::{Charge, Role},
    store::{BucketKey, Item, Take, Taken},
};

/// What of a take came to a penalty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Penalties {
    /// Penalties that began.
    pub begun: u64,
    /// Whether one refused the request.
    pub refused: bool,
}

/// Adds the guards of all items whose limits penalise. Returns where they stand.
pub(super) fn guard(take: &mut Take) -> SmallVec<[usize; 2]> {
    let mut guards = SmallVec::new();
    if !take.items.iter().any(is_guarded) {
        return guards;
    }
    let mut items: SmallVec<[Item; 2]> = SmallVec::with_capacity(2 * take.items.len());
    for item in take.items.drain(..) {
        let guard = guard_of(&item);
        items.push(item);
        if let Some(guard) = guard {
            guards.push(items.len());
            items.push(guard);
        }
    }
    take.items = items;
    guards
}

/// A refund runs into no limit, and what quota rules of a process in quota mode refuse is no refusal yet.
fn is_guarded(item: &Item) -> bool {
    item.limit.guard().is_some() && item.role != Role::Quota && matches!(item.hits, Hits::Take(_))
}

fn guard_of(item: &Item) -> Option<Item> {
    let limit = item.limit.guard().filter(|_| is_guarded(item))?;
    let subject = item.key.subject(item.limit.key_prefix());
    Some(Item {
        key: BucketKey::new(limit.key_prefix(), subject),
        limit: limit.clone(),
        hits: Hits::Take(1),
        charge: Charge::Strike,
        patience_us: 0,
        ..*item
    })
}

/// Takes the answers of `guards` out of `taken`: a limit whose penalty runs does not fit until it ends. `roles` are those of all
/// items.
pub(super) fn merge(taken: &mut Taken, guards: &[usize], roles: &[Role]) -> Penalties {
    let mut found = Penalties::default();
    for place in guards.iter().rev() {
        let guard = taken.balances.remove(*place);
        let Some(rest) = guard.retry_after else {
            continue;
        };
        let balance = &mut taken.balances[*place - 1];
        found.begun += u64::from(guard.fits && guard.charged);
        found.refused |= !guard.fits && roles[*place] != Role::Shadow;
        let wait = match balance.fits {
            true => Some(rest),
            // If it never fits, that is so after the penalty too.
            false => balance.retry_after.map(|wait| wait.max(rest)),
        };
        (balance.fits, balance.penalised, balance.retry_after) = (false, true, wait);
        balance.reset_after = wait.unwrap_or(balance.reset_after);
    }
    found
}
