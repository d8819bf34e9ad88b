//! Spans of decisions, as a collector of the test receives them.

mod common;

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use common::{Process, Tollgate, ask, plans, ratelimit_command, request, wait_for, wait_until};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Request;

const SHOP: &str = "domain: shop
descriptors:
  - { key: user, rate_limit: { unit: hour, requests_per_unit: 1 } }
";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector that takes traces by one of the protocols.
struct Collector {
    url: String,
    received: Received,
    headers: Arc<Mutex<HeaderMap>>,
    serving: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Collector {
    async fn http() -> Self {
        let (received, headers) = (Received::default(), Arc::<Mutex<HeaderMap>>::default());
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state((received.clone(), headers.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            received,
            headers,
            serving,
        }
    }

    async fn grpc() -> Self {
        let received = Received::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Grpc(received.clone())))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async { server.await.unwrap() });
        Self {
            url,
            received,
            headers: Arc::default(),
            serving,
        }
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap();
        let resources = received.iter().flat_map(|message| &message.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// What the process says of itself.
    fn service(&self, key: &str) -> Option<Value> {
        let received = self.received.lock().unwrap();
        let resource = received[0].resource_spans[0].resource.clone().unwrap();
        attribute(&resource.attributes, key)
    }
}

async fn take(
    State((received, seen)): State<(Received, Arc<Mutex<HeaderMap>>)>,
    headers: HeaderMap,
    body: Bytes,
) -> Vec<u8> {
    let message = ExportTraceServiceRequest::decode(body).unwrap();
    received.lock().unwrap().push(message);
    *seen.lock().unwrap() = headers;
    ExportTraceServiceResponse::default().encode_to_vec()
}

struct Grpc(Received);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone()?.value
}

