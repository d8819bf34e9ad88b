//! Metrics of requests that wait for their tokens, and of penalties.

use std::{fmt, sync::Arc};

use prometheus_client::{collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::metrics::{counter, gauge};
use crate::{limiter::Pacing, metrics::encode_histogram};

/// Reads them when a page is written.
#[derive(Debug)]
pub struct Collector(pub Arc<Pacing>);

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let (name, help) = ("delay_seconds", "Time that answers waited for tokens");
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encode_histogram(metric, self.0.delays_us(), 1e6)?;
        let waiting = self.0.waiting() as u64;
        let help = "Requests that wait for tokens now, or may have to";
        gauge(encoder, "delay_waiting", help, waiting)?;
        let help = "Requests that could not have waited for tokens, as too many did";
        counter(encoder, "delay_full", help, self.0.full())?;
        let help = "Penalties that began by refusals of this replica";
        counter(encoder, "penalties", help, self.0.penalties())?;
        let help = "Requests that a penalty refused";
        counter(encoder, "penalised", help, self.0.penalised())
    }
}
