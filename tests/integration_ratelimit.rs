//! Tollgate started as `ratelimit`: what whoever ran envoyproxy/ratelimit before sees of it, as far as no Redis is needed.
//! `tests/conformance` has more, played with a Redis.

#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "common/control_plane.rs"]
mod control_plane;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use certificates::Authority;
use common::{Process, Tollgate, ask, descriptor, http, request, wait_for, wait_until};
use control_plane::ControlPlane;
use envoy_types::pb::google::protobuf::{UInt64Value, value::Kind};
use nix::sys::signal::Signal;
use tollgate::{
    cli::ratelimit::{
        environment::{ConfigType, Environment},
        native,
    },
    proto::envoy::{
        extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride,
        service::ratelimit::v3::{
            RateLimitResponse, rate_limit_response::Code,
            rate_limit_service_client::RateLimitServiceClient,
        },
    },
    proto::ratelimit::config::ratelimit::v3::{
        RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitUnit,
    },
};
use tonic::{
    Code as GrpcCode,
    transport::{Certificate, ServerTlsConfig},
};

const SHOP: &str = "domain: shop
descriptors:
  - { key: user, rate_limit: { unit: hour, requests_per_unit: 2 } }
  - { key: page, rate_limit: { unit: day, requests_per_unit: 5, name: pages } }
  - { key: quota, quota_mode: true, rate_limit: { unit: hour, requests_per_unit: 1 } }
  - { key: shade, shadow_mode: true, rate_limit: { unit: hour, requests_per_unit: 1 } }
  - { key: staff, rate_limit: { unlimited: true } }
  - { key: tagged, detailed_metric: true, rate_limit: { unit: hour, requests_per_unit: 5 }, metadata: { owner: tagged } }
";

/// A runtime folder, and the variables that lead there.
struct Runtime {
    root: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Runtime {
    /// One whose folder of plans is not there yet.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut runtime = Self {
            variables: Vec::new(),
            root,
        };
        let path = runtime.root.path().join("current").display().to_string();
        runtime.set("RUNTIME_ROOT", &path);
        runtime.set("RUNTIME_SUBDIRECTORY", "ratelimit");
        // Nobody listens there, so rules answer from this process.
        runtime.set("REDIS_SOCKET_TYPE", "tcp");
        runtime.set("REDIS_URL", "127.0.0.1:1");
        for (host, port) in [
            ("HOST", "PORT"),
            ("GRPC_HOST", "GRPC_PORT"),
            ("DEBUG_HOST", "DEBUG_PORT"),
        ] {
            runtime.set(host, "127.0.0.1");
            runtime.set(port, "0");
        }
        runtime
    }

    /// One with these files in it.
    fn with(files: &[(&str, &str)]) -> Self {
        let runtime = Self::new();
        for (name, text) in files {
            runtime.write(name, text);
        }
        runtime
    }

    fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("current/ratelimit/config")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = self.root.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn process(&self) -> Process {
        Process::start(&mut command(&self.variables))
    }

    fn start(&self) -> Tollgate {
        Tollgate::from_process(self.process())
    }
}

/// `ratelimit` with these variables and no other.
fn command(variables: &[(String, String)]) -> Command {
    let mut command = Command::new(program());
    command.env_clear().envs(variables.iter().cloned());
    command
}

/// The binary under the reference's name.
fn program() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bin");
    let link = folder.join("ratelimit");
    fs::create_dir_all(&folder).unwrap();
    // Tests that run side by side make the same link.
    let own = folder.join(format!("link-{:?}", std::thread::current().id()));
    let _ = fs::remove_file(&own);
    symlink(env!("CARGO_BIN_EXE_tollgate"), &own).unwrap();
    fs::rename(&own, &link).unwrap();
    link
}

fn debug_address(tollgate: &mut Tollgate) -> String {
    let line = tollgate.process.line_with("debug pages on ");
    line.rsplit(' ').next().unwrap().to_owned()
}

async fn user(tollgate: &Tollgate, domain: &str) -> Result<RateLimitResponse, tonic::Status> {
    ask(
        &mut tollgate.client().await,
        request(domain, &[&[("user", "x")]]),
    )
    .await
}

/// The limit that `domain` has for users, if any.
async fn limit(tollgate: &Tollgate, domain: &str) -> Option<u32> {
    let look = {
        let mut asked = request(domain, &[&[("user", "look")]]);
        asked.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
        asked
    };
    let response = ask(&mut tollgate.client().await, look).await.ok()?;
    let limit = response.statuses[0].current_limit.as_ref()?;
    Some(limit.requests_per_unit)
}

fn domain_of(limit: u32) -> String {
    named("shop", limit)
}

fn named(domain: &str, limit: u32) -> String {
    format!(
        "domain: {domain}\ndescriptors: [{{ key: user, rate_limit: {{ unit: hour, requests_per_unit: {limit} }} }}]\n"
    )
}

