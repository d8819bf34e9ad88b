//! Every metric of the process, in one registry.
//!
//! The request path only touches the atomics here and those of its rules. Labels are bounded: codes and reasons are enums,
//! and rules beyond [`MAX_RULES`] are added up as `other` when a page is written.

mod process;
pub mod tls;
pub mod traces;

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, MetricEncoder,
        NoLabelSet, text::encode,
    },
    metrics::{MetricType, counter::Counter, family::Family, info::Info},
    registry::Registry,
};

use crate::{decision::Code, histogram::Histogram};

/// What our own metrics begin with.
const PREFIX: &str = "tollgate";

/// Rules that have time series of their own.
pub const MAX_RULES: usize = 1_000;

/// Upper bounds of the latency buckets in nanoseconds: fine where decisions are made, up to what a client waits.
const LATENCY_BOUNDS_NS: [u64; 18] = [
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    300_000,
    500_000,
    1_000_000,
    2_000_000,
    3_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    500_000_000,
    1_000_000_000,
];

/// What the request path and the background tasks count.
#[derive(Debug)]
pub struct Metrics {
    /// Calls answered OK or OVER_LIMIT, by code.
    pub decisions: Decisions,
    /// Calls answered with an error.
    pub errors: Family<ErrorLabels, Counter>,
    /// Time from a decoded call to its answer.
    pub latency: Latency,
    /// Calls whose domain no plan has.
    pub unknown_domain: Counter,
    /// Decisions made without the store.
    pub degraded: Counter,
    /// Requests that passed only since none is refused now.
    pub shadowed: Counter,
    /// API key checks, by result.
    pub key_checks: Family<CheckLabels, Counter>,
    registry: Registry,
}

/// Counters of the two codes; plain fields, as they are on the hottest path.
#[derive(Debug, Default)]
pub struct Decisions {
    ok: Counter,
    over_limit: Counter,
}

impl Decisions {
    /// The counter of `code`.
    pub fn of(&self, code: Code) -> &Counter {
        match code {
            Code::Ok => &self.ok,
            Code::OverLimit => &self.over_limit,
        }
    }

    fn of_mut(&mut self, code: Code) -> &mut Counter {
        match code {
            Code::Ok => &mut self.ok,
            Code::OverLimit => &mut self.over_limit,
        }
    }
}

/// Times from decoded calls to their answers; clones share them.
#[derive(Debug, Clone)]
pub struct Latency {
    /// By nanoseconds.
    pub nanos: Arc<Histogram>,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            nanos: Arc::new(Histogram::new(&LATENCY_BOUNDS_NS)),
        }
    }
}

impl Latency {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        self.nanos
            .observe(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl Collector for Latency {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = (
            "decision_latency_seconds",
            "Time from a decoded call to its answer",
        );
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encode_histogram(metric, &self.nanos, 1e9)
    }
}

/// Shows `values`, of which `per_unit` make one.
///
/// # Errors
/// Those of the encoder.
pub fn encode_histogram(
    mut metric: MetricEncoder<'_>,
    values: &Histogram,
    per_unit: f64,
) -> fmt::Result {
    let buckets: Vec<(f64, u64)> = values
        .buckets()
        .map(|(bound, count)| {
            (
                bound.map_or(f64::INFINITY, |bound| bound as f64 / per_unit),
                count,
            )
        })
        .collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_histogram::<NoLabelSet>(values.sum() as f64 / per_unit, count, &buckets, None)
}

/// Why a call got an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabels {
    /// The reason.
    pub reason: ErrorReason,
}

/// Why a call got an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorReason {
    /// The request was not one.
    InvalidRequest,
    /// The store did not decide, and the rule leaves it to the caller.
    Store,
    /// No plans were loaded yet.
    NoPlans,
}

impl EncodeLabelValue for ErrorReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::InvalidRequest => "invalid_request",
            Self::Store => "store",
            Self::NoPlans => "no_plans",
        })
    }
}

/// What an API key check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CheckLabels {
    /// The result.
    pub result: CheckResult,
}

