//! Decides takes from leases, and asks the store for what they do not cover.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{Hold, Leases};
use crate::store::{Item, StoreError, Take, Taken};

/// How often ended leases are looked for while there are any.
const LOOK: Duration = Duration::from_millis(20);

/// A store that takes tokens ahead.
pub trait Leasing {
    /// Its leases.
    fn leases(&self) -> &Leases;

    /// Longest wait for an answer.
    fn timeout(&self) -> Duration;

    /// Has the server of this bucket told and asked what [`Leases::ask`] says, some time soon.
    fn tell(&self, item: &Item);

    /// Decides without leases.
    fn take_unleased(
        &self,
        take: Take,
        deadline: Instant,
    ) -> impl Future<Output = Result<Taken, StoreError>> + Send;
}

/// Decides `take`: from leases if they cover all of it; else what they cover is spent only if the store admits the rest.
///
/// # Errors
/// As the store's.
pub async fn take<S: Leasing + Sync>(
    store: &S,
    take: Take,
    deadline: Instant,
) -> Result<Taken, StoreError> {
    let mut held = Held::of(store, &take);
    if held.all() {
        store.leases().stats.lease_decisions.fetch_add(1, Relaxed);
        return Ok(held.join(&take, None));
    }
    held.keep_until(store.leases().now() + store.timeout());
    if held.none() {
        return store.take_unleased(take, deadline).await;
    }
    let uncovered = take.items.iter().zip(&held.holds);
    let rest = Take {
        items: uncovered
            .filter(|(_, hold)| hold.is_none())
            .map(|(item, _)| item.clone())
            .collect(),
        dry: false,
    };
    match store.take_unleased(rest, deadline).await {
        Ok(taken) => Ok(held.join(&take, Some(taken))),
        Err(error) => {
            held.give_up();
            Err(error)
        }
    }
}

/// Has the store told of leases that have ended, for ever; `tell` is [`Leasing::tell`].
pub async fn keep(leases: Arc<Leases>, tell: impl Fn(&Item)) {
    loop {
        let (due, busy) = leases.due();
        due.iter().for_each(&tell);
        match busy {
            true => tokio::time::sleep(LOOK).await,
            false => leases.wake.notified().await,
        }
    }
}

/// Gives back what is not spent, and waits for that at most `limit`.
pub async fn give_back<S: Leasing>(store: &S, limit: Duration) {
    let until = Instant::now() + limit;
    let leases = store.leases();
    leases.end_all();
    loop {
        let (due, _) = leases.due();
        due.iter().for_each(|item| store.tell(item));
        let done = due.is_empty() && leases.on_the_way.load(Relaxed) == 0;
        if done || Instant::now() >= until {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What leases have of a take; spent when dropped, as a caller that goes away changes no decision.
struct Held<'a> {
    leases: &'a Leases,
    /// By item.
    holds: SmallVec<[Option<Hold>; 2]>,
    /// Spent already.
    is_final: bool,
}

impl<'a> Held<'a> {
    fn of<S: Leasing>(store: &'a S, take: &Take) -> Self {
        let leases = store.leases();
        let now = leases.now();
        // A take of one item is decided by it.
        let is_final = take.items.len() == 1;
        let mut holds = SmallVec::with_capacity(take.items.len());
        for item in &take.items {
            let (hold, wants) = leases.hold(item, now, is_final);
            holds.push(hold);
            if wants {
                store.tell(item);
            }
        }
        Self {
            leases,
            holds,
            is_final,
        }
    }

    fn all(&self) -> bool {
        self.holds.iter().all(Option::is_some)
    }

    fn none(&self) -> bool {
        self.holds.iter().all(Option::is_none)
    }

    /// Gives up what would be dead before the store has answered.
    fn keep_until(&mut self, answered: Instant) {
        for hold in &mut self.holds {
            if let Some(early) = hold.take_if(|hold| hold.dead_at <= answered) {
                self.leases.end(&early, false);
            }
        }
    }

    fn give_up(&mut self) {
        for hold in self.holds.drain(..).flatten() {
            self.leases.end(&hold, false);
        }
    }

    /// The answer to `take`, of which the store has decided what is not held, if anything.
    fn join(mut self, take: &Take, rest: Option<Taken>) -> Taken {
        let (admitted, degraded, not_replicated) = match &rest {
            Some(rest) => (rest.admitted, rest.degraded, rest.not_replicated),
            None => (true, false, false),
        };
        let mut asked = rest.into_iter().flat_map(|rest| rest.balances);
        let balances = take.items.iter().zip(&self.holds).map(|(_, hold)| {
            let Some(hold) = hold else {
                return asked.next().expect("one balance per item asked");
            };
            let mut balance = hold.balance;
            if !admitted {
                balance.charged = false;
                balance.left += i64::try_from(hold.hits).unwrap_or(i64::MAX);
            }
            balance
        });
        let taken = Taken {
            admitted,
            balances: balances.collect(),
            degraded,
            not_replicated,
        };
        if !admitted {
            self.give_up();
        }
        taken
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.is_final {
            for hold in self.holds.iter().flatten() {
                self.leases.end(hold, true);
            }
        }
    }
}
