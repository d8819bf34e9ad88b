//! How long to wait before another stream.

use std::time::Duration;

/// No wait is shorter, whatever the settings: a control plane that hangs up at once is not called in a loop.
pub const SHORTEST: Duration = Duration::from_millis(50);

/// Waits that double from `initial` to `max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first wait.
    pub initial: Duration,
    /// The longest.
    pub max: Duration,
    /// Which part of each wait is left to chance, from 0 to 1, so that many replicas do not come back at once.
    pub random_factor: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            random_factor: 0.5,
        }
    }
}

impl Backoff {
    /// The wait after `failures` streams in a row that brought nothing, with `chance` from 0 to 1.
    ///
    /// Chance only shortens: `max` is the most that anybody waits.
    pub fn wait(&self, failures: u32, chance: f64) -> Duration {
        let doubled = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        let whole = self.initial.saturating_mul(doubled).min(self.max);
        let thousandths = (self.random_factor * chance).clamp(0.0, 1.0) * 1_000.0;
        let wait = whole.saturating_sub(whole / 1_000 * thousandths as u32);
        wait.max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff {
            initial: Duration::from_secs(1),
            max: Duration::from_secs(5),
            random_factor: 0.5,
        };
        let waits = [0, 1, 2, 3, 31, 32, u32::MAX].map(|n| backoff.wait(n, 0.0).as_secs());
        assert_eq!(waits, [1, 2, 4, 5, 5, 5, 5]);
        assert_eq!(backoff.wait(3, 1.0), Duration::from_millis(2_500));
    }

    #[test]
    fn odd_settings_do_no_harm() {
        let odd = |random_factor| Backoff {
            initial: Duration::MAX,
            max: Duration::MAX,
            random_factor,
        };
        assert!(odd(7.0).wait(1, 1.0) < Duration::from_secs(1));
        let none = Backoff {
            initial: Duration::ZERO,
            max: Duration::ZERO,
            random_factor: 0.0,
        };
        assert_eq!(none.wait(9, 0.5), SHORTEST);
        assert_eq!(odd(-1.0).wait(1, 1.0), Duration::MAX);
        assert_eq!(odd(0.0).wait(1, 1.0), Duration::MAX);
    }
}
