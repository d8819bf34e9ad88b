//! Items whose answers may wait for their tokens. Pure.
//!
//! Tokens are taken when they are promised, so the bucket goes below zero, and who comes later waits longer: first come, first
//! served. A request is released when its bucket is back at zero. Then all that was taken before is released, too, and what
//! is released in any interval was in the bucket at its beginning or has refilled in it: at most `burst + rate × t`. For that a
//! request must not wait for more than a full bucket holds.

use std::time::Duration;

use super::{Item, Take, judge::taken_hits};
use crate::{
    bucket::{Balance, Bucket},
    clock::{Timestamp, micros},
    descriptor::Hits,
};

/// Whether item `index` of `take`, which does not fit now, does within its patience. `places` say which bucket each item has,
/// `fits` which of the items before it fit, and `bucket` is its own after those.
pub fn fits_later(
    take: &Take,
    places: &[usize],
    fits: &[bool],
    index: usize,
    bucket: &Bucket,
    now: Timestamp,
) -> bool {
    let item = &take.items[index];
    let Hits::Take(hits) = item.hits else {
        return false;
    };
    let before = (0..index).filter(|other| fits[*other] && places[*other] == places[index]);
    let before = before.fold(0_u64, |sum, other| {
        sum.saturating_add(taken_hits(&take.items[other]))
    });
    let limit = &item.limit.limit;
    before.saturating_add(hits) <= u64::from(limit.capacity())
        && bucket.fits_by(limit, hits, now.after(patience(item)))
}

/// Adds to what `bucket` says about an item how long its answer waits; or, as it would wait, that it would pass sooner.
/// `asked` are the request's hits on the bucket up to this item, which are in the bucket unless `dry`.
pub fn pace(
    balance: &mut Balance,
    item: &Item,
    bucket: &Bucket,
    (asked, dry): (u64, bool),
    now: Timestamp,
) {
    let limit = &item.limit.limit;
    if !balance.fits {
        let sooner = |wait: Duration| wait.saturating_sub(patience(item));
        if let Some(wait) = balance.retry_after.map(sooner) {
            (balance.retry_after, balance.reset_after) = (Some(wait), wait);
        }
    } else if balance.charged || dry {
        let wait = bucket.wait(limit, if dry { asked } else { 0 }, now);
        let wait_us = wait.map_or(0, micros);
        balance.delay_us = u32::try_from(wait_us).unwrap_or(u32::MAX);
    }
}

fn patience(item: &Item) -> Duration {
    Duration::from_micros(item.patience_us.into())
}
