//! Clients of Envoy: one connection each, kept alive, from an address of choice.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpSocket,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::common::PATIENCE;

/// A request's header: name and value.
pub type Header = (&'static str, &'static str);

/// The address that a client has unless it is given another one.
pub const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// 127.0.0.`last`, which this machine has, too.
pub fn another_home(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    }
}

/// One connection to Envoy.
pub struct Client {
    sender: http1::SendRequest<Empty<Bytes>>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Self {
        Self::connect_from(HOME, to).await
    }

    pub async fn connect_from(source: IpAddr, to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("a local address");
        let stream = socket.connect(to).await.expect("Envoy listens");
        stream.set_nodelay(true).expect("an option");
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("a connection");
        tokio::spawn(connection);
        Self { sender }
    }

    /// Asks, and fails the test if that brings no answer.
    pub async fn get(&mut self, path: &str, headers: &[Header]) -> Answer {
        self.ask(Method::GET, path, headers).await
    }

    /// The same by another method.
    pub async fn ask(&mut self, method: Method, path: &str, headers: &[Header]) -> Answer {
        let answer = self.try_ask(&method, path, headers).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The statuses of `count` requests, one after the other.
    pub async fn statuses(&mut self, path: &str, count: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(self.get(path, &[]).await.status);
        }
        statuses
    }

    /// Asks `limit` times and 10 times more: the first `limit` pass, and no other.
    pub async fn exhaust(&mut self, path: &str, limit: usize) {
        let expected = [vec![200; limit], vec![429; 10]].concat();
        assert_eq!(self.statuses(path, limit + 10).await, expected);
    }

    pub async fn try_get(&mut self, path: &str, headers: &[Header]) -> Result<Answer, String> {
        self.try_ask(&Method::GET, path, headers).await
    }

    async fn try_ask(
        &mut self,
        method: &Method,
        path: &str,
        headers: &[Header],
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("host", "stats.example");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).expect("a request");
        let asking = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        match timeout(PATIENCE, asking).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer in {PATIENCE:?}")),
        }
    }
}

/// `count` requests at once, each on a connection of its own that was open before.
pub async fn all_at_once(
    to: SocketAddr,
    count: usize,
    path: &'static str,
    headers: &'static [Header],
) -> Vec<Answer> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::connect(to).await);
    }
    let asking: JoinSet<Answer> = clients
        .into_iter()
        .map(|mut client| async move { client.get(path, headers).await })
        .collect();
    asking.join_all().await
}

/// How many of `answers` had each status.
pub fn by_status<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.status).or_default() += 1;
    }
    counts
}

/// Requests without end over a few connections, while something happens beside them.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    connections: Vec<JoinHandle<Tally>>,
}

/// What a load met.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub by_status: BTreeMap<u16, usize>,
    /// Requests without an answer, and why.
    pub unanswered: Vec<String>,
}

impl Tally {
    /// Every request was answered 200; returns how many.
    pub fn all_passed(&self) -> usize {
        let only_200 = self.by_status.keys().all(|status| *status == 200);
        assert!(only_200 && self.unanswered.is_empty(), "{self:?}");
        self.by_status.get(&200).copied().unwrap_or(0)
    }
}

impl Load {
    /// Some hundred requests a second; the machine has other things to do.
    const PAUSE: Duration = Duration::from_millis(5);

    pub async fn start(
        to: SocketAddr,
        connections: usize,
        path: &'static str,
        headers: &'static [Header],
    ) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            connections: Vec::new(),
        };
        for _ in 0..connections {
            let client = Client::connect(to).await;
            let (stop, answered) = (load.stop.clone(), load.answered.clone());
            let running = Self::run(client, path, headers, stop, answered);
            load.connections.push(tokio::spawn(running));
        }
        load.more(20 * connections).await;
        load
    }

    async fn run(
        mut client: Client,
        path: &str,
        headers: &[Header],
        stop: Arc<AtomicBool>,
        answered: Arc<AtomicUsize>,
    ) -> Tally {
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) {
            match client.try_get(path, headers).await {
                Ok(answer) => *tally.by_status.entry(answer.status).or_default() += 1,
                Err(error) => {
                    tally.unanswered.push(error);
                    // Nothing more comes over this connection.
                    return tally;
                }
            }
            answered.fetch_add(1, Ordering::Relaxed);
            sleep(Self::PAUSE).await;
        }
        tally
    }

    /// Waits until it has done `count` more requests.
    pub async fn more(&self, count: usize) {
        let enough = self.answered.load(Ordering::Relaxed) + count;
        let end = Instant::now() + PATIENCE;
        while self.answered.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < end, "the load stands still");
            sleep(Self::PAUSE).await;
        }
    }

    pub async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for connection in self.connections {
            let tally = connection.await.expect("a load does not panic");
            for (status, count) in tally.by_status {
                *total.by_status.entry(status).or_default() += count;
            }
            total.unanswered.extend(tally.unanswered);
        }
        total
    }
}