/// Exactly the variables of Istio's sample, but for the paths and addresses of this machine.
// Source: istio/istio, samples/ratelimit/rate-limit-service.yaml.
#[tokio::test]
async fn istios_environment_starts_it() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("data/ratelimit/config");
    fs::create_dir_all(folder.join("..one")).unwrap();
    fs::write(folder.join("..one/config.yaml"), domain_of(3)).unwrap();
    symlink("..one", folder.join("..data")).unwrap();
    symlink("..data/config.yaml", folder.join("config.yaml")).unwrap();
    let data = root.path().join("data").display().to_string();
    let variables = [
        ("LOG_LEVEL", "debug"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", "127.0.0.1:1"),
        ("USE_STATSD", "false"),
        ("RUNTIME_ROOT", &data),
        ("RUNTIME_SUBDIRECTORY", "ratelimit"),
        ("RUNTIME_WATCH_ROOT", "false"),
        ("RUNTIME_IGNOREDOTFILES", "true"),
        ("HOST", "::"),
        ("GRPC_HOST", "::"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut tollgate = Tollgate::from_process(on_known_ports(&variables));
    let port = |address: &str| address.rsplit(':').next().unwrap().to_owned();
    tollgate.grpc = format!("127.0.0.1:{}", port(&tollgate.grpc));
    assert_eq!(limit(&tollgate, "shop").await, Some(3));
    let healthcheck = |host: &str| {
        let address = format!("{host}:{}", port(&tollgate.http));
        http(&address, "GET", "/healthcheck", "")
    };
    assert_eq!(healthcheck("127.0.0.1"), (200, "OK".to_owned()));
    if tollgate.http.starts_with("[::]") {
        assert_eq!(healthcheck("[::1]"), (200, "OK".to_owned()));
    }
}

/// Exactly the variables that Envoy Gateway sets, but for the paths and addresses of this machine.
// Source: envoyproxy/gateway, internal/infrastructure/kubernetes/ratelimit.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn envoy_gateways_environment_starts_it() {
    let ca = Authority::new("envoy-gateway");
    let tls = ServerTlsConfig::new()
        .identity(ca.issue(&["localhost"]).identity())
        .client_ca_root(Certificate::from_pem(ca.pem()));
    let plane = ControlPlane::start_with(TcpListener::bind("127.0.0.1:0").unwrap(), Some(tls));
    let certs = tempfile::tempdir().unwrap();
    ca.issue(&["localhost"]).write(certs.path());
    let file = |name: &str| certs.path().join(name).display().to_string();
    fs::write(file("ca.crt"), ca.pem()).unwrap();
    let server = format!("localhost:{}", plane.address.port());
    let variables = [
        ("RUNTIME_ROOT", "/data"),
        ("RUNTIME_SUBDIRECTORY", "ratelimit"),
        ("RUNTIME_IGNOREDOTFILES", "true"),
        ("RUNTIME_WATCH_ROOT", "false"),
        ("LOG_LEVEL", "info"),
        ("USE_STATSD", "false"),
        ("CONFIG_TYPE", "GRPC_XDS_SOTW"),
        ("CONFIG_GRPC_XDS_SERVER_URL", &server),
        ("CONFIG_GRPC_XDS_NODE_ID", "envoy-ratelimit"),
        ("GRPC_SERVER_USE_TLS", "true"),
        ("GRPC_SERVER_TLS_CERT", &file("tls.crt")),
        ("GRPC_SERVER_TLS_KEY", &file("tls.key")),
        ("GRPC_SERVER_TLS_CA_CERT", &file("ca.crt")),
        ("CONFIG_GRPC_XDS_SERVER_USE_TLS", "true"),
        ("CONFIG_GRPC_XDS_CLIENT_TLS_CERT", &file("tls.crt")),
        ("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", &file("tls.key")),
        ("CONFIG_GRPC_XDS_SERVER_TLS_CACERT", &file("ca.crt")),
        ("FORCE_START_WITHOUT_INITIAL_CONFIG", "true"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", "127.0.0.1:1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let tollgate = Tollgate::from_process(on_known_ports(&variables));
    let local = |address: &str| address.replace("0.0.0.0", "127.0.0.1");
    let healthcheck = http(&local(&tollgate.http), "GET", "/healthcheck", "");
    assert_eq!(healthcheck, (200, "OK".to_owned()));
    let channel = certificates::connect(&local(&tollgate.grpc), &ca, None).await;
    let mut client = RateLimitServiceClient::new(channel.unwrap());
    let asked = || {
        request(
            "default/eg/http",
            &[&[("route", "route"), ("remote_address", "192.0.2.1")]],
        )
    };
    let none = ask(&mut client, asked()).await.unwrap_err();
    let text = "no rate limit configuration loaded";
    assert_eq!((none.code(), none.message()), (GrpcCode::Unknown, text));

    let rule = RateLimitDescriptor {
        key: "remote_address".to_owned(),
        rate_limit: Some(RateLimitPolicy {
            unit: RateLimitUnit::Hour.into(),
            requests_per_unit: 2,
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = RateLimitDescriptor {
        key: "route".to_owned(),
        value: "route".to_owned(),
        descriptors: vec![rule],
        ..Default::default()
    };
    plane.publish(
        "1",
        &[RateLimitConfig {
            name: "default/eg/http".to_owned(),
            domain: "default/eg/http".to_owned(),
            descriptors: vec![route],
        }],
    );
    plane.accepted("1").await;
    for code in [Code::Ok, Code::Ok, Code::OverLimit] {
        let answer = ask(&mut client, asked()).await.unwrap();
        assert_eq!(answer.overall_code(), code);
    }
}

/// Starts it on the ports that it has unless told; on others where something else of this machine has them.
fn on_known_ports(variables: &[(String, String)]) -> Process {
    let mut process = Process::start(&mut command(variables));
    let started = wait_for("a start, or its end", || {
        let up = process.log().contains("try:");
        (up || !process.is_running()).then_some(up)
    });
    if started {
        return process;
    }
    let log = process.log();
    assert!(log.contains("in use already"), "{log}");
    let ports = ["PORT", "GRPC_PORT", "DEBUG_PORT"].map(|name| (name.to_owned(), "0".to_owned()));
    Process::start(&mut command(&[variables, &ports].concat()))
}

/// Exactly the variables of Envoy Gateway, with all that it can be told to add.
// Source: envoyproxy/gateway, internal/infrastructure/kubernetes/ratelimit.
const ENVOY_GATEWAY: [(&str, &str); 32] = [
    ("RUNTIME_ROOT", "/data"),
    ("RUNTIME_SUBDIRECTORY", "ratelimit"),
    ("RUNTIME_IGNOREDOTFILES", "true"),
    ("RUNTIME_WATCH_ROOT", "false"),
    ("LOG_LEVEL", "info"),
    ("USE_STATSD", "false"),
    ("CONFIG_TYPE", "GRPC_XDS_SOTW"),
    ("CONFIG_GRPC_XDS_SERVER_URL", "envoy-gateway:18001"),
    ("CONFIG_GRPC_XDS_NODE_ID", "envoy-ratelimit"),
    ("GRPC_SERVER_USE_TLS", "true"),
    ("GRPC_SERVER_TLS_CERT", "/certs/tls.crt"),
    ("GRPC_SERVER_TLS_KEY", "/certs/tls.key"),
    ("GRPC_SERVER_TLS_CA_CERT", "/certs/ca.crt"),
    ("CONFIG_GRPC_XDS_SERVER_USE_TLS", "true"),
    ("CONFIG_GRPC_XDS_CLIENT_TLS_CERT", "/certs/tls.crt"),
    ("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", "/certs/tls.key"),
    ("CONFIG_GRPC_XDS_SERVER_TLS_CACERT", "/certs/ca.crt"),
    ("FORCE_START_WITHOUT_INITIAL_CONFIG", "true"),
    ("REDIS_SOCKET_TYPE", "tcp"),
    ("REDIS_URL", "redis:6379"),
    ("REDIS_TLS", "true"),
    ("REDIS_TLS_CLIENT_CERT", "/redis-certs/tls.crt"),
    ("REDIS_TLS_CLIENT_KEY", "/redis-certs/tls.key"),
    ("USE_PROMETHEUS", "true"),
    ("PROMETHEUS_ADDR", ":19001"),
    ("PROMETHEUS_MAPPER_YAML", "/etc/statsd-exporter/conf.yaml"),
    ("TRACING_ENABLED", "true"),
    ("TRACING_SERVICE_NAME", "envoy-ratelimit"),
    ("TRACING_SERVICE_NAMESPACE", "envoy-gateway-system"),
    ("TRACING_SERVICE_INSTANCE_ID", "envoy-ratelimit-0"),
    ("TRACING_SAMPLING_RATE", "0.6"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
];

#[test]
fn every_variable_of_envoy_gateway_is_understood() {
    let lookup = |name: &str| {
        let found = ENVOY_GATEWAY.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).into())
    };
    let read = Environment::read(&lookup).unwrap();
    assert_eq!(read.plans.config_type, ConfigType::Xds);
    assert_eq!(read.xds.server_url, "envoy-gateway:18001");
    assert!(read.grpc_tls.server_use_tls && read.xds.server_use_tls && read.redis.tls);
    assert_eq!(read.tracing.sampling_rate, 0.6);
    let names = Environment::names();
    let unknown: Vec<_> = ENVOY_GATEWAY
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !names.contains(*name))
        .collect();
    // The reference does not read it either.
    assert_eq!(unknown, ["GRPC_SERVER_TLS_CA_CERT"]);
}

#[tokio::test]
async fn statistics_go_where_the_variables_say() {
    let mut runtime = Runtime::with(&[("a.yaml", "domain: ''\n")]);
    runtime
        .set("USE_PROMETHEUS", "true")
        .set("PROMETHEUS_ADDR", "127.0.0.1:0");
    runtime
        .set("PROMETHEUS_PATH", "/numbers")
        .set("USE_STATSD", "false");
    runtime.set("SHADOW_MODE", "true");
    let mut tollgate = runtime.start();
    let line = tollgate.process.line_with("metrics (HTTP) on ");
    let address = line
        .rsplit(' ')
        .next()
        .unwrap()
        .strip_suffix("/numbers")
        .unwrap();
    let page = || http(address, "GET", "/numbers", "").1;
    let sample = |text: &str| page().lines().any(|line| line == text);
    assert!(user(&tollgate, "shop").await.is_err());
    for text in [
        "ratelimit_service_config_load_error 1",
        "ratelimit_service_should_rate_limit_error{err_type=\"service_error\"} 1",
    ] {
        assert!(sample(text), "{text} in {}", page());
    }
    assert!(!page().contains("config_load_success"));
    runtime.write("a.yaml", SHOP);
    wait_until("good plans", async || {
        limit(&tollgate, "shop").await.is_some()
    })
    .await;
    for _ in 0..3 {
        user(&tollgate, "shop").await.unwrap();
    }
    for text in [
        "ratelimit_service_config_load_success 1",
        "ratelimit_service_rate_limit_over_limit{domain=\"shop\",key1=\"user\"} 1",
    ] {
        assert!(sample(text), "{text} in {}", page());
    }
}

#[tokio::test]
async fn a_mapping_file_names_the_metrics_and_one_that_is_missing_does_not() {
    // As Envoy Gateway has it, without the scale that makes seconds of milliseconds.
    let mapping = r#"
mappings:
  - match: "ratelimit.service.rate_limit.*.*.over_limit"
    name: "refused"
    timer_type: "histogram"
    labels: { domain: "$1", key1: "$2" }
  - match: "ratelimit_server.*.response_time"
    name: "response_time"
    timer_type: histogram
    labels: { grpc_method: "$1" }
  - { match: "ratelimit_server.*.total_requests", action: drop, name: dropped }
"#;
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let file = runtime.root.path().join("conf.yaml");
    runtime
        .set("USE_PROMETHEUS", "true")
        .set("PROMETHEUS_ADDR", "127.0.0.1:0");
    runtime
        .set("USE_STATSD", "false")
        .set("PROMETHEUS_MAPPER_YAML", &file.display().to_string());
    for (there, refused) in [
        (true, "refused{domain=\"shop\",key1=\"user\"} 1"),
        (
            false,
            "ratelimit_service_rate_limit_over_limit{domain=\"shop\",key1=\"user\"} 1",
        ),
    ] {
        if there {
            fs::write(&file, mapping).unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        let mut tollgate = runtime.start();
        let line = tollgate.process.line_with("metrics (HTTP) on ");
        let address = line.rsplit(' ').next().unwrap();
        for _ in 0..3 {
            user(&tollgate, "shop").await.unwrap();
        }
        let page = http(
            address.strip_suffix("/metrics").unwrap(),
            "GET",
            "/metrics",
            "",
        )
        .1;
        let sample = |text: &str| page.lines().any(|line| line.starts_with(text));
        assert!(sample(refused), "{page}");
        assert_eq!(sample("ratelimit_service_total_requests{"), !there);
        let in_ms = "response_time_bucket{le=\"1000.0\",grpc_method=\"ShouldRateLimit\"} 3";
        assert_eq!(sample(in_ms), there, "{page}");
        assert!(sample("ratelimit_service_config_load_success 1"), "{page}");
        let warned = tollgate
            .process
            .log()
            .contains("metrics keep their usual names");
        assert_eq!(warned, !there, "{}", tollgate.process.log());
    }
}

#[test]
fn the_command_starts_it_as_the_name_does() {
    let runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let mut command = common::tollgate_command();
    command.arg("ratelimit").envs(runtime.variables.clone());
    let tollgate = Tollgate::from_process(Process::start(&mut command));
    assert_eq!(
        http(&tollgate.http, "GET", "/healthcheck", ""),
        (200, "OK".to_owned())
    );
}

#[test]
fn a_value_that_does_not_parse_ends_the_start() {
    let mut runtime = Runtime::new();
    runtime
        .set("PORT", "http")
        .set("GRPC_MAX_CONNECTION_AGE", "1d");
    runtime.set("SHADOW_MODE", "maybe").set("LOG_LEVEL", "loud");
    let mut process = runtime.process();
    assert_eq!(process.wait(), Some(1));
    for line in [
        "PORT: `http` is not a port: a whole number from 0 to 65535",
        "GRPC_MAX_CONNECTION_AGE: `1d` is not a duration: write 10s, 150us or 1h30m",
        "SHADOW_MODE: `maybe` is not a truth value: write true or false",
        "LOG_LEVEL: `loud` is not one of panic, fatal, error, warn, warning, info, debug, trace",
    ] {
        process.line_with_after_end(line);
    }
}

#[test]
fn what_cannot_be_honoured_ends_the_start_or_is_said() {
    for (name, value, told) in [
        (
            "BACKEND_TYPE",
            "memcache",
            "BACKEND_TYPE: memcache has no exact counters",
        ),
        (
            "REDIS_URL",
            "ftp://me:hunter2@host",
            "REDIS_URL: `ftp://…` is not a Redis URL",
        ),
    ] {
        let mut runtime = Runtime::new();
        let mut process = runtime.set(name, value).process();
        assert_eq!(process.wait(), Some(1), "{name}");
        process.line_with_after_end(told);
        assert!(!process.log().contains("hunter2"));
    }
    let mut runtime = Runtime::new();
    for (name, value) in [
        ("REDIS_TIMEOUT", "3s"),
        ("REDIS_POOL_SIZE", "10"),
        ("RUNTIME_WATCH_ROOT", "false"),
        ("LIMIT_RESET_HEADER", "two words"),
        ("REDIS_SENTINEL_AUHT", "hush"),
        ("UNHEARD_OF", "1"),
    ] {
        runtime.set(name, value);
    }
    let mut tollgate = runtime.start();
    for told in [
        "LIMIT_RESET_HEADER: `two words` is not the name of a header; it counts as RateLimit-Reset",
        "REDIS_SENTINEL_AUHT is not known, did you mean REDIS_SENTINEL_AUTH?",
        "set without effect: REDIS_TIMEOUT (a decision waits for Redis as long as TOLLGATE_STORE_TIMEOUT says); RUNTIME_WATCH_ROOT (",
    ] {
        tollgate.process.line_with(told);
    }
    for untold in ["REDIS_POOL_SIZE", "UNHEARD_OF", "hush"] {
        assert!(!tollgate.process.log().contains(untold), "{untold}");
    }
}

#[test]
fn a_variable_of_serve_has_its_effect_or_is_said_to_have_none_whatever_it_holds() {
    let of_serve = || native::names().filter(|name| !native::TAKEN.contains(&name.as_str()));
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    for name in of_serve() {
        runtime.set(&name, "ftp://nobody:hunter2@nowhere");
    }
    let mut tollgate = runtime.start();
    let line = tollgate.process.line_with("set without effect: ");
    for name in of_serve() {
        assert!(line.contains(&name), "{name}: {line}");
    }
    let of_memory = "(variables of envoyproxy/ratelimit say it); TOLLGATE_MAX_BUCKETS, TOLLGATE_STATE_DIR, \
                     TOLLGATE_SNAPSHOT_EVERY (buckets live in Redis)";
    assert!(line.ends_with(of_memory), "{line}");
    assert!(!line.contains("hunter2"), "{line}");

    // Those that have their effect, and a value that nobody can make sense of.
    for name in native::TAKEN {
        let value = match name {
            "TOLLGATE_ADMIN_TOKEN" => "hunter2",
            _ => "/no/where",
        };
        let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
        let mut process = runtime.set(name, value).process();
        assert_eq!(process.wait(), Some(1), "{name}");
        let about = match name {
            "TOLLGATE_ADMIN_TOKEN" => "line 1 of the admin tokens",
            // What it needs beside it.
            "TOLLGATE_ADMIN_TLS_CERT" => "TOLLGATE_ADMIN_TLS_KEY",
            "TOLLGATE_ADMIN_TLS_KEY" | "TOLLGATE_ADMIN_CLIENT_CA" => "TOLLGATE_ADMIN_TLS_CERT",
            name => name,
        };
        process.line_with_after_end(about);
        let log = process.log();
        assert!(
            !log.contains("--") && !log.contains("hunter2"),
            "{name}: {log}"
        );
    }
}

#[test]
fn the_docs_name_the_variables_of_serve_that_have_their_effect() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/environment.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page
        .split_once("the `TOLLGATE_` variables of `serve` in this list")
        .unwrap();
    let (list, _) = rest.split_once("\n\n").unwrap();
    let named = list
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.starts_with("TOLLGATE_"));
    assert_eq!(
        named.collect::<BTreeSet<_>>(),
        native::TAKEN.into_iter().collect()
    );
}

#[test]
fn pages_whose_ports_are_taken_are_done_without() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    runtime
        .set("DEBUG_PORT", &port)
        .set("USE_PROMETHEUS", "true")
        .set("PROMETHEUS_ADDR", &format!("127.0.0.1:{port}"))
        .set("USE_STATSD", "false");
    let mut tollgate = runtime.start();
    for pages in ["debug", "metrics"] {
        let told = format!("cannot listen on 127.0.0.1:{port} for {pages}: it is in use already");
        tollgate.process.line_with(&told);
    }
    let health = http(&tollgate.http, "GET", "/healthcheck", "");
    assert_eq!(health, (200, "OK".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ports_open_with_the_first_update_unless_told_and_metrics_before() {
    let plane = ControlPlane::start();
    let mut runtime = Runtime::new();
    for (name, value) in [
        ("CONFIG_TYPE", "GRPC_XDS_SOTW"),
        (
            "CONFIG_GRPC_XDS_SERVER_URL",
            &format!("dns:///{}", plane.address),
        ),
        ("CONFIG_GRPC_XDS_NODE_METADATA", "nonsense,zone=a"),
        ("USE_PROMETHEUS", "true"),
        ("PROMETHEUS_ADDR", "127.0.0.1:0"),
        ("USE_STATSD", "false"),
        ("LOG_LEVEL", "info"),
    ] {
        runtime.set(name, value);
    }
    let mut process = runtime.process();
    let line = process.line_with("waiting for the first plans of the control plane");
    let (_, metrics) = line.split_once("metrics=").unwrap();
    let metrics = metrics.split_whitespace().next().unwrap();
    let page = http(metrics, "GET", "/metrics", "");
    assert_eq!(page.0, 200);
    assert!(page.1.contains("tollgate_"), "{}", page.1);
    assert!(!process.log().contains("(gRPC) on "));

    let bad = RateLimitConfig::default();
    plane.publish("1", &[bad]);
    plane.refused("1").await;
    let tollgate = Tollgate::from_process(process);
    let error = user(&tollgate, "shop").await.unwrap_err();
    assert_eq!(error.message(), "no rate limit configuration loaded");
    let health = http(&tollgate.http, "GET", "/healthcheck", "");
    assert_eq!(health, (200, "OK".to_owned()));
    let page = http(metrics, "GET", "/metrics", "").1;
    let refused = "ratelimit_service_config_load_error 1";
    assert!(page.lines().any(|line| line == refused), "{page}");
}

#[tokio::test]
async fn a_bad_first_config_is_waited_for() {
    let runtime = Runtime::with(&[("a.yaml", "domain: shop\ndescriptors: [{ value: x }]\n")]);
    let mut tollgate = runtime.start();
    tollgate.process.line_with("descriptor has empty key");
    let error = user(&tollgate, "shop").await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (GrpcCode::Unknown, "no rate limit configuration loaded")
    );
    assert_eq!(
        http(&tollgate.http, "GET", "/healthcheck", ""),
        (200, "OK".to_owned())
    );
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 503);
    runtime.write("a.yaml", SHOP);
    wait_until("good plans", async || {
        limit(&tollgate, "shop").await == Some(2)
    })
    .await;
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 200);
    runtime.write("b.yaml", "domain: ''\n");
    tollgate
        .process
        .line_with("config file cannot have empty domain");
    assert_eq!(
        limit(&tollgate, "shop").await,
        Some(2),
        "the last good ones are kept"
    );
}

#[tokio::test]
async fn the_folder_may_come_later_and_its_root_be_put_elsewhere() {
    let runtime = Runtime::new();
    let mut tollgate = runtime.start();
    let domains = |tollgate: &Tollgate| tollgate.page("/plans").matches("\"domain\":").count();
    assert_eq!(domains(&tollgate), 0);
    assert_eq!(
        user(&tollgate, "shop").await.unwrap().overall_code(),
        Code::Ok
    );

    let root = runtime.root.path();
    for (version, count) in [("one", 1), ("two", 2)] {
        fs::create_dir_all(root.join(version).join("ratelimit/config")).unwrap();
        fs::write(
            root.join(version).join("ratelimit/config/a"),
            domain_of(count),
        )
        .unwrap();
        symlink(version, root.join("next")).unwrap();
        fs::rename(root.join("next"), root.join("current")).unwrap();
        wait_until(version, async || {
            limit(&tollgate, "shop").await == Some(count)
        })
        .await;
    }
    runtime.write("team/.hidden", "not a plan file");
    let twice = format!("domain: less\n{}", named("more", 7));
    runtime.write("team/more.txt", &twice);
    tollgate
        .process
        .line_with("domain: stands here twice, first at line 1: the last one counts");
    wait_until("a file below", async || {
        limit(&tollgate, "more").await == Some(7)
    })
    .await;
    fs::remove_file(runtime.folder().join("team/more.txt")).unwrap();
    wait_until("its removal", async || {
        limit(&tollgate, "more").await.is_none()
    })
    .await;
    fs::rename(root.join("current"), root.join("away")).unwrap();
    tollgate.process.line_with("ratelimit/config: is away");
    assert_eq!(limit(&tollgate, "shop").await, Some(2), "kept");
    assert!(tollgate.page("/plans").contains("is away"));
    fs::rename(root.join("away"), root.join("current")).unwrap();
    wait_until("its return", async || {
        !tollgate.page("/plans").contains("is away")
    })
    .await;
    fs::remove_file(runtime.folder().join("a")).unwrap();
    wait_until("the removal of all", async || domains(&tollgate) == 0).await;
    assert!(tollgate.process.is_running());
}

#[tokio::test]
async fn files_of_one_domain_merge_only_when_told() {
    let files = [
        ("a.yaml", domain_of(1)),
        ("b.yaml", domain_of(2).replace("user", "page")),
    ];
    let files = files.each_ref().map(|(name, text)| (*name, &**text));
    let mut runtime = Runtime::with(&files);
    let mut tollgate = runtime.start();
    tollgate
        .process
        .line_with("duplicate domain 'shop' in config file, first in ");
    drop(tollgate);

    let mut tollgate = runtime.set("MERGE_DOMAIN_CONFIG", "true").start();
    assert_eq!(limit(&tollgate, "shop").await, Some(1));
    let rules = http(&debug_address(&mut tollgate), "GET", "/rlconfig", "").1;
    assert_eq!(
        rules,
        "shop.user: unit=HOUR requests_per_unit=1, shadow_mode: false, quota_mode: false\n\
         shop.page: unit=HOUR requests_per_unit=2, shadow_mode: false, quota_mode: false\n"
    );
    runtime.write("c.yaml", &domain_of(3));
    tollgate
        .process
        .line_with("c.yaml:2:15: descriptors[0]: duplicate descriptor composite key 'shop.user'");
}

#[tokio::test]
async fn nothing_is_shown_that_is_not_asked_for() {
    let runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let tollgate = runtime.start();
    for _ in 0..3 {
        let response = user(&tollgate, "shop").await.unwrap();
        assert_eq!(response.response_headers_to_add, []);
        assert_eq!(response.dynamic_metadata, None);
        assert!(response.raw_body.is_empty());
    }
    let error = user(&tollgate, "").await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (GrpcCode::Unknown, "rate limit domain must not be empty")
    );
    let error = ask(&mut tollgate.client().await, request("shop", &[]))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            GrpcCode::Unknown,
            "rate limit descriptor list must not be empty"
        )
    );
}

