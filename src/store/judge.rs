//! Decides one take over buckets at hand. Pure; the memory store and the reference model's tests call it, and
//! `redis/take.lua` is its twin.

use smallvec::SmallVec;

use super::{Take, Taken};
use crate::{bucket::Bucket, clock::Timestamp, descriptor::Hits, plan::Role};

/// Buckets of one take: one per distinct key, and for each item the place of its bucket.
pub type Places = SmallVec<[usize; 2]>;

/// For each bucket of a take, whether it changed.
pub type Changed = SmallVec<[bool; 2]>;

/// Decides `take` on `buckets` at `now`, and leaves in them what is left afterwards.
///
/// `places[i]` is the bucket of `take.items[i]`. Buckets need not be refilled; they are when this returns. Returns the answer,
/// and for each bucket whether it changed other than by refilling: only those need be written, and a refusal writes none.
pub fn judge(
    take: &Take,
    places: &[usize],
    buckets: &mut [Bucket],
    now: Timestamp,
) -> (Taken, Changed) {
    for (item, place) in take.items.iter().zip(places) {
        buckets[*place].refill(&item.limit.limit, now);
    }
    let untouched: SmallVec<[Bucket; 2]> = buckets.iter().cloned().collect();
    let mut asked: SmallVec<[u64; 2]> = SmallVec::from_elem(0, buckets.len());
    let mut wanted: SmallVec<[u64; 2]> = SmallVec::new();
    let mut fits: SmallVec<[bool; 2]> = SmallVec::new();
    let mut changed = Changed::from_elem(false, buckets.len());
    for (item, place) in take.items.iter().zip(places) {
        let (limit, bucket) = (&item.limit.limit, &mut buckets[*place]);
        let fit = bucket.fits(limit, item.hits);
        let hits = if let Hits::Take(hits) = item.hits {
            hits
        } else {
            0
        };
        wanted.push(asked[*place].saturating_add(hits));
        if fit {
            asked[*place] = asked[*place].saturating_add(hits);
            let before = bucket.balance(limit);
            bucket.apply(limit, item.hits, now);
            changed[*place] |= bucket.balance(limit) != before;
        }
        fits.push(fit);
    }
    let admitted = admits(take, &fits);
    let kept = admitted && !take.dry;
    if !kept {
        buckets.clone_from_slice(&untouched);
        changed.fill(false);
    }
    let balances = take
        .items
        .iter()
        .zip(places)
        .enumerate()
        .map(|(i, (item, place))| {
            buckets[*place].conclude(&item.limit.limit, fits[i], wanted[i], now)
        })
        .collect();
    (
        Taken {
            admitted,
            balances,
            degraded: false,
        },
        changed,
    )
}

/// Whether a request passes whose items fit so.
pub fn admits(take: &Take, fits: &[bool]) -> bool {
    let mut quota = None;
    for (item, fit) in take.items.iter().zip(fits) {
        match item.role {
            Role::Enforced if !fit => return false,
            Role::Quota => quota = Some(quota.unwrap_or(false) || *fit),
            _ => {}
        }
    }
    quota.unwrap_or(true)
}