/// What an API key check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckResult {
    /// A known key.
    Known,
    /// A key that nobody has.
    Unknown,
    /// A key of ours whose checksum does not fit.
    Mistyped,
    /// A key that was disabled.
    Disabled,
    /// A key, or a rotated secret, whose time is over.
    Expired,
    /// No key.
    Missing,
}

impl EncodeLabelValue for CheckResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Mistyped => "mistyped",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Missing => "missing",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            decisions: Decisions::default(),
            errors: Family::default(),
            latency: Latency::default(),
            unknown_domain: Counter::default(),
            degraded: Counter::default(),
            shadowed: Counter::default(),
            key_checks: Family::default(),
            registry: Registry::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        self.registry.register_collector(Box::new(process::Process));
        let registry = self.registry.sub_registry_with_prefix(PREFIX);
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs here", version);
        let codes = Family::<CodeLabels, Counter>::default();
        for code in [Code::Ok, Code::OverLimit] {
            let labels = CodeLabels { code: code.name() };
            codes
                .get_or_create(&labels)
                .clone_into(self.decisions.of_mut(code));
        }
        registry.register("decisions", "Calls answered, by overall code", codes);
        registry.register(
            "errors",
            "Calls answered with an error",
            self.errors.clone(),
        );
        registry.register_collector(Box::new(self.latency.clone()));
        registry.register(
            "unknown_domain",
            "Calls whose domain no plan has",
            self.unknown_domain.clone(),
        );
        registry.register(
            "degraded",
            "Decisions made without the store",
            self.degraded.clone(),
        );
        registry.register(
            "shadowed",
            "Calls answered OK only because the whole service is in shadow mode",
            self.shadowed.clone(),
        );
        registry.register("key_checks", "API key checks", self.key_checks.clone());
    }

    /// Adds metrics that are read from their owner when a page is written.
    pub fn collect(&mut self, collector: impl Collector) {
        let registry = self.registry.sub_registry_with_prefix(PREFIX);
        registry.register_collector(Box::new(collector));
    }

    /// The page as Prometheus reads it (OpenMetrics text).
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_round_bounds_and_one_for_all() {
        #[derive(Debug)]
        struct Waits(Histogram);
        impl Collector for Waits {
            fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
                let kind = MetricType::Histogram;
                let metric = encoder.encode_descriptor("latency_seconds", "Waits", None, kind)?;
                encode_histogram(metric, &self.0, 1e6)
            }
        }
        let waits = Histogram::new(&[50, 300, 1_000_000]);
        for micros in [50, 51, 2_000_000] {
            waits.observe(micros);
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Waits(waits)));
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "latency_seconds_sum 2.000101",
                "latency_seconds_count 3",
                "latency_seconds_bucket{le=\"0.00005\"} 1",
                "latency_seconds_bucket{le=\"0.0003\"} 2",
                "latency_seconds_bucket{le=\"1.0\"} 2",
                "latency_seconds_bucket{le=\"+Inf\"} 3",
            ]
        );
    }

    #[test]
    fn label_values_are_snake_case() {
        let metrics = Metrics::new();
        for reason in [
            ErrorReason::InvalidRequest,
            ErrorReason::Store,
            ErrorReason::NoPlans,
        ] {
            metrics.errors.get_or_create(&ErrorLabels { reason }).inc();
        }
        for result in [
            CheckResult::Known,
            CheckResult::Unknown,
            CheckResult::Missing,
        ] {
            let labels = CheckLabels { result };
            metrics.key_checks.get_or_create(&labels).inc();
        }
        let page = metrics.page().unwrap();
        for sample in [
            r#"errors_total{reason="invalid_request"} 1"#,
            r#"errors_total{reason="store"} 1"#,
            r#"errors_total{reason="no_plans"} 1"#,
            r#"key_checks_total{result="known"} 1"#,
            r#"key_checks_total{result="unknown"} 1"#,
            r#"key_checks_total{result="missing"} 1"#,
        ] {
            assert!(page.contains(sample), "{sample} in {page}");
        }
    }
}
