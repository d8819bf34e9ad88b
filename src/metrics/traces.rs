//! What becomes of the spans of decisions.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use super::{Metrics, PREFIX};

/// Counters of spans; clones count together.
#[derive(Debug, Clone, Default)]
pub struct TraceMetrics {
    spans: Family<ResultLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

impl TraceMetrics {
    /// Puts them on the page.
    pub fn register(&self, metrics: &mut Metrics) {
        for result in ["sent", "failed", "dropped"] {
            self.count(result, 0);
        }
        let registry = metrics.registry.sub_registry_with_prefix(PREFIX);
        registry.register(
            "trace_spans",
            "Spans of decisions, by what became of them",
            self.spans.clone(),
        );
    }

    /// The collector took so many.
    pub fn sent(&self, spans: u64) {
        self.count("sent", spans);
    }

    /// It did not take so many, or was not there.
    pub fn failed(&self, spans: u64) {
        self.count("failed", spans);
    }

    /// So many found the queue full.
    pub fn dropped(&self, spans: u64) {
        self.count("dropped", spans);
    }

    fn count(&self, result: &'static str, spans: u64) {
        self.spans
            .get_or_create(&ResultLabels { result })
            .inc_by(spans);
    }
}