#[tokio::test]
async fn a_files_own_response_goes_over_the_variables() {
    let text = format!("{SHOP}response: {{ retry_after: true, metadata: true, body: full }}\n");
    let tollgate = Runtime::with(&[("a.yaml", &text)]).start();
    let mut last = None;
    for _ in 0..3 {
        last = Some(user(&tollgate, "shop").await.unwrap());
    }
    let last = last.unwrap();
    let names: Vec<_> = last
        .response_headers_to_add
        .iter()
        .map(|header| &*header.key)
        .collect();
    assert_eq!(names, ["retry-after", "content-type"]);
    assert_eq!(last.raw_body, b"full");
    assert!(last.dynamic_metadata.unwrap().fields.contains_key("rule"));
}

#[tokio::test]
async fn headers_tell_of_the_descriptor_that_the_reference_shows() {
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    runtime
        .set("LIMIT_RESPONSE_HEADERS_ENABLED", "true")
        .set("LIMIT_RESET_HEADER", "X-Reset");
    let tollgate = runtime.start();
    let mut client = tollgate.client().await;
    let mut shown = async |descriptors: &[&[(&str, &str)]], hits: u32| {
        let mut asked = request("shop", descriptors);
        asked.hits_addend = hits;
        let response = ask(&mut client, asked).await.unwrap();
        let headers = response.response_headers_to_add;
        headers
            .into_iter()
            .map(|header| (header.key, header.value))
            .collect::<Vec<_>>()
    };
    let headers = shown(&[&[("page", "a")], &[("user", "a")]], 1).await;
    let pairs: Vec<_> = headers
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect();
    assert_eq!(
        pairs[..2],
        [("RateLimit-Limit", "2"), ("RateLimit-Remaining", "1")],
        "the least remaining"
    );
    assert_eq!(pairs[2].0, "X-Reset");
    let headers = shown(&[&[("user", "b")], &[("page", "b")], &[("quota", "b")]], 6).await;
    assert_eq!(
        headers[0].1, "5",
        "the last that refuses by itself, and not the quota rule"
    );
    assert_eq!(shown(&[&[("staff", "a")], &[("nobody", "a")]], 1).await, []);
}

