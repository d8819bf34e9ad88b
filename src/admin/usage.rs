//! Metrics of the metering of usage.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use prometheus_client::{
    collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::metrics::{counter, gauge};
use crate::usage::Recorder;

/// Reads a recorder.
#[derive(Debug)]
pub struct Collector(pub Arc<Recorder>);

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (meter, flushes) = (self.0.meter(), self.0.counts());
        let encoder = &mut encoder;
        let help = "Rows of usage in memory: key, limit and hour";
        gauge(encoder, "usage_rows", help, meter.rows() as u64)?;
        let help = "Most rows of usage in memory";
        gauge(encoder, "usage_rows_max", help, meter.most_rows() as u64)?;
        let help = "Hits metered as those of `(other)` for want of room";
        counter(encoder, "usage_other_hits", help, meter.other_hits())?;
        let help = "Writes of usage to where it is kept";
        let mut family =
            encoder.encode_descriptor("usage_flushes", help, None, MetricType::Counter)?;
        for (result, count) in [
            ("success", &flushes.succeeded),
            ("failure", &flushes.failed),
        ] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}
