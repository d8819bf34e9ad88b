//! Who ran into a limit how often, and the penalty for it. Pure integers.

use std::time::Duration;

use crate::{
    clock::{Timestamp, micros},
    limit::{Limit, Penalty},
};

/// Refusals of one subject, and its last penalty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strikes {
    /// Refusals that count towards the next penalty.
    pub strikes: u32,
    /// Whether a penalty ran when this was last brought up to a moment.
    pub running: bool,
    /// When the first of the refusals was, in microseconds since the Unix epoch.
    pub since_us: u64,
    /// Length of the last penalty in microseconds; 0 if there was none.
    pub last_us: u64,
    /// Its end, in microseconds since the Unix epoch.
    pub until_us: u64,
}

impl Strikes {
    /// Brings it up to `now`: forgets refusals and penalties whose time is over. A penalty never ends later than the longest one
    /// that begins now, so neither other plans nor a clock put back prolong it.
    pub fn settle(&mut self, limit: &Limit, now: Timestamp) {
        let (terms, now) = (limit.terms(), now.as_micros());
        let (within, longest) = (micros(terms.within), micros(terms.longest));
        self.until_us = self.until_us.min(now.saturating_add(longest));
        if self.last_us > 0 && now >= self.until_us.saturating_add(longest) {
            (self.last_us, self.until_us) = (0, 0);
        }
        if self.strikes > 0 && now >= self.since_us.saturating_add(within) {
            (self.strikes, self.since_us) = (0, 0);
        }
        self.running = self.last_us > 0 && self.until_us > now;
    }

    /// Counts refusals; enough of them begin a penalty. While one runs none count.
    pub fn strike(&mut self, limit: &Limit, hits: u64, now: Timestamp) {
        if self.running || hits == 0 {
            return;
        }
        let (terms, now) = (limit.terms(), now.as_micros());
        if self.strikes == 0 {
            self.since_us = now;
        }
        let strikes = u64::from(self.strikes).saturating_add(hits);
        if strikes < u64::from(terms.after) {
            self.strikes = strikes as u32;
            return;
        }
        let length = next_us(terms, self.last_us);
        *self = Self {
            strikes: 0,
            running: true,
            since_us: 0,
            last_us: length,
            until_us: now.saturating_add(length),
        };
    }

    /// Takes over a penalty that was told of elsewhere and ends later.
    pub fn join(&mut self, other: Self) {
        if other.until_us > self.until_us {
            (self.last_us, self.until_us) = (other.last_us, other.until_us);
        }
    }

    /// How long the penalty still runs, if it does.
    pub fn rest(&self, now: Timestamp) -> Option<Duration> {
        let until = Timestamp::from_micros(self.until_us);
        self.running.then(|| until.since(now))
    }

    /// When nothing of it matters any more.
    pub fn forgotten_at(&self, limit: &Limit) -> Timestamp {
        let terms = limit.terms();
        let of_strikes = match self.strikes {
            0 => 0,
            _ => self.since_us.saturating_add(micros(terms.within)),
        };
        let of_penalty = match self.last_us {
            0 => 0,
            _ => self.until_us.saturating_add(micros(terms.longest)),
        };
        Timestamp::from_micros(of_strikes.max(of_penalty))
    }
}

/// Length of the penalty after one of `last_us`.
fn next_us(terms: &Penalty, last_us: u64) -> u64 {
    match last_us {
        0 => micros(terms.first),
        last => last.saturating_mul(2).min(micros(terms.longest)),
    }
}
