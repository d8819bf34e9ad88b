//! `envoy.service.ratelimit.v3.RateLimitService`: a request in, a decision out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::Either;
use http::HeaderMap;
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
    traces::{DecisionSpan, MaybeTraces},
};

/// How long before the caller's deadline the answer must leave.
const MARGIN: Duration = Duration::from_millis(2);

/// A caller that names no deadline waits at most so long; the store timeout is far below.
pub(super) const NO_DEADLINE: Duration = Duration::from_secs(60);

/// How spans of decisions are called.
const SPAN: &str = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// The service.
#[derive(Debug, Clone)]
pub struct Service {
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    dialect: Dialect,
    /// Whether answers repeat what was asked.
    repeats: bool,
    traces: MaybeTraces,
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
            traces: None,
        }
    }

    /// Makes a span of each decision, if there is what makes them.
    pub fn with_traces(mut self, traces: MaybeTraces) -> Self {
        self.traces = traces;
        self
    }

    /// The span of a call with these headers, if one is wanted.
    pub(super) fn span(&self, headers: &HeaderMap) -> Option<Box<DecisionSpan>> {
        self.traces.as_ref()?.begin(SPAN, headers)
    }

    /// Decides a request that came at `start`, by `deadline`; `span` is told.
    ///
    /// # Errors
    /// As [`status`] says of a request that cannot be judged, and of one that was not decided.
    pub fn decide(
        &self,
        request: pb::RateLimitRequest,
        start: Instant,
        deadline: Instant,
        span: Option<Box<DecisionSpan>>,
    ) -> impl Future<Output = Result<pb::RateLimitResponse, Status>> {
        match span {
            None => Either::Left(self.judge(request, start, deadline, None)),
            Some(span) => Either::Right(Box::pin(self.traced(request, start, deadline, span))),
        }
    }

    async fn traced(
        &self,
        request: pb::RateLimitRequest,
        start: Instant,
        deadline: Instant,
        mut span: Box<DecisionSpan>,
    ) -> Result<pb::RateLimitResponse, Status> {
        span.asked(&request.domain, request.descriptors.len());
        let decided = self.judge(request, start, deadline, Some(&mut span)).await;
        if let Err(status) = &decided {
            span.failed(status.code());
        }
        decided
    }

    async fn judge(
        &self,
        request: pb::RateLimitRequest,
        start: Instant,
        deadline: Instant,
        span: Option<&mut DecisionSpan>,
    ) -> Result<pb::RateLimitResponse, Status> {
        let asked = self.repeats.then(|| request.clone());
        let query = convert::query_from_proto(request)
            .map_err(|error| status::invalid(&self.metrics, self.dialect, &error))?;
        let decision = self
            .limiter
            .decide(&query, deadline)
            .await
            .map_err(|error| status::undecided(&self.metrics, self.dialect, &error))?;
        if let Some(span) = span {
            span.decided(&decision);
        }
        self.count(&decision);
        let response = convert::response_to_proto(&query.domain, asked.as_ref(), &decision);
        self.metrics.latency.observe(start.elapsed());
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
        let span = self.span(request.metadata().as_ref());
        let request = request.into_inner();
        let response = self.decide(request, start, deadline, span).await?;
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
