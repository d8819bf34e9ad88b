//! Every environment variable of envoyproxy/ratelimit, read and typed, with the default it has there.

use std::{borrow::Cow, collections::BTreeSet, ffi::OsString, num::NonZeroU32, time::Duration};

use super::values::{List, Millis, Pairs, Port, Reader, VariableError, words};

words! {
    /// LOG_LEVEL
    LogLevel { Error = "panic" | "fatal" | "error", Warn = "warn" | "warning", Info = "info", Debug = "debug", Trace = "trace" }
}
words! {
    /// LOG_FORMAT
    LogFormat { Text = "text", Json = "json" }
}
words! {
    /// CONFIG_TYPE
    ConfigType { File = "file", Xds = "grpc_xds_sotw" }
}
words! {
    /// BACKEND_TYPE
    BackendType { Redis = "redis" | "", Memcache = "memcache" }
}
words! {
    /// STATSD_PROTOCOL, of gostats, which sends the statistics
    StatsdProtocol { Tcp = "tcp", Udp = "udp" }
}
words! {
    /// REDIS_TYPE
    RedisType { Single = "single", Sentinel = "sentinel", Cluster = "cluster" }
}

/// The environment, section by section.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "the variables' names; docs/environment.md tells of each"
)]
pub struct Environment {
    pub listen: Listen,
    pub grpc_tls: GrpcTls,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    pub plans: PlanFiles,
    pub xds: Xds,
    pub answers: Answers,
    pub counting: Counting,
    pub stats: Stats,
    pub redis: Redis,
    pub redis_start: RedisStart,
    /// The Redis for rules per second, where there is one.
    pub redis_per_second: Option<Redis>,
    pub memcache: Memcache,
    pub tracing: Tracing,
    /// The variables that are set to something else than their default.
    pub changed: BTreeSet<Cow<'static, str>>,
    /// What is not taken as it is written, and what is done instead.
    pub notes: Vec<String>,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Listen {
    pub host: String,
    pub port: Port,
    pub debug_host: String,
    pub debug_port: Port,
    pub grpc_host: String,
    pub grpc_port: Port,
    /// The path of a socket, which takes the place of host and port; empty for none.
    pub grpc_uds: String,
    pub grpc_max_connection_age: Duration,
    pub grpc_max_connection_age_grace: Duration,
    pub healthy_with_at_least_one_config_loaded: bool,
}

/// TLS of the gRPC port. Paths are empty where there is none.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct GrpcTls {
    pub server_use_tls: bool,
    pub server_tls_cert: String,
    pub server_tls_key: String,
    pub client_tls_cacert: String,
    pub client_tls_san: String,
}

/// Where the plan files are.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct PlanFiles {
    pub config_type: ConfigType,
    pub runtime_root: String,
    pub runtime_subdirectory: String,
    pub runtime_appdirectory: String,
    pub runtime_ignoredotfiles: bool,
    pub runtime_watch_root: bool,
    pub merge_domain_config: bool,
    pub force_start_without_initial_config: bool,
}

/// The control plane that plans come from.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Xds {
    pub node_id: String,
    /// `key=value,key=value`; what has no `=` is passed over.
    pub node_metadata: String,
    pub server_url: String,
    pub server_connect_retry_interval: Duration,
    pub client_additional_headers: Pairs,
    pub server_use_tls: bool,
    pub client_tls_cert: String,
    pub client_tls_key: String,
    pub server_tls_cacert: String,
    pub server_tls_san: String,
    pub backoff_initial_interval: Duration,
    pub backoff_max_interval: Duration,
    pub backoff_random_factor: f64,
    pub backoff_jitter: bool,
    /// In bytes; 0 for gRPC's own.
    pub max_msg_size: i64,
}

/// What answers show, and what holds for all rules.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Answers {
    pub limit_response_headers_enabled: bool,
    pub limit_limit_header: String,
    pub limit_remaining_header: String,
    pub limit_reset_header: String,
    pub response_dynamic_metadata: bool,
    pub shadow_mode: bool,
    pub quota_mode: bool,
}

/// How the reference counts.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Counting {
    pub backend_type: BackendType,
    pub expiration_jitter_max_seconds: i64,
    pub local_cache_size_in_bytes: i64,
    pub near_limit_ratio: f64,
    pub cache_key_prefix: String,
    pub stop_cache_key_increment_when_overlimit: bool,
}