#[tokio::test]
async fn metadata_repeats_the_request_and_keeps_that_of_rules() {
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let tollgate = runtime.set("RESPONSE_DYNAMIC_METADATA", "true").start();
    let mut asked = request("shop", &[&[("tagged", "x")], &[("a", "b"), ("c", "d")]]);
    asked.hits_addend = 2;
    asked.descriptors[0].hits_addend = Some(UInt64Value { value: 3 });
    asked.descriptors[1].limit = Some(RateLimitOverride {
        requests_per_unit: 9,
        unit: 3,
        ..Default::default()
    });
    let mut client = tollgate.client().await;
    let metadata = ask(&mut client, asked)
        .await
        .unwrap()
        .dynamic_metadata
        .unwrap();
    let expected = serde_json::json!({
        "domain": "shop",
        "descriptors": [
            { "entries": ["tagged=x"], "hitsAddend": 3.0 },
            { "entries": ["a=b", "c=d"], "limit": "requests_per_unit:9 unit:HOUR" },
        ],
        "hitsAddend": 2.0,
        "metadata": { "owner": "tagged" },
    });
    assert_eq!(json(&Kind::StructValue(metadata)), expected);
    let unknown = ask(&mut client, request("nobody", &[&[("k", "v")]]))
        .await
        .unwrap();
    assert_eq!(
        json(&Kind::StructValue(unknown.dynamic_metadata.unwrap())),
        serde_json::json!({ "domain": "nobody", "descriptors": [{ "entries": ["k=v"] }] })
    );
}

