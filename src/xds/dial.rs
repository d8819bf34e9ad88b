//! One connection to a control plane.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig,
        pki_types::{InvalidDnsNameError, ServerName},
        version::TLS13,
    },
};
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};
use tower::{BoxError, ServiceExt as _, service_fn};

use super::{ControlPlane, TargetError, XdsSettings};
use crate::tls::{ClientFiles, TlsFileError};

/// Longest wait for a connection with its handshakes.
const CONNECT: Duration = Duration::from_secs(10);

/// When a silent connection is asked whether the other machine is still there, how often, and how many times.
const TCP_KEEPALIVE: (Duration, Duration, u32) =
    (Duration::from_secs(30), Duration::from_secs(10), 3);

/// How often the other process is asked whether it is still there, and how long it has for an answer.
///
/// Source: grpc-go closes connections of clients that ask more often than every five minutes, unless told otherwise.
const PING: (Duration, Duration) = (Duration::from_secs(310), Duration::from_secs(20));

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The files for TLS cannot be used.
    #[error(transparent)]
    Files(#[from] TlsFileError),
    /// No certificate can be for that name.
    #[error("`{name}` is no name of a server")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: InvalidDnsNameError,
    },
    /// The address is none.
    #[error(transparent)]
    Target(TargetError),
    /// Nobody is there, or the handshake failed.
    #[error("no connection")]
    Connect(#[from] tonic::transport::Error),
}

/// Connects, reading the files for TLS anew.
///
/// # Errors
/// [`DialError`]; within a bounded time.
pub async fn dial(settings: &XdsSettings) -> Result<Channel, DialError> {
    let server = &settings.server;
    let tls = match &settings.tls {
        Some(files) => Some(Tls::load(files, server)?),
        None => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let uri = |scheme| format!("{scheme}://{}", server.authority()).parse::<Uri>();
    let uri = |scheme| uri(scheme).expect("an authority makes a URI");
    let endpoint = Endpoint::from(uri("http"))
        // What calls say they are for; the connection itself is made below.
        .origin(uri(scheme))
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true);
    Ok(match server {
        ControlPlane::Tcp(_) => {
            let connector = service_fn(move |uri: Uri| {
                let tls = tls.clone();
                async move { encrypted(tcp(uri).await?, tls).await }
            });
            endpoint.connect_with_connector(connector).await?
        }
        ControlPlane::Nowhere(error) => return Err(DialError::Target(error.clone())),
        ControlPlane::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| {
                let (path, tls) = (path.clone(), tls.clone());
                async move { encrypted(UnixStream::connect(path).await?, tls).await }
            });
            endpoint.connect_with_connector(connector).await?
        }
    })
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    fn load(files: &ClientFiles, server: &ControlPlane) -> Result<Self, DialError> {
        let mut config: ClientConfig = files.load(&[&TLS13], SystemTime::now())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = files.server_name.as_deref().unwrap_or(server.host());
        let name = ServerName::try_from(name.to_owned()).map_err(|source| DialError::Name {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
        })
    }
}

async fn tcp(uri: Uri) -> Result<TcpStream, BoxError> {
    let (after, every, times) = TCP_KEEPALIVE;
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(after));
    tcp.set_keepalive_interval(Some(every));
    tcp.set_keepalive_retries(Some(times));
    Ok(tcp.oneshot(uri).await?.into_inner())
}

async fn encrypted<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    tls: Option<Tls>,
) -> Result<TokioIo<Either<TlsStream<S>, S>>, BoxError> {
    Ok(TokioIo::new(match tls {
        Some(tls) => Either::Left(tls.connector.connect(tls.name, stream).await?),
        None => Either::Right(stream),
    }))
}
