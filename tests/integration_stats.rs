//! The stats service over real HTTP connections, in this process, on a free port.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use futures::future::join_all;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tollgate::stats::{self, Settings};

/// Longer than anything here may take, so that a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Service {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

async fn start(settings: Settings) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(stats::serve(listener, settings, shutdown.clone()));
    Service {
        address,
        shutdown,
        serving,
    }
}

fn quick() -> Settings {
    Settings {
        request_time: Duration::from_millis(1),
        step: Duration::from_millis(5),
        ..Settings::default()
    }
}

impl Service {
    async fn open(&self, path: &str) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(HOST, "stats")
            .body(String::new())
            .unwrap();
        tokio::time::timeout(PATIENCE, sender.send_request(request))
            .await
            .unwrap()
            .unwrap()
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.open(path).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

/// The data of the next event; `None` when the stream has ended.
async fn next_event(stream: &mut Response<Incoming>) -> Option<Value> {
    let frame = tokio::time::timeout(PATIENCE, stream.frame())
        .await
        .unwrap()?;
    let text = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
    let data = text
        .strip_prefix("event: stats\ndata: ")
        .expect("an event named stats");
    Some(serde_json::from_str(data.trim_end()).unwrap())
}

#[tokio::test]
async fn every_match_is_told_with_its_id_and_the_time() {
    let service = start(quick()).await;
    for id in 0..10 {
        let (status, told) = service.get(&format!("/stats/{id}")).await;
        assert_eq!((status, &told["id"]), (200, &json!(id)));
        humantime::parse_rfc3339(told["timestamp"].as_str().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn stats_without_an_id_are_of_any_match() {
    let service = start(quick()).await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let (status, told) = service.get("/stats").await;
        assert_eq!(status, 200);
        ids.insert(told["id"].as_u64().unwrap());
    }
    assert!(ids.len() > 1 && ids.iter().all(|id| *id < 10), "{ids:?}");
}

#[tokio::test]
async fn what_is_not_there_is_404_in_json() {
    let service = start(quick()).await;
    for path in [
        "/stats/10",
        "/stats/-1",
        "/stats/03",
        "/stats/x",
        "/stats/10/events",
        "/",
        "/secure/stats",
    ] {
        assert_eq!(
            service.get(path).await,
            (404, json!({"message": "Not Found"})),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_twenty_first_request_at_once_is_refused() {
    let service = start(Settings {
        request_time: Duration::from_secs(2),
        ..Settings::default()
    })
    .await;
    let asking = join_all((0..25).map(|_| service.get("/stats/4")));
    let health = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        service.open("/healthcheck").await.status().as_u16()
    };
    let (answers, health) = tokio::join!(asking, health);

    let refused: Vec<_> = answers
        .iter()
        .filter(|(status, _)| *status != 200)
        .collect();
    assert_eq!(refused.len(), 5);
    for answer in refused {
        assert_eq!(*answer, (500, json!({"message": "Internal server error"})));
    }
    assert_eq!(health, 200, "a health check takes no place");
    assert_eq!(
        service.get("/stats/4").await.0,
        200,
        "places are given back"
    );
}

#[tokio::test]
async fn numbers_move_from_event_to_event() {
    let service = start(quick()).await;
    let mut stream = service.open("/stats/3/events").await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let first = next_event(&mut stream).await.unwrap();
    let second = next_event(&mut stream).await.unwrap();
    assert_eq!((&first["id"], &second["id"]), (&json!(3), &json!(3)));
    assert!(first["second"].as_u64() < second["second"].as_u64());
    assert_ne!(
        (&first["home"], &first["away"]),
        (&second["home"], &second["away"])
    );
    assert!(second["timestamp"].is_string());
}

#[tokio::test]
async fn open_streams_leave_the_places_to_requests_and_have_a_limit_of_their_own() {
    let service = start(Settings {
        max_streams: 30,
        ..quick()
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..30 {
        streams.push(service.open("/stats/0/events").await);
    }
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(service.get("/stats/0").await.0, 200);
    assert_eq!(service.get("/stats/0/events").await.0, 500);

    streams.pop();
    let reopened = async {
        while service.open("/stats/0/events").await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reopened)
        .await
        .expect("a closed stream gives its place back");
}

#[tokio::test]
async fn shutdown_ends_streams_and_answers_what_is_under_way() {
    let service = start(Settings {
        request_time: Duration::from_millis(300),
        ..quick()
    })
    .await;
    let mut stream = service.open("/stats/5/events").await;
    next_event(&mut stream).await.unwrap();

    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        service.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(service.get("/stats/5"), stop);
    assert_eq!(answer.0, 200);
    while next_event(&mut stream).await.is_some() {}
    tokio::time::timeout(PATIENCE, service.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        TcpStream::connect(service.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn the_program_says_where_it_listens_answers_its_probe_and_ends_well_on_sigterm() {
    let stats = env!("CARGO_BIN_EXE_stats");
    let mut child = Command::new(stats)
        .args(["--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = said.next_line().await.unwrap().unwrap();
    let (_, address) = line.split_once("address=").unwrap();

    let probe = async || {
        let probe = Command::new(stats)
            .args(["--probe", "--listen", address])
            .output();
        probe.await.unwrap().status.code()
    };
    assert_eq!(probe().await, Some(0));
    let id = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(id), Signal::SIGTERM).unwrap();
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap();
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_eq!(probe().await, Some(1));
}
