//! TLS in front of the gRPC services: handshakes beside accepting, and new certificates without a restart.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

use crate::{
    metrics::tls::{HandshakeFailure, TlsMetrics},
    tls::{ServerFiles, ServerPems, TlsFileError},
    watch::Watched,
};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Most handshakes at once; connections beyond are closed.
const MOST_HANDSHAKES: usize = 1_024;

/// How long to wait after an error of the listener, which a lack of file descriptors repeats at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    /// Reads the files for the first time. Inside is gRPC.
    ///
    /// # Errors
    /// The first mistake in them.
    pub fn open(files: ServerFiles) -> Result<Self, TlsFileError> {
        Self::open_for(files, &["h2"])
    }

    /// The same for these protocols inside, in the order in which they are liked.
    ///
    /// # Errors
    /// The first mistake in them.
    pub fn open_for(files: ServerFiles, protocols: &[&str]) -> Result<Self, TlsFileError> {
        let pems = files.read()?;
        let protocols: Vec<_> = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let (mut config, expires) = pems.config(SystemTime::now())?;
        config.alpn_protocols.clone_from(&protocols);
        let metrics = TlsMetrics::default();
        metrics.in_use_until(expires);
        Ok(Self {
            files,
            protocols,
            config: ArcSwap::from_pointee(config),
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
        let (mut config, expires) = pems.config(SystemTime::now())?;
        config.alpn_protocols.clone_from(&self.protocols);
        self.config.store(Arc::new(config));
        *in_use = pems;
        self.metrics.reloaded(true);
        self.metrics.in_use_until(expires);
        let until = humantime::format_rfc3339_seconds(expires);
        tracing::info!(%until, "certificate reloaded");
        Ok(())
    }

    /// Accepts connections, and hands on those whose handshake went well, until nobody takes them.
    ///
    /// A client that says nothing delays no other.
    pub async fn accept(&self, listener: TcpListener, ready: mpsc::Sender<TlsStream<TcpStream>>) {
        let room = Arc::new(Semaphore::new(MOST_HANDSHAKES));
        let mut handshakes = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            while handshakes.try_join_next().is_some() {}
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("cannot accept a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                self.metrics.failed(HandshakeFailure::TooMany);
                continue;
            };
            let acceptor = TlsAcceptor::from(self.config.load_full());
            let (ready, metrics) = (ready.clone(), self.metrics.clone());
            handshakes.spawn(async move {
                let _permit = permit;
                if let Some(stream) = handshake(&acceptor, stream, &metrics).await {
                    // Fails only when the server stops.
                    let _ = ready.send(stream).await;
                }
            });
        }
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    metrics: &TlsMetrics,
) -> Option<TlsStream<TcpStream>> {
    // A connection that cannot be told so is slower, not wrong.
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok();
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
