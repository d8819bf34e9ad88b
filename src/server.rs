//! Builds everything from settings, serves, drains.

mod coalesced;

use self::coalesced::Coalesced;
use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::{StreamExt, wrappers::UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::server::HealthReporter;

use crate::{
    admin::{self, Readiness},
    clock::SystemClock,
    grpc,
    limiter::Limiter,
    metrics::Metrics,
    plan::{self, LoadError, SharedPlans},
    settings::{Address, Settings, StoreChoice},
    store::{MemoryStore, Store, redis::RedisSettings},
};

/// How long connections may take to end after GOAWAY before they are cut.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long a start waits for the store before the ports open without it.
const FIRST_CONNECTION: Duration = Duration::from_secs(1);

/// How often the plan files are read though nothing said that they changed: some mounts tell nothing.
const POLL: Duration = Duration::from_secs(30);

/// A service whose ports are open.
#[derive(Debug)]
pub struct Server {
    /// Where the gRPC services listen, with the real port where 0 was asked for.
    pub grpc: Vec<Address>,
    /// Where health, metrics and plans are served.
    pub http: Address,
    limiter: Arc<Limiter>,
    readiness: Arc<Readiness>,
    health: HealthReporter,
    drain_delay: Duration,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), ServeError>>,
    sockets: Vec<SocketFile>,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plans did not load.
    #[error("{0}")]
    Plans(#[from] LoadError),
    /// A listener could not be opened.
    #[error("cannot listen on {address} for {what}: {}; choose another with {flag}", reason(.source))]
    Listen {
        /// The address.
        address: Address,
        /// Who wanted it.
        what: &'static str,
        /// The flag that moves it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "it is in use already".to_owned(),
        _ => error.to_string(),
    }
}

/// Why a running service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A gRPC listener failed.
    #[error("serving gRPC failed")]
    Grpc(#[from] tonic::transport::Error),
    /// The HTTP listener failed.
    #[error("serving HTTP failed")]
    Http(#[from] io::Error),
}

impl Server {
    /// Loads the plans, connects the store, opens the ports and serves.
    ///
    /// # Errors
    /// [`StartError`]: plans that do not load, an address that cannot be listened on.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let plans = Arc::new(SharedPlans::open(settings.config.clone())?);
        let store = connect_store(
            &settings.store,
            settings.store_timeout,
            settings.max_buckets,
        )
        .await;
        let store = Arc::new(store);
        let mut metrics = Metrics::new();
        metrics.collect(admin::metrics::Collector::new(plans.clone(), store.clone()));
        let metrics = Arc::new(metrics);
        let limiter = Arc::new(Limiter::new(plans.clone(), store));
        let (health, health_service) = health().await;
        let routes = grpc::routes(limiter.clone(), metrics.clone(), health_service);
        let readiness = Arc::new(Readiness::default());

        let stop = CancellationToken::new();
        let mut server = Self {
            grpc: Vec::new(),
            http: settings.http_listen.clone(),
            limiter: limiter.clone(),
            readiness: readiness.clone(),
            health,
            drain_delay: settings.drain_delay,
            stop: stop.clone(),
            tasks: JoinSet::new(),
            sockets: Vec::new(),
        };
        // All ports are opened before any serves, so that a start that fails has answered nobody.
        let mut listeners = Vec::new();
        for address in &settings.grpc_listen {
            listeners.push(server.bind(address, "gRPC", "--grpc-listen").await?);
        }
        let http = server
            .bind(&settings.http_listen, "HTTP", "--http-listen")
            .await?;
        for listener in listeners {
            server.grpc.push(listener.address.clone());
            server.tasks.spawn(serve_grpc(
                listener.socket,
                router(routes.clone()),
                stop.clone(),
            ));
        }
        server.http = http.address;
        let app = admin::router(limiter, metrics, readiness);
        server
            .tasks
            .spawn(serve_http(http.socket, app, stop.clone()));
        let watch = plan::reload::watch(plans, POLL, stop);
        server
            .tasks
            .spawn(async move { watch.await.map_err(|error| io::Error::other(error).into()) });
        Ok(server)
    }

    /// The limiter that answers.
    pub fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }

    /// Serves until `shutdown` completes, then drains: NOT_SERVING, serve on for the drain delay, GOAWAY, a bounded stop.
    ///
    /// # Errors
    /// [`ServeError`] if a listener fails meanwhile.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        tokio::select! {
            () = shutdown => {}
            failed = first_failure(&mut self.tasks) => return Err(failed),
        }
        tracing::info!(delay = ?self.drain_delay, "draining: health says NOT_SERVING, requests are still answered");
        self.readiness.drain();
        for service in ["", grpc::HEALTH_SERVICE] {
            self.health
                .set_service_status(service, tonic_health::ServingStatus::NotServing)
                .await;
        }
        tokio::select! {
            () = tokio::time::sleep(self.drain_delay) => {}
            failed = first_failure(&mut self.tasks) => return Err(failed),
        }
        self.stop.cancel();
        let ended = timeout(STOP_GRACE, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        if ended.is_err() {
            tracing::warn!(after = ?STOP_GRACE, "cut connections that did not end");
            self.tasks.abort_all();
        }
        tracing::info!("stopped");
        Ok(())
    }

    async fn bind(
        &mut self,
        address: &Address,
        what: &'static str,
        flag: &'static str,
    ) -> Result<Listener, StartError> {
        let failed = |source| StartError::Listen {
            address: address.clone(),
            what,
            flag,
            source,
        };
        match address {
            Address::Tcp(tcp) => {
                let socket = TcpListener::bind(tcp).await.map_err(failed)?;
                let address = Address::Tcp(socket.local_addr().map_err(failed)?);
                Ok(Listener {
                    address,
                    socket: Socket::Tcp(socket),
                })
            }
            Address::Unix(path) => {
                let socket = bind_unix(path).await.map_err(failed)?;
                self.sockets.push(SocketFile(path.clone()));
                Ok(Listener {
                    address: address.clone(),
                    socket: Socket::Unix(socket),
                })
            }
        }
    }
}

