//! What `aws apigateway get-api-keys --include-values` and `get-usage-plans` print.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A file of API Gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum AwsFile {
    /// Of `get-api-keys`.
    Keys(Vec<AwsKey>),
    /// Of `get-usage-plans`.
    Plans(Vec<AwsPlan>),
}

/// A key of API Gateway.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwsKey {
    /// Its public name.
    pub id: String,
    /// Its secret; only there with `--include-values`.
    pub value: Option<String>,
    /// What people call it.
    pub name: Option<String>,
    /// Whether it opens anything.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// What else is known of it.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl std::fmt::Debug for AwsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AwsKey({})", self.id)
    }
}

/// A usage plan of API Gateway.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AwsPlan {
    /// Its name; a tier's here.
    pub name: String,
    /// How fast.
    pub throttle: Option<Throttle>,
    /// How much.
    pub quota: Option<Quota>,
}

/// How fast a key of a usage plan may go.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttle {
    /// Requests per second.
    pub rate_limit: f64,
    /// What the bucket holds.
    pub burst_limit: u32,
}

/// How much a key of a usage plan may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Quota {
    /// Requests per period.
    pub limit: u32,
    /// DAY, WEEK or MONTH.
    pub period: String,
}

fn yes() -> bool {
    true
}

/// Why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no JSON, or other JSON.
    #[error(
        "neither the output of `aws apigateway get-api-keys --include-values` nor of `get-usage-plans`: {0}"
    )]
    NotAws(String),
}

#[derive(Deserialize)]
struct Items {
    items: Vec<serde_json::Value>,
}

/// Reads a file of either kind. A message never repeats a value of the file.
///
/// # Errors
/// [`ImportError`]: it is neither.
pub fn read_aws(text: &str) -> Result<AwsFile, ImportError> {
    let place = |error: serde_json::Error| {
        ImportError::NotAws(format!("line {}, column {}", error.line(), error.column()))
    };
    let Items { items } = serde_json::from_str(text).map_err(place)?;
    let is_plan = |item: &serde_json::Value| {
        ["throttle", "quota", "apiStages"]
            .iter()
            .any(|field| item.get(field).is_some())
    };
    match items.iter().any(is_plan) {
        true => each(items, "a usage plan").map(AwsFile::Plans),
        false => each(items, "an API key").map(AwsFile::Keys),
    }
}

fn each<T: for<'de> Deserialize<'de>>(
    items: Vec<serde_json::Value>,
    what: &str,
) -> Result<Vec<T>, ImportError> {
    let read = |(index, item)| {
        serde_json::from_value(item)
            .map_err(|_| ImportError::NotAws(format!("items[{index}] is not {what}")))
    };
    items.into_iter().enumerate().map(read).collect()
}

impl AwsPlan {
    /// Its limits, as a plan file says them.
    pub fn limits(&self) -> Vec<String> {
        let throttle = self.throttle.as_ref().map(Throttle::limit);
        let quota = self.quota.as_ref().map(Quota::limit);
        throttle.into_iter().chain(quota).collect()
    }
}

impl Throttle {
    /// The rate in whole requests: 0.5 a second is 1 in 2 seconds.
    fn limit(&self) -> String {
        let per =
            (1..=1_000_u32).find(|seconds| (self.rate_limit * f64::from(*seconds)).fract() == 0.0);
        let seconds = per.unwrap_or(1_000);
        let count = (self.rate_limit * f64::from(seconds)).round() as u64;
        let period = match seconds {
            1 => "second".to_owned(),
            _ => format!("{seconds} seconds"),
        };
        match u64::from(self.burst_limit) == count {
            true => format!("{count}/{period}"),
            false => format!("{count}/{period} burst {}", self.burst_limit),
        }
    }
}

impl Quota {
    fn limit(&self) -> String {
        match self.period.to_lowercase().as_str() {
            "month" => format!("{}/month", self.limit),
            period => format!("{}/{period} calendar", self.limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Limit;

    #[test]
    fn keys_and_plans_are_told_apart_and_read() {
        let keys = r#"{"items":[{"id":"a1","value":"0123456789abcdefghij","name":"ada","enabled":false,
            "createdDate":"2024-01-01T00:00:00+00:00","stageKeys":[],"tags":{"team":"x"}}]}"#;
        let AwsFile::Keys(keys) = read_aws(keys).unwrap() else {
            panic!("keys")
        };
        assert_eq!((keys[0].id.as_str(), keys[0].enabled), ("a1", false));
        assert!(!format!("{keys:?}").contains("0123456789"));

        let plans = r#"{"items":[{"id":"p","name":"basic","apiStages":[],"throttle":{"burstLimit":20,"rateLimit":0.5},
            "quota":{"limit":5000,"offset":0,"period":"MONTH"}},
            {"id":"q","name":"daily","quota":{"limit":5,"offset":0,"period":"DAY"}}]}"#;
        let AwsFile::Plans(plans) = read_aws(plans).unwrap() else {
            panic!("plans")
        };
        assert_eq!(plans[0].limits(), ["1/2 seconds burst 20", "5000/month"]);
        assert_eq!(plans[1].limits(), ["5/day calendar"]);
        for limit in plans.iter().flat_map(AwsPlan::limits) {
            limit.parse::<Limit>().unwrap();
        }
    }

    #[test]
    fn a_wrong_file_is_refused_without_repeating_it() {
        for text in [
            "",
            "[]",
            r#"{"keys":[]}"#,
            r#"{"items":["hunter2hunter2"]}"#,
        ] {
            let error = read_aws(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