fn json(kind: &Kind) -> serde_json::Value {
    match kind {
        Kind::NullValue(_) => serde_json::Value::Null,
        Kind::BoolValue(truth) => (*truth).into(),
        Kind::NumberValue(number) => (*number).into(),
        Kind::StringValue(text) => text.as_str().into(),
        Kind::ListValue(list) => {
            let values = list.values.iter().filter_map(|value| value.kind.as_ref());
            values.map(json).collect()
        }
        Kind::StructValue(fields) => {
            let fields = fields.fields.iter();
            let set =
                fields.filter_map(|(name, value)| Some((name.clone(), json(value.kind.as_ref()?))));
            serde_json::Value::Object(set.collect())
        }
    }
}

#[tokio::test]
async fn global_modes_spare_requests_and_no_statuses() {
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let tollgate = runtime.set("SHADOW_MODE", "true").start();
    let mut last = None;
    for _ in 0..3 {
        last = Some(user(&tollgate, "shop").await.unwrap());
    }
    let last = last.unwrap();
    assert_eq!(last.overall_code(), Code::Ok);
    assert_eq!(last.statuses[0].code(), Code::OverLimit);
    assert_eq!(tollgate.metric("tollgate_shadowed_total"), 1.0);
    drop(tollgate);

    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let tollgate = runtime.set("QUOTA_MODE", "true").start();
    let mut client = tollgate.client().await;
    let mut code = async |descriptors: &[&[(&str, &str)]], hits| {
        let mut asked = request("shop", descriptors);
        asked.hits_addend = hits;
        ask(&mut client, asked).await.unwrap().overall_code()
    };
    let (user, page): (&[_], &[_]) = (&[("user", "x")], &[("page", "x")]);
    assert_eq!(
        code(&[user, page], 3).await,
        Code::Ok,
        "one of two has room"
    );
    assert_eq!(code(&[user, page], 6).await, Code::OverLimit, "none has");
    assert_eq!(
        code(&[user, &[("nobody", "x")]], 3).await,
        Code::Ok,
        "no rule is room"
    );
    assert_eq!(
        code(&[user, &[("shade", "x")]], 3).await,
        Code::Ok,
        "a rule in shadow mode always has room"
    );
    assert_eq!(
        code(&[user, &[("staff", "x")]], 3).await,
        Code::OverLimit,
        "unlimited is none"
    );
}

