//! What a limit remembers, and the arithmetic on it. Pure: no clock, no I/O, no locks; integers only.
//!
//! `store/redis/take.lua` does the same inside Redis and hands back buckets in this form, so that waits and resets are
//! computed here alone; `tests/redis/same_answers.rs` holds the two together. A bucket may go into debt (hits admitted without
//! the store are charged afterwards), by at most its capacity; where answers wait for their tokens, deeper by those.

pub mod calendar;
pub mod penalty;
pub mod sliding;
pub mod tokens;

use std::time::Duration;

use crate::{
    clock::Timestamp,
    descriptor::Hits,
    limit::{Kind, Limit},
};

pub use self::{calendar::Spent, penalty::Strikes, sliding::Window, tokens::Tokens};

/// What one bucket holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bucket {
    /// Of [`Kind::Bucket`].
    Tokens(Tokens),
    /// Of [`Kind::Sliding`].
    Window(Window),
    /// Of [`Kind::Calendar`] and [`Kind::FixedWindow`].
    Spent(Spent),
    /// Of [`Kind::Penalty`].
    Penalty(Strikes),
}

/// What a bucket says about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Whether the hits fit.
    pub fits: bool,
    /// Whether they were charged.
    pub charged: bool,
    /// What the bucket holds after this decision; below zero is debt. Where descriptors are charged independently: after this
    /// one was charged and before the next.
    pub left: i64,
    /// If they do not fit: how long until they would if nobody else came; none if never.
    pub retry_after: Option<Duration>,
    /// If they fit: how long until the bucket is full. Else as `retry_after`, or one period where that is none. For a fixed
    /// window always until its end.
    pub reset_after: Duration,
    /// Refused by what this replica remembers of a bucket that went over, where settings ask for such a cache.
    pub cached: bool,
    /// Refused, or from now on, as the limit has a penalty that runs.
    pub penalised: bool,
    /// If they fit: how long, in microseconds, until the tokens that were taken are there, so that the answer must wait. Only
    /// where the limit has a delay.
    pub delay_us: u32,
}

impl Balance {
    /// Hits that would still fit after this decision.
    pub fn remaining(&self) -> u64 {
        self.left.max(0).unsigned_abs()
    }
}

/// What a decision found about some hits on a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whether they fit.
    pub fits: bool,
    /// Whether they were charged.
    pub charged: bool,
    /// As [`Balance::left`].
    pub left: i64,
}

impl Bucket {
    /// A bucket that nobody has taken from.
    pub fn full(limit: &Limit, now: Timestamp) -> Self {
        match limit.kind() {
            Kind::Bucket { .. } => Self::Tokens(Tokens::full(limit, now)),
            Kind::Sliding => Self::Window(Window::default()),
            Kind::Calendar | Kind::FixedWindow => Self::Spent(Spent::unused(limit, now)),
            Kind::Penalty => Self::Penalty(Strikes::default()),
        }
    }

    /// Brings the bucket up to `now`: adds what was earned, forgets what has passed, clamps to a limit whose numbers have
    /// changed. A `now` before the last one changes nothing. A bucket of another kind starts full.
    pub fn refill(&mut self, limit: &Limit, now: Timestamp) {
        match (limit.kind(), &mut *self) {
            (Kind::Bucket { .. }, Self::Tokens(tokens)) => tokens.refill(limit, now),
            (Kind::Sliding, Self::Window(window)) => window.forget(limit, now),
            (Kind::Calendar | Kind::FixedWindow, Self::Spent(spent)) => spent.turn(limit, now),
            (Kind::Penalty, Self::Penalty(strikes)) => strikes.settle(limit, now),
            _ => *self = Self::full(limit, now),
        }
    }

    /// Hits that fit into a refilled bucket; below zero when it is in debt.
    pub fn balance(&self, limit: &Limit) -> i64 {
        match self {
            Self::Tokens(tokens) => tokens.tokens,
            Self::Window(window) => i64::from(limit.count()) - window.used() as i64,
            Self::Spent(spent) => i64::from(limit.count()) - spent.used as i64,
            Self::Penalty(strikes) => i64::from(!strikes.running),
        }
    }

