//! A wire to Redis that can be cut, slowed, torn and led elsewhere.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// They arrive.
    Whole,
    /// They wait, and nobody is told: a black hole.
    Silent,
    /// What the client writes arrives late, piece after piece: so much per command.
    Slow(Duration),
}

/// Listens on one port and leads to another. Ends when it is dropped.
pub struct Proxy {
    port: u16,
    target: Arc<AtomicU16>,
    wire: watch::Sender<Wire>,
    /// Counts tears.
    torn: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Leads from `port`, or from any if it is 0, to `target`.
    pub async fn start(port: u16, target: u16) -> Self {
        Self::start_at("127.0.0.1", port, target).await
    }

    /// The same at another address of this machine.
    pub async fn start_at(host: &str, port: u16, target: u16) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("a socket");
        let address = SocketAddr::new(host.parse().expect("an address"), port);
        socket.bind(address).expect("free");
        // Few wait to be let in, so that those who knock at a black hole are not answered.
        let listener = socket.listen(1).expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let target = Arc::new(AtomicU16::new(target));
        let (wire, torn) = (watch::Sender::new(Wire::Whole), watch::Sender::new(0));
        let task = tokio::spawn(accept(
            listener,
            target.clone(),
            wire.subscribe(),
            torn.subscribe(),
        ));
        Self {
            port,
            target,
            wire,
            torn,
            task,
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }

    /// Resets every connection, as a router that forgets does.
    pub fn tear(&self) {
        self.torn.send_modify(|times| *times += 1);
    }

    /// From now on another server stands behind the address.
    pub fn lead_to(&self, target: u16) {
        self.lead_newcomers_to(target);
        self.tear();
    }

    /// The same for new connections only: those that are there stay.
    pub fn lead_newcomers_to(&self, target: u16) {
        self.target.store(target, Relaxed);
    }
}

async fn accept(
    listener: TcpListener,
    target: Arc<AtomicU16>,
    mut wire: watch::Receiver<Wire>,
    torn: watch::Receiver<u64>,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // An error says that the test has ended.
        let _ = wire.wait_for(|wire| *wire != Wire::Silent).await;
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let target = SocketAddr::from(([127, 0, 0, 1], target.load(Relaxed)));
        let (wire, mut torn) = (wire.clone(), torn.clone());
        torn.mark_unchanged();
        connections.spawn(async move {
            // Closed with this, a connection is reset.
            let _ = client.set_zero_linger();
            let lead = lead(client, target, wire);
            tokio::select! {
                _ = lead => {}
                _ = torn.changed() => {}
            }
        });
    }
}

async fn lead(
    client: TcpStream,
    target: SocketAddr,
    wire: watch::Receiver<Wire>,
) -> io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = pump(from_client, to_server, wire.clone(), true) => ended,
        ended = pump(from_server, to_client, wire, false) => ended,
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
    asks: bool,
) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        let now = *wire
            .wait_for(|wire| *wire != Wire::Silent)
            .await
            .map_err(io::Error::other)?;
        if let (Wire::Slow(time), true) = (now, asks) {
            sleep(time).await;
        }
        to.write_all(&bytes[..length]).await?;
    }
}
