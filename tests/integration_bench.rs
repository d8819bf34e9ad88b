//! `tollgate bench` against a server of its own that admits the first hits of each key and refuses the rest.

use std::{collections::HashMap, process::ExitCode, sync::Arc};

use clap::Parser;
use envoy_types::{
    ext_authz::v3::CheckResponseExt,
    pb::envoy::service::auth::v3::{
        CheckRequest, CheckResponse,
        authorization_server::{Authorization, AuthorizationServer},
    },
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tollgate::{
    cli::bench::{self, BenchArgs, BenchError, LoadError, Report, measure},
    proto::envoy::service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::Code,
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Admits so many hits of each key, for ever; answers an error to the keys `broken` and `broken-1`.
#[derive(Clone)]
struct AdmitFirst {
    limit: u64,
    seen: Arc<Mutex<HashMap<String, u64>>>,
}

#[tonic::async_trait]
impl RateLimitService for AdmitFirst {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.domain, "shop");
        let key = request.descriptors[0].entries[0].value.clone();
        if ["broken", "broken-1"].contains(&key.as_str()) {
            return Err(Status::unavailable("as asked"));
        }
        let mut seen = self.seen.lock();
        let hits = seen.entry(key).or_default();
        *hits += 1;
        let code = if *hits <= self.limit {
            Code::Ok
        } else {
            Code::OverLimit
        };
        Ok(Response::new(RateLimitResponse {
            overall_code: code.into(),
            ..Default::default()
        }))
    }
}

/// Lets in whose `x-api-key` is even.
#[tonic::async_trait]
impl Authorization for AdmitFirst {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let http = attributes.request.unwrap().http.unwrap();
        let key: u64 = http.headers["x-api-key"].parse().unwrap();
        let status = match key % 2 {
            0 => Status::ok(""),
            _ => Status::permission_denied("odd"),
        };
        Ok(Response::new(CheckResponse::with_status(status)))
    }
}

