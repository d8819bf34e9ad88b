//! The queue of spans that have ended, and the task that sends them.

use std::time::{Duration, SystemTime};

use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::Context;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::{OtlpProtocol, TracesError, TracesSettings};
use crate::{
    causes::chain,
    metrics::traces::TraceMetrics,
    tls::{Pem, TlsFile},
};

/// Most spans that wait; those beyond are dropped. Source: OpenTelemetry's batch processor, for these three.
const QUEUE: usize = 2_048;

/// Most spans of one message.
const BATCH: usize = 512;

/// How long spans wait for more of them.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a stop waits for the collector.
const LAST: Duration = Duration::from_secs(2);

/// Takes spans as they end. Never waits.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    metrics: TraceMetrics,
}

impl Queue {
    pub(super) fn new(metrics: TraceMetrics) -> (Self, mpsc::Receiver<SpanData>) {
        let (spans, ended) = mpsc::channel(QUEUE);
        (Self { spans, metrics }, ended)
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.metrics.dropped(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The way to the collector.
pub(super) struct Export {
    exporter: SpanExporter,
    metrics: TraceMetrics,
    /// Whether the last message failed, which is said once.
    failing: bool,
}

impl Export {
    /// Connects to nobody yet.
    pub(super) fn open(
        settings: &TracesSettings,
        about: &Resource,
        metrics: TraceMetrics,
    ) -> Result<Self, TracesError> {
        let mut exporter = match settings.protocol {
            OtlpProtocol::Http => over_http(settings)?,
            OtlpProtocol::Grpc => over_grpc(settings)?,
        };
        exporter.set_resource(about);
        Ok(Self {
            exporter,
            metrics,
            failing: false,
        })
    }

    /// Sends what comes until `stop`; then what is left, if the collector takes it soon.
    pub(super) async fn run(mut self, spans: mpsc::Receiver<SpanData>, stop: CancellationToken) {
        let late = async {
            stop.cancelled().await;
            sleep(LAST).await;
        };
        tokio::select! {
            () = self.deliver(spans, &stop) => {}
            () = late => tracing::warn!("the last traces were not delivered within {LAST:?}"),
        }
    }

    /// Sends many at once.
    async fn deliver(&mut self, mut spans: mpsc::Receiver<SpanData>, stop: &CancellationToken) {
        let mut batch = Vec::new();
        while let Some(1..) = stop
            .run_until_cancelled(spans.recv_many(&mut batch, BATCH))
            .await
        {
            if batch.len() < BATCH {
                stop.run_until_cancelled(sleep(PAUSE)).await;
                take_more(&mut spans, &mut batch);
            }
            self.send(std::mem::take(&mut batch)).await;
        }
        spans.close();
        while spans.recv_many(&mut batch, BATCH).await > 0 {
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => {
                self.metrics.sent(spans);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("traces are delivered again");
                }
            }
            Err(error) => {
                self.metrics.failed(spans);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("traces are not delivered: {}", chain(&error));
                }
            }
        }
    }
}

fn take_more(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    while batch.len() < BATCH
        && let Ok(span) = spans.try_recv()
    {
        batch.push(span);
    }
}

/// The exporter reads OTEL_EXPORTER_OTLP_HEADERS and _COMPRESSION itself; so does the other.
fn over_http(settings: &TracesSettings) -> Result<SpanExporter, TracesError> {
    let builder = SpanExporter::builder()
        .with_http()
        .with_timeout(settings.timeout)
        .with_endpoint(settings.endpoint.to_string());
    Ok(match is_https(settings) {
        true => {
            let config = settings.tls.load(&[&TLS13, &TLS12], SystemTime::now())?;
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(config)
                .https_only()
                .enable_http1()
                .build();
            let client = HyperClient::new(connector, settings.timeout, None);
            builder.with_http_client(client)
        }
        false => {
            builder.with_http_client(HyperClient::with_default_connector(settings.timeout, None))
        }
    }
    .build()?)
}

fn over_grpc(settings: &TracesSettings) -> Result<SpanExporter, TracesError> {
    let builder = SpanExporter::builder()
        .with_tonic()
        .with_timeout(settings.timeout)
        .with_endpoint(settings.endpoint.to_string());
    if !is_https(settings) {
        return Ok(builder.build()?);
    }
    let mut tls = match &settings.tls.ca {
        Some(path) => {
            let pem = Pem::read(path, TlsFile::Authorities)?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem.text()))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some(files) = &settings.tls.identity {
        let pems = files.read()?;
        tls = tls.identity(Identity::from_pem(pems.cert.text(), pems.key.text()));
    }
    Ok(builder.with_tls_config(tls).build()?)
}

fn is_https(settings: &TracesSettings) -> bool {
    settings.endpoint.scheme_str() == Some("https")
}
