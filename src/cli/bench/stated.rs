//! Whether what was admitted keeps the limit that a user says each key has. Pure.

use std::time::{Duration, Instant};

use crate::limit::{Kind, Limit, LimitError};

/// Why a limit cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum StatedLimitError {
    /// The text is no limit.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// What a calendar limit or a fixed window allows depends on the time of day.
    #[error(
        "`{limit}` counts by the clock; a run shows only whether a token bucket or a sliding limit is kept"
    )]
    Calendar {
        /// The limit.
        limit: Limit,
    },
}

/// Reads the limit of `--limit`.
pub(super) fn parse(text: &str) -> Result<Limit, StatedLimitError> {
    let limit: Limit = text.parse()?;
    match limit.kind() {
        Kind::Calendar | Kind::FixedWindow | Kind::Penalty => {
            Err(StatedLimitError::Calendar { limit })
        }
        Kind::Bucket { .. } | Kind::Sliding => Ok(limit),
    }
}

/// The most that `limit`, untouched before, may admit within `elapsed`.
fn most_within(limit: &Limit, elapsed: Duration) -> u64 {
    let (count, period_ns) = (
        u128::from(limit.count()),
        u128::from(limit.period().micros()) * 1000,
    );
    let more = match limit.kind() {
        Kind::Bucket { .. } => count * elapsed.as_nanos() / period_ns,
        // Each further period that fits is one more window.
        Kind::Sliding | Kind::Calendar | Kind::FixedWindow | Kind::Penalty => {
            count * (elapsed.as_nanos() / period_ns)
        }
    };
    u64::from(limit.capacity()).saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
}

/// What one key was given, and when. Times are the client's.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyTally {
    admitted: u64,
    first_sent: Instant,
    first_answered: Instant,
    last_sent: Instant,
    last_admitted: Instant,
}

impl KeyTally {
    pub(super) fn new(sent: Instant, answered: Instant) -> Self {
        Self {
            admitted: 0,
            first_sent: sent,
            first_answered: answered,
            last_sent: sent,
            last_admitted: sent,
        }
    }

    pub(super) fn count(&mut self, sent: Instant, answered: Instant, admitted: bool) {
        self.first_sent = self.first_sent.min(sent);
        self.first_answered = self.first_answered.min(answered);
        self.last_sent = self.last_sent.max(sent);
        if admitted {
            self.admitted += 1;
            self.last_admitted = self.last_admitted.max(answered);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.admitted += other.admitted;
        self.first_sent = self.first_sent.min(other.first_sent);
        self.first_answered = self.first_answered.min(other.first_answered);
        self.last_sent = self.last_sent.max(other.last_sent);
        self.last_admitted = self.last_admitted.max(other.last_admitted);
    }

    pub(super) fn admitted(&self) -> u64 {
        self.admitted
    }

    /// The most the limit allows: every hit was taken between the first sending and the last answer that admitted.
    pub(super) fn ceiling(&self, limit: &Limit) -> u64 {
        most_within(limit, self.last_admitted.duration_since(self.first_sent))
    }

    /// What is owed to a client that asks all the time, so that the bucket never fills up: the bucket refilled from before
    /// the first answer until after the last sending. A sliding limit owes no more than one period's worth for sure.
    pub(super) fn floor(&self, limit: &Limit) -> u64 {
        match limit.kind() {
            Kind::Bucket { .. } => most_within(
                limit,
                self.last_sent
                    .saturating_duration_since(self.first_answered),
            ),
            Kind::Sliding | Kind::Calendar | Kind::FixedWindow | Kind::Penalty => {
                u64::from(limit.capacity())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Limit {
        parse(text).unwrap()
    }

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_bucket_allows_the_burst_and_what_refilled_in_whole_hits() {
        let ten = limit("10/second burst 100");
        assert_eq!(most_within(&ten, Duration::ZERO), 100);
        assert_eq!(most_within(&ten, millis(99)), 100);
        assert_eq!(most_within(&ten, millis(100)), 101);
        assert_eq!(
            most_within(&limit("1000/minute"), Duration::from_secs(3)),
            1050
        );
        assert_eq!(
            most_within(&limit("5/2 minutes"), Duration::from_secs(24)),
            6
        );
    }

    #[test]
    fn a_sliding_limit_allows_as_much_again_each_period() {
        let ten = limit("10/second sliding");
        assert_eq!(most_within(&ten, millis(999)), 10);
        assert_eq!(most_within(&ten, millis(1000)), 20);
    }

    #[test]
    fn counts_the_ceiling_outside_and_the_floor_inside_of_the_requests() {
        let (limit, start) = (limit("10/second burst 2"), Instant::now());
        let at = |ms| start + millis(ms);
        let mut key = KeyTally::new(at(0), at(50));
        key.count(at(0), at(50), true);
        key.count(at(300), at(420), true);
        key.count(at(450), at(900), false);
        assert_eq!(key.admitted(), 2);
        assert_eq!(
            key.ceiling(&limit),
            2 + 4,
            "420 ms from the first sending to the last admission"
        );
        assert_eq!(
            key.floor(&limit),
            2 + 4,
            "400 ms from the first answer to the last sending"
        );

        let mut other = KeyTally::new(at(100), at(110));
        other.count(at(100), at(110), true);
        other.merge(&key);
        assert_eq!(
            (other.admitted(), other.ceiling(&limit), other.floor(&limit)),
            (3, 6, 6)
        );
    }

    #[test]
    fn refuses_a_calendar_limit() {
        for calendar in ["10/month", "10/day calendar"] {
            assert!(
                matches!(parse(calendar), Err(StatedLimitError::Calendar { .. })),
                "{calendar}"
            );
        }
    }
}
