//! Limits beyond which an answer waits instead of refusing: how long, and how deep their buckets go.

use std::{fmt, time::Duration};

use super::{Kind, Limit, LimitError, MOST_DELAY};

impl Limit {
    /// The same limit, on which an answer waits for its tokens, at most so long; cut to whole microseconds.
    ///
    /// # Errors
    /// [`LimitError::DelayOfNoBucket`], [`LimitError::ZeroWithDelay`], [`LimitError::DelayLength`].
    pub fn with_delay(self, delay: Duration) -> Result<Self, LimitError> {
        if !matches!(self.kind, Kind::Bucket { .. }) {
            let limit = self.to_string();
            return Err(LimitError::DelayOfNoBucket { limit });
        }
        if self.count == 0 {
            return Err(LimitError::ZeroWithDelay);
        }
        match u32::try_from(delay.as_micros()) {
            Ok(delay_us @ 1..) if delay <= MOST_DELAY => Ok(Self { delay_us, ..self }),
            _ => Err(LimitError::DelayLength),
        }
    }

    /// The same limit with the delay of another one, of the same kind, that allows more than nothing.
    pub fn with_delay_of(self, other: &Self) -> Self {
        Self {
            delay_us: other.delay_us,
            ..self
        }
    }

    /// How long an answer may wait for its tokens, in microseconds; 0 where what does not fit is refused.
    pub fn delay_us(&self) -> u32 {
        self.delay_us
    }

    /// The same; zero where what does not fit is refused.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.into())
    }

    /// How far below zero a token bucket goes: one burst of debt, and beyond that what refills within the delay, since
    /// those who wait have their tokens already.
    pub fn deepest_debt(&self) -> i64 {
        i64::from(self.capacity()) + self.reserve()
    }

    /// Ticks that fill a token bucket from its deepest debt, or more.
    pub fn ticks_from_debt(&self) -> u64 {
        let refill = self.refill();
        let from_burst = refill.ticks_to_full.saturating_mul(2);
        match self.reserve() {
            0 => from_burst,
            reserve => from_burst.saturating_add(refill.ticks_for(reserve.unsigned_abs(), 0)),
        }
    }

    /// Writes what becomes of what is beyond the limit.
    pub(super) fn write_beyond(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.delay_us > 0 {
            let most = humantime::format_duration(self.delay());
            write!(f, " delay up to {most}")?;
        }
        if let Some(penalty) = self.penalty() {
            let first = humantime::format_duration(penalty.first);
            let within = humantime::format_duration(penalty.within);
            write!(f, " penalty {first} after {} in {within}", penalty.after)?;
        }
        Ok(())
    }

    /// Tokens that refill within the delay, rounded up.
    fn reserve(&self) -> i64 {
        if self.delay_us == 0 {
            return 0;
        }
        let refill = self.refill();
        let ticks = u128::from(u64::from(self.delay_us) / refill.tick_us + 1);
        let denominator = u128::from(refill.denominator);
        let rate = u128::from(refill.whole) * denominator + u128::from(refill.part);
        // Of at most 2^32 tokens a second for a minute.
        (ticks * rate).div_ceil(denominator) as i64
    }
}
