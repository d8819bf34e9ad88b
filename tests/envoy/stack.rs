//! Envoy with the shipped configuration, and what stands behind it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use axum::{Router, routing::any};
use hyper::{HeaderMap, Uri};
use serde_yaml::Value;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::OnceCell};
use tokio_util::sync::CancellationToken;
use tollgate::{cli::demo::envoy, stats};

use crate::{
    client::{Answer, Client},
    common::{Process, Tollgate, wait_for},
};

/// A file of the repository.
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The plans that are shipped.
pub fn shipped_plans() -> PathBuf {
    shipped("config/stats-api.yaml")
}

/// `envoy/envoy.yaml`, to be changed as a test needs it.
pub struct EnvoyConfig(pub Value);

impl EnvoyConfig {
    /// As shipped, with free ports, these replicas of Tollgate (`host:port` or `unix:PATH`) and that upstream.
    pub fn new(tollgates: &[&str], upstream: SocketAddr) -> Self {
        let text = fs::read_to_string(shipped("envoy/envoy.yaml")).expect("it is shipped");
        let mut config = Self(serde_yaml::from_str(&text).expect("it is YAML"));
        let any_port = socket_address("127.0.0.1:0");
        config.0["admin"]["address"] = any_port.clone();
        config.0["static_resources"]["listeners"][0]["address"] = any_port;
        config.endpoints("stats", &[&upstream.to_string()]);
        config.endpoints("tollgate", tollgates);
        config
    }

    fn endpoints(&mut self, cluster: &str, addresses: &[&str]) {
        let cluster = self.cluster(cluster);
        if addresses.iter().any(|address| address.starts_with("unix:")) {
            // Source: Envoy takes a pipe only where no name is to be resolved.
            cluster["type"] = "STATIC".into();
        }
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|address| {
                let mut endpoint = Value::Mapping(Default::default());
                endpoint["endpoint"] = Value::Mapping(Default::default());
                endpoint["endpoint"]["address"] = socket_address(address);
                endpoint
            })
            .collect();
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = endpoints.into();
    }

    pub fn cluster(&mut self, name: &str) -> &mut Value {
        named(&mut self.0["static_resources"]["clusters"], name)
    }

    pub fn connection_manager(&mut self) -> &mut Value {
        let listener = &mut self.0["static_resources"]["listeners"][0];
        &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
    }

    /// The settings of the rate-limit filter.
    pub fn rate_limit(&mut self) -> &mut Value {
        let filters = &mut self.connection_manager()["http_filters"];
        &mut named(filters, "envoy.filters.http.ratelimit")["typed_config"]
    }

    /// Leaves out the filter that asks for keys.
    pub fn drop_authz(&mut self) {
        let filters = self.connection_manager()["http_filters"].as_sequence_mut();
        let filters = filters.expect("a list");
        filters.retain(|filter| filter["name"] != "envoy.filters.http.ext_authz");
    }

    /// What the public route asks about: a list of actions for each descriptor.
    pub fn public_actions(&mut self) -> &mut Value {
        self.actions("public")
    }

    /// The same of the secure route.
    pub fn secure_actions(&mut self) -> &mut Value {
        self.actions("secure")
    }

    fn actions(&mut self, route: &str) -> &mut Value {
        let hosts = &mut self.connection_manager()["route_config"]["virtual_hosts"];
        let route = named(&mut hosts[0]["routes"], route);
        let config = &mut route["typed_per_filter_config"]["envoy.filters.http.ratelimit"];
        &mut config["rate_limits"]
    }
}

fn named<'v>(list: &'v mut Value, name: &str) -> &'v mut Value {
    let items = list.as_sequence_mut().expect("a list");
    let found = items.iter_mut().find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("envoy.yaml has no {name}"))
}

fn socket_address(address: &str) -> Value {
    let text = match address.strip_prefix("unix:") {
        Some(path) => format!("pipe: {{ path: '{path}' }}"),
        None => {
            let (ip, port) = address.rsplit_once(':').expect("host:port");
            format!("socket_address: {{ address: {ip}, port_value: {port} }}")
        }
    };
    serde_yaml::from_str(&text).expect("YAML")
}

/// A running Envoy. It ends with the thread that started it (its own wish, PDEATHSIG), so each test starts its own.
pub struct Envoy {
    pub process: Process,
    /// Where it takes requests.
    pub edge: SocketAddr,
    admin: SocketAddr,
    _folder: TempDir,
}

impl Envoy {
    /// Starts one with one worker, and waits until it is ready.
    pub async fn start(config: &EnvoyConfig) -> Self {
        Self::start_with_workers(config, 1).await
    }

