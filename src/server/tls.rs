//! TLS in front of the gRPC services: handshakes beside accepting, and new certificates without a restart.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use axum::serve::Listener;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use crate::{
    metrics::tls::{HandshakeFailure, TlsMetrics},
    settings::Dialect,
    tls::{ServerFiles, ServerPems, TlsFileError},
    watch::Watched,
};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Most handshakes at once; connections beyond are closed.
const MOST_HANDSHAKES: usize = 1_024;

/// The certificate in use, its files, and what became of them.
#[derive(Debug)]
pub struct ServerTls {
    files: ServerFiles,
    /// What is spoken inside.
    protocols: Vec<Vec<u8>>,
    config: ArcSwap<ServerConfig>,
    /// What is in use was made of these; held while files are read.
    pems: Mutex<ServerPems>,
    metrics: TlsMetrics,
}

impl ServerTls {
    /// Reads the files for the first time, for gRPC. Whether a certificate is used that has expired, or is not valid yet, `dialect`
    /// says.
    ///
    /// # Errors
    /// The first mistake in them.
    // Source: envoyproxy/ratelimit looks at no dates, and leaves it to clients to refuse such a certificate.
    pub fn open(files: ServerFiles, dialect: Dialect) -> Result<Self, TlsFileError> {
        Self::open_by(files, &["h2"], dialect)
    }

    /// The same for these protocols inside, in the order in which they are liked; the certificate must be valid.
    ///
    /// # Errors
    /// The first mistake in them.
    pub fn open_for(files: ServerFiles, protocols: &[&str]) -> Result<Self, TlsFileError> {
        Self::open_by(files, protocols, Dialect::Tollgate)
    }

    fn open_by(
        files: ServerFiles,
        protocols: &[&str],
        dialect: Dialect,
    ) -> Result<Self, TlsFileError> {
        let pems = files.read()?;
        let protocols: Vec<_> = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let mut side = pems.server_side(SystemTime::now())?;
        side.config.alpn_protocols.clone_from(&protocols);
        match (side.stale, dialect) {
            (Some(error), Dialect::Tollgate) => return Err(error),
            (Some(error), Dialect::Reference) => {
                tracing::error!(
                    "{error}: clients will refuse it; new files are used as soon as they come"
                );
            }
            (None, _) => {}
        }
        let metrics = TlsMetrics::default();
        metrics.in_use_until(side.expires);
        Ok(Self {
            files,
            protocols,
            config: ArcSwap::from_pointee(side.config),
            pems: Mutex::new(pems),
            metrics,
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> &TlsMetrics {
        &self.metrics
    }

    /// Reads the files whenever they change, and every `poll`. New connections use what was good last.
    pub async fn keep_fresh(self: Arc<Self>, poll: Duration) {
        let mut watched = Watched::new("certificate files", self.files.paths(), |_| Vec::new());
        let mut said = None;
        loop {
            // Also at once: files may have changed between the first reading and now.
            let tls = Arc::clone(&self);
            let read = tokio::task::spawn_blocking(move || tls.reload()).await;
            let mistake = match read {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(fault) => Some(format!("a fault of Tollgate: {fault}")),
            };
            if mistake != said
                && let Some(mistake) = &mistake
            {
                self.metrics.reloaded(false);
                tracing::error!(
                    "certificate not reloaded, the one of before stays in use: {mistake}"
                );
            }
            said = mistake;
            watched.changed(poll).await;
        }
    }

    /// Reads the files again and uses them if they are other ones. Blocks on the file system.
    fn reload(&self) -> Result<(), TlsFileError> {
        let mut in_use = self.pems.lock();
        let pems = self.files.read()?;
        if pems == *in_use {
            return Ok(());
        }
        let mut side = pems.server_side(SystemTime::now())?;
        if let Some(error) = side.stale {
            return Err(error);
        }
        side.config.alpn_protocols.clone_from(&self.protocols);
        self.config.store(Arc::new(side.config));
        *in_use = pems;
        self.metrics.reloaded(true);
        self.metrics.in_use_until(side.expires);
        let until = humantime::format_rfc3339_seconds(side.expires);
        tracing::info!(%until, "certificate reloaded");
        Ok(())
    }

    /// Accepts connections, and hands on those whose handshake went well, until nobody takes them.
    ///
    /// A client that says nothing delays no other.
    pub async fn accept<L: Listener<Addr: Debug + 'static>>(
        &self,
        mut listener: L,
        ready: mpsc::Sender<TlsStream<L::Io>>,
    ) {
        let room = Arc::new(Semaphore::new(MOST_HANDSHAKES));
        let mut handshakes = JoinSet::new();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            while handshakes.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                self.metrics.failed(HandshakeFailure::TooMany);
                continue;
            };
            let acceptor = TlsAcceptor::from(self.config.load_full());
            let (ready, metrics) = (ready.clone(), self.metrics.clone());
            handshakes.spawn(async move {
                let _permit = permit;
                if let Some(stream) = handshake(&acceptor, stream, peer, &metrics).await {
                    // Fails only when the server stops.
                    let _ = ready.send(stream).await;
                }
            });
        }
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &TlsAcceptor,
    stream: S,
    peer: impl Debug,
    metrics: &TlsMetrics,
) -> Option<TlsStream<S>> {
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => {
            metrics.failed(HandshakeFailure::Refused);
            tracing::debug!(?peer, "no TLS connection: {error}");
        }
        Err(_) => {
            metrics.failed(HandshakeFailure::Timeout);
            tracing::debug!(?peer, "no TLS connection within {HANDSHAKE:?}");
        }
    }
    None
}