#[test]
fn json_is_answered_as_the_reference_does() {
    let tollgate = Runtime::with(&[("a.yaml", SHOP)]).start();
    let post = |body: &str| http(&tollgate.http, "POST", "/json", body);
    let body = r#"{"domain":"shop","hitsAddend":2,"descriptors":[{"entries":[{"key":"user","value":"j"}]}]}"#;
    let (status, answer) = post(body);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["overallCode"]), (200, &"OK".into()));
    let shown = &answer["statuses"][0];
    assert_eq!(
        shown["currentLimit"],
        serde_json::json!({ "requestsPerUnit": 2, "unit": "HOUR" })
    );
    assert_eq!(post(body).0, 429);
    for wrong in [
        "",
        "}",
        "{} {}",
        r#"{"domain":"shop"}"#,
        r#"{"domain":"shop","colour":1}"#,
    ] {
        assert_eq!(post(wrong), (400, "Bad Request\n".to_owned()), "{wrong}");
    }
}

#[test]
fn the_debug_port_has_its_pages() {
    let mut tollgate = Runtime::with(&[("a.yaml", SHOP)]).start();
    let debug = debug_address(&mut tollgate);
    let page = |path: &str| http(&debug, "GET", path, "");
    assert!(page("/").1.contains("/rlconfig"));
    let rules = page("/rlconfig").1;
    for line in [
        "shop.user: unit=HOUR requests_per_unit=2, shadow_mode: false, quota_mode: false",
        "shop.quota: unit=HOUR requests_per_unit=1, shadow_mode: false, quota_mode: true",
        "shop.staff: unit=UNKNOWN requests_per_unit=0, shadow_mode: false, quota_mode: false",
    ] {
        assert!(
            rules.lines().any(|found| found == line),
            "{line} in {rules}"
        );
    }
    let stats: serde_json::Value = serde_json::from_str(&page("/stats").1).unwrap();
    assert_eq!(stats["plans"]["domains"], 1);
}

