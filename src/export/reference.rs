//! What envoyproxy/ratelimit would report: its names in StatsD, and those that its built-in mapping makes of them for
//! Prometheus.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use crate::{
    decision::Code,
    histogram::Histogram,
    metrics::{ErrorLabels, ErrorReason, Metrics, encode_histogram},
    plan::SharedPlans,
    settings::{Mapped, Mapping, MetricKind, allowed_in_names},
    statistics::{Counter, StatKey, Statistics},
};

/// The method that all calls are of.
const METHOD: &str = "ShouldRateLimit";

/// Reads the statistics, and what else the reference reports, from where it is counted.
#[derive(Debug)]
pub struct Reference {
    statistics: Arc<Statistics>,
    plans: Arc<SharedPlans>,
    metrics: Arc<Metrics>,
    response_time_in_ms: bool,
    mapping: Option<Arc<Mapping>>,
}

/// Names of labels, and their values.
type Labels = Vec<(Cow<'static, str>, String)>;

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Its name in StatsD.
    pub name: String,
    /// Its name in Prometheus.
    pub family: String,
    /// Its labels there.
    pub labels: Labels,
    /// Its value since the process started.
    pub value: u64,
}

impl Reference {
    /// Reads from these.
    pub fn new(
        statistics: Arc<Statistics>,
        plans: Arc<SharedPlans>,
        metrics: Arc<Metrics>,
        response_time_in_ms: bool,
    ) -> Self {
        Self {
            statistics,
            plans,
            metrics,
            response_time_in_ms,
            mapping: None,
        }
    }

    /// Pages call the metrics as `mapping` does, if there is one.
    pub fn with_mapping(mut self, mapping: Option<Arc<Mapping>>) -> Self {
        self.mapping = mapping;
        self
    }

    /// All counters that have moved.
    pub fn counts(&self) -> Vec<Count> {
        let mut counts = self.of_service();
        for (domain, value) in self.statistics.unknown_domains() {
            let name = format!("ratelimit.service.rate_limit.{domain}.domain_not_found");
            counts.push(unmapped(name, value));
        }
        for (key, rule) in self.statistics.all() {
            let moved = |counter: &Counter| rule.get(*counter) > 0;
            let moved = Counter::ALL.into_iter().filter(moved);
            counts.extend(moved.map(|counter| of_rule(&key, counter, rule.get(counter))));
        }
        counts.retain(|count| count.value > 0);
        counts
    }

    fn of_service(&self) -> Vec<Count> {
        let metrics = &self.metrics;
        let errors = |reason| {
            let errors = metrics.errors.get(&ErrorLabels { reason });
            errors.map_or(0, |errors| errors.get())
        };
        let error = |err_type: &str, value| Count {
            name: format!("ratelimit.service.call.should_rate_limit.{err_type}"),
            family: "ratelimit_service_should_rate_limit_error".to_owned(),
            labels: vec![("err_type".into(), err_type.to_owned())],
            value,
        };
        let refused = errors(ErrorReason::InvalidRequest) + errors(ErrorReason::NoPlans);
        let undecided = errors(ErrorReason::Store);
        let decided: u64 = [Code::Ok, Code::OverLimit]
            .map(|code| metrics.decisions.of(code).get())
            .iter()
            .sum();
        let reloads = self.plans.status();
        let service = |name: &str, value| unmapped(format!("ratelimit.service.{name}"), value);
        vec![
            service("config_load_success", reloads.loads),
            service("config_load_error", reloads.failed),
            service("global_shadow_mode", self.statistics.global_shadow()),
            error("service_error", refused),
            error("redis_error", undecided),
            Count {
                name: format!("ratelimit_server.{METHOD}.total_requests"),
                family: "ratelimit_service_total_requests".to_owned(),
                labels: vec![("grpc_method".into(), METHOD.to_owned())],
                value: decided + refused + undecided,
            },
        ]
    }

