//! Metrics as others want them: pages for Prometheus, the names of envoyproxy/ratelimit, StatsD.
//!
//! All of it reads counters that are there anyway, at its own pace; nothing here is in a request's way.

pub mod page;
pub mod reference;
pub mod statsd;

mod classic;

pub use self::{page::MetricsPage, reference::Reference};