struct Listener {
    address: Address,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Removes a unix socket's file when the server goes.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, which is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens on `path`. A socket that a dead process left there is removed; one that answers is in use, and any other file
/// stays.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is there",
            ));
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// The store of that choice. Redis is waited for a second at most; starting needs none.
pub async fn connect_store(choice: &StoreChoice, timeout: Duration, max_buckets: usize) -> Store {
    match choice {
        StoreChoice::Memory => Store::Memory(MemoryStore::new(max_buckets, Arc::new(SystemClock))),
        StoreChoice::Redis(choice) => {
            let mut settings = RedisSettings::new(choice.main.clone());
            settings.per_second = choice.per_second.clone();
            settings.timeout = timeout;
            let store = Store::redis(settings);
            if !store.first_connection(FIRST_CONNECTION).await {
                tracing::warn!(node = %choice, "starting without the store: rules answer by their on_store_error until it is there");
            }
            store
        }
    }
}

async fn health() -> (HealthReporter, tonic_health::server::HealthService) {
    let reporter = HealthReporter::new();
    for service in ["", grpc::HEALTH_SERVICE] {
        reporter
            .set_service_status(service, tonic_health::ServingStatus::Serving)
            .await;
    }
    let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    (reporter, service)
}

/// HTTP/2 as Envoy needs it.
fn router(routes: tonic::service::Routes) -> Router {
    tonic::transport::Server::builder()
        // Envoy resets every call that misses its timeout; with the default of 20 a stall of ours would close its connection.
        .http2_max_pending_accept_reset_streams(Some(4_096))
        .http2_max_local_error_reset_streams(None)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_routes(routes)
}

async fn serve_grpc(
    socket: Socket,
    router: Router,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let stopped = stop.cancelled_owned();
    match socket {
        Socket::Tcp(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let incoming = incoming.map(|accepted| accepted.map(Coalesced));
            router
                .serve_with_incoming_shutdown(incoming, stopped)
                .await?;
        }
        Socket::Unix(listener) => {
            let incoming = UnixListenerStream::new(listener);
            let incoming = incoming.map(|accepted| accepted.map(Coalesced));
            router
                .serve_with_incoming_shutdown(incoming, stopped)
                .await?;
        }
    }
    Ok(())
}

async fn serve_http(
    socket: Socket,
    app: axum::Router,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let stopped = stop.cancelled_owned();
    match socket {
        Socket::Tcp(listener) => {
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .await?
        }
        Socket::Unix(listener) => {
            axum::serve(listener, app)
                .with_graceful_shutdown(stopped)
                .await?
        }
    }
    Ok(())
}

/// Completes when a task fails; tasks end well only when told to stop.
async fn first_failure(tasks: &mut JoinSet<Result<(), ServeError>>) -> ServeError {
    loop {
        match tasks.join_next().await {
            Some(Ok(Err(error))) => return error,
            Some(Err(panicked)) => return io::Error::other(panicked).into(),
            Some(Ok(Ok(()))) => {}
            None => std::future::pending().await,
        }
    }
}