    pub async fn start_with_workers(config: &EnvoyConfig, workers: u8) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, admin) = (
            folder.path().join("envoy.json"),
            folder.path().join("admin"),
        );
        // As JSON: a text like OFF stays one, which Envoy would read as a Boolean in unquoted YAML.
        let text = serde_json::to_string(&config.0).expect("it has no other keys than texts");
        fs::write(&file, text).expect("writable");
        let mut command = Command::new(binary().await);
        command
            .arg("--config-path")
            .arg(file)
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--concurrency", &workers.to_string()])
            .args(["--disable-hot-restart", "--log-level", "warning"])
            .args(["--file-flush-interval-msec", "20"]);
        let mut process = Process::start(&mut command);
        let admin = wait_for("Envoy's admin page", || {
            assert!(process.is_running(), "Envoy ended:\n{}", process.log());
            fs::read_to_string(&admin).ok()?.parse().ok()
        });
        let mut envoy = Self {
            process,
            edge: admin,
            admin,
            _folder: folder,
        };
        crate::common::wait_until("Envoy to be ready", async || {
            envoy.page("/ready").await.status == 200
        })
        .await;
        envoy.edge = envoy.listener().await;
        envoy
    }

    async fn listener(&self) -> SocketAddr {
        let page = self.page("/listeners?format=json").await.body;
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let address = &page["listener_statuses"][0]["local_address"]["socket_address"];
        let (ip, port) = (&address["address"], &address["port_value"]);
        format!("{}:{port}", ip.as_str().expect("an address"))
            .parse()
            .expect("an address")
    }

    pub async fn page(&self, path: &str) -> Answer {
        Client::connect(self.admin).await.get(path, &[]).await
    }

    /// A counter or gauge; 0 for one that has not counted yet.
    pub async fn stat(&self, name: &str) -> u64 {
        let page = self.page(&format!("/stats?filter=^{name}$")).await.body;
        let value = page.trim().rsplit_once(": ");
        value.map_or(0, |(_, value)| value.parse().expect("a number"))
    }

    /// The JSON lines of the access log so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let lines = self.process.output();
        let lines = lines.lines();
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.edge).await
    }
}

async fn binary() -> &'static Path {
    static FOUND: OnceCell<PathBuf> = OnceCell::const_new();
    FOUND
        .get_or_init(async || match envoy::find_installed().await {
            Ok(Some(found)) => found,
            Ok(None) => panic!("no Envoy: set ENVOY_BIN to an Envoy binary, or run scripts/test, which installs one"),
            Err(error) => panic!("{error}"),
        })
        .await
}

/// What Envoy protects, on a thread of its own.
pub struct Upstream {
    pub address: SocketAddr,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Upstream {
    /// The stats service as shipped: 20 requests at once, 20 ms each.
    pub fn stats() -> Self {
        Self::stats_with(stats::Settings::default())
    }

    /// The stats service without limits of its own.
    pub fn fast_stats() -> Self {
        Self::stats_with(stats::Settings {
            request_time: Duration::ZERO,
            max_concurrent: 10_000,
            ..stats::Settings::default()
        })
    }

    fn stats_with(settings: stats::Settings) -> Self {
        Self::run(|listener| stats::serve(listener, settings, CancellationToken::new()))
    }

    /// Answers 200 to everything and keeps the headers that reached it, with the path as `test-path`.
    pub fn recording() -> (Self, Arc<Mutex<Vec<HeaderMap>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let keep = async move |uri: Uri, mut headers: HeaderMap| {
            let path = uri.to_string().parse().expect("it came as one");
            headers.insert("test-path", path);
            sink.lock().unwrap().push(headers);
        };
        let app = Router::new()
            .route("/healthcheck", any(|| async {}))
            .fallback(keep);
        let upstream = Self::run(|listener| async { axum::serve(listener, app).await });
        (upstream, seen)
    }

    fn run<S: Future<Output = std::io::Result<()>>>(
        serve: impl FnOnce(TcpListener) -> S + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("an option");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                stopped.run_until_cancelled(serve(listener)).await
            });
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the upstream panicked"
            );
        }
    }
}

/// Envoy, one Tollgate and an upstream.
pub struct Stack {
    pub envoy: Envoy,
    pub tollgate: Tollgate,
    pub upstream: Upstream,
}

impl Stack {
    /// All as it is shipped.
    pub async fn shipped() -> Self {
        Self::start(&shipped_plans(), &[], Upstream::stats(), |_| {}).await
    }

    /// Tollgate with these plans and arguments, Envoy with the shipped configuration as `change` leaves it.
    pub async fn start(
        plans: &Path,
        args: &[&str],
        upstream: Upstream,
        change: impl FnOnce(&mut EnvoyConfig),
    ) -> Self {
        let tollgate = Tollgate::start(plans, args);
        let mut config = EnvoyConfig::new(&[&tollgate.grpc], upstream.address);
        change(&mut config);
        Self {
            envoy: Envoy::start(&config).await,
            tollgate,
            upstream,
        }
    }
}
