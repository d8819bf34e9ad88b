//! Every metric of the process, in one registry.
//!
//! The request path only touches the atomics here and those of its rules. Labels are bounded: codes and reasons are enums,
//! and rules beyond [`MAX_RULES`] are added up as `other` when a page is written.

pub mod tls;

use std::fmt::{self, Write as _};

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::decision::Code;

/// Rules that have time series of their own.
pub const MAX_RULES: usize = 1_000;

/// Upper bounds of the latency buckets in seconds: fine where decisions are made, up to what a client waits.
const LATENCY_BOUNDS: [f64; 18] = [
    0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002,
    0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0,
];

/// What the request path and the background tasks count.
#[derive(Debug)]
pub struct Metrics {
    /// Calls answered OK or OVER_LIMIT, by code.
    pub decisions: Decisions,
    /// Calls answered with an error.
    pub errors: Family<ErrorLabels, Counter>,
    /// Time from a decoded call to its answer.
    pub latency: Histogram,
    /// Calls whose domain no plan has.
    pub unknown_domain: Counter,
    /// Decisions made without the store.
    pub degraded: Counter,
    /// Requests that passed only since none is refused now.
    pub spared: Counter,
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
    /// A key that no plan has.
    Unknown,
    /// No key.
    Missing,
}

impl EncodeLabelValue for CheckResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
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
            latency: Histogram::new(LATENCY_BOUNDS),
            unknown_domain: Counter::default(),
            degraded: Counter::default(),
            spared: Counter::default(),
            key_checks: Family::default(),
            registry: Registry::with_prefix("tollgate"),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
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
        registry.register_with_unit(
            "decision_latency",
            "Time from a decoded call to its answer",
            Unit::Seconds,
            self.latency.clone(),
        );
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
            "spared",
            "Calls answered OK only because the whole service is in shadow mode",
            self.spared.clone(),
        );
        registry.register("key_checks", "API key checks", self.key_checks.clone());
    }

    /// Adds metrics that are read from their owner when a page is written.
    pub fn collect(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
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
