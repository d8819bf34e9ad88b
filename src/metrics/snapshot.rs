//! What is known of the file that keeps the buckets of a memory store.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::store::memory::kept::SnapshotStats;

/// Shows it.
#[derive(Debug)]
pub struct SnapshotMetrics(pub Arc<SnapshotStats>);

impl Collector for SnapshotMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let last = self.0.last();
        for (name, help, value) in [
            (
                "snapshot_age_seconds",
                "Time since the buckets were written to the state directory, or since the start",
                last.at.elapsed().as_secs_f64(),
            ),
            (
                "snapshot_duration_seconds",
                "How long writing them took",
                last.took.as_secs_f64(),
            ),
            (
                "snapshot_bytes",
                "Size of that file",
                last.written.bytes as f64,
            ),
            (
                "snapshot_buckets",
                "Buckets in that file",
                last.written.buckets as f64,
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let errors = ConstCounter::new(self.0.errors.load(Relaxed));
        let help = "Times that the buckets could not be written to the state directory";
        errors.encode(encoder.encode_descriptor(
            "snapshot_errors",
            help,
            None,
            MetricType::Counter,
        )?)
    }
}