fn text(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.to_owned()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks once as a part of the trace, which the caller keeps or not.
async fn ask_within_trace(tollgate: &Tollgate, flags: &str) {
    let mut asked = Request::new(request("shop", &[&[("user", "very-secret")]]));
    let parent = format!("00-{TRACE}-{SPAN}-{flags}");
    asked
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    tollgate
        .client()
        .await
        .should_rate_limit(asked)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_span_of_each_decision_goes_to_the_collector_as_a_child_of_the_callers() {
    let (_folder, config) = plans(SHOP);
    for (protocol, collector) in [
        ("http", Collector::http().await),
        ("grpc", Collector::grpc().await),
    ] {
        let tollgate = Tollgate::start(
            &config,
            &[
                "--traces-endpoint",
                &collector.url,
                "--traces-protocol",
                protocol,
            ],
        );
        ask_within_trace(&tollgate, "01").await;
        ask_within_trace(&tollgate, "01").await;
        wait_until("two spans", async || collector.spans().len() == 2).await;
        for (span, code) in collector.spans().iter().zip(["OK", "OVER_LIMIT"]) {
            assert_eq!(hex(&span.trace_id), TRACE);
            assert_eq!(hex(&span.parent_span_id), SPAN);
            assert_eq!(span.kind(), SpanKind::Server);
            assert_eq!(
                span.name,
                "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
            );
            assert!(span.start_time_unix_nano < span.end_time_unix_nano);
            let told = |key| attribute(&span.attributes, key);
            assert_eq!(told("tollgate.domain"), text("shop"));
            assert_eq!(told("tollgate.descriptors"), Some(Value::IntValue(1)));
            assert_eq!(told("tollgate.code"), text(code));
            assert_eq!(told("tollgate.degraded"), Some(Value::BoolValue(false)));
            assert!(told("tollgate.store_us").is_some());
            assert!(!format!("{span:?}").contains("secret"), "{span:?}");
        }
        assert_eq!(collector.service("service.name"), text("tollgate"));
        wait_for("the count", || {
            (tollgate.metric("tollgate_trace_spans_total{result=\"sent\"}") == 2.0).then_some(())
        });
    }
}

// The collector answers while the test waits for the end of the process.
#[tokio::test(flavor = "multi_thread")]
async fn requests_outside_of_any_trace_are_sampled_by_the_rate() {
    let (_folder, config) = plans(SHOP);
    for (rate, wanted) in [("1", 2), ("0", 1)] {
        let collector = Collector::http().await;
        let mut tollgate = Tollgate::start(
            &config,
            &[
                "--traces-endpoint",
                &collector.url,
                "--traces-sampling",
                rate,
            ],
        );
        let mut client = tollgate.client().await;
        ask(&mut client, request("shop", &[&[("user", "a")]]))
            .await
            .unwrap();
        // Those of a trace are as their parent is, whatever the rate.
        ask_within_trace(&tollgate, "00").await;
        ask_within_trace(&tollgate, "01").await;
        drop(client);
        // What is left is sent at the end.
        tollgate.process.signal(Signal::SIGTERM);
        assert_eq!(tollgate.process.wait(), Some(0));
        let spans = collector.spans();
        assert_eq!(spans.len(), wanted, "{spans:?}");
        let last = spans.last().unwrap();
        assert_eq!(hex(&last.trace_id), TRACE);
    }
}

#[tokio::test]
async fn the_variables_of_envoyproxy_ratelimit_turn_traces_on() {
    let collector = Collector::http().await;
    // No Redis is there: what cannot be decided is told as well.
    let mut command = ratelimit_command();
    command.envs([
        ("TRACING_ENABLED", "true"),
        ("TRACING_SERVICE_NAME", "envoy-ratelimit"),
        ("TRACING_SERVICE_NAMESPACE", "gateways"),
        ("TRACING_SERVICE_INSTANCE_ID", "pod-7"),
        ("TRACING_SAMPLING_RATE", "1.0"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shops"),
    ]);
    let tollgate = Tollgate::from_process(Process::start(&mut command));
    let mut client = tollgate.client().await;
    let failed = ask(&mut client, request("shop", &[&[("user", "a")]])).await;
    assert_eq!(
        failed.unwrap_err().message(),
        "no rate limit configuration loaded"
    );
    wait_until("a span", async || collector.spans().len() == 1).await;
    let span = &collector.spans()[0];
    let status = attribute(&span.attributes, "rpc.grpc.status_code");
    assert_eq!(status, Some(Value::IntValue(2)));
    assert_eq!(collector.service("service.name"), text("envoy-ratelimit"));
    assert_eq!(collector.service("service.namespace"), text("gateways"));
    assert_eq!(collector.service("service.instance.id"), text("pod-7"));
    let headers = collector.headers.lock().unwrap();
    assert_eq!(headers["x-tenant"], "shops");
}

/// A collector that takes connections and says nothing, ever.
#[tokio::test]
async fn a_collector_that_hangs_costs_spans_and_no_decision() {
    let (_folder, config) = plans(SHOP);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tollgate = Tollgate::start(&config, &["--traces-endpoint", &url]);
    let mut client = tollgate.client().await;
    // More than the queue and a message hold.
    for _ in 0..2_048 + 2 * 512 {
        ask(&mut client, request("shop", &[&[("user", "a")]]))
            .await
            .unwrap();
    }
    assert!(tollgate.metric("tollgate_trace_spans_total{result=\"dropped\"}") > 0.0);
    drop(client);
    tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(tollgate.process.wait(), Some(0));
    tollgate
        .process
        .line_with_after_end("the last traces were not delivered");
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_of_once() {
    let (_folder, config) = plans(SHOP);
    let mut tollgate = Tollgate::start(
        &config,
        &[
            "--traces-endpoint",
            "127.0.0.1:1",
            "--traces-protocol",
            "grpc",
        ],
    );
    let mut client = tollgate.client().await;
    let failed = "tollgate_trace_spans_total{result=\"failed\"}";
    for spans in [1.0, 2.0] {
        ask(&mut client, request("shop", &[&[("user", "a")]]))
            .await
            .unwrap();
        wait_until("a failure", async || tollgate.metric(failed) == spans).await;
    }
    tollgate.process.line_with("traces are not delivered");
    let log = tollgate.process.log();
    assert_eq!(log.matches("traces are not delivered").count(), 1, "{log}");
}

#[test]
fn what_is_no_collector_ends_the_start() {
    let mut command = common::tollgate_command();
    let mut process = Process::start(command.args(["serve", "--traces-endpoint", "ftp://c"]));
    assert_eq!(process.wait(), Some(2));
    process.line_with_after_end("--traces-endpoint: `ftp://c`: write the URL of a collector");
}
