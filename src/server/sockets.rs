//! TCP and unix sockets: listening on them, and serving gRPC and HTTP there.

use std::{
    fmt::Debug,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::serve::ListenerExt as _;
use tokio::{
    io::AsyncWrite,
    net::{TcpListener, UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::{
    StreamExt,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, Router, TcpIncoming};

use super::{
    ServeError, aged::Aged, authority::AnyAuthority, coalesced::Coalesced, tls::ServerTls,
};
use crate::settings::{Address, ConnectionAge};

/// What is listened on.
pub struct Listener {
    /// With the port that was given, where any free one was asked for.
    pub address: Address,
    pub socket: Socket,
}

impl Listener {
    /// Listens on `address`; a unix socket has a file, which must go with the server.
    pub async fn bind(address: &Address) -> io::Result<(Self, Option<SocketFile>)> {
        match address {
            Address::Tcp(tcp) => {
                let socket = bind_tcp(*tcp).await?;
                let address = Address::Tcp(socket.local_addr()?);
                let socket = Socket::Tcp(socket);
                Ok((Self { address, socket }, None))
            }
            Address::Unix(path) => {
                let socket = Socket::Unix(bind_unix(path).await?);
                let address = address.clone();
                Ok((Self { address, socket }, Some(SocketFile(path.clone()))))
            }
        }
    }
}

/// A socket of either kind.
pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Removes a unix socket's file when the server goes.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `address`. Where the machine has no IPv6, "every address" is every one of IPv4.
async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let everywhere = address.ip() == Ipv6Addr::UNSPECIFIED;
    match TcpListener::bind(address).await {
        Err(error) if everywhere && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// Listens on `path`. A socket that a dead process left there is removed; one that answers is in use, and any other file
/// stays.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is there",
            ));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// HTTP/2 as Envoy needs it. `age` is to be had by the connections, too, which [`serve_grpc`] cuts.
pub fn router(routes: tonic::service::Routes, age: ConnectionAge) -> Router {
    let mut builder = tonic::transport::Server::builder();
    if let Some(limit) = age.limit {
        builder = builder.max_connection_age(limit);
    }
    builder
        // Envoy resets every call that misses its timeout; with the default of 20 a stall of ours would close its connection.
        .http2_max_pending_accept_reset_streams(Some(4_096))
        .http2_max_local_error_reset_streams(None)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_routes(routes)
}

/// Serves until told to stop.
pub async fn serve_grpc(
    socket: Socket,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    age: ConnectionAge,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let stopped = stop.clone().cancelled_owned();
    match (socket, tls) {
        (Socket::Tcp(listener), Some(tls)) => {
            let listener = listener.tap_io(|stream| {
                // A connection that cannot be told so is slower, not wrong.
                let _ = stream.set_nodelay(true);
            });
            serve_tls(listener, &tls, router, age, stop).await?;
        }
        (Socket::Unix(listener), Some(tls)) => serve_tls(listener, &tls, router, age, stop).await?,
        (Socket::Tcp(listener), None) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let incoming = incoming.map(|accepted| accepted.map(|stream| connection(stream, age)));
            router
                .serve_with_incoming_shutdown(incoming, stopped)
                .await?;
        }
        (Socket::Unix(listener), None) => {
            let incoming = UnixListenerStream::new(listener);
            let incoming = incoming.map(|accepted| accepted.map(|stream| connection(stream, age)));
            router
                .serve_with_incoming_shutdown(incoming, stopped)
                .await?;
        }
    }
    Ok(())
}

/// What gRPC is spoken on.
fn connection<S: AsyncWrite + Unpin>(
    stream: S,
    age: ConnectionAge,
) -> Coalesced<AnyAuthority<Aged<S>>> {
    Coalesced::new(AnyAuthority::new(Aged::new(stream, age)))
}

async fn serve_tls<L>(
    listener: L,
    tls: &ServerTls,
    router: Router,
    age: ConnectionAge,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    L: axum::serve::Listener<Io: Connected, Addr: Debug + 'static>,
{
    let (ready, accepted) = mpsc::channel(1);
    let accepting = stop.run_until_cancelled(tls.accept(listener, ready));
    let incoming =
        ReceiverStream::new(accepted).map(|stream| io::Result::Ok(connection(stream, age)));
    let serving = router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let (served, _) = tokio::join!(serving, accepting);
    served
}

/// Serves until told to stop.
pub async fn serve_http(
    socket: Socket,
    app: axum::Router,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let stopped = stop.cancelled_owned();
    match socket {
        Socket::Tcp(listener) => {
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .await?
        }
        Socket::Unix(listener) => {
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .await?
        }
    }
    Ok(())
}
