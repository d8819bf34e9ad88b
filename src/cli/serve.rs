//! `tollgate serve`: the service.

use std::{
    env, io, num::NonZeroUsize, path::PathBuf, process::ExitCode, sync::Arc, time::Duration,
};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    ConfigArgs, LogArgs, counting::CountingArgs, metering::MeteringArgs,
    statistics::StatisticsArgs, store::StoreArgs, tls::TlsArgs, traces::TracesArgs, xds::XdsArgs,
};
use crate::{
    plan::SharedPlans,
    server::Server,
    settings::{
        Address, AdminSettings, AdminTokens, ConnectionAge, Dialect, HealthNeeds, Settings,
    },
    tls::{IdentityFiles, ServerFiles},
};

/// Flags of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    xds: XdsArgs,
    /// Where to serve gRPC: host:port or unix:PATH; repeatable
    #[arg(
        long,
        value_name = "ADDR",
        env = "TOLLGATE_GRPC_LISTEN",
        value_delimiter = ',',
        default_value = "0.0.0.0:8081"
    )]
    grpc_listen: Vec<Address>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Where to serve health, metrics and plans over HTTP
    #[arg(
        long,
        value_name = "ADDR",
        env = "TOLLGATE_HTTP_LISTEN",
        default_value = "127.0.0.1:8080"
    )]
    http_listen: Address,
    /// Where to serve debug pages over HTTP, the rules in force among them; nowhere unless told
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_DEBUG_LISTEN")]
    debug_listen: Option<Address>,
    #[command(flatten)]
    store: StoreArgs,
    /// Longest wait for Redis per decision
    #[arg(long, value_name = "D", env = "TOLLGATE_STORE_TIMEOUT", default_value = "10ms", value_parser = some_time)]
    store_timeout: Duration,
    /// Most buckets of the memory store
    #[arg(
        long,
        value_name = "N",
        env = "TOLLGATE_MAX_BUCKETS",
        default_value = "1000000"
    )]
    max_buckets: NonZeroUsize,
    #[command(flatten)]
    counting: CountingArgs,
    /// Threads that serve [default: number of cores]
    #[arg(long, value_name = "N", env = "TOLLGATE_WORKER_THREADS")]
    worker_threads: Option<NonZeroUsize>,
    /// How long to keep serving after a signal, while health says NOT_SERVING
    #[arg(long, value_name = "D", env = "TOLLGATE_DRAIN_DELAY", default_value = "5s", value_parser = humantime::parse_duration)]
    drain_delay: Duration,
    /// Where to keep API keys and plans that are made at run time, usage, and the buckets of the memory store; a Redis store keeps them itself
    #[arg(long, value_name = "DIR", env = "TOLLGATE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// How often the memory store writes its buckets to the state directory, beside when it ends; 0s for never
    #[arg(long, value_name = "D", env = "TOLLGATE_SNAPSHOT_EVERY", default_value = "10s", value_parser = humantime::parse_duration)]
    snapshot_every: Duration,
    #[command(flatten)]
    metering: MeteringArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    statistics: StatisticsArgs,
    #[command(flatten)]
    traces: TracesArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// The admin API, which is off until there is a token or an authority of client certificates.
#[derive(Debug, Clone, Args)]
struct AdminArgs {
    /// Where to serve the admin API, gRPC and HTTP; off until TOLLGATE_ADMIN_TOKEN or a file holds its tokens, or there is a client CA
    #[arg(
        long,
        value_name = "ADDR",
        env = "TOLLGATE_ADMIN_LISTEN",
        default_value = "127.0.0.1:8082"
    )]
    admin_listen: Address,
    /// File that holds the admin API's tokens, one a line: TOKEN, or NAME TOKEN, whose name the audit log shows
    #[arg(long, value_name = "FILE", env = "TOLLGATE_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Certificate (PEM, with its chain) for the admin API over TLS
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_ADMIN_TLS_CERT",
        requires = "admin_tls_key"
    )]
    admin_tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_ADMIN_TLS_KEY",
        requires = "admin_tls_cert"
    )]
    admin_tls_key: Option<PathBuf>,
    /// Authorities (PEM) of client certificates that open the admin API as a token does
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_ADMIN_CLIENT_CA",
        requires = "admin_tls_cert"
    )]
    admin_client_ca: Option<PathBuf>,
}

