//! Takes whose limits say `delay` or `penalty`: how long their answers may wait for tokens, and the waiting; which penalties they
//! meet. Bounded.
//!
//! The tokens are taken when the request is judged, so a caller that goes away while it waits has spent them: who came later
//! was told to wait for its own, and keeps its place.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::penalties;
use crate::{
    clock::micros,
    descriptor::Hits,
    histogram::Histogram,
    plan::Role,
    store::{Item, Store, StoreError, Take, Taken},
};

/// Most requests that wait, unless told.
const MOST_WAITING: usize = 10_000;

/// Upper bounds of the waits that are counted, in microseconds.
const DELAY_BOUNDS_US: [u64; 14] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 20_000_000, 60_000_000,
];

/// The house in which requests wait, and what was counted there.
#[derive(Debug)]
pub struct Pacing {
    most: usize,
    waits: bool,
    waiting: AtomicUsize,
    full: AtomicU64,
    delays_us: Histogram,
    penalties: AtomicU64,
    penalised: AtomicU64,
}

/// A place in the house; free again when it is dropped.
struct Place<'a>(&'a Pacing);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Default for Pacing {
    fn default() -> Self {
        Self::of_at_most(MOST_WAITING)
    }
}

impl Pacing {
    /// A house of so many places.
    pub fn of_at_most(most: usize) -> Self {
        Self {
            most,
            waits: true,
            waiting: AtomicUsize::new(0),
            full: AtomicU64::new(0),
            delays_us: Histogram::new(&DELAY_BOUNDS_US),
            penalties: AtomicU64::new(0),
            penalised: AtomicU64::new(0),
        }
    }

    /// The same, where nobody waits in truth: for requests of another time.
    pub fn without_waiting(self) -> Self {
        Self {
            waits: false,
            ..self
        }
    }

    /// Requests that wait now, or may have to.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Times that a request could not have waited, as the house was full.
    pub fn full(&self) -> u64 {
        self.full.load(Relaxed)
    }

    /// How long requests waited, in microseconds.
    pub fn delays_us(&self) -> &Histogram {
        &self.delays_us
    }

    /// Penalties that began here.
    pub fn penalties(&self) -> u64 {
        self.penalties.load(Relaxed)
    }

    /// Requests that a penalty refused.
    pub fn penalised(&self) -> u64 {
        self.penalised.load(Relaxed)
    }

    /// Decides `take` as its store does, and answers when all tokens are there.
    ///
    /// # Errors
    /// As [`Store::take`].
    pub(super) async fn take(
        &self,
        store: &Store,
        mut take: Take,
        deadline: Instant,
    ) -> Result<Taken, StoreError> {
        let (dry, left) = (take.dry, deadline.saturating_duration_since(Instant::now()));
        let place = if take.items.iter().any(may_wait) {
            self.enter(dry)
        } else {
            None
        };
        if dry || place.is_some() {
            // A question about what would be has no caller who goes away.
            let most = if dry { u64::MAX } else { micros(left) };
            for item in take.items.iter_mut().filter(|item| may_wait(item)) {
                let delay_us = item.limit.limit.delay_us();
                item.patience_us = u32::try_from(most).unwrap_or(u32::MAX).min(delay_us);
            }
        }
        let guards = penalties::guard(&mut take);
        let roles: SmallVec<[Role; 4]> = take.items.iter().map(|item| item.role).collect();
        let mut taken = store.take(take, deadline).await?;
        let found = penalties::merge(&mut taken, &guards, &roles);
        if dry {
            return Ok(taken);
        }
        self.penalties.fetch_add(found.begun, Relaxed);
        self.penalised.fetch_add(found.refused.into(), Relaxed);
        if taken.admitted {
            self.wait(&mut taken).await;
        }
        Ok(taken)
    }

    fn enter(&self, dry: bool) -> Option<Place<'_>> {
        if dry {
            return None;
        }
        let place = Place(self);
        if self.waiting.fetch_add(1, Relaxed) < self.most {
            return Some(place);
        }
        self.full.fetch_add(1, Relaxed);
        None
    }

    async fn wait(&self, taken: &mut Taken) {
        let delay_us = u64::from(delay_us(taken));
        if delay_us == 0 {
            return;
        }
        self.delays_us.observe(delay_us);
        if !self.waits {
            return;
        }
        // The store's answer took a moment, so nobody is let go before the tokens are there.
        let delay = Duration::from_micros(delay_us);
        tokio::time::sleep(delay).await;
        for balance in &mut taken.balances {
            balance.reset_after = balance.reset_after.saturating_sub(delay);
        }
    }
}

/// How long an answer must wait for the tokens that it took.
pub(super) fn delay_us(taken: &Taken) -> u32 {
    let delays = taken.balances.iter().map(|balance| balance.delay_us);
    delays.max().unwrap_or(0)
}

/// In shadow mode nobody waits, as nobody is refused.
fn may_wait(item: &Item) -> bool {
    item.limit.limit.delay_us() > 0
        && item.role != Role::Shadow
        && matches!(item.hits, Hits::Take(_))
}
