//! Spans of decisions, sent to a collector by OTLP. Nothing here runs, or is even made, where no traces are asked for.
//!
//! A span is a child of the caller's, and is kept if the caller's is; where there is no caller's, by a rate. It tells the domain,
//! the code and how long the store took, never a descriptor's value. Spans wait in a bounded queue for one task that sends
//! them: a collector that is slow or away costs spans, never a decision's time.

mod export;
mod parent;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, Uri};
use opentelemetry::{
    KeyValue,
    trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::{
    Resource,
    trace::{ParentBasedSampler, Sampler, SdkTracer, SdkTracerProvider, Span},
};
use tokio_util::sync::CancellationToken;

use self::export::{Export, Queue};
use crate::{
    decision::{Code, Decision},
    metrics::traces::TraceMetrics,
    tls::{ClientFiles, TlsFileError},
};

/// Longest domain that a span tells, in characters.
const LONGEST_DOMAIN: usize = 256;

/// Where traces go, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesSettings {
    /// The collector: for HTTP with the path of traces, for gRPC without any.
    pub endpoint: Uri,
    /// How to talk to it.
    pub protocol: OtlpProtocol,
    /// Whom to trust and what to show where `endpoint` is `https`.
    pub tls: ClientFiles,
    /// Longest wait for the collector to take a message.
    pub timeout: Duration,
    /// Who we say we are.
    pub service: ServiceName,
    /// The part of requests without a parent whose spans are sent, from 0 to 1.
    pub sampling: f64,
}

/// How to talk to a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP/1.1.
    Http,
    /// gRPC.
    Grpc,
}

/// A service, as OpenTelemetry names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// `service.name`.
    pub name: String,
    /// `service.namespace`; none if empty.
    pub namespace: String,
    /// `service.instance.id`.
    pub instance: String,
}

impl OtlpProtocol {
    /// The URI of traces, by that of a collector: `host:port` is plain HTTP, and over HTTP traces have a path of their own.
    ///
    /// # Errors
    /// What is no URI of a server.
    // Source: the specification of OTLP's exporters: OTEL_EXPORTER_OTLP_ENDPOINT is a base, to which /v1/traces is added.
    pub fn endpoint(self, base: &str) -> Result<Uri, &'static str> {
        let scheme = if base.contains("://") { "" } else { "http://" };
        let path = match self {
            Self::Http => "/v1/traces",
            Self::Grpc => "",
        };
        exact_endpoint(&format!("{scheme}{}{path}", base.trim_end_matches('/')))
    }

    /// Where collectors listen unless told otherwise.
    pub fn usual_endpoint(self) -> &'static str {
        match self {
            Self::Http => "http://localhost:4318",
            Self::Grpc => "http://localhost:4317",
        }
    }
}

/// An instance's name where none is given: a UUID of version 4.
pub fn random_instance() -> String {
    let id: u128 = rand::random();
    let version = 0x4000 | (id >> 64) & 0x0fff;
    let variant = 0x8000 | (id >> 48) & 0x3fff;
    format!(
        "{:08x}-{:04x}-{version:04x}-{variant:04x}-{:012x}",
        id >> 96,
        (id >> 80) & 0xffff,
        id & 0xffff_ffff_ffff
    )
}

/// The URI of traces, as it stands.
///
/// # Errors
/// What is no URI of a server.
pub fn exact_endpoint(text: &str) -> Result<Uri, &'static str> {
    let uri: Option<Uri> = text.parse().ok();
    uri.filter(|uri| {
        uri.authority().is_some() && matches!(uri.scheme_str(), Some("http" | "https"))
    })
    .ok_or("write the URL of a collector, like http://collector:4317")
}

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The files for TLS cannot be used.
    #[error(transparent)]
    Files(#[from] TlsFileError),
    /// The exporter does not take its settings, some of which it reads from the environment.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// Makes spans.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
}

impl Traces {
    /// Makes spans, and a task that sends them until `stop`, and then what is left. Needs a runtime.
    ///
    /// # Errors
    /// [`TracesError`]; a collector that is away is none.
    pub fn open(
        settings: &TracesSettings,
        metrics: TraceMetrics,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + use<>), TracesError> {
        let service = &settings.service;
        let mut about = vec![
            KeyValue::new("service.name", service.name.clone()),
            KeyValue::new("service.instance.id", service.instance.clone()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ];
        if !service.namespace.is_empty() {
            about.push(KeyValue::new(
                "service.namespace",
                service.namespace.clone(),
            ));
        }
        let about = Resource::builder().with_attributes(about).build();
        let (queue, spans) = Queue::new(metrics.clone());
        let export = Export::open(settings, &about, metrics)?;
        let provider = SdkTracerProvider::builder()
            .with_resource(about)
            .with_sampler(ParentBasedSampler::new(Sampler::TraceIdRatioBased(
                settings.sampling,
            )))
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("tollgate");
        Ok((Self { tracer }, export.run(spans, stop)))
    }

    /// The span of a call with these headers that begins now; none where it would not be sent.
    pub fn begin(&self, name: &'static str, headers: &HeaderMap) -> Option<Box<DecisionSpan>> {
        let builder = self
            .tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_start_time(SystemTime::now());
        let span = self
            .tracer
            .build_with_context(builder, &parent::of(headers));
        span.is_recording().then(|| {
            let asked = Instant::now();
            Box::new(DecisionSpan { span, asked })
        })
    }
}

/// The span of one decision; it ends when it is dropped.
#[derive(Debug)]
pub struct DecisionSpan {
    span: Span,
    asked: Instant,
}

impl DecisionSpan {
    /// What is asked: how many descriptors of which domain, not what they hold.
    pub fn asked(&mut self, domain: &str, descriptors: usize) {
        let shown: String = domain.chars().take(LONGEST_DOMAIN).collect();
        self.set("tollgate.domain", shown);
        self.set("tollgate.descriptors", as_i64(descriptors));
        self.asked = Instant::now();
    }

    /// What was decided. Nearly all of the time since it was asked the store took.
    pub fn decided(&mut self, decision: &Decision) {
        let code = match decision.code {
            Code::Ok => "OK",
            Code::OverLimit => "OVER_LIMIT",
        };
        self.set(
            "tollgate.store_us",
            as_i64(self.asked.elapsed().as_micros()),
        );
        self.set("tollgate.code", code);
        self.set("tollgate.degraded", decision.degraded);
        self.set("rpc.grpc.status_code", 0);
    }

    /// That nothing was, with the gRPC status. The text stays here: it may repeat what was asked.
    pub fn failed(&mut self, status: tonic::Code) {
        self.set("rpc.grpc.status_code", i64::from(status as i32));
        self.span.set_status(Status::error(status.description()));
    }

    fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
        self.span.set_attribute(KeyValue::new(key, value));
    }
}

fn as_i64(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// What makes spans, if anything does.
pub type MaybeTraces = Option<Arc<Traces>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_collector_becomes_that_of_traces() {
        let http = |text| OtlpProtocol::Http.endpoint(text).map(|uri| uri.to_string());
        let grpc = |text| OtlpProtocol::Grpc.endpoint(text).map(|uri| uri.to_string());
        assert_eq!(http("http://c:4318/").unwrap(), "http://c:4318/v1/traces");
        assert_eq!(http("https://c/otlp").unwrap(), "https://c/otlp/v1/traces");
        assert_eq!(grpc("c:4317").unwrap(), "http://c:4317/");
        for wrong in ["", "http://", "ftp://c", "c d"] {
            assert!(http(wrong).is_err() && grpc(wrong).is_err(), "{wrong}");
        }
    }
}