async fn grpc_health(address: &str, service: &str) -> i32 {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let asked = tonic_health::pb::HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    client.check(asked).await.unwrap().into_inner().status
}

#[tokio::test]
async fn health_follows_plans_when_told_and_the_drain_always() {
    let mut runtime = Runtime::new();
    runtime.set("HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", "true");
    runtime.set("TOLLGATE_DRAIN_DELAY", "1h");
    let mut tollgate = runtime.start();
    let page = |tollgate: &Tollgate| http(&tollgate.http, "GET", "/healthcheck", "");
    let is = async |tollgate: &Tollgate, serving: i32| {
        grpc_health(&tollgate.grpc, "ratelimit").await == serving
    };
    assert_eq!(page(&tollgate), (500, String::new()));
    wait_until("NOT_SERVING", async || is(&tollgate, 2).await).await;
    assert_eq!(
        grpc_health(&tollgate.grpc, "").await,
        1,
        "the unnamed one is always SERVING"
    );
    runtime.write("a.yaml", SHOP);
    wait_until("SERVING", async || is(&tollgate, 1).await).await;
    assert_eq!(page(&tollgate), (200, "OK".to_owned()));
    fs::remove_file(runtime.folder().join("a.yaml")).unwrap();
    wait_until("NOT_SERVING", async || is(&tollgate, 2).await).await;
    runtime.write("a.yaml", SHOP);
    wait_until("SERVING", async || is(&tollgate, 1).await).await;
    tollgate.process.signal(Signal::SIGTERM);
    wait_until("NOT_SERVING", async || is(&tollgate, 2).await).await;
    assert_eq!(page(&tollgate), (500, String::new()));
    assert_eq!(grpc_health(&tollgate.grpc, "").await, 1);
    assert!(
        user(&tollgate, "shop").await.is_ok(),
        "answered while draining"
    );
    tollgate.process.kill();
}