impl AdminArgs {
    fn settings(&self) -> Result<Option<AdminSettings>, String> {
        let tokens = self.tokens()?;
        if tokens.is_none() && self.admin_client_ca.is_none() {
            return Ok(None);
        }
        let pair = self.admin_tls_cert.clone().zip(self.admin_tls_key.clone());
        let tls = pair.map(|(cert, key)| ServerFiles {
            identity: IdentityFiles { cert, key },
            client_ca: self.admin_client_ca.clone(),
            // Who has a token needs no certificate.
            client_optional: tokens.is_some(),
            client_san: Vec::new(),
        });
        Ok(Some(AdminSettings {
            listen: self.admin_listen.clone(),
            tokens: tokens.unwrap_or_default(),
            tls,
        }))
    }

    /// The variable rather than a flag: what stands on a command line is no secret.
    fn tokens(&self) -> Result<Option<AdminTokens>, String> {
        let text = match &self.admin_token_file {
            Some(file) => super::admin_client::token_text(file)?,
            None => match env::var("TOLLGATE_ADMIN_TOKEN") {
                Ok(text) if text.is_empty() => return Ok(None),
                Ok(text) => text,
                Err(env::VarError::NotPresent) => return Ok(None),
                Err(error) => return Err(format!("TOLLGATE_ADMIN_TOKEN: {error}")),
            },
        };
        let tokens = AdminTokens::new(&text);
        tokens.map(Some).map_err(|error| error.to_string())
    }
}

impl ServeArgs {
    /// What the flags and the `TOLLGATE_` variables say.
    pub(super) fn settings(&self) -> Result<Settings, String> {
        let xds = self.xds.settings();
        if xds.is_some() && self.config.named() {
            return Err("plans come from --xds or from --config, not from both".to_owned());
        }
        Ok(Settings {
            plans: self.counting.sources(match xds {
                Some(_) => Vec::new(),
                None => self.config.sources(),
            }),
            wait_for_plans: false,
            xds,
            grpc_listen: self.grpc_listen.clone(),
            grpc_tls: self.tls.files(),
            http_listen: self.http_listen.clone(),
            debug_listen: self.debug_listen.clone(),
            store: self.store.choice()?,
            store_timeout: self.store_timeout,
            max_buckets: self.max_buckets.get(),
            local_cache: false,
            drain_delay: self.drain_delay,
            statistics: self.statistics.settings(),
            traces: self.traces.settings()?,
            dialect: Dialect::Tollgate,
            health_needs: HealthNeeds::default(),
            connection_age: ConnectionAge::default(),
            state_dir: self.state_dir.clone(),
            snapshot_every: Some(self.snapshot_every).filter(|every| !every.is_zero()),
            admin: self.admin.settings()?,
            usage: self.metering.settings(),
        })
    }

    pub(super) fn worker_threads(&self) -> Option<NonZeroUsize> {
        self.worker_threads
    }
}

pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing, like 10ms".to_owned()),
        read => read.map_err(|error| error.to_string()),
    }
}