    /// The name of the response times in StatsD, and the times in nanoseconds.
    pub fn response_times(&self) -> (String, &Histogram) {
        let name = format!("ratelimit_server.{METHOD}.response_time");
        (name, &self.metrics.latency.nanos)
    }

    /// The name and labels of a counter on a page; none if it is not shown there.
    fn shown(&self, count: Count) -> Option<(String, Labels)> {
        let Some(mapping) = &self.mapping else {
            return Some((count.family, count.labels));
        };
        match mapping.apply(&count.name, MetricKind::Counter) {
            None => Some((allowed_in_names(&count.name), Labels::new())),
            Some(Mapped::Dropped) => None,
            Some(Mapped::Named { name, labels, .. }) => Some((name, owned(labels))),
        }
    }

    /// The same of the response times, with how many nanoseconds their unit has.
    fn shown_times(&self) -> Option<(String, Labels, f64)> {
        let Some(mapping) = &self.mapping else {
            let per_unit = if self.response_time_in_ms { 1e6 } else { 1e9 };
            let labels = vec![("grpc_method".into(), METHOD.to_owned())];
            let name = "ratelimit_service_response_time_seconds".to_owned();
            return Some((name, labels, per_unit));
        };
        // Source: envoyproxy/ratelimit reports milliseconds.
        let (name, _) = self.response_times();
        match mapping.apply(&name, MetricKind::Observer) {
            None => Some((allowed_in_names(&name), Labels::new(), 1e6)),
            Some(Mapped::Dropped) => None,
            Some(Mapped::Named {
                name,
                labels,
                scale,
            }) => Some((name, owned(labels), 1e6 / scale)),
        }
    }

    /// These for a page.
    pub fn collector(self: Arc<Self>) -> impl Collector {
        Page(self)
    }
}

fn of_rule(key: &StatKey, counter: Counter, value: u64) -> Count {
    let name = format!(
        "ratelimit.service.rate_limit.{}.{}",
        key.text(),
        counter.name()
    );
    // Source: envoyproxy/ratelimit: its mapping has no line for these.
    if matches!(
        counter,
        Counter::OverLimitWithLocalCache | Counter::TotalNegativeHits
    ) {
        return unmapped(name, value);
    }
    let levels = ["key1", "key2"].into_iter().zip(key.levels());
    let labels = [("domain", key.domain())].into_iter().chain(levels);
    Count {
        name,
        family: format!("ratelimit_service_rate_limit_{}", counter.name()),
        labels: labels
            .map(|(label, text)| (label.into(), text.to_owned()))
            .collect(),
        value,
    }
}

/// A counter that the reference's mapping leaves as it is.
fn unmapped(name: String, value: u64) -> Count {
    Count {
        family: allowed_in_names(&name),
        name,
        labels: Vec::new(),
        value,
    }
}

fn owned(labels: Vec<(String, String)>) -> Labels {
    let labels = labels.into_iter();
    labels.map(|(name, value)| (name.into(), value)).collect()
}

#[derive(Debug)]
struct Page(Arc<Reference>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Rules that differ below the second level share their labels.
        let mut families: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
        for count in self.0.counts() {
            let value = count.value;
            let Some((name, labels)) = self.0.shown(count) else {
                continue;
            };
            let family = families.entry(name).or_default();
            let sum: &mut u64 = family.entry(labels).or_default();
            *sum = sum.saturating_add(value);
        }
        for (name, samples) in families {
            let help = "As envoyproxy/ratelimit counts it";
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            if let Some(value) = samples.get(&Vec::new()) {
                ConstCounter::new(*value).encode(family)?;
                continue;
            }
            for (labels, value) in samples {
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        self.response_times(&mut encoder)
    }
}

impl Page {
    fn response_times(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some((name, labels, per_unit)) = self.0.shown_times() else {
            return Ok(());
        };
        let help = "Time from a decoded call to its answer";
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
        let (_, times) = self.0.response_times();
        match labels.is_empty() {
            true => encode_histogram(family, times, per_unit),
            false => encode_histogram(family.encode_family(&labels)?, times, per_unit),
        }
    }
}
