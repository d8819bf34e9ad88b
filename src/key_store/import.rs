//! What `aws apigateway get-api-keys --include-values` and `get-usage-plans` print.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

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
    /// The day on which a period starts: of a week from 0 for Sunday, of a month from 0 for the first.
    // Source: the API's reference of 2017, and what the API takes (0 to 6, 0 to 27, and of DAY 0 only). Later references call it
    // requests subtracted in the first period.
    #[serde(default)]
    pub offset: i64,
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
    items: Vec<Value>,
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
    let is_plan = |item: &Value| {
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
    items: Vec<Value>,
    what: &str,
) -> Result<Vec<T>, ImportError> {
    let read = |(index, item)| {
        serde_json::from_value(item)
            .map_err(|_| ImportError::NotAws(format!("items[{index}] is not {what}")))
    };
    items.into_iter().enumerate().map(read).collect()
}

impl AwsPlan {
    /// Its limits, as a plan file says them: texts, or objects with more to say.
    pub fn limits(&self) -> Vec<Value> {
        let throttle = self
            .throttle
            .as_ref()
            .map(|throttle| throttle.limit().into());
        let quota = self.quota.as_ref().map(Quota::limit);
        throttle.into_iter().chain(quota).collect()
    }

    /// What of it the limits do not say, or say by a reading of ours.
    pub fn notes(&self) -> Option<String> {
        let quota = self.quota.as_ref().filter(|quota| quota.offset != 0)?;
        let Quota { offset, period, .. } = quota;
        let name = &self.name;
        Some(match quota.starts_after() {
            Some(_) => format!(
                "usage plan `{name}`: `quota.offset` {offset} is taken for the day on which a {} starts; where it was meant as requests \
                 subtracted in the first period, import it with 0: that period has passed",
                period.to_lowercase()
            ),
            None => format!(
                "usage plan `{name}`: `quota.offset` {offset} is left out: a period of {period} has no such day"
            ),
        })
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
    fn limit(&self) -> Value {
        let limit = match self.period.to_lowercase().as_str() {
            "month" => format!("{}/month", self.limit),
            period => format!("{}/{period} calendar", self.limit),
        };
        match self.starts_after() {
            None | Some(0) => limit.into(),
            Some(days) => json!({ "limit": limit, "offset": format!("{days}d") }),
        }
    }

    /// How many days after ours its periods start: our weeks begin on Monday. None where `offset` names no day of the period.
    fn starts_after(&self) -> Option<i64> {
        match (self.period.as_str(), self.offset) {
            ("WEEK", day @ 0..=6) => Some((day + 6) % 7),
            ("MONTH", day @ 0..=27) => Some(day),
            (_, 0) => Some(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plans;

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
        for plan in &plans {
            assert_eq!(plan.notes(), None);
        }
    }

    #[test]
    fn the_day_on_which_a_period_starts_is_kept_or_named() {
        let quota = |period: &str, offset| {
            let quota = json!({ "limit": 5, "offset": offset, "period": period });
            let items = json!({ "items": [{ "name": "p", "quota": quota }] }).to_string();
            let AwsFile::Plans(plans) = read_aws(&items).unwrap() else {
                panic!("plans")
            };
            plans.into_iter().next().unwrap()
        };
        for (period, offset, days) in [
            ("WEEK", 0, Some("6d")),
            ("WEEK", 1, None),
            ("WEEK", 6, Some("5d")),
            ("MONTH", 0, None),
            ("MONTH", 27, Some("27d")),
        ] {
            let plan = quota(period, offset);
            let [limit] = &plan.limits()[..] else {
                panic!("{plan:?}")
            };
            assert_eq!(limit["offset"].as_str(), days, "{period} {offset}");
            assert_eq!(plan.notes().is_some(), offset != 0);
            let text = format!("domain: d\ndescriptors: [{{ key: k, limits: [{limit}] }}]");
            Plans::from_texts(&[("p.yaml", &text)]).unwrap_or_else(|error| panic!("{error}"));
        }
        for (period, offset) in [("DAY", 1), ("WEEK", 7), ("MONTH", -1)] {
            let plan = quota(period, offset);
            assert!(plan.limits()[0].is_string(), "{plan:?}");
            let note = plan.notes().unwrap();
            assert!(note.contains("is left out"), "{note}");
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
