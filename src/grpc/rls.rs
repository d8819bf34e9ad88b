//! `envoy.service.ratelimit.v3.RateLimitService`: a request in, a decision out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{convert, status};
use crate::{
    decision::Decision,
    limiter::Limiter,
    metrics::Metrics,
    plan::MetadataStyle,
    proto::envoy::service::ratelimit::v3::{
        self as pb, rate_limit_service_server::RateLimitService,
    },
    settings::Dialect,
};

/// How long before the caller's deadline the answer must leave.
const MARGIN: Duration = Duration::from_millis(2);

/// A caller that names no deadline waits at most so long; the store timeout is far below.
pub(super) const NO_DEADLINE: Duration = Duration::from_secs(60);

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    dialect: Dialect,
    /// Whether answers repeat what was asked.
    repeats: bool,
}

impl Service {
    /// Decides by `limiter`; errors are said in `dialect`.
    pub fn new(limiter: Arc<Limiter>, metrics: Arc<Metrics>, dialect: Dialect) -> Self {
        let repeats = limiter.plans().load().response().metadata == MetadataStyle::Request;
        Self {
            limiter,
            metrics,
            dialect,
            repeats,
        }
    }

    /// Decides a request that came at `start`, by `deadline`.
    ///
    /// # Errors
    /// As [`status`] says of a request that cannot be judged, and of one that was not decided.
    pub async fn decide(
        &self,
        request: pb::RateLimitRequest,
        start: Instant,
        deadline: Instant,
    ) -> Result<pb::RateLimitResponse, Status> {
        let asked = self.repeats.then(|| request.clone());
        let query = convert::query_from_proto(request)
            .map_err(|error| status::invalid(&self.metrics, self.dialect, &error))?;
        let decision = self
            .limiter
            .decide(&query, deadline)
            .await
            .map_err(|error| status::undecided(&self.metrics, self.dialect, &error))?;
        self.count(&decision);
        let response = convert::response_to_proto(&query.domain, asked.as_ref(), &decision);
        let took = start.elapsed().saturating_sub(decision.delay());
        self.metrics.latency.observe(took);
        Ok(response)
    }

    fn count(&self, decision: &Decision) {
        self.metrics.decisions.of(decision.code).inc();
        if decision.degraded {
            self.metrics.degraded.inc();
        }
        if decision.shadowed {
            self.metrics.shadowed.inc();
        }
        if !decision.known_domain {
            self.metrics.unknown_domain.inc();
        }
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: Request<pb::RateLimitRequest>,
    ) -> Result<Response<pb::RateLimitResponse>, Status> {
        let start = Instant::now();
        let deadline = start + timeout(request.metadata());
        let response = self.decide(request.into_inner(), start, deadline).await?;
        Ok(Response::new(response))
    }
}

/// How long the caller waits, less the margin.
fn timeout(metadata: &MetadataMap) -> Duration {
    let value = metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    value
        .and_then(parse_timeout)
        .map_or(NO_DEADLINE, |timeout| timeout.saturating_sub(MARGIN))
}

// Source: the gRPC-over-HTTP/2 protocol: at most eight digits, then one of H M S m u n.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_timeouts_as_envoy_writes_them() {
        assert_eq!(parse_timeout("20m"), Some(Duration::from_millis(20)));
        assert_eq!(parse_timeout("1S"), Some(Duration::from_secs(1)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for wrong in ["", "m", "20", "-1m", "123456789m", "2 m", "20é"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }
}
