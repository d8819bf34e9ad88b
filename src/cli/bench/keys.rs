//! Which key a request asks about, and the descriptors it sends. Pure but for the generator that callers pass in.

use std::{num::NonZeroU64, str::FromStr};

use rand::Rng;
use rand_distr::{Distribution as _, Zipf};

use crate::proto::envoy::extensions::common::ratelimit::v3::{
    RateLimitDescriptor, rate_limit_descriptor::Entry,
};

/// What stands for the varying key in a [`Template`].
const PLACEHOLDER: &str = "{key}";

/// One descriptor of every request, written `key=value,key=value`; `{key}` in a value stands for the request's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<(String, String)>);

/// Why a text is no descriptor.
#[derive(Debug, thiserror::Error)]
#[error("descriptor `{text}`: `{entry}` is not key=value (entries are separated by commas)")]
pub struct TemplateError {
    text: String,
    entry: String,
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let entry = |entry: &str| match entry.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(TemplateError {
                text: text.to_owned(),
                entry: entry.to_owned(),
            }),
        };
        text.split(',')
            .map(entry)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Template {
    /// The descriptor for one key.
    pub fn fill(&self, key: u64) -> RateLimitDescriptor {
        let entries = self.pairs(key).map(|(key, value)| Entry { key, value });
        RateLimitDescriptor {
            entries: entries.collect(),
            ..Default::default()
        }
    }

    /// Its names and values for one key.
    pub fn pairs(&self, key: u64) -> impl Iterator<Item = (String, String)> {
        let fill = move |value: &str| value.replace(PLACEHOLDER, &key.to_string());
        self.0
            .iter()
            .map(move |(name, value)| (name.clone(), fill(value)))
    }

    /// Whether requests for different keys differ in this descriptor.
    pub fn varies(&self) -> bool {
        self.0.iter().any(|(_, value)| value.contains(PLACEHOLDER))
    }
}

/// How keys are drawn from `0..keys`.
#[derive(Debug, Clone)]
pub enum Distribution {
    /// Each of so many keys is as likely as any other.
    Uniform(NonZeroU64),
    /// The key k is drawn in proportion to (k + 1)^-exponent.
    Zipf(Zipf<f64>),
}

/// Why keys cannot be drawn as asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "keys cannot be drawn by a zipf distribution of exponent {exponent}; it must be a number of at least 0"
)]
pub struct DistributionError {
    exponent: f64,
}

impl Distribution {
    /// A zipf distribution over so many keys; exponent 0 is uniform.
    ///
    /// # Errors
    /// When the exponent is negative or no finite number.
    pub fn zipf(keys: NonZeroU64, exponent: f64) -> Result<Self, DistributionError> {
        let error = || DistributionError { exponent };
        if !exponent.is_finite() {
            return Err(error());
        }
        Zipf::new(keys.get() as f64, exponent)
            .map(Self::Zipf)
            .map_err(|_| error())
    }

    /// Draws a key.
    pub fn draw(&self, rng: &mut impl Rng) -> u64 {
        match self {
            Self::Uniform(keys) => rng.random_range(0..keys.get()),
            // The crate's ranks are whole numbers from 1.
            Self::Zipf(zipf) => zipf.sample(rng) as u64 - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    const DRAWS: u32 = 100_000;

    fn counts(distribution: &Distribution, keys: usize) -> Vec<f64> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = vec![0.0; keys];
        for _ in 0..DRAWS {
            counts[distribution.draw(&mut rng) as usize] += 1.0;
        }
        counts
    }

    fn assert_near(count: f64, expected: f64) {
        assert!(
            (count - expected).abs() < 5.0 * expected.sqrt(),
            "{count} drawn, {expected} expected"
        );
    }

    #[test]
    fn uniform_draws_every_key_as_often() {
        for count in counts(&Distribution::Uniform(NonZeroU64::new(10).unwrap()), 10) {
            assert_near(count, f64::from(DRAWS) / 10.0);
        }
    }

    #[test]
    fn zipf_draws_by_the_power_of_the_rank() {
        let zipf = Distribution::zipf(NonZeroU64::new(5).unwrap(), 1.5).unwrap();
        let weights: Vec<f64> = (1..=5).map(|rank| f64::from(rank).powf(-1.5)).collect();
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts(&zipf, 5).into_iter().zip(weights) {
            assert_near(count, f64::from(DRAWS) * weight / sum);
        }
    }

    #[test]
    fn refuses_an_exponent_without_meaning() {
        for exponent in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(
                Distribution::zipf(NonZeroU64::MIN, exponent).is_err(),
                "{exponent}"
            );
        }
    }

    #[test]
    fn fills_the_key_into_every_place_for_it() {
        let template: Template = "tier=free,ip=10.{key}.0.{key}".parse().unwrap();
        let entries: Vec<_> = template
            .fill(42)
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect();
        assert_eq!(
            entries,
            [
                ("tier".into(), "free".into()),
                ("ip".into(), "10.42.0.42".into())
            ]
        );
        assert!(template.varies());
        assert!(!"tier=free".parse::<Template>().unwrap().varies());
    }

    #[test]
    fn names_the_entry_that_is_none() {
        let error = "tier=free,oops"
            .parse::<Template>()
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "descriptor `tier=free,oops`: `oops` is not key=value (entries are separated by commas)"
        );
    }
}
