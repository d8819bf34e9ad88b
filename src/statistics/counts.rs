//! The counters of one rule, and how a request's hits are divided among them.

use super::sum::{HitSum, counted};
use crate::descriptor::Hits;

/// What is counted of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Every hit asked for.
    TotalHits,
    /// Hits beyond the limit.
    OverLimit,
    /// Hits between the near limit and the limit.
    NearLimit,
    /// Hits refused without a look at the store.
    OverLimitWithLocalCache,
    /// Hits of requests that the rule let pass.
    WithinLimit,
    /// Hits beyond the limit of a rule in shadow mode.
    ShadowMode,
    /// Hits given back.
    TotalNegativeHits,
}

impl Counter {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::TotalHits,
        Self::OverLimit,
        Self::NearLimit,
        Self::OverLimitWithLocalCache,
        Self::WithinLimit,
        Self::ShadowMode,
        Self::TotalNegativeHits,
    ];

    /// Its name in statistics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TotalHits => "total_hits",
            Self::OverLimit => "over_limit",
            Self::NearLimit => "near_limit",
            Self::OverLimitWithLocalCache => "over_limit_with_local_cache",
            Self::WithinLimit => "within_limit",
            Self::ShadowMode => "shadow_mode",
            Self::TotalNegativeHits => "total_negative_hits",
        }
    }
}

/// How one descriptor of a request fared with its rule.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// What it asked for.
    pub hits: Hits,
    /// Hits that the rule's bucket holds when nobody has taken from it.
    pub capacity: u64,
    /// Hits that it held when the request came.
    pub left: u64,
    /// Whether the hits fitted.
    pub fits: bool,
    /// Whether the rule is in shadow mode.
    pub shadow: bool,
    /// Whether the refusal was remembered, so that the store was not asked.
    pub by_cache: bool,
}

/// The counters of one rule. They only grow.
#[derive(Debug, Default)]
pub struct Counts([HitSum; Counter::ALL.len()]);

impl Counts {
    /// The value of a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].get()
    }

    fn add(&self, counter: Counter, hits: u64) {
        if hits > 0 {
            self.0[counter as usize].add(hits);
        }
    }

    /// Counts what was judged. `near_limit_ratio` is the part of the capacity beyond which hits are near the limit.
    ///
    /// Source: envoyproxy/ratelimit: hits of one request may lie on both sides of either threshold, and each hit counts on its
    /// own side.
    pub fn count(&self, judged: &Judged, near_limit_ratio: f32) {
        let hits = match judged.hits {
            Hits::Take(hits) => counted(hits),
            Hits::Give(hits) => return self.add(Counter::TotalNegativeHits, counted(hits)),
        };
        self.add(Counter::TotalHits, hits);
        let near = near_limit(judged.capacity, near_limit_ratio);
        let used = judged.capacity.saturating_sub(judged.left);
        if judged.fits {
            self.add(Counter::WithinLimit, hits);
            self.add(
                Counter::NearLimit,
                hits.min(used.saturating_add(hits).saturating_sub(near)),
            );
            return;
        }
        let over = match judged.by_cache {
            true => hits,
            // A refusal never goes unseen, even where an earlier descriptor wanted what was left.
            false => hits.saturating_sub(judged.left).max(hits.min(1)),
        };
        self.add(Counter::OverLimit, over);
        if judged.by_cache {
            self.add(Counter::OverLimitWithLocalCache, hits);
        } else {
            self.add(
                Counter::NearLimit,
                judged.capacity - near.max(used).min(judged.capacity),
            );
        }
        if judged.shadow {
            self.add(Counter::ShadowMode, over);
        }
    }
}

/// Source: envoyproxy/ratelimit multiplies in 32 bits and rounds down.
fn near_limit(capacity: u64, ratio: f32) -> u64 {
    f64::from(capacity as f32 * ratio).floor() as u64
}

#[cfg(test)]
mod tests {
    use super::{super::sum::MOST_HITS, *};