struct Running {
    address: String,
    service: AdmitFirst,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Running {
    async fn admitting(limit: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = AdmitFirst {
            limit,
            seen: Arc::default(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = Server::builder()
            .add_service(RateLimitServiceServer::new(service.clone()))
            .add_service(AuthorizationServer::new(service.clone()))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
                drop(stopped.await)
            });
        let server = tokio::spawn(async { serve.await.unwrap() });
        Self {
            address,
            service,
            stop,
            server,
        }
    }

    async fn bench(&self, flags: &str) -> Report {
        measure(&args(&self.address, flags)).await.unwrap()
    }

    async fn stop(self) -> HashMap<String, u64> {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
        std::mem::take(&mut self.service.seen.lock())
    }
}

fn args(target: &str, flags: &str) -> BenchArgs {
    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        bench: BenchArgs,
    }
    let flags = flags.split_whitespace();
    Command::parse_from(
        ["bench", "--target", target, "--domain", "shop"]
            .into_iter()
            .chain(flags),
    )
    .bench
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_sends_each_request_once_and_counts_the_answers() {
    let server = Running::admitting(3).await;
    let report = server
        .bench("--requests 500 --in-flight 7 --connections 2 --descriptor user={key} --keys 10")
        .await;
    assert_eq!((report.ok, report.over_limit, report.unknown), (30, 470, 0));
    assert_eq!(report.errors_total(), 0);
    assert!(report.latency_us.p50 > 0.0 && report.latency_us.p50 <= report.latency_us.max);
    let client = report
        .cpu
        .iter()
        .find(|process| process.label == "client")
        .unwrap();
    assert!(client.us_per_decision.unwrap() > 0.0);
    let seen = server.stop().await;
    assert_eq!((seen.len(), seen.values().sum::<u64>()), (10, 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_sends_what_is_due_in_its_duration() {
    let server = Running::admitting(u64::MAX).await;
    let report = server
        .bench("--rate 2000 --duration 250ms --in-flight 16 --descriptor user=one")
        .await;
    assert_eq!((report.ok, report.over_limit), (500, 0));
    assert!(
        report.seconds >= 0.2495,
        "the last request is due after 249.5 ms, not {} s",
        report.seconds
    );
    assert_eq!(server.stop().await["one"], 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_counts_the_wait_of_requests_that_were_due() {
    let server = Running::admitting(u64::MAX).await;
    // All are due within a millisecond and only one may be in flight, so the later ones must wait for the others. Counted
    // from sending, the latencies of one request at a time add up to no more than the run took.
    let report = server
        .bench("--rate 1000000 --requests 1000 --in-flight 1 --descriptor user=one")
        .await;
    assert_eq!(report.ok, 1000);
    let latencies_s = report.latency_us.mean * 1e-6 * 1000.0;
    assert!(latencies_s > 2.0 * report.seconds, "{report}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ext_authz_is_asked_with_the_headers_of_each_key() {
    let server = Running::admitting(0).await;
    let report = server
        .bench("--requests 1000 --in-flight 8 --authz x-api-key={key} --keys 10")
        .await;
    assert_eq!((report.decisions(), report.errors_total()), (1000, 0));
    assert!(
        (300..700).contains(&report.over_limit),
        "half of the keys are refused: {report}"
    );
    assert!(server.stop().await.is_empty(), "no limit was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_stated_limit_is_over_admission() {
    let server = Running::admitting(12).await;
    let load = "--requests 100 --in-flight 4 --descriptor user=one";
    let kept = server
        .bench(&format!("{load} --limit 12/hour"))
        .await
        .limit
        .unwrap();
    assert_eq!(
        (kept.keys, kept.admitted, kept.ceiling, kept.over_admission),
        (1, 12, 12, 0)
    );
    assert_eq!(kept.floor, 12);

    server.service.seen.lock().clear();
    let broken = server
        .bench(&format!("{load} --limit 10/hour"))
        .await
        .limit
        .unwrap();
    assert_eq!(broken.over_admission, 2);
    let worst = &broken.over_admitted[0];
    assert_eq!((worst.key, worst.admitted, worst.ceiling), (0, 12, 10));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_counted_by_code_and_never_as_decisions() {
    let server = Running::admitting(1).await;
    let report = server
        .bench("--requests 5 --in-flight 2 --descriptor user=broken")
        .await;
    assert_eq!((report.decisions(), report.errors["Unavailable"]), (0, 5));
    assert_eq!(report.error_messages["Unavailable"], "as asked");
    server.stop().await;
}

#[tokio::test]
async fn a_target_that_nobody_serves_is_an_error() {
    // Bound and not listening: nobody else can take the port, and connections are refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = socket.local_addr().unwrap().to_string();
    let error = measure(&args(&target, "--requests 1")).await.unwrap_err();
    assert!(
        matches!(error, BenchError::Load(LoadError::Connect { .. })),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_yes_no_or_could_not_tell() {
    let server = Running::admitting(3).await;
    let exit = async |flags: &str| bench::run(args(&server.address, flags)).await;
    let load = "--requests 10 --in-flight 2";
    let (yes, no, could_not_tell) = (ExitCode::SUCCESS, ExitCode::from(1), ExitCode::from(2));
    assert_eq!(
        exit(&format!("{load} --descriptor user=a --limit 3/hour")).await,
        yes
    );
    assert_eq!(
        exit(&format!("{load} --descriptor user=b --limit 2/hour")).await,
        no
    );
    let broken = format!("{load} --descriptor user=broken");
    assert_eq!(exit(&broken).await, could_not_tell, "no decision came back");
    let half_broken = "--requests 50 --descriptor user=broken-{key} --keys 2";
    assert_eq!(exit(half_broken).await, yes);
    assert_eq!(exit(&format!("{half_broken} --fail-on-error")).await, no);
    server.stop().await;
}