/// Where statistics go.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Stats {
    pub use_statsd: bool,
    pub statsd_host: String,
    pub statsd_port: Port,
    pub statsd_protocol: StatsdProtocol,
    pub use_dog_statsd: bool,
    pub mogrifiers: Vec<Mogrifier>,
    pub extra_tags: Pairs,
    pub flush_interval: Duration,
    pub disabled: bool,
    pub use_prometheus: bool,
    pub prometheus_addr: String,
    pub prometheus_path: String,
    pub prometheus_mapper_yaml: String,
    pub prometheus_response_time_as_milliseconds: bool,
}

/// One of USE_DOG_STATSD_MOGRIFIERS: names that fit the pattern become a name and tags.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Mogrifier {
    /// How USE_DOG_STATSD_MOGRIFIERS calls it.
    pub of: String,
    pub pattern: String,
    pub name: String,
    pub tags: Pairs,
}

/// A Redis: `REDIS_` or `REDIS_PERSECOND_`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Redis {
    /// Of a single Redis: `tcp` or `unix`.
    pub socket_type: String,
    pub r#type: RedisType,
    pub url: String,
    pub pool_size: i64,
    pub auth: String,
    pub sentinel_auth: String,
    pub tls: bool,
    pub pipeline_window: Duration,
    pub pipeline_limit: i64,
    pub cluster_pipeline_parallelism: i64,
    pub timeout: Duration,
    pub pool_on_empty_behavior: String,
}

/// What both Redis share.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct RedisStart {
    pub tls_client_cert: String,
    pub tls_client_key: String,
    pub tls_cacert: String,
    pub tls_skip_hostname_verification: bool,
    pub health_check_active_connection: bool,
    pub startup_initial_interval: Duration,
    pub startup_max_interval: Duration,
    pub startup_max_elapsed_time: Duration,
    pub close_connection_on_readonly_error: bool,
}

/// The memcached that Tollgate does not count in.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Memcache {
    pub host_port: List,
    pub srv: String,
    pub srv_refresh: Duration,
    pub max_idle_conns: i64,
    pub tls: bool,
    pub tls_client_cert: String,
    pub tls_client_key: String,
    pub tls_cacert: String,
    pub tls_skip_hostname_verification: bool,
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Tracing {
    pub enabled: bool,
    pub exporter_protocol: String,
    pub service_name: String,
    pub service_namespace: String,
    pub service_instance_id: String,
    pub sampling_rate: f64,
    pub otlp: Otlp,
}

/// `OTEL_EXPORTER_OTLP_`, or the same of traces alone, which counts first. Empty where there is none.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variables' names")]
pub struct Otlp {
    /// A collector.
    pub endpoint: String,
    /// Where it takes traces, to the letter.
    pub traces_endpoint: String,
    pub certificate: String,
    pub client_certificate: String,
    pub client_key: String,
    pub timeout: Millis,
}

const SECOND: Duration = Duration::from_secs(1);

impl Environment {
    /// Reads what `lookup` finds by name.
    ///
    /// # Errors
    /// Every variable whose value cannot be read.
    pub fn read(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Vec<VariableError>> {
        let mut reader = Reader::new(lookup);
        let environment = Self::from_reader(&mut reader);
        match reader.errors.is_empty() {
            true => Ok(Self {
                changed: reader.changed,
                notes: reader.notes,
                ..environment
            }),
            false => Err(reader.errors),
        }
    }

    /// The names of all variables, but those that `USE_DOG_STATSD_MOGRIFIERS` names.
    pub fn names() -> BTreeSet<Cow<'static, str>> {
        let mut reader = Reader::new(&|name| (name == "REDIS_PERSECOND").then(|| "true".into()));
        Self::from_reader(&mut reader);
        reader.names
    }

    fn from_reader(from: &mut Reader<'_>) -> Self {
        Self {
            listen: listen(from),
            grpc_tls: grpc_tls(from),
            log_level: from.read("LOG_LEVEL", LogLevel::Warn),
            log_format: from.read_or("LOG_FORMAT", LogFormat::Text, "text"),
            plans: plans(from),
            xds: xds(from),
            answers: answers(from),
            counting: counting(from),
            stats: stats(from),
            redis: redis(from, "REDIS_", "/var/run/nutcracker/ratelimit.sock"),
            redis_start: redis_start(from),
            redis_per_second: from.read("REDIS_PERSECOND", false).then(|| {
                let socket = "/var/run/nutcracker/ratelimitpersecond.sock";
                redis(from, "REDIS_PERSECOND_", socket)
            }),
            memcache: memcache(from),
            tracing: tracing(from),
            changed: BTreeSet::new(),
            notes: Vec::new(),
        }
    }
}

