//! Decides one take over buckets at hand. Pure; the memory store and the reference model's tests call it, and
//! `redis/take.lua` is its twin.

use smallvec::SmallVec;

use super::{
    Item, Take, Taken,
    pace::{fits_later, pace},
};
use crate::{
    bucket::{Bucket, Found},
    clock::Timestamp,
    descriptor::Hits,
    plan::{Charge, Role},
};

/// Buckets of one take: one per distinct key, and for each item the place of its bucket.
pub type Places = SmallVec<[usize; 2]>;

/// For each bucket or item of a take, whether something holds.
pub type Flags = SmallVec<[bool; 2]>;

/// Decides `take` on `buckets` at `now`, and leaves in them what is left afterwards.
///
/// `places[i]` is the bucket of `take.items[i]`. Buckets need not be refilled; they are when this returns. Returns the answer,
/// and for each bucket whether it changed other than by refilling: only those need be written.
pub fn judge(
    take: &Take,
    places: &[usize],
    buckets: &mut [Bucket],
    now: Timestamp,
) -> (Taken, Flags) {
    for (item, place) in take.items.iter().zip(places) {
        buckets[*place].refill(&item.limit.limit, now);
    }
    let untouched: SmallVec<[Bucket; 2]> = buckets.iter().cloned().collect();
    let mut fits = Flags::new();
    let mut run = Run::new(take, places, buckets, now);
    // In order, as if the request passed: what fits is taken, so that a second item on a bucket sees what the first left.
    for (index, item) in take.items.iter().enumerate() {
        let bucket = &run.buckets[places[index]];
        let fit = bucket.fits(&item.limit.limit, item.hits)
            || item.patience_us > 0 && fits_later(take, places, &fits, index, bucket, now);
        fits.push(fit);
        let charge = match item.charge {
            Charge::Independent => true,
            Charge::Strike => false,
            _ => fit,
        };
        run.pass(index, charge);
    }
    let admitted = admits(roles(take).zip(fits.iter().copied()));
    let charged = charged(take, &fits, admitted);
    if charged != run.charged {
        run.buckets.clone_from_slice(&untouched);
        run = Run::new(take, places, run.buckets, now);
        for (index, charged) in charged.iter().enumerate() {
            run.pass(index, *charged);
        }
    }
    let changed = run.changed.clone();
    let balances = run.conclude(&fits);
    (
        Taken {
            admitted,
            balances,
            degraded: false,
            not_replicated: false,
        },
        changed,
    )
}

/// One way through the items of a take, each charged or not.
struct Run<'a> {
    take: &'a Take,
    places: &'a [usize],
    buckets: &'a mut [Bucket],
    now: Timestamp,
    /// By bucket.
    changed: Flags,
    /// By item.
    charged: Flags,
    /// By item, what its bucket held then.
    left: SmallVec<[i64; 2]>,
}

impl<'a> Run<'a> {
    fn new(take: &'a Take, places: &'a [usize], buckets: &'a mut [Bucket], now: Timestamp) -> Self {
        Self {
            changed: Flags::from_elem(false, buckets.len()),
            take,
            places,
            buckets,
            now,
            charged: Flags::new(),
            left: SmallVec::new(),
        }
    }

    /// Goes past the next item.
    fn pass(&mut self, index: usize, charge: bool) {
        let (item, place) = (&self.take.items[index], self.places[index]);
        let (limit, bucket) = (&item.limit.limit, &mut self.buckets[place]);
        if charge {
            let before = bucket.balance(limit);
            bucket.apply(limit, item.hits, self.now);
            // Strikes, and that they are forgotten, may change no balance.
            let strikes = matches!(bucket, Bucket::Penalty(_));
            self.changed[place] |= bucket.balance(limit) != before || strikes;
        }
        self.charged.push(charge);
        self.left.push(bucket.balance(limit));
    }

    fn conclude(self, fits: &[bool]) -> SmallVec<[crate::bucket::Balance; 2]> {
        let mut asked: SmallVec<[u64; 2]> = SmallVec::from_elem(0, self.buckets.len());
        let items = self.take.items.iter().zip(self.places).enumerate();
        items
            .map(|(index, (item, place))| {
                let (limit, bucket) = (&item.limit.limit, &self.buckets[*place]);
                let wanted = asked[*place].saturating_add(taken_hits(item));
                if fits[index] {
                    asked[*place] = wanted;
                }
                let left = match item.charge {
                    Charge::Independent | Charge::Strike => self.left[index],
                    _ => bucket.balance(limit),
                };
                let found = Found {
                    fits: fits[index],
                    charged: self.charged[index],
                    left,
                };
                let mut balance = bucket.conclude(limit, found, wanted, self.now);
                if item.patience_us > 0 {
                    pace(
                        &mut balance,
                        item,
                        bucket,
                        (wanted, self.take.dry),
                        self.now,
                    );
                }
                balance
            })
            .collect()
    }
}

/// Hits that an item takes; none where it gives.
pub fn taken_hits(item: &Item) -> u64 {
    match item.hits {
        Hits::Take(hits) => hits,
        Hits::Give(_) => 0,
    }
}

/// For each item of `take`, of which so many fit, whether its hits are charged.
pub fn charged(take: &Take, fits: &[bool], admitted: bool) -> Flags {
    let all_fit = fits.iter().all(|fit| *fit);
    let items = take.items.iter().zip(fits).enumerate();
    items
        .map(|(index, (item, fit))| {
            !take.dry
                && match item.charge {
                    Charge::AllOrNothing => *fit && admitted,
                    Charge::Overdraw => !fit || admitted,
                    Charge::StopWhenOver => !fit || all_fit || matches!(item.hits, Hits::Give(_)),
                    Charge::Independent => true,
                    Charge::Strike => *fit && index > 0 && !fits[index - 1],
                }
        })
        .collect()
}

/// The role of each item.
pub fn roles(take: &Take) -> impl Iterator<Item = Role> {
    take.items.iter().map(|item| item.role)
}

/// Whether a request passes whose items have such roles, and fit so.
pub fn admits(items: impl IntoIterator<Item = (Role, bool)>) -> bool {
    let mut quota = None;
    for (role, fit) in items {
        match role {
            Role::Enforced if !fit => return false,
            Role::Quota => quota = Some(quota.unwrap_or(false) || fit),
            _ => {}
        }
    }
    quota.unwrap_or(true)
}
