//! Parts a take into what the local cache refuses, item by item, and what Redis decides. Pure.
// Source: envoyproxy/ratelimit with LOCAL_CACHE_SIZE_IN_BYTES: a descriptor whose key went over is refused without Redis and not
// charged; the others are asked as ever, or only looked at where being over stops them.

use std::time::Instant;

use smallvec::SmallVec;

use crate::{
    bucket::Balance,
    descriptor::Hits,
    plan::Charge,
    store::{Item, Take, Taken, judge, seen::Seen},
};

/// A take of which the local cache refuses something.
pub struct Split {
    /// By item, what the cache says.
    known: SmallVec<[Option<Balance>; 2]>,
}

impl Split {
    /// The parting, and what Redis is to decide, if anything. None where the cache refuses nothing, or where all or nothing
    /// binds items together.
    pub fn of(take: &Take, seen: &Seen, now: Instant) -> Option<(Self, Option<Take>)> {
        let apart = |item: &Item| matches!(item.charge, Charge::Independent | Charge::StopWhenOver);
        if take.dry || !take.items.iter().all(apart) {
            return None;
        }
        let known: SmallVec<[Option<Balance>; 2]> = take
            .items
            .iter()
            .map(|item| seen.overdrawn(item, now))
            .collect();
        if known.iter().all(Option::is_none) {
            return None;
        }
        let unknown = take
            .items
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none());
        let rest = unknown.map(|(item, _)| match (item.charge, item.hits) {
            (Charge::StopWhenOver, Hits::Take(_)) => Item {
                hits: Hits::Take(0),
                ..item.clone()
            },
            _ => item.clone(),
        });
        let rest = Take {
            items: rest.collect(),
            dry: false,
        };
        let rest = (!rest.items.is_empty()).then_some(rest);
        Some((Self { known }, rest))
    }

    /// The answer to `take`, when Redis has decided the `rest`.
    pub fn join(self, take: &Take, rest: Option<Taken>) -> Taken {
        let degraded = rest.as_ref().is_some_and(|rest| rest.degraded);
        let not_replicated = rest.as_ref().is_some_and(|rest| rest.not_replicated);
        let mut asked = rest
            .map(|rest| rest.balances)
            .unwrap_or_default()
            .into_iter();
        let balances: SmallVec<[Balance; 2]> = self
            .known
            .into_iter()
            .map(|known| known.unwrap_or_else(|| asked.next().expect("one balance per item asked")))
            .collect();
        let fits = balances.iter().map(|balance| balance.fits);
        Taken {
            admitted: judge::admits(judge::roles(take).zip(fits)),
            balances,
            degraded,
            not_replicated,
        }
    }
}
