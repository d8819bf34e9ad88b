//! What the TLS side of the gRPC listeners counts.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};

use super::{Metrics, PREFIX};

/// Counters of the TLS listeners; clones count together.
#[derive(Debug, Clone, Default)]
pub struct TlsMetrics {
    reloads: Family<ResultLabels, Counter>,
    expires: Gauge,
    handshakes: Family<ReasonLabels, Counter>,
}

/// Why a connection came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// One side refused the other.
    Refused,
    /// It took too long.
    Timeout,
    /// Too many were under way.
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

impl TlsMetrics {
    /// Puts them on the page.
    pub fn register(&self, metrics: &mut Metrics) {
        for result in ["success", "failure"] {
            drop(self.reloads.get_or_create(&ResultLabels { result }));
        }
        let registry = metrics.registry.sub_registry_with_prefix(PREFIX);
        registry.register(
            "tls_reloads",
            "Reloads of the certificate files",
            self.reloads.clone(),
        );
        registry.register_with_unit(
            "tls_certificate_expiry_timestamp",
            "When the certificate in use expires, since 1970",
            Unit::Seconds,
            self.expires.clone(),
        );
        registry.register(
            "tls_handshakes_failed",
            "Connections that came to nothing before their first call",
            self.handshakes.clone(),
        );
    }

    /// A certificate that expires then is in use.
    pub fn in_use_until(&self, expires: SystemTime) {
        let since = expires.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires
            .set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }

    /// The files were read again, for better or worse.
    pub fn reloaded(&self, good: bool) {
        let result = if good { "success" } else { "failure" };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
    }

    /// A connection came to nothing.
    pub fn failed(&self, why: HandshakeFailure) {
        let reason = match why {
            HandshakeFailure::Refused => "refused",
            HandshakeFailure::Timeout => "timeout",
            HandshakeFailure::TooMany => "too_many",
        };
        self.handshakes
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }
}
