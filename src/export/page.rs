//! A metrics page for Prometheus.

use std::{fmt, sync::Arc};

use prometheus_client::{encoding::text::encode_registry, registry::Registry};

use super::{
    classic::{self, Total},
    reference::Reference,
};
use crate::metrics::Metrics;

/// What Prometheus reads: our own metrics, and those of envoyproxy/ratelimit where asked for.
#[derive(Debug)]
pub struct MetricsPage {
    metrics: Arc<Metrics>,
    reference: Option<Registry>,
}

impl MetricsPage {
    /// A page of `metrics`, and of `reference` if there is one.
    pub fn new(metrics: Arc<Metrics>, reference: Option<Arc<Reference>>) -> Self {
        let registry = |reference: Arc<Reference>| {
            let mut registry = Registry::default();
            registry.register_collector(Box::new(reference.collector()));
            registry
        };
        Self {
            metrics,
            reference: reference.map(registry),
        }
    }

    /// Its content type and text: OpenMetrics, or the older text format where names have to be as in envoyproxy/ratelimit.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn write(&self) -> Result<(&'static str, String), fmt::Error> {
        let ours = self.metrics.page()?;
        let Some(reference) = &self.reference else {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            return Ok((content_type, ours));
        };
        let mut theirs = String::new();
        encode_registry(&mut theirs, reference)?;
        let mut page = String::with_capacity(ours.len() + theirs.len());
        classic::append(&mut page, &ours, Total::Kept);
        classic::append(&mut page, &theirs, Total::Dropped);
        Ok(("text/plain; version=0.0.4; charset=utf-8", page))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        plan::{Plans, SharedPlans},
        statistics::Statistics,
    };

    fn page(response_time_in_ms: bool) -> String {
        let plans = Plans::from_texts(&[("plans.yaml", "domain: shop\n")]).unwrap();
        let plans = Arc::new(SharedPlans::fixed(plans));
        let metrics = Arc::new(Metrics::new());
        metrics.latency.observe(Duration::from_micros(1_500));
        let statistics = Arc::new(Statistics::new(0.8));
        let reference = Reference::new(statistics, plans, metrics.clone(), response_time_in_ms);
        let page = MetricsPage::new(metrics, Some(Arc::new(reference)));
        page.write().unwrap().1
    }

    #[test]
    fn response_times_are_seconds_unless_milliseconds_are_asked_for() {
        let name = "ratelimit_service_response_time_seconds";
        for (in_ms, sum, bound) in [(false, "0.0015", "0.002"), (true, "1.5", "2.0")] {
            let page = page(in_ms);
            let method = r#"grpc_method="ShouldRateLimit""#;
            for line in [
                format!("{name}_sum{{{method}}} {sum}"),
                format!(r#"{name}_bucket{{le="{bound}",{method}}} 1"#),
            ] {
                assert!(page.lines().any(|found| found == line), "{line} in {page}");
            }
        }
    }
}
