//! Names of metrics for Prometheus as a mapping file of statsd_exporter makes them of StatsD names.
//!
//! Source: prometheus/statsd_exporter, `pkg/mapper`, which envoyproxy/ratelimit has built in: globs before regular
//! expressions, each in the order of the file; a glob's `*` is one part between dots; what no mapping fits keeps its name.

use std::{collections::BTreeMap, io, path::Path, sync::LazyLock};

use regex::{Captures, Regex, RegexBuilder};
use serde::Deserialize;

use crate::small_file;

/// Largest file in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Most that a pattern may need compiled, in bytes.
const LARGEST_PATTERN: usize = 1 << 20;

/// What a mapping file says.
#[derive(Debug, Clone, Default)]
pub struct Mapping {
    globs: Vec<Rule>,
    expressions: Vec<Rule>,
}

/// What kind of metric a name is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// Times.
    #[serde(alias = "timer")]
    Observer,
    /// Of which the reference has none that we have too.
    Gauge,
}

/// What becomes of a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Mapped {
    /// It is not shown.
    Dropped,
    /// It is shown so.
    Named {
        /// Its name.
        name: String,
        /// Its labels.
        labels: Vec<(String, String)>,
        /// What its values are multiplied by.
        scale: f64,
    },
}

/// Why a file is no mapping.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is not what statsd_exporter takes.
    #[error("{0}")]
    Yaml(#[from] serde_yaml::Error),
    /// A mapping is none.
    #[error("mappings[{index}]: {reason}")]
    Rule {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Debug, Clone)]
struct Rule {
    kind: Option<MetricKind>,
    pattern: Regex,
    /// None to drop it.
    to: Option<Target>,
}

#[derive(Debug, Clone)]
struct Target {
    name: String,
    labels: BTreeMap<String, String>,
    scale: f64,
}

// Fields that are not here say how long series live and which buckets they have, which is ours to say.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    mappings: Vec<Entry>,
}

#[derive(Default, Deserialize)]
struct Defaults {
    #[serde(default)]
    match_type: MatchType,
}