fn listen(from: &mut Reader<'_>) -> Listen {
    Listen {
        host: from.text("HOST", "0.0.0.0"),
        port: from.read("PORT", Port(8080)),
        debug_host: from.text("DEBUG_HOST", "0.0.0.0"),
        debug_port: from.read("DEBUG_PORT", Port(6070)),
        grpc_host: from.text("GRPC_HOST", "0.0.0.0"),
        grpc_port: from.read("GRPC_PORT", Port(8081)),
        grpc_uds: from.text("GRPC_UDS", ""),
        grpc_max_connection_age: from.read("GRPC_MAX_CONNECTION_AGE", 24 * 3600 * SECOND),
        grpc_max_connection_age_grace: from.read("GRPC_MAX_CONNECTION_AGE_GRACE", 3600 * SECOND),
        healthy_with_at_least_one_config_loaded: from
            .read("HEALTHY_WITH_AT_LEAST_ONE_CONFIG_LOADED", false),
    }
}

fn grpc_tls(from: &mut Reader<'_>) -> GrpcTls {
    GrpcTls {
        server_use_tls: from.read("GRPC_SERVER_USE_TLS", false),
        server_tls_cert: from.text("GRPC_SERVER_TLS_CERT", ""),
        server_tls_key: from.text("GRPC_SERVER_TLS_KEY", ""),
        client_tls_cacert: from.text("GRPC_CLIENT_TLS_CACERT", ""),
        client_tls_san: from.text("GRPC_CLIENT_TLS_SAN", ""),
    }
}

fn plans(from: &mut Reader<'_>) -> PlanFiles {
    PlanFiles {
        config_type: from.read("CONFIG_TYPE", ConfigType::File),
        runtime_root: from.text("RUNTIME_ROOT", "/srv/runtime_data/current"),
        runtime_subdirectory: from.text("RUNTIME_SUBDIRECTORY", ""),
        runtime_appdirectory: from.text("RUNTIME_APPDIRECTORY", "config"),
        runtime_ignoredotfiles: from.read("RUNTIME_IGNOREDOTFILES", false),
        runtime_watch_root: from.read("RUNTIME_WATCH_ROOT", true),
        merge_domain_config: from.read("MERGE_DOMAIN_CONFIG", false),
        force_start_without_initial_config: from.read("FORCE_START_WITHOUT_INITIAL_CONFIG", false),
    }
}

fn xds(from: &mut Reader<'_>) -> Xds {
    Xds {
        node_id: from.text("CONFIG_GRPC_XDS_NODE_ID", "default"),
        node_metadata: from.text("CONFIG_GRPC_XDS_NODE_METADATA", ""),
        server_url: from.text("CONFIG_GRPC_XDS_SERVER_URL", "localhost:18000"),
        server_connect_retry_interval: from
            .read("CONFIG_GRPC_XDS_SERVER_CONNECT_RETRY_INTERVAL", 3 * SECOND),
        client_additional_headers: from.read(
            "CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS",
            Pairs::default(),
        ),
        server_use_tls: from.read("CONFIG_GRPC_XDS_SERVER_USE_TLS", false),
        client_tls_cert: from.text("CONFIG_GRPC_XDS_CLIENT_TLS_CERT", ""),
        client_tls_key: from.text("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", ""),
        server_tls_cacert: from.text("CONFIG_GRPC_XDS_SERVER_TLS_CACERT", ""),
        server_tls_san: from.text("CONFIG_GRPC_XDS_SERVER_TLS_SAN", ""),
        backoff_initial_interval: from.read("XDS_CLIENT_BACKOFF_INITIAL_INTERVAL", 10 * SECOND),
        backoff_max_interval: from.read("XDS_CLIENT_BACKOFF_MAX_INTERVAL", 60 * SECOND),
        backoff_random_factor: from.read("XDS_CLIENT_BACKOFF_RANDOM_FACTOR", 0.5),
        backoff_jitter: from.read("XDS_CLIENT_BACKOFF_JITTER", true),
        max_msg_size: from.read("XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES", 0),
    }
}

