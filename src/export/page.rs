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
