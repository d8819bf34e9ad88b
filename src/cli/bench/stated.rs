//! The limit a user says each key has, and whether what was admitted keeps it. Pure.

use std::{
    fmt,
    num::NonZeroU64,
    str::FromStr,
    time::{Duration, Instant},
};

/// A token bucket, written `N/PERIOD [burst B]`; the burst is N unless given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedLimit {
    text: String,
    requests: NonZeroU64,
    period: Duration,
    burst: u64,
}

/// Why a text is no limit that can be checked.
#[derive(Debug, thiserror::Error)]
#[error(
    "limit `{text}`: {reason}; write N/PERIOD [burst B], such as `100/minute burst 20` or `5/10s`"
)]
pub struct StatedLimitError {
    text: String,
    reason: String,
}

impl FromStr for StatedLimit {
    type Err = StatedLimitError;

    fn from_str(text: &str) -> Result<Self, StatedLimitError> {
        let error = |reason: &str| StatedLimitError {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (rate, burst) = match text.split_once(" burst ") {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let (requests, period) = rate
            .split_once('/')
            .ok_or_else(|| error("no `/` between number and period"))?;
        let requests: NonZeroU64 = requests
            .trim()
            .parse()
            .map_err(|_| error("the number before `/` is not a whole number above 0"))?;
        let burst = match burst {
            Some(burst) => burst
                .trim()
                .parse()
                .map_err(|_| error("the burst is not a whole number"))?,
            None => requests.get(),
        };
        let period = parse_period(period.trim()).map_err(|reason| error(&reason))?;
        Ok(Self {
            text: text.to_owned(),
            requests,
            period,
            burst,
        })
    }
}

fn parse_period(text: &str) -> Result<Duration, String> {
    if text.contains("month") || text.contains("year") {
        // Months have no fixed length; `N/month` is a calendar limit.
        return Err(
            "only token buckets can be checked, and months and years are no periods of one"
                .to_owned(),
        );
    }
    let counted = if text.starts_with(|first: char| first.is_ascii_digit()) {
        text.to_owned()
    } else {
        format!("1{text}")
    };
    match humantime::parse_duration(&counted) {
        Ok(period) if !period.is_zero() => Ok(period),
        Ok(_) => Err("the period is zero".to_owned()),
        Err(error) => Err(format!("the period `{text}` is none ({error})")),
    }
}

impl fmt::Display for StatedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StatedLimit {
    /// The most that a bucket, full before, may admit within `elapsed`: burst + rate × elapsed, in whole hits.
    pub fn most_within(&self, elapsed: Duration) -> u64 {
        let refilled = u128::from(self.requests.get()).saturating_mul(elapsed.as_nanos())
            / self.period.as_nanos();
        self.burst
            .saturating_add(u64::try_from(refilled).unwrap_or(u64::MAX))
    }
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
    pub(super) fn ceiling(&self, limit: &StatedLimit) -> u64 {
        limit.most_within(self.last_admitted.duration_since(self.first_sent))
    }

    /// What a client that never let the bucket fill up is owed at least: the bucket refilled from before the first answer
    /// until after the last sending.
    pub(super) fn floor(&self, limit: &StatedLimit) -> u64 {
        limit.most_within(
            self.last_sent
                .saturating_duration_since(self.first_answered),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> StatedLimit {
        text.parse().unwrap()
    }

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn allows_the_burst_and_what_refilled_in_whole_hits() {
        let ten = limit("10/second burst 100");
        assert_eq!(ten.most_within(Duration::ZERO), 100);
        assert_eq!(ten.most_within(millis(99)), 100);
        assert_eq!(ten.most_within(millis(100)), 101);
        assert_eq!(
            limit("1000/minute").most_within(Duration::from_secs(3)),
            1050
        );
        assert_eq!(limit("5/2 minutes").most_within(Duration::from_secs(24)), 6);
        assert_eq!(limit("100/10s").most_within(millis(250)), 102);
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
    fn refuses_what_is_no_token_bucket() {
        for bad in [
            "",
            "10",
            "0/second",
            "-1/second",
            "10/fortnight",
            "10/0s",
            "10/month",
            "10/second burst x",
            "5/minute sliding",
        ] {
            let error = bad.parse::<StatedLimit>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("limit `{bad}`: ")), "{error}");
        }
    }
}