fn answers(from: &mut Reader<'_>) -> Answers {
    Answers {
        limit_response_headers_enabled: from.read("LIMIT_RESPONSE_HEADERS_ENABLED", false),
        limit_limit_header: from.text("LIMIT_LIMIT_HEADER", "RateLimit-Limit"),
        limit_remaining_header: from.text("LIMIT_REMAINING_HEADER", "RateLimit-Remaining"),
        limit_reset_header: from.text("LIMIT_RESET_HEADER", "RateLimit-Reset"),
        response_dynamic_metadata: from.read("RESPONSE_DYNAMIC_METADATA", false),
        shadow_mode: from.read("SHADOW_MODE", false),
        quota_mode: from.read("QUOTA_MODE", false),
    }
}

fn counting(from: &mut Reader<'_>) -> Counting {
    Counting {
        backend_type: from.read("BACKEND_TYPE", BackendType::Redis),
        expiration_jitter_max_seconds: from.read("EXPIRATION_JITTER_MAX_SECONDS", 300),
        local_cache_size_in_bytes: from.read("LOCAL_CACHE_SIZE_IN_BYTES", 0),
        near_limit_ratio: from.read("NEAR_LIMIT_RATIO", 0.8),
        cache_key_prefix: from.text("CACHE_KEY_PREFIX", ""),
        stop_cache_key_increment_when_overlimit: from
            .read("STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT", false),
    }
}

fn stats(from: &mut Reader<'_>) -> Stats {
    let use_dog_statsd = from.read("USE_DOG_STATSD", false);
    let disabled = from.read("DISABLE_STATS", false);
    let List(mogrifiers) = from.read("USE_DOG_STATSD_MOGRIFIERS", List::default());
    // The reference does not look at them where nobody is told.
    let told = use_dog_statsd && !disabled;
    Stats {
        use_statsd: from.read("USE_STATSD", true),
        statsd_host: from.text("STATSD_HOST", "localhost"),
        statsd_port: from.read("STATSD_PORT", Port(8125)),
        statsd_protocol: from.read_or("STATSD_PROTOCOL", StatsdProtocol::Tcp, "tcp"),
        use_dog_statsd,
        mogrifiers: match told {
            true => self::mogrifiers(from, mogrifiers),
            false => Vec::new(),
        },
        extra_tags: from.read("EXTRA_TAGS", Pairs::default()),
        flush_interval: from.read("STATS_FLUSH_INTERVAL", 10 * SECOND),
        disabled,
        use_prometheus: from.read("USE_PROMETHEUS", false),
        prometheus_addr: from.text("PROMETHEUS_ADDR", ":9090"),
        prometheus_path: from.text("PROMETHEUS_PATH", "/metrics"),
        prometheus_mapper_yaml: from.text("PROMETHEUS_MAPPER_YAML", ""),
        prometheus_response_time_as_milliseconds: from
            .read("PROMETHEUS_RESPONSE_TIME_AS_MILLISECONDS", false),
    }
}

impl Mogrifier {
    /// The name of one of its variables.
    pub fn variable(&self, part: &str) -> String {
        format!("DOG_STATSD_MOGRIFIER_{}_{part}", self.of.to_uppercase())
    }
}

fn mogrifiers(from: &mut Reader<'_>, names: Vec<String>) -> Vec<Mogrifier> {
    let mogrifier = |name: String| {
        let mut mogrifier = Mogrifier {
            of: name,
            pattern: String::new(),
            name: String::new(),
            tags: Pairs::default(),
        };
        mogrifier.pattern = from.text(mogrifier.variable("PATTERN"), "");
        mogrifier.name = from.text(mogrifier.variable("NAME"), "");
        mogrifier.tags = from.read(mogrifier.variable("TAGS"), Pairs::default());
        mogrifier
    };
    names.into_iter().map(mogrifier).collect()
}

