//! An empty rate-limit server: reads each request and answers OK with one status per descriptor, nothing else.
//!
//! What any tonic server costs, to compare Tollgate's cost with (`scripts/bench`). Same crates, allocator, release profile
//! and server settings as the product.

use std::{error::Error, net::SocketAddr};

use clap::Parser;
use tokio::net::TcpListener;
use tollgate::proto::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_response::{Code, DescriptorStatus},
    rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,

    /// Threads of the runtime [default: number of cores]
    #[arg(long)]
    worker_threads: Option<usize>,
}

struct Empty;

#[tonic::async_trait]
impl RateLimitService for Empty {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let ok = |_| DescriptorStatus {
            code: Code::Ok.into(),
            ..Default::default()
        };
        Ok(Response::new(RateLimitResponse {
            overall_code: Code::Ok.into(),
            statuses: request.into_inner().descriptors.iter().map(ok).collect(),
            ..Default::default()
        }))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = args.worker_threads {
        runtime.worker_threads(threads);
    }
    runtime.enable_all().build()?.block_on(serve(args.listen))
}

async fn serve(listen: SocketAddr) -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::from(TcpListener::bind(listen).await?).with_nodelay(Some(true));
    let stop = async {
        tokio::signal::ctrl_c()
            .await
            .expect("a signal handler can be set")
    };
    Server::builder()
        .http2_max_pending_accept_reset_streams(Some(4096))
        .tcp_nodelay(true)
        .add_service(RateLimitServiceServer::new(Empty))
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    Ok(())
}