    const USUAL: Judged = Judged {
        hits: Hits::Take(1),
        capacity: 20,
        left: 20,
        fits: true,
        shadow: false,
        by_cache: false,
    };

    /// What is counted, without what is not.
    fn counted(judged: Judged) -> Vec<(&'static str, u64)> {
        let counts = Counts::default();
        counts.count(&judged, 0.8);
        Counter::ALL
            .map(|counter| (counter.name(), counts.get(counter)))
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    #[test]
    fn hits_are_split_at_the_near_limit() {
        let hits = |hits, left| {
            counted(Judged {
                hits: Hits::Take(hits),
                left,
                ..USUAL
            })
        };
        assert_eq!(hits(16, 20), [("total_hits", 16), ("within_limit", 16)]);
        assert_eq!(
            hits(19, 20),
            [("total_hits", 19), ("near_limit", 3), ("within_limit", 19)]
        );
        assert_eq!(
            hits(2, 3),
            [("total_hits", 2), ("near_limit", 2), ("within_limit", 2)]
        );
        assert!(hits(0, 20).is_empty(), "a look is no hit");
    }

    #[test]
    fn hits_are_split_at_the_limit() {
        let refused = |hits, capacity, left| {
            counted(Judged {
                hits: Hits::Take(hits),
                capacity,
                left,
                fits: false,
                ..USUAL
            })
        };
        assert_eq!(
            refused(3, 20, 1),
            [("total_hits", 3), ("over_limit", 2), ("near_limit", 1)]
        );
        assert_eq!(
            refused(27, 10, 10),
            [("total_hits", 27), ("over_limit", 17), ("near_limit", 2)]
        );
        assert_eq!(refused(3, 10, 0), [("total_hits", 3), ("over_limit", 3)]);
        assert_eq!(refused(1, 0, 0), [("total_hits", 1), ("over_limit", 1)]);
        assert!(
            refused(0, 10, 0).is_empty(),
            "a look at an overdrawn bucket"
        );
    }

    #[test]
    fn a_refusal_counts_though_an_earlier_descriptor_took_what_was_left() {
        let judged = Judged {
            hits: Hits::Take(3),
            left: 5,
            fits: false,
            ..USUAL
        };
        assert!(counted(judged).contains(&("over_limit", 1)));
    }

    #[test]
    fn counters_only_grow_whatever_is_asked_for() {
        let counts = Counts::default();
        for step in 1..=3 {
            for hits in [Hits::Take(u64::MAX), Hits::Give(u64::MAX)] {
                let refused = Judged {
                    hits,
                    fits: false,
                    ..USUAL
                };
                counts.count(&refused, 0.8);
            }
            let least = step * (MOST_HITS - 20);
            for counter in [
                Counter::TotalHits,
                Counter::OverLimit,
                Counter::TotalNegativeHits,
            ] {
                assert!(counts.get(counter) >= least, "{}", counter.name());
            }
        }
    }

    #[test]
    fn shadow_and_cache_count_beside() {
        let over = Judged {
            hits: Hits::Take(4),
            left: 1,
            fits: false,
            ..USUAL
        };
        assert!(
            counted(Judged {
                shadow: true,
                ..over
            })
            .contains(&("shadow_mode", 3))
        );
        assert_eq!(
            counted(Judged {
                by_cache: true,
                ..over
            }),
            [
                ("total_hits", 4),
                ("over_limit", 4),
                ("over_limit_with_local_cache", 4)
            ]
        );
    }

    #[test]
    fn what_is_given_back_is_no_hit() {
        let judged = Judged {
            hits: Hits::Give(5),
            ..USUAL
        };
        assert_eq!(counted(judged), [("total_negative_hits", 5)]);
    }

    #[test]
    fn the_near_limit_is_computed_in_32_bits() {
        assert_eq!(near_limit(10, 0.8), 8);
        assert_eq!(near_limit(15, 0.8), 12);
        assert_eq!(near_limit(21, 0.8), 16);
        assert_eq!(near_limit(u64::from(u32::MAX), 0.8), 3_435_973_888);
    }
}