fn redis(from: &mut Reader<'_>, prefix: &str, socket: &str) -> Redis {
    let name = |rest: &str| format!("{prefix}{rest}");
    Redis {
        socket_type: from.text(name("SOCKET_TYPE"), "unix"),
        r#type: from.read(name("TYPE"), RedisType::Single),
        url: from.text(name("URL"), socket),
        pool_size: from.read(name("POOL_SIZE"), 10),
        auth: from.text(name("AUTH"), ""),
        sentinel_auth: from.text(name("SENTINEL_AUTH"), ""),
        tls: from.read(name("TLS"), false),
        pipeline_window: from.read(name("PIPELINE_WINDOW"), Duration::ZERO),
        pipeline_limit: from.read(name("PIPELINE_LIMIT"), 0),
        cluster_pipeline_parallelism: from.read(name("CLUSTER_PIPELINE_PARALLELISM"), 1),
        timeout: from.read(name("TIMEOUT"), 10 * SECOND),
        pool_on_empty_behavior: from.text(name("POOL_ON_EMPTY_BEHAVIOR"), "WAIT"),
    }
}

fn redis_start(from: &mut Reader<'_>) -> RedisStart {
    RedisStart {
        tls_client_cert: from.text("REDIS_TLS_CLIENT_CERT", ""),
        tls_client_key: from.text("REDIS_TLS_CLIENT_KEY", ""),
        tls_cacert: from.text("REDIS_TLS_CACERT", ""),
        tls_skip_hostname_verification: from.read("REDIS_TLS_SKIP_HOSTNAME_VERIFICATION", false),
        health_check_active_connection: from.read("REDIS_HEALTH_CHECK_ACTIVE_CONNECTION", false),
        startup_initial_interval: from.read("REDIS_STARTUP_INITIAL_INTERVAL", SECOND),
        startup_max_interval: from.read("REDIS_STARTUP_MAX_INTERVAL", 30 * SECOND),
        startup_max_elapsed_time: from.read("REDIS_STARTUP_MAX_ELAPSED_TIME", Duration::ZERO),
        // The reference knows it since a while only.
        close_connection_on_readonly_error: from.read_or(
            "REDIS_CLOSE_CONNECTION_ON_READONLY_ERROR",
            false,
            "true",
        ),
    }
}

fn memcache(from: &mut Reader<'_>) -> Memcache {
    Memcache {
        host_port: from.read("MEMCACHE_HOST_PORT", List::default()),
        srv: from.text("MEMCACHE_SRV", ""),
        srv_refresh: from.read("MEMCACHE_SRV_REFRESH", Duration::ZERO),
        max_idle_conns: from.read("MEMCACHE_MAX_IDLE_CONNS", 2),
        tls: from.read("MEMCACHE_TLS", false),
        tls_client_cert: from.text("MEMCACHE_TLS_CLIENT_CERT", ""),
        tls_client_key: from.text("MEMCACHE_TLS_CLIENT_KEY", ""),
        tls_cacert: from.text("MEMCACHE_TLS_CACERT", ""),
        tls_skip_hostname_verification: from.read("MEMCACHE_TLS_SKIP_HOSTNAME_VERIFICATION", false),
    }
}

fn tracing(from: &mut Reader<'_>) -> Tracing {
    Tracing {
        enabled: from.read("TRACING_ENABLED", false),
        exporter_protocol: from.text("TRACING_EXPORTER_PROTOCOL", "http"),
        service_name: from.text("TRACING_SERVICE_NAME", "RateLimit"),
        service_namespace: from.text("TRACING_SERVICE_NAMESPACE", ""),
        service_instance_id: from.text("TRACING_SERVICE_INSTANCE_ID", ""),
        sampling_rate: from.read("TRACING_SAMPLING_RATE", 1.0),
        otlp: otlp(from),
    }
}

fn otlp(from: &mut Reader<'_>) -> Otlp {
    // Source: OpenTelemetry's specification: a variable that is set to nothing is not set.
    let mut text = |name| from.text(name, "").trim().to_owned();
    let mut either = |traces, both| {
        let both = text(both);
        match text(traces) {
            none if none.is_empty() => both,
            traces => traces,
        }
    };
    Otlp {
        certificate: either(
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
        ),
        client_certificate: either(
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        ),
        client_key: either(
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        ),
        endpoint: text("OTEL_EXPORTER_OTLP_ENDPOINT"),
        traces_endpoint: text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        timeout: {
            let usual = Millis(NonZeroU32::new(10_000).expect("it is not 0"));
            let both = from.read_or("OTEL_EXPORTER_OTLP_TIMEOUT", usual, usual.0);
            from.read_or("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", both, both.0)
        },
    }
}