    /// Whether `hits` fit into a refilled bucket. A look, zero hits, fits unless the bucket is in debt.
    pub fn fits(&self, limit: &Limit, hits: Hits) -> bool {
        match hits {
            Hits::Take(hits) => i64::try_from(hits).is_ok_and(|hits| self.balance(limit) >= hits),
            Hits::Give(_) => true,
        }
    }

    /// Whether `hits`, which are no more than the limit's capacity, fit into a refilled bucket of tokens by `until`.
    pub fn fits_by(&self, limit: &Limit, hits: u64, until: Timestamp) -> bool {
        let Self::Tokens(tokens) = self else {
            return false;
        };
        let missing = i64::try_from(hits).map(|hits| hits.saturating_sub(tokens.tokens));
        missing.is_ok_and(|missing| {
            missing <= 0 || tokens.has_by(limit, missing.unsigned_abs(), until)
        })
    }

    /// Applies `hits` to a refilled bucket, whether they fit or not. Debt ends at one capacity (that of a fixed
    /// window with the window), giving at full.
    pub fn apply(&mut self, limit: &Limit, hits: Hits, now: Timestamp) {
        match (self, hits) {
            (Self::Tokens(tokens), hits) => tokens.apply(limit, hits),
            (Self::Window(window), Hits::Take(hits)) => window.add(limit, hits, now),
            (Self::Window(window), Hits::Give(hits)) => window.remove(hits),
            (Self::Spent(spent), hits) => spent.apply(limit, hits),
            (Self::Penalty(strikes), Hits::Take(hits)) => strikes.strike(limit, hits, now),
            // By hand alone: what is given to a limit is no gift to its guard.
            (Self::Penalty(strikes), Hits::Give(1..)) => *strikes = Strikes::default(),
            (Self::Penalty(_), Hits::Give(0)) => {}
        }
    }

    /// How long a refilled bucket needs until `hits` fit; zero if they do, none if they never will.
    pub fn wait(&self, limit: &Limit, hits: u64, now: Timestamp) -> Option<Duration> {
        let missing = i64::try_from(hits)
            .ok()?
            .saturating_sub(self.balance(limit));
        if missing <= 0 {
            return Some(Duration::ZERO);
        }
        if hits > u64::from(limit.capacity()) || limit.count() == 0 {
            return None;
        }
        let missing = missing.unsigned_abs();
        Some(match self {
            Self::Tokens(tokens) => tokens.wait(limit, missing, now),
            Self::Window(window) => window.wait(limit, missing, now),
            Self::Spent(spent) => spent.wait(limit, missing, now)?,
            Self::Penalty(strikes) => strikes.rest(now)?,
        })
    }

    /// The moment from which the bucket is as good as one that nobody has taken from.
    pub fn full_at(&self, limit: &Limit, now: Timestamp) -> Timestamp {
        match self {
            Self::Tokens(tokens) => tokens.full_at(limit, now),
            Self::Window(window) => window.empty_at(limit),
            Self::Spent(spent) => spent.full_at(limit),
            Self::Penalty(strikes) => strikes.forgotten_at(limit),
        }
    }

    /// How long the penalty runs that this decision began, or another one.
    fn penalty(&self, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Penalty(strikes) => strikes.rest(now),
            _ => None,
        }
    }

    /// What to answer about `asked` hits (all of the request's hits on this bucket so far), of whose last ones the decision
    /// `found` so much. `self` is refilled, and holds what is left after the decision.
    pub fn conclude(&self, limit: &Limit, found: Found, asked: u64, now: Timestamp) -> Balance {
        let retry_after = if found.fits {
            self.penalty(now)
        } else {
            self.wait(limit, asked, now)
        };
        let reset_after = match self {
            Self::Spent(spent) if limit.kind() == Kind::FixedWindow => spent.end(limit).since(now),
            _ if found.fits => self.full_at(limit, now).since(now),
            _ => retry_after.unwrap_or(Duration::from_micros(limit.period().micros())),
        };
        Balance {
            fits: found.fits,
            charged: found.charged,
            left: found.left,
            retry_after,
            reset_after,
            cached: false,
            penalised: false,
            delay_us: 0,
        }
    }
}
