//! HTTP load in a closed loop: one request at a time on each of `--connections` connections, each with a random number in
//! the header `x-key`. Prints one JSON object: latency percentiles in microseconds and how many answers had which status.
//!
//! `scripts/bench envoy` measures with it what a rate-limit service adds to the latency of Envoy.

use std::{
    collections::BTreeMap,
    error::Error,
    time::{Duration, Instant},
};

use clap::Parser;
use hdrhistogram::Histogram;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{net::TcpStream, task::JoinSet};

type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Parser, Clone)]
struct Args {
    /// Server, `host:port`
    #[arg(long)]
    target: String,

    /// Path of every request
    #[arg(long, default_value = "/")]
    path: String,

    #[arg(long, default_value = "1")]
    connections: u64,

    /// Requests on each connection
    #[arg(long, default_value = "10000")]
    requests: u64,

    /// Different values of the header `x-key`
    #[arg(long, default_value = "10000")]
    keys: u64,

    /// Stop early after this time
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    duration: Duration,
}

struct Tally {
    latency_ns: Histogram<u64>,
    statuses: BTreeMap<u16, u64>,
}

fn main() -> Result<(), BoxError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure(Args::parse()))
}

async fn measure(args: Args) -> Result<(), BoxError> {
    let mut connections = JoinSet::new();
    for connection in 0..args.connections {
        connections.spawn(load(args.clone(), connection));
    }
    let mut all = Tally {
        latency_ns: Histogram::new(3)?,
        statuses: BTreeMap::new(),
    };
    while let Some(tally) = connections.join_next().await {
        let tally = tally??;
        all.latency_ns.add(&tally.latency_ns)?;
        for (status, count) in tally.statuses {
            *all.statuses.entry(status).or_default() += count;
        }
    }
    let us = |quantile| all.latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
    let answer = serde_json::json!({
        "requests": all.latency_ns.len(), "statuses": all.statuses,
        "p50_us": us(0.5), "p90_us": us(0.9), "p99_us": us(0.99),
    });
    println!("{answer}");
    Ok(())
}

async fn load(args: Args, seed: u64) -> Result<Tally, BoxError> {
    let stream = TcpStream::connect(&args.target).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut tally = Tally {
        latency_ns: Histogram::new(3)?,
        statuses: BTreeMap::new(),
    };
    let mut rng = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    for _ in 0..args.requests {
        let sent = Instant::now();
        if sent.duration_since(start) > args.duration {
            break;
        }
        let request = request(&args, rng.random_range(0..args.keys))?;
        sender.ready().await?;
        let status = answer(&mut sender, request).await?;
        tally.latency_ns.record(sent.elapsed().as_nanos() as u64)?;
        *tally.statuses.entry(status.as_u16()).or_default() += 1;
    }
    drop(sender);
    driver.await??;
    Ok(tally)
}

fn request(args: &Args, key: u64) -> Result<Request<Empty<Bytes>>, http::Error> {
    Request::get(&args.path)
        .header("host", &args.target)
        .header("x-key", key)
        .body(Empty::new())
}

async fn answer(
    sender: &mut http1::SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
) -> Result<StatusCode, BoxError> {
    let response = sender.send_request(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
}