#[tokio::test]
async fn health_depends_on_redis_only_when_told() {
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let tollgate = runtime
        .set("REDIS_HEALTH_CHECK_ACTIVE_CONNECTION", "true")
        .start();
    assert_eq!(http(&tollgate.http, "GET", "/healthcheck", "").0, 500);
    wait_until("NOT_SERVING", async || {
        grpc_health(&tollgate.grpc, "ratelimit").await == 2
    })
    .await;
    assert!(user(&tollgate, "shop").await.is_ok(), "it answers");
}

#[tokio::test]
async fn grpc_listens_on_a_socket_when_told() {
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    let path = runtime.root.path().join("grpc.sock").display().to_string();
    let tollgate = runtime.set("GRPC_UDS", &path).start();
    assert_eq!(tollgate.grpc, format!("unix:{path}"));
    assert_eq!(limit(&tollgate, "shop").await, Some(2));
}

/// HTTP/2 by hand: what is looked at is what comes before the end.
#[test]
fn connections_of_an_age_are_told_to_end_before_they_are_cut() {
    const GOAWAY: u8 = 7;
    let mut runtime = Runtime::with(&[("a.yaml", SHOP)]);
    runtime
        .set("GRPC_MAX_CONNECTION_AGE", "50ms")
        .set("GRPC_MAX_CONNECTION_AGE_GRACE", "50ms");
    let tollgate = runtime.start();
    let mut stream = TcpStream::connect(&tollgate.grpc).unwrap();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    stream.write_all(&settings).unwrap();
    let mut kinds = Vec::new();
    let mut head = [0; 9];
    // A client that neither answers nor goes is cut.
    while stream.read_exact(&mut head).is_ok() {
        kinds.push(head[3]);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
    }
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
}

/// Where the reference answers badly, and `tests/conformance` marks its answer so.
#[tokio::test]
async fn answers_better_than_the_references() {
    let shared = "domain: share\ndescriptors: [{ key: files, value: 'files/*', share_threshold: true, \
                  rate_limit: { unit: hour, requests_per_unit: 10 } }]\n";
    let mut tollgate = Runtime::with(&[("a.yaml", SHOP), ("b.yaml", shared)]).start();
    let mut client = tollgate.client().await;

    let mut huge = request("shop", &[&[("page", "huge")]]);
    huge.descriptors[0].hits_addend = Some(UInt64Value { value: 1 << 63 });
    let response = ask(&mut client, huge).await.unwrap();
    assert_eq!(
        response.overall_code(),
        Code::OverLimit,
        "more hits than fit in an int64"
    );

    let overridden = |entries: &[(&str, &str)], unit: i32| {
        let mut asked = request("shop", &[]);
        asked.descriptors = vec![descriptor(entries)];
        asked.descriptors[0].limit = Some(RateLimitOverride {
            requests_per_unit: 10,
            unit,
            ..Default::default()
        });
        asked
    };
    let error = ask(&mut client, overridden(&[("ghost", "x")], 0))
        .await
        .unwrap_err();
    assert_eq!(
        error.code(),
        GrpcCode::InvalidArgument,
        "a unit that is none"
    );
    for entries in [&[("u", "1_path_2")][..], &[("u", "1"), ("path", "2")]] {
        let response = ask(&mut client, overridden(entries, 3)).await.unwrap();
        assert_eq!(
            response.statuses[0].limit_remaining, 9,
            "{entries:?} has a counter of its own"
        );
    }
    for (value, left) in [("files/a", 9), ("files/*", 8), ("files/b", 7)] {
        let response = ask(&mut client, request("share", &[&[("files", value)]]))
            .await
            .unwrap();
        assert_eq!(response.statuses[0].limit_remaining, left, "{value}");
    }
    // No Redis is there: health says what the process can do, which is to answer.
    assert_eq!(
        http(&tollgate.http, "GET", "/healthcheck", ""),
        (200, "OK".to_owned())
    );
    assert!(tollgate.metric("tollgate_degraded_total") > 0.0);
    assert!(tollgate.process.is_running());
}

#[test]
fn every_variable_has_its_row_in_the_docs() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/environment.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, tables) = page.split_once("## Every variable").unwrap();
    let mut documented = BTreeSet::new();
    for row in tables.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap();
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(
                documented.insert(name.to_owned()),
                "{name} stands there twice"
            );
        }
    }
    let read: BTreeSet<String> = Environment::names().into_iter().map(Into::into).collect();
    assert_eq!(documented, read);
}
