//! Sums of hits. Whoever asks says how many hits a descriptor has, and may say any number.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Most hits of a descriptor that are counted: as many as the largest limit has, and more than Envoy sends. Buckets judge all of
/// them.
pub const MOST_HITS: u64 = u32::MAX as u64;

/// As many of a descriptor's hits as are counted.
pub fn counted(hits: u64) -> u64 {
    hits.min(MOST_HITS)
}

/// Hits added up. It only grows, up to what a number holds.
#[derive(Debug, Default)]
pub struct HitSum(AtomicU64);

impl HitSum {
    /// Adds hits.
    pub fn add(&self, hits: u64) {
        let more = |sum: u64| Some(sum.saturating_add(hits));
        let _ = self.0.fetch_update(Relaxed, Relaxed, more);
    }

    /// How many they are.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_sum_stays_full() {
        let sum = HitSum::default();
        for hits in [u64::MAX - 2, 2, 1, u64::MAX] {
            sum.add(hits);
        }
        assert_eq!(sum.get(), u64::MAX);
    }
}
