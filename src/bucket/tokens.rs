//! Token-bucket arithmetic. Pure integers; a part of a token earned is never lost.

use std::time::Duration;

use crate::{clock::Timestamp, descriptor::Hits, limit::Limit};

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tokens {
    /// Whole tokens; below zero is debt.
    pub tokens: i64,
    /// What is earned of the next token, in `denominator`ths.
    pub fraction: u64,
    /// The parts of a token that `fraction` counts: those of the limit that last refilled the bucket.
    pub denominator: u64,
    /// When it was last refilled, in microseconds since the Unix epoch.
    pub at_us: u64,
}

impl Tokens {
    /// A full bucket.
    pub fn full(limit: &Limit, now: Timestamp) -> Self {
        Self {
            tokens: i64::from(limit.capacity()),
            fraction: 0,
            denominator: limit.refill().denominator,
            at_us: now.as_micros(),
        }
    }

    /// Adds what was earned since the last refill.
    ///
    /// A bucket filled by other numbers keeps its whole tokens or its debt, clamped; its fraction has no meaning under the new
    /// ones.
    pub fn refill(&mut self, limit: &Limit, now: Timestamp) {
        let refill = limit.refill();
        if self.denominator != refill.denominator {
            self.denominator = refill.denominator;
            self.fraction = 0;
        }
        let burst = i64::from(limit.capacity());
        self.tokens = self.tokens.max(-limit.deepest_debt());
        let now_us = now.as_micros();
        if now_us > self.at_us {
            self.earn(limit, now_us / refill.tick_us - self.at_us / refill.tick_us);
            self.at_us = now_us;
        }
        if self.tokens >= burst {
            (self.tokens, self.fraction) = (burst, 0);
        }
    }

    fn earn(&mut self, limit: &Limit, ticks: u64) {
        let refill = limit.refill();
        if ticks >= limit.ticks_from_debt() {
            self.tokens = i64::from(limit.capacity());
            return;
        }
        let (turns, rest) = (ticks / refill.denominator, ticks % refill.denominator);
        let parts = self.fraction + rest * refill.part;
        let earned = ticks * refill.whole + turns * refill.part + parts / refill.denominator;
        self.tokens += earned as i64;
        self.fraction = parts % refill.denominator;
    }

    /// Takes or gives whole tokens, between the deepest debt and full.
    pub fn apply(&mut self, limit: &Limit, hits: Hits) {
        let burst = i64::from(limit.capacity());
        self.tokens = match hits {
            Hits::Take(hits) => {
                let hits = i64::try_from(hits).unwrap_or(i64::MAX);
                self.tokens
                    .saturating_sub(hits)
                    .max(-limit.deepest_debt())
                    .min(self.tokens)
            }
            Hits::Give(hits) => {
                let hits = i64::try_from(hits).unwrap_or(i64::MAX);
                self.tokens.saturating_add(hits).min(burst)
            }
        };
        if self.tokens >= burst {
            self.fraction = 0;
        }
    }

    /// Whether `missing` more tokens are there by `until`.
    pub fn has_by(&self, limit: &Limit, missing: u64, until: Timestamp) -> bool {
        self.earned_at(limit, missing) <= until
    }

    /// How long until `missing` more tokens are there.
    pub fn wait(&self, limit: &Limit, missing: u64, now: Timestamp) -> Duration {
        self.earned_at(limit, missing).since(now)
    }

    /// When the bucket is full.
    pub fn full_at(&self, limit: &Limit, now: Timestamp) -> Timestamp {
        let missing = i64::from(limit.capacity()) - self.tokens;
        match u64::try_from(missing) {
            Ok(missing @ 1..) if limit.count() > 0 => self.earned_at(limit, missing),
            _ => now,
        }
    }

    /// The first tick at which `missing` more tokens are there.
    fn earned_at(&self, limit: &Limit, missing: u64) -> Timestamp {
        let refill = limit.refill();
        let ticks = refill.ticks_for(missing, self.fraction);
        let tick = (self.at_us / refill.tick_us).saturating_add(ticks);
        Timestamp::from_micros(tick.saturating_mul(refill.tick_us))
    }
}