#[derive(Deserialize)]
struct Entry {
    r#match: String,
    match_type: Option<MatchType>,
    match_metric_type: Option<MetricKind>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    action: Action,
    scale: Option<f64>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MatchType {
    #[default]
    Glob,
    Regex,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[default]
    Map,
    Drop,
}

impl Mapping {
    /// Reads a file.
    ///
    /// # Errors
    /// [`MappingError`], with the first mistake.
    pub fn read(path: &Path) -> Result<Self, MappingError> {
        let bytes = small_file::read(path, LARGEST_FILE)?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    fn parse(text: &str) -> Result<Self, MappingError> {
        let file: File = serde_yaml::from_str(text)?;
        let mut mapping = Self::default();
        for (index, entry) in file.mappings.into_iter().enumerate() {
            let kind = entry.match_type.unwrap_or(file.defaults.match_type);
            let rule = rule(entry, kind).map_err(|reason| MappingError::Rule { index, reason })?;
            match kind {
                MatchType::Glob => mapping.globs.push(rule),
                MatchType::Regex => mapping.expressions.push(rule),
            }
        }
        Ok(mapping)
    }

    /// What becomes of the metric of this name in StatsD; none if no mapping fits it.
    pub fn apply(&self, name: &str, kind: MetricKind) -> Option<Mapped> {
        let rules = self.globs.iter().chain(&self.expressions);
        let mut rules = rules.filter(|rule| rule.kind.is_none_or(|wanted| wanted == kind));
        rules.find_map(|rule| {
            let found = rule.pattern.captures(name)?;
            Some(match &rule.to {
                None => Mapped::Dropped,
                Some(to) => Mapped::Named {
                    name: allowed_in_names(&filled(&to.name, &found)),
                    labels: to
                        .labels
                        .iter()
                        .map(|(label, value)| (label.clone(), filled(value, &found)))
                        .collect(),
                    scale: to.scale,
                },
            })
        })
    }
}

/// Every sign that Prometheus allows in no name becomes `_`.
pub fn allowed_in_names(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let clean = name.replace(|c| !allowed(c), "_");
    match clean.starts_with(|c: char| c.is_ascii_digit()) {
        true => format!("_{clean}"),
        false => clean,
    }
}

fn filled(template: &str, found: &Captures<'_>) -> String {
    let mut text = String::new();
    found.expand(template, &mut text);
    text
}

fn rule(entry: Entry, match_type: MatchType) -> Result<Rule, String> {
    let (pattern, template): (String, fn(&str) -> String) = match match_type {
        MatchType::Glob => (glob(&entry.r#match)?, groups_of_glob),
        MatchType::Regex => (entry.r#match, str::to_owned),
    };
    let pattern = RegexBuilder::new(&pattern)
        .size_limit(LARGEST_PATTERN)
        .build()
        .map_err(|error| error.to_string())?;
    let to = match entry.action {
        Action::Drop => None,
        Action::Map if entry.name.is_empty() => return Err("name is missing".to_owned()),
        Action::Map => Some(Target {
            name: template(&entry.name),
            labels: labels(entry.labels, template)?,
            scale: scale(entry.scale)?,
        }),
    };
    Ok(Rule {
        kind: entry.match_metric_type,
        pattern,
        to,
    })
}

fn glob(text: &str) -> Result<String, String> {
    let parts = text.split('.').map(|part| match part {
        "*" => Ok("([^.]*)".to_owned()),
        part if part.is_empty() || part.contains('*') => Err(format!(
            "match: `{text}` has a part that is neither a name nor `*`"
        )),
        part => Ok(regex::escape(part)),
    });
    let parts: Vec<String> = parts.collect::<Result<_, _>>()?;
    Ok(format!("^{}$", parts.join(r"\.")))
}

/// In a glob's templates a group ends with its number; in those of expressions `$1_x` is a group of that name.
fn groups_of_glob(template: &str) -> String {
    static GROUP: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\$\{?([0-9]+)\}?").expect("a constant"));
    GROUP.replace_all(template, "$${${1}}").into_owned()
}

fn labels(
    labels: BTreeMap<String, String>,
    template: fn(&str) -> String,
) -> Result<BTreeMap<String, String>, String> {
    let good = |name: &str| {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        first && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match labels.keys().find(|name| !good(name)) {
        Some(wrong) => Err(format!("labels: `{wrong}` is not the name of a label")),
        None => Ok(labels
            .into_iter()
            .map(|(name, value)| (name, template(&value)))
            .collect()),
    }
}

fn scale(scale: Option<f64>) -> Result<f64, String> {
    match scale {
        None => Ok(1.0),
        Some(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
        Some(scale) => Err(format!("scale: {scale} is not more than nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
defaults: { ttl: 5m, timer_type: histogram }
mappings:
  - match: ".*\\.(within)_limit"
    match_type: regex
    name: "late_$1"
  - match: "ratelimit.service.rate_limit.*.*.total_hits"
    name: "hits_$1_x"
    timer_type: histogram
    labels: { domain: "$1", key1: "${2}0" }
  - match: "ratelimit\\.service\\.rate_limit\\.([^\\.]*)\\.(.*)\\.(near)_limit"
    match_type: regex
    match_metric_type: counter
    name: "${3}"
    labels: { domain: "$1", rest: "$2", none: "$1_x" }
  - { match: "ratelimit.service.call.*.*", action: drop, name: "-" }
  - { match: "ratelimit_server.*.response_time", match_metric_type: observer, name: time, scale: 0.001 }
"#;

    fn named(name: &str, labels: &[(&str, &str)], scale: f64) -> Option<Mapped> {
        let labels = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
        Some(Mapped::Named {
            name: name.to_owned(),
            labels: labels.collect(),
            scale,
        })
    }

    #[test]
    fn names_become_what_the_file_says() {
        let mapping = Mapping::parse(FILE).unwrap();
        let counter = |name: &str| mapping.apply(name, MetricKind::Counter);
        let rule = "ratelimit.service.rate_limit.shop";
        assert_eq!(
            counter(&format!("{rule}.user_a.total_hits")),
            named(
                "hits_shop_x",
                &[("domain", "shop"), ("key1", "user_a0")],
                1.0
            )
        );
        assert_eq!(counter(&format!("{rule}.user_a.page.total_hits")), None);
        assert_eq!(
            counter(&format!("{rule}.user_a.page.near_limit")),
            named(
                "near",
                &[("domain", "shop"), ("none", ""), ("rest", "user_a.page")],
                1.0
            )
        );
        assert_eq!(
            counter(&format!("{rule}.user_a.within_limit")),
            named("late_within", &[], 1.0)
        );
        let call = "ratelimit.service.call.should_rate_limit.redis_error";
        assert_eq!(counter(call), Some(Mapped::Dropped));
        let time = "ratelimit_server.ShouldRateLimit.response_time";
        assert_eq!(counter(time), None);
        assert_eq!(
            mapping.apply(time, MetricKind::Observer),
            named("time", &[], 0.001)
        );
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (mapping, told) in [
            (
                "{ match: 'a.b*', name: x }",
                "mappings[0]: match: `a.b*` has a part",
            ),
            (
                "{ match: '(', match_type: regex, name: x }",
                "unclosed group",
            ),
            ("{ match: a }", "mappings[0]: name is missing"),
            (
                "{ match: a, name: x, labels: { 1a: x } }",
                "`1a` is not the name of a label",
            ),
            ("{ match: a, name: x, scale: 0 }", "scale: 0"),
            ("{ match: a, name: x, match_type: fnmatch }", "fnmatch"),
        ] {
            let error = Mapping::parse(&format!("mappings: [{mapping}]")).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn what_prometheus_allows_in_no_name_is_replaced() {
        assert_eq!(allowed_in_names("a.b-c:d é"), "a_b_c:d__");
        assert_eq!(allowed_in_names("1a"), "_1a");
    }
}