/// Serves until SIGTERM or Ctrl-C. Exit 0 after a drain, 1 if it could not start or a listener failed.
pub fn run(args: &ServeArgs) -> ExitCode {
    let settings = match super::start_logging(&args.log).and_then(|()| args.settings()) {
        Ok(settings) => settings,
        Err(message) => return super::fail(&message),
    };
    match super::readable(&settings.plans.paths, "--config") {
        Ok(()) => run_with(settings, args.worker_threads),
        Err(message) => {
            super::say(format_args!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

/// The same with settings at hand.
pub(super) fn run_with(settings: Settings, threads: Option<NonZeroUsize>) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.get());
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("cannot start the runtime: {error}")),
    };
    let served = runtime.block_on(serve(settings));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            super::say(format_args!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings) -> Result<(), String> {
    let signals = Signals::catch().map_err(|error| format!("cannot watch for signals: {error}"))?;
    let Signals { hangup, mut stop } = signals;
    let server = tokio::select! {
        started = Server::start(settings.clone()) => started.map_err(|error| error.to_string())?,
        () = stop.come() => return Ok(()),
    };
    let reload = tokio::spawn(reload_on_hangup(hangup, server.limiter().plans().clone()));
    super::say(banner(&server, &settings).trim_end());
    let served = server.run(stop_signal(stop)).await;
    reload.abort();
    served.map_err(|error| super::chain(&error))
}

/// What this process does not leave to the system. Caught before the start, which takes a while where the store is away: a
/// SIGHUP that nobody catches ends a process.
struct Signals {
    hangup: Signal,
    stop: StopSignals,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            stop: StopSignals {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
        })
    }
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Completes on SIGTERM or Ctrl-C.
    async fn come(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A few lines for the person who started it.
fn banner(server: &Server, settings: &Settings) -> String {
    let plans = server.limiter().plans().load();
    let mut text = String::new();
    let grpc: Vec<String> = server.grpc.iter().map(ToString::to_string).collect();
    text += &format!(
        "tollgate {} serves rate limits (gRPC) on {}\n",
        env!("CARGO_PKG_VERSION"),
        grpc.join(", ")
    );
    text += &format!("  health, metrics, plans (HTTP) on {}\n", server.http);
    if let Some(admin) = &server.admin {
        text += &format!("  the admin API on {admin}\n");
    }
    if let Some(metrics) = &server.metrics {
        let path = &settings.statistics.metrics_path;
        text += &format!("  metrics (HTTP) on {metrics}{path}\n");
    }
    if let Some(statsd) = &settings.statistics.statsd {
        text += &format!("  statistics to {}\n", statsd.to);
    }
    if let Some(debug) = &server.debug {
        text += &format!("  debug pages on {debug}\n");
    }
    text += &format!("  buckets live in {}\n", settings.store);
    if let Some(xds) = &settings.xds {
        text += &format!("  plans come from the control plane at {}\n", xds.server);
    }
    for domain in plans.domains() {
        let (rules, keys) = (domain.rules().count(), domain.api_keys().count());
        text += &format!(
            "  plans of domain {}: {rules} rules, {keys} API keys\n",
            domain.name()
        );
    }
    for document in plans.documents() {
        let (domain, version) = (&document.domain, document.version);
        text += &format!(
            "  those of domain {domain} are stored ones, version {version}, in place of its files\n"
        );
    }
    let stored = plans.stored_keys().len();
    if stored > 0 {
        text += &format!("  {stored} API keys beside those of the plans\n");
    }
    text += &format!("try: curl -s http://{}/plans\n", server.http);
    text
}

async fn reload_on_hangup(mut hangup: Signal, plans: Arc<SharedPlans>) {
    while hangup.recv().await.is_some() {
        match plans.reload_now().await {
            // The plans log what is new in them.
            Ok(true) => {}
            Ok(false) => tracing::info!("SIGHUP: the plan files are those in force"),
            // Where the mistakes are was logged when they were found first.
            Err(error) => tracing::warn!(
                mistakes = error.total(),
                "SIGHUP: the plan files do not load, those of before stay in force; /plans has the mistakes"
            ),
        }
    }
}

/// Completes on SIGTERM or Ctrl-C. A second signal ends the process at once.
async fn stop_signal(mut stop: StopSignals) {
    stop.come().await;
    tokio::spawn(async move {
        stop.come().await;
        std::process::exit(130);
    });
}
