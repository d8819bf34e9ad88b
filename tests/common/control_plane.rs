//! A control plane: state of the world, one snapshot for everybody.

#![allow(dead_code, reason = "every test target uses a part of it")]

use std::{
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::{Arc, Mutex},
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    google::protobuf::Any,
};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tollgate::{proto::ratelimit::config::ratelimit::v3::RateLimitConfig, xds::TYPE_URL};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};

use super::common::wait_until;

/// A request that came, and what came with its stream.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Streams are numbered from 1.
    pub stream: usize,
    pub headers: MetadataMap,
    pub request: DiscoveryRequest,
}

#[derive(Debug, Clone)]
struct Snapshot {
    version: String,
    type_url: String,
    resources: Vec<Any>,
}

/// Stops when dropped.
pub struct ControlPlane {
    pub address: SocketAddr,
    /// Held, so that nobody else gets the port while the control plane is away.
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    state: State,
    up: CancellationToken,
}

#[derive(Clone)]
struct State {
    seen: Arc<Mutex<Vec<Seen>>>,
    streams: Arc<Mutex<usize>>,
    snapshot: watch::Sender<Option<Snapshot>>,
    up: CancellationToken,
}

impl ControlPlane {
    pub fn start() -> Self {
        Self::start_with(TcpListener::bind("127.0.0.1:0").unwrap(), None)
    }

    pub fn start_with(listener: TcpListener, tls: Option<ServerTlsConfig>) -> Self {
        listener.set_nonblocking(true).unwrap();
        let up = CancellationToken::new();
        let plane = Self {
            address: listener.local_addr().unwrap(),
            listener,
            tls,
            state: State {
                seen: Arc::default(),
                streams: Arc::default(),
                snapshot: watch::Sender::new(None),
                up: up.clone(),
            },
            up,
        };
        plane.serve();
        plane
    }

    fn serve(&self) {
        let listener = self.listener.try_clone().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut server = Server::builder();
        if let Some(tls) = &self.tls {
            server = server.tls_config(tls.clone()).unwrap();
        }
        let service = AggregatedDiscoveryServiceServer::new(self.state.clone());
        let stopped = self.up.clone().cancelled_owned();
        tokio::spawn(
            server
                .add_service(service)
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped),
        );
    }

    /// Ends every stream and connection; connections that come now wait for [`back`](Self::back).
    pub fn vanish(&self) {
        self.up.cancel();
    }

    /// Serves again, as another process that knows the same snapshot.
    pub fn back(&mut self) {
        self.up = CancellationToken::new();
        self.state.up = self.up.clone();
        self.serve();
    }

    /// From now on everybody should have these.
    pub fn publish(&self, version: &str, resources: &[RateLimitConfig]) {
        self.publish_raw(version, TYPE_URL, resources.iter().map(packed).collect());
    }

    pub fn publish_raw(&self, version: &str, type_url: &str, resources: Vec<Any>) {
        self.state.snapshot.send_replace(Some(Snapshot {
            version: version.to_owned(),
            type_url: type_url.to_owned(),
            resources,
        }));
    }

    /// The first request that came for which `wanted` holds, waited for.
    pub async fn request(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let find = || {
            let seen = self.state.seen.lock().unwrap();
            seen.iter().find(|seen| wanted(seen)).cloned()
        };
        wait_until(what, async || find().is_some()).await;
        find().expect("it is there still")
    }

    /// The answer to that version, waited for.
    pub async fn answer(&self, version: &str) -> DiscoveryRequest {
        let of_version = |seen: &Seen| {
            let nonce = &seen.request.response_nonce;
            nonce.split_once('/').is_some_and(|(_, of)| of == version)
        };
        self.request(version, of_version).await.request
    }

    /// Waits until that version is acknowledged.
    pub async fn accepted(&self, version: &str) {
        let answer = self.answer(version).await;
        assert_eq!(answer.error_detail, None);
        assert_eq!(answer.version_info, version);
    }

    /// Waits until that version is refused; the text.
    pub async fn refused(&self, version: &str) -> (DiscoveryRequest, String) {
        let answer = self.answer(version).await;
        let detail = answer.error_detail.clone().expect("a refusal");
        assert_eq!(detail.code, 3);
        (answer, detail.message)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.up.cancel();
    }
}

pub fn packed(config: &RateLimitConfig) -> Any {
    Any {
        type_url: TYPE_URL.to_owned(),
        value: config.encode_to_vec(),
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for State {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (sender, responses) = mpsc::channel(8);
        let state = self.clone();
        let up = self.up.clone();
        tokio::spawn(async move { up.run_until_cancelled(state.talk(request, sender)).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

impl State {
    /// Like the usual control planes it sends what the client does not say that it has.
    async fn talk(
        self,
        request: Request<Streaming<DiscoveryRequest>>,
        sender: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) {
        let stream = {
            let mut streams = self.streams.lock().unwrap();
            *streams += 1;
            *streams
        };
        let headers = request.metadata().clone();
        let mut requests = request.into_inner();
        let mut snapshots = self.snapshot.subscribe();
        let mut has: Option<String> = None;
        loop {
            tokio::select! {
                Some(Ok(request)) = requests.next() => {
                    has.get_or_insert(request.version_info.clone());
                    let headers = headers.clone();
                    self.seen.lock().unwrap().push(Seen { stream, headers, request });
                }
                Ok(()) = snapshots.changed() => {}
                else => return,
            }
            let snapshot = snapshots.borrow_and_update().clone();
            let (Some(snapshot), Some(known)) = (snapshot, &has) else {
                continue;
            };
            if *known == snapshot.version {
                continue;
            }
            has = Some(snapshot.version.clone());
            let response = DiscoveryResponse {
                nonce: format!("{stream}/{}", snapshot.version),
                version_info: snapshot.version,
                type_url: snapshot.type_url,
                resources: snapshot.resources,
                ..DiscoveryResponse::default()
            };
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }
}
