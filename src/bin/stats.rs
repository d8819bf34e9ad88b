//! `stats`: the demo's stats service as a process of its own.

use std::{io::IsTerminal, net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use tokio::{net::TcpListener, signal::unix};
use tokio_util::sync::CancellationToken;
use tollgate::{http_probe, stats};
use tracing_subscriber::EnvFilter;

/// Live-match stats, the service that the demo's limits protect
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where to listen, as IP:PORT
    #[arg(
        long,
        env = "STATS_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8000"
    )]
    listen: SocketAddr,
    /// Time that a request takes, and holds its place
    #[arg(long, env = "STATS_REQUEST_TIME", value_name = "D", default_value = "20ms", value_parser = humantime::parse_duration)]
    request_time: Duration,
    /// Requests answered at once; one more gets 500
    #[arg(
        long,
        env = "STATS_MAX_CONCURRENT",
        value_name = "N",
        default_value_t = 20
    )]
    max_concurrent: u16,
    /// Event streams open at once; one more gets 500
    #[arg(
        long,
        env = "STATS_MAX_STREAMS",
        value_name = "N",
        default_value_t = 1000
    )]
    max_streams: u16,
    /// What to log, as LEVEL or MODULE=LEVEL,…
    #[arg(long, env = "STATS_LOG", value_name = "FILTER", default_value = "info")]
    log: EnvFilter,
    /// Ask the service that listens there whether it is well, and exit 0 or 1
    #[arg(long)]
    probe: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.probe {
        probe(args.listen).await
    } else {
        serve(args).await
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("stats: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn probe(mut address: SocketAddr) -> Result<(), String> {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    match http_probe::get_status(address, "/healthcheck", Duration::from_secs(2)).await {
        Ok(200) => Ok(()),
        Ok(status) => Err(format!("{address} answers its health check with {status}")),
        Err(error) => Err(format!("{address} cannot be asked: {error}")),
    }
}

async fn serve(args: Args) -> Result<(), String> {
    tracing_subscriber::fmt()
        .with_env_filter(args.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let settings = stats::Settings {
        request_time: args.request_time,
        max_concurrent: args.max_concurrent.into(),
        max_streams: args.max_streams.into(),
        ..stats::Settings::default()
    };
    let cannot_listen = |error| format!("cannot listen on {}: {error} (see --listen)", args.listen);
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(cannot_listen)?;
    let shutdown =
        stop_on_signal().map_err(|error| format!("cannot watch for signals: {error}"))?;
    // Port 0 is a free one, which only the listener knows.
    let address = listener.local_addr().unwrap_or(args.listen);
    tracing::info!(%address, "listening");
    let served = stats::serve(listener, settings, shutdown).await;
    tracing::info!("stopped");
    served.map_err(|error| error.to_string())
}

/// A token that SIGTERM or Ctrl-C cancels.
fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let cancel = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(shutdown)
}
