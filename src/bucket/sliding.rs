//! A sliding window kept in slots: at most N in any interval of the window's length. Pure integers.
//!
//! Slots are aligned to the epoch. Hits of the present slot and of the [`SLIDING_SLOTS`] before it count, which is at least
//! the window's length back from any moment of the present slot: so never over, and at most one slot's length too long.

use std::time::Duration;

use crate::{
    clock::Timestamp,
    limit::{Limit, SLIDING_SLOTS},
};

/// The hits of the present window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Window {
    /// (number of the slot since the epoch, hits in it above zero), oldest first; at most [`SLIDING_SLOTS`] + 1.
    pub slots: Vec<(u64, u64)>,
}

impl Window {
    /// Hits in the window.
    pub fn used(&self) -> u64 {
        self.slots.iter().map(|(_, hits)| hits).sum()
    }

    /// Drops the slots that have left the window.
    pub fn forget(&mut self, limit: &Limit, now: Timestamp) {
        let oldest = (now.as_micros() / limit.slot_us()).saturating_sub(SLIDING_SLOTS);
        let gone = self.slots.partition_point(|(slot, _)| *slot < oldest);
        self.slots.drain(..gone);
    }

    /// Counts `hits` in the present slot, or in the newest one if the clock went back. Debt ends at one count.
    pub fn add(&mut self, limit: &Limit, hits: u64, now: Timestamp) {
        let room = (2 * u64::from(limit.count())).saturating_sub(self.used());
        let hits = hits.min(room);
        if hits == 0 {
            return;
        }
        let slot = now.as_micros() / limit.slot_us();
        match self.slots.last_mut() {
            Some((newest, count)) if *newest >= slot => *count += hits,
            _ => self.slots.push((slot, hits)),
        }
    }

    /// Takes `hits` out again, the newest first.
    pub fn remove(&mut self, mut hits: u64) {
        while let Some((_, count)) = self.slots.last_mut() {
            if *count > hits {
                *count -= hits;
                return;
            }
            hits -= *count;
            self.slots.pop();
        }
    }

    /// How long until `missing` hits have left the window.
    pub fn wait(&self, limit: &Limit, missing: u64, now: Timestamp) -> Duration {
        let mut left = 0;
        let slot = self.slots.iter().find(|(_, hits)| {
            left += hits;
            left >= missing
        });
        slot.map_or(Duration::ZERO, |(slot, _)| {
            leaves_at(limit, *slot).since(now)
        })
    }

    /// When the last hit leaves the window.
    pub fn empty_at(&self, limit: &Limit) -> Timestamp {
        self.slots
            .last()
            .map_or(Timestamp::default(), |(slot, _)| leaves_at(limit, *slot))
    }
}

fn leaves_at(limit: &Limit, slot: u64) -> Timestamp {
    Timestamp::from_micros((slot + SLIDING_SLOTS + 1) * limit.slot_us())
}
