//! Builds everything from settings, serves, drains.

mod admin;
mod aged;
mod authority;
mod coalesced;
mod sockets;
mod stores;
mod tls;
mod wishes;

pub use self::stores::connect_store;
use self::{
    admin::{StoredPlans, open_keys, serve_admin, warn_of_plain_tokens},
    sockets::{Listener, Socket, SocketFile, router, serve_grpc, serve_http},
    stores::open_store,
    tls::ServerTls,
    wishes::Wishes,
};
use std::{io, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::{
    admin::{self as pages, Readiness},
    admin_api::{self, Desk, UsageReader},
    bucket_admin::BucketAdmin,
    clock::SystemClock,
    export::{self, MetricsPage, Reference},
    grpc,
    home::{AuditLog, HomeError, follow as follow_home},
    limiter::{Limiter, Pacing},
    metrics::{Metrics, snapshot::SnapshotMetrics, traces::TraceMetrics},
    plan::{self, LoadError, ReloadStatus, SharedPlans},
    plan_store::PlanAdmin,
    settings::{Address, Dialect, HealthNeeds, Settings, StatisticsSettings, home_of},
    statistics::Statistics,
    store::memory::kept::{KeepError, Keeping},
    tls::TlsFileError,
    traces::{MaybeTraces, Traces, TracesError, TracesSettings},
    usage::{MOST_ROWS, Meter, Recorder, Retention, UsageStore},
    xds::{self, XdsSettings},
};

/// How long connections may take to end after GOAWAY before they are cut.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long a stop waits until the store has taken leases back.
const STOP_LEASES: Duration = Duration::from_millis(200);

/// How long a start waits for the store before the ports open without it.
const FIRST_CONNECTION: Duration = Duration::from_secs(1);

/// How long a stop waits for the buckets to be written.
const LAST_SNAPSHOT: Duration = Duration::from_secs(10);

/// How often to look for changes of API keys and stored plans.
const HOME_POLL: Duration = Duration::from_millis(200);

/// How often gRPC health looks whether what it needs is there.
const HEALTH_LOOK: Duration = Duration::from_millis(250);

/// How often plan files and certificates are read though nothing said that they changed: some mounts tell nothing.
const POLL: Duration = Duration::from_secs(30);

/// A service whose ports are open.
#[derive(Debug)]
pub struct Server {
    /// Where the gRPC services listen, with the real port where 0 was asked for.
    pub grpc: Vec<Address>,
    /// Where health, metrics and plans are served.
    pub http: Address,
    /// Where the admin API is served, if it is.
    pub admin: Option<Address>,
    /// Where metrics are served too.
    pub metrics: Option<Address>,
    /// Where the debug pages are served, if anywhere.
    pub debug: Option<Address>,
    limiter: Arc<Limiter>,
    readiness: Arc<Readiness>,
    health: HealthReporter,
    drain_delay: Duration,
    dialect: Dialect,
    recorder: Option<Arc<Recorder>>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), ServeError>>,
    sockets: Vec<SocketFile>,
    keeping: Option<Keeping>,
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plans did not load.
    #[error("{0}")]
    Plans(#[from] LoadError),
    /// The API keys of the state directory could not be read.
    #[error("API keys: {0}")]
    Keys(HomeError),
    /// The buckets of the state directory cannot be kept.
    #[error("buckets: {0}")]
    Buckets(#[from] KeepError),
    /// The plans of the state directory that stand in the place of files could not be read.
    #[error("stored plans: {0}")]
    StoredPlans(HomeError),
    /// The certificates of the admin API cannot be used.
    #[error("cannot serve the admin API over TLS: {0}")]
    AdminTls(TlsFileError),
    /// The certificates of the gRPC listeners cannot be used.
    #[error("cannot serve gRPC over TLS: {0}")]
    Tls(#[from] TlsFileError),
    /// Traces cannot be sent so.
    #[error("cannot send traces: {0}")]
    Traces(#[from] TracesError),
    /// Usage is to be metered, and there is no place to keep it.
    #[error("--usage has no place to keep usage: say --state-dir DIR or --store redis://…")]
    NoUsageHome,
    /// A listener could not be opened.
    #[error("cannot listen on {address} for {what}: {}; choose another with {flag}", reason(.source))]
    Listen {
        /// The address.
        address: Address,
        /// Who wanted it.
        what: &'static str,
        /// The flag, or the variable, that moves it.
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
    /// [`StartError`]: plans or keys that do not load, certificates that cannot be used, settings of traces that are none, an address that cannot be listened on.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let tls = settings
            .grpc_tls
            .clone()
            .map(|files| ServerTls::open(files, settings.dialect))
            .transpose()?;
        let tls = tls.map(Arc::new);
        let admin_tls = settings.admin.as_ref().and_then(|admin| admin.tls.clone());
        let admin_tls = admin_tls
            .map(|files| ServerTls::open_for(files, &["h2", "http/1.1"]))
            .transpose()
            .map_err(StartError::AdminTls)?
            .map(Arc::new);
        let home = home_of(&settings.store, settings.state_dir.as_deref());
        let place = match settings.dialect {
            Dialect::Tollgate => home.clone(),
            // envoyproxy/ratelimit keeps no keys and no plans.
            Dialect::Reference => None,
        };
        // A control plane is where its plans are changed.
        let stored = match place.clone().filter(|_| settings.xds.is_none()) {
            Some(place) => Some(StoredPlans::read(place).await?),
            None => None,
        };
        let documents = stored.iter().flat_map(|stored| stored.table.documents());
        let documents = documents.collect();
        let plans = Arc::new(match &settings.xds {
            Some(xds) => {
                SharedPlans::streamed(xds.server.to_string(), settings.plans.options.clone())
            }
            None if settings.wait_for_plans => SharedPlans::open_or_wait(settings.plans.clone()),
            None => SharedPlans::open_with(settings.plans.clone(), documents)?,
        });
        let documents = stored.map(|StoredPlans { home, table }| {
            Arc::new(PlanAdmin::new(home, table, plans.clone()))
        });
        let keys = open_keys(place.clone(), &plans).await?;
        let recorder = match (&settings.usage, &home) {
            (Some(_), None) => return Err(StartError::NoUsageHome),
            (Some(usage), Some(home)) => {
                let meter = Arc::new(Meter::new(MOST_ROWS, Arc::new(SystemClock)));
                let store = UsageStore::open(home.clone(), usage.retention);
                Some(Arc::new(Recorder::new(meter, store)))
            }
            (None, _) => None,
        };
        let wishes = Wishes::of(&plans, &settings.store);
        let (store, kept) = open_store(&settings, wishes.needs()).await?;
        let store = Arc::new(store);
        let mut metrics = Metrics::new();
        if let Some((kept, _)) = &kept {
            metrics.collect(SnapshotMetrics(kept.stats().clone()));
        }
        let keeping = kept.map(|(kept, every)| kept.keep(store.clone(), every));
        metrics.collect(pages::metrics::Collector::new(plans.clone(), store.clone()));
        let pacing = Arc::new(Pacing::default());
        metrics.collect(pages::pacing::Collector(pacing.clone()));
        if let Some(recorder) = &recorder {
            metrics.collect(pages::usage::Collector(recorder.clone()));
        }
        if let Some(tls) = &tls {
            tls.metrics().register(&mut metrics);
        }
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let traces = send_traces(settings.traces.as_ref(), &mut metrics, &mut tasks, &stop)?;
        let metrics = Arc::new(metrics);
        let wanted = &settings.statistics;
        let statistics = wanted
            .are_wanted()
            .then(|| Arc::new(Statistics::new(wanted.near_limit_ratio)));
        let limiter = Limiter::new(plans.clone(), store)
            .with_statistics(statistics.clone())
            .with_pacing(pacing)
            .with_meter(recorder.as_ref().map(|recorder| recorder.meter().clone()));
        let limiter = Arc::new(limiter);
        let in_ms = wanted.response_time_in_ms;
        let reference = statistics
            .map(|counted| Reference::new(counted, plans.clone(), metrics.clone(), in_ms))
            .map(|reference| reference.with_mapping(wanted.mapping.clone()));
        let (health, health_service) = health().await;
        let rls = grpc::rls::Service::new(limiter.clone(), metrics.clone(), settings.dialect)
            .with_traces(traces);
        let routes = grpc::routes(rls.clone(), plans.clone(), &metrics, health_service);
        let readiness = Arc::new(Readiness::new(settings.health_needs, limiter.clone()));

        let mut server = Self {
            grpc: Vec::new(),
            http: settings.http_listen.clone(),
            admin: None,
            metrics: None,
            debug: None,
            limiter: limiter.clone(),
            readiness: readiness.clone(),
            health,
            drain_delay: settings.drain_delay,
            dialect: settings.dialect,
            recorder: recorder.clone(),
            stop: stop.clone(),
            tasks,
            sockets: Vec::new(),
            keeping,
        };
        let [
            grpc_mover,
            http_mover,
            metrics_mover,
            debug_mover,
            admin_mover,
        ] = settings.dialect.movers();
        let metrics_listener = match &wanted.metrics_listen {
            Some(address) => server.bind_page(address, "metrics", metrics_mover).await?,
            None => None,
        };
        // There is something to scrape while plans are waited for.
        let page = server.export(metrics, reference, &settings.statistics, metrics_listener);
        let following = stop.clone().run_until_cancelled_owned(wishes.follow());
        run_beside(&mut server.tasks, following);
        match settings.xds {
            Some(xds) => server.follow(xds, plans.clone()).await,
            None => server.watch(plans.clone()),
        }
        // All other ports are opened before any of them serves, so that a start that fails has answered nobody.
        let mut listeners = Vec::new();
        for address in &settings.grpc_listen {
            listeners.push(server.bind(address, "gRPC", grpc_mover).await?);
        }
        let http = server
            .bind(&settings.http_listen, "HTTP", http_mover)
            .await?;
        let admin = match &settings.admin {
            Some(admin) => Some((
                server
                    .bind(&admin.listen, "the admin API", admin_mover)
                    .await?,
                admin,
            )),
            None => None,
        };
        let debug = match &settings.debug_listen {
            Some(address) => server.bind_page(address, "debug", debug_mover).await?,
            None => None,
        };
        for listener in listeners {
            server.grpc.push(listener.address.clone());
            // Who may open a unix socket, the file system says. Source: envoyproxy/ratelimit speaks TLS there, too.
            let plain =
                matches!(listener.socket, Socket::Unix(_)) && settings.dialect == Dialect::Tollgate;
            server.tasks.spawn(serve_grpc(
                listener.socket,
                tls.clone().filter(|_| !plain),
                router(routes.clone(), settings.connection_age),
                settings.connection_age,
                stop.clone(),
            ));
        }
        server.http = http.address;
        let audit = home.clone().map(|home| Arc::new(AuditLog::of(home)));
        let buckets = Arc::new(BucketAdmin::new(limiter.clone(), audit.clone()));
        let app = pages::router(limiter, page, readiness.clone());
        let app = app.merge(grpc::json::router(rls));
        server
            .tasks
            .spawn(serve_http(http.socket, app, stop.clone()));
        if let Some((listener, admin)) = admin {
            let usage = home.map(|home| {
                let store = UsageStore::open(home, Retention::default());
                Arc::new(UsageReader::new(store, plans.clone(), recorder.clone()))
            });
            let desk = Desk {
                keys: keys.clone(),
                plans: documents.clone(),
                buckets,
                audit,
                usage,
            };
            let app = admin_api::router(desk, admin.tokens.clone());
            warn_of_plain_tokens(&listener.address, admin_tls.is_some());
            server.admin = Some(listener.address);
            let serving = serve_admin(listener.socket, admin_tls.clone(), app, stop.clone());
            server.tasks.spawn(serving);
        }
        if let Some(debug) = debug {
            server.debug = Some(debug.address);
            let app = pages::debug::router(plans.clone());
            server
                .tasks
                .spawn(serve_http(debug.socket, app, stop.clone()));
        }
        if settings.health_needs != HealthNeeds::default() {
            let health = follow(server.health.clone(), readiness);
            let following = stop.clone().run_until_cancelled_owned(health);
            run_beside(&mut server.tasks, following);
        }
        if let (Some(recorder), Some(usage)) = (recorder, &settings.usage) {
            let flushes = recorder.run(usage.flush_interval, stop.clone());
            server.watch_over(tokio::spawn(flushes));
        }
        if let Some(keys) = keys {
            server.watch_over(follow_home(keys, HOME_POLL, stop.clone()));
        }
        if let Some(documents) = documents {
            server.watch_over(follow_home(documents, HOME_POLL, stop.clone()));
        }
        for tls in tls.into_iter().chain(admin_tls) {
            let stop = stop.clone();
            run_beside(&mut server.tasks, async move {
                stop.run_until_cancelled_owned(tls.keep_fresh(POLL)).await
            });
        }
        Ok(server)
    }

    /// Takes care that a background task does not end unnoticed.
    fn watch_over(&mut self, task: JoinHandle<()>) {
        self.tasks
            .spawn(async move { task.await.map_err(|error| io::Error::other(error).into()) });
    }

    /// Keeps the plans as their files are.
    fn watch(&mut self, plans: Arc<SharedPlans>) {
        self.watch_over(plan::reload::watch(plans, POLL, self.stop.clone()));
    }

    /// Keeps the plans as the control plane says; completes once there are plans, or at once where these may come later.
    // Source: envoyproxy/ratelimit waits for the first update, be it good or bad.
    async fn follow(&mut self, xds: XdsSettings, plans: Arc<SharedPlans>) {
        let mut changes = plans.changes();
        let (stop, wait) = (self.stop.clone(), xds.plans_first);
        let following = stop.run_until_cancelled_owned(xds::run(xds, plans.clone()));
        run_beside(&mut self.tasks, following);
        if !wait {
            return;
        }
        let metrics = self.metrics.as_ref().map(tracing::field::display);
        tracing::info!(
            metrics,
            "waiting for the first plans of the control plane, before ports open"
        );
        let dialect = self.dialect;
        let came = |status: &ReloadStatus| {
            let refused = status.stream.as_ref().is_some_and(|it| it.rejected > 0);
            plans.load().loaded() || refused && dialect == Dialect::Reference
        };
        let came = changes.wait_for(came).await;
        came.expect("the plans are here");
    }

    /// Hands what is counted to those who want it; answers the page of the HTTP address.
    fn export(
        &mut self,
        metrics: Arc<Metrics>,
        reference: Option<Reference>,
        wanted: &StatisticsSettings,
        listener: Option<Listener>,
    ) -> Arc<MetricsPage> {
        let reference = reference.map(Arc::new);
        let on_page = reference.clone().filter(|_| wanted.on_pages);
        let page = Arc::new(MetricsPage::new(metrics, on_page));
        if let Some(listener) = listener {
            self.metrics = Some(listener.address);
            let app = pages::metrics_router(page.clone(), wanted.metrics_path.clone());
            self.tasks
                .spawn(serve_http(listener.socket, app, self.stop.clone()));
        }
        if let (Some(reference), Some(statsd)) = (reference, &wanted.statsd) {
            let reports = export::statsd::report(reference, statsd.clone(), self.stop.clone());
            run_beside(&mut self.tasks, reports);
        }
        page
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
        let recorder = self.recorder.take();
        let served = self.serve_until(shutdown).await;
        // Nobody decides or counts any more.
        if let Some(keeping) = self.keeping.take() {
            keeping.finish(LAST_SNAPSHOT).await;
        }
        if let Some(recorder) = recorder {
            recorder.close().await;
        }
        served
    }

    async fn serve_until(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        tokio::select! {
            () = shutdown => {}
            failed = first_failure(&mut self.tasks) => return Err(failed),
        }
        tracing::info!(delay = ?self.drain_delay, "draining: health says NOT_SERVING, requests are still answered");
        self.readiness.drain();
        let services: &[&str] = match self.dialect {
            Dialect::Tollgate => &["", grpc::HEALTH_SERVICE],
            Dialect::Reference => &[grpc::HEALTH_SERVICE],
        };
        for service in services {
            self.health
                .set_service_status(*service, tonic_health::ServingStatus::NotServing)
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
        self.limiter.store().give_back_leases(STOP_LEASES).await;
        tracing::info!("stopped");
        Ok(())
    }

    async fn bind(
        &mut self,
        address: &Address,
        what: &'static str,
        flag: &'static str,
    ) -> Result<Listener, StartError> {
        let bound = Listener::bind(address).await;
        let (listener, file) = bound.map_err(|source| StartError::Listen {
            address: address.clone(),
            what,
            flag,
            source,
        })?;
        self.sockets.extend(file);
        Ok(listener)
    }

    /// The same for pages that it serves well without. Source: so does envoyproxy/ratelimit.
    async fn bind_page(
        &mut self,
        address: &Address,
        what: &'static str,
        flag: &'static str,
    ) -> Result<Option<Listener>, StartError> {
        match self.bind(address, what, flag).await {
            Err(error) if self.dialect == Dialect::Reference => {
                tracing::error!("{error}; serving without");
                Ok(None)
            }
            bound => bound.map(Some),
        }
    }
}

/// Runs what cannot fail beside the rest; the end of the server waits for it.
fn run_beside<T>(
    tasks: &mut JoinSet<Result<(), ServeError>>,
    task: impl Future<Output = T> + Send + 'static,
) {
    tasks.spawn(async move {
        task.await;
        Ok(())
    });
}

/// What makes spans, if they are wanted, and its task.
fn send_traces(
    wanted: Option<&TracesSettings>,
    metrics: &mut Metrics,
    tasks: &mut JoinSet<Result<(), ServeError>>,
    stop: &CancellationToken,
) -> Result<MaybeTraces, TracesError> {
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    let counts = TraceMetrics::default();
    counts.register(metrics);
    let (traces, sending) = Traces::open(wanted, counts, stop.clone())?;
    run_beside(tasks, sending);
    Ok(Some(Arc::new(traces)))
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

/// Keeps the service's gRPC health true to whether it has what it needs.
async fn follow(health: HealthReporter, readiness: Arc<Readiness>) {
    let mut look = tokio::time::interval(HEALTH_LOOK);
    loop {
        look.tick().await;
        let status = match readiness.healthy() {
            true => tonic_health::ServingStatus::Serving,
            false => tonic_health::ServingStatus::NotServing,
        };
        health
            .set_service_status(grpc::HEALTH_SERVICE, status)
            .await;
    }
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
