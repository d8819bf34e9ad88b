//! What starts and what does not, as with envoyproxy/ratelimit, and what each becomes.

use clap::Parser as _;

use super::*;
use crate::cli::Cli;

fn stores_of(variables: &[(&str, &str)]) -> Result<RedisChoice, EnvironmentError> {
    let lookup = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).into())
    };
    stores(&Environment::read(&lookup).unwrap(), &mut Vec::new())
}

/// The settings, and what there is to say about them, or why there are none; with plan files somewhere.
fn all(variables: &[(&str, &str)]) -> Result<(Settings, Vec<String>), String> {
    let lookup = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        let usual = (name == "RUNTIME_SUBDIRECTORY").then_some("here");
        found.map(|(_, value)| *value).or(usual).map(Into::into)
    };
    let environment = Environment::read(&lookup).map_err(|errors| format!("{errors:?}"))?;
    let native = Cli::try_parse_from(["tollgate"]).unwrap().serve;
    let mut notes = environment.notes.clone();
    let settings = settings(&environment, native.settings().unwrap(), &mut notes);
    Ok((settings.map_err(|error| error.to_string())?, notes))
}

const XDS: (&str, &str) = ("CONFIG_TYPE", "GRPC_XDS_SOTW");
const TCP: (&str, &str) = ("REDIS_SOCKET_TYPE", "tcp");
const TRACES: (&str, &str) = ("TRACING_ENABLED", "1");
const OVER_TLS: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector");
const DOG: (&str, &str) = ("USE_DOG_STATSD", "1");

/// What envoyproxy/ratelimit starts with. Sources: its code, that of kelseyhightower/envconfig, radix, jpillora/backoff,
/// lyft/gostats, grpc-go and OpenTelemetry's SDK for Go.
#[test]
fn what_the_reference_starts_with_starts_and_is_told() {
    type Row<'t> = (&'t [(&'t str, &'t str)], &'t [&'t str]);
    let rows: &[Row<'_>] = &[
        // Set to nothing, where nothing is a value.
        (
            &[("BACKEND_TYPE", ""), ("LOG_FORMAT", ""), ("HOST", "")],
            &[],
        ),
        (
            &[("GRPC_HOST", ""), ("GRPC_UDS", ""), ("STATSD_HOST", "")],
            &[],
        ),
        (&[("EXTRA_TAGS", ""), ("MEMCACHE_HOST_PORT", " ")], &[]),
        (
            &[
                ("USE_PROMETHEUS", "1"),
                ("PROMETHEUS_ADDR", ""),
                ("PROMETHEUS_PATH", ""),
            ],
            &[],
        ),
        (
            &[
                TRACES,
                ("OTEL_EXPORTER_OTLP_TIMEOUT", ""),
                ("TRACING_EXPORTER_PROTOCOL", ""),
            ],
            &[],
        ),
        (
            &[
                XDS,
                ("CONFIG_GRPC_XDS_NODE_METADATA", ""),
                ("CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS", ""),
            ],
            &[],
        ),
        // Words.
        (
            &[("LOG_FORMAT", "logfmt")],
            &["LOG_FORMAT: `logfmt` is not one of text, json; it counts as text"],
        ),
        (
            &[("STATSD_PROTOCOL", "unix")],
            &["STATSD_PROTOCOL: `unix` is not one of tcp, udp; it counts as tcp"],
        ),
        (
            &[
                ("REDIS_TYPE", "Cluster"),
                ("REDIS_SOCKET_TYPE", ""),
                ("REDIS_URL", "a:1"),
            ],
            &[],
        ),
        (
            &[("REDIS_SOCKET_TYPE", "tcp6"), ("REDIS_URL", ":6379")],
            &[],
        ),
        (
            &[
                TCP,
                ("REDIS_URL", "redis://a"),
                ("REDIS_POOL_ON_EMPTY_BEHAVIOR", ""),
            ],
            &[],
        ),
        // Headers.
        (
            &[("LIMIT_RESET_HEADER", "two words")],
            &[
                "LIMIT_RESET_HEADER: `two words` is not the name of a header; it counts as RateLimit-Reset",
            ],
        ),
        (
            &[
                XDS,
                (
                    "CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS",
                    "A:b,two words:hush",
                ),
            ],
            &[
                "CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS: `two words` is left out, with its value it is no header",
            ],
        ),
        (
            &[XDS, ("CONFIG_GRPC_XDS_NODE_METADATA", "a=b,c,,d=e=f")],
            &["CONFIG_GRPC_XDS_NODE_METADATA: `c` is passed over, it is not key=value"],
        ),
        (
            &[XDS, ("CONFIG_GRPC_XDS_SERVER_URL", "dns://8.8.8.8/gateway")],
            &[
                "CONFIG_GRPC_XDS_SERVER_URL: names are looked up as this machine does, not at 8.8.8.8",
            ],
        ),
        (
            &[XDS, ("CONFIG_GRPC_XDS_SERVER_URL", "")],
            &["CONFIG_GRPC_XDS_SERVER_URL: `` is no address of a control plane: write host:port"],
        ),
        (
            &[("REDIS_CLOSE_CONNECTION_ON_READONLY_ERROR", "yes")],
            &["REDIS_CLOSE_CONNECTION_ON_READONLY_ERROR: `yes` is not a truth value"],
        ),
        // Less than nothing.
        (
            &[
                ("GRPC_MAX_CONNECTION_AGE", "-5s"),
                ("REDIS_POOL_SIZE", "-1"),
            ],
            &["GRPC_MAX_CONNECTION_AGE: `-5s` is less than nothing, and counts as 0"],
        ),
        (
            &[XDS, ("XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES", "-1")],
            &["XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES: `-1` is no size; it counts as 33554432"],
        ),
        (
            &[
                ("EXPIRATION_JITTER_MAX_SECONDS", "-1"),
                ("REDIS_PIPELINE_LIMIT", "-1"),
            ],
            &[],
        ),
        (
            &[
                XDS,
                ("XDS_CLIENT_BACKOFF_RANDOM_FACTOR", "-2"),
                ("NEAR_LIMIT_RATIO", "-1"),
            ],
            &[],
        ),
        // Addresses and ports that nobody uses, or that it runs without.
        (&[("GRPC_UDS", "/s"), ("GRPC_PORT", "-1")], &[]),
        (&[("USE_STATSD", "0"), ("STATSD_PORT", "-1")], &[]),
        (
            &[("STATSD_PORT", "70000")],
            &[
                "STATSD_PORT: `70000` is not a port: a whole number from 0 to 65535; no statistics are sent",
            ],
        ),
        (
            &[("DEBUG_PORT", "-1")],
            &[
                "DEBUG_PORT: `-1` is not a port: a whole number from 0 to 65535; there are no debug pages",
            ],
        ),
        (
            &[("USE_PROMETHEUS", "1"), ("PROMETHEUS_ADDR", "nowhere")],
            &["PROMETHEUS_ADDR: "],
        ),
        // Half of a certificate.
        (
            &[("REDIS_TLS", "1"), ("REDIS_TLS_CLIENT_CERT", "/c")],
            &[
                "REDIS_TLS_CLIENT_CERT: has no effect without REDIS_TLS_CLIENT_KEY, so no certificate is shown",
            ],
        ),
        (&[("REDIS_TLS_CLIENT_CERT", "/c")], &[]),
        (
            &[
                XDS,
                ("CONFIG_GRPC_XDS_SERVER_USE_TLS", "1"),
                ("CONFIG_GRPC_XDS_CLIENT_TLS_KEY", "/k"),
            ],
            &[
                "CONFIG_GRPC_XDS_CLIENT_TLS_KEY: has no effect without CONFIG_GRPC_XDS_CLIENT_TLS_CERT, so",
            ],
        ),
        (
            &[
                ("GRPC_SERVER_USE_TLS", "1"),
                ("GRPC_SERVER_TLS_CERT", "/c"),
                ("GRPC_SERVER_TLS_KEY", "/k"),
                ("GRPC_CLIENT_TLS_SAN", "envoy"),
            ],
            &["GRPC_CLIENT_TLS_SAN: has no effect without GRPC_CLIENT_TLS_CACERT"],
        ),
        // OpenTelemetry.
        (
            &[TRACES, ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")],
            &[
                "OTEL_EXPORTER_OTLP_TIMEOUT: `10s` is not a number of milliseconds; it counts as 10000",
            ],
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_TIMEOUT", " 5 "),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ],
            &[
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: `0` is not a number of milliseconds; it counts as 5",
            ],
        ),
        (
            &[TRACES, ("OTEL_EXPORTER_OTLP_ENDPOINT", "unix:///run/x")],
            &[
                "OTEL_EXPORTER_OTLP_ENDPOINT: `unix:///run/x`: write the URL of a collector, like \
               http://collector:4317; it counts as http://localhost:4318",
            ],
        ),
        (
            &[TRACES, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector")],
            &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `collector`: write the URL"],
        ),
        (
            &[
                TRACES,
                OVER_TLS,
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/ca"),
            ],
            &["OTEL_EXPORTER_OTLP: "],
        ),
        (
            &[
                TRACES,
                OVER_TLS,
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/no/cert"),
                ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/no/key"),
            ],
            &["OTEL_EXPORTER_OTLP: "],
        ),
        (
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
                ("TRACING_SAMPLING_RATE", "-1"),
            ],
            &[],
        ),
        // Mogrifiers that nobody asks for.
        (
            &[
                ("USE_DOG_STATSD_MOGRIFIERS", "A"),
                ("DOG_STATSD_MOGRIFIER_A_TAGS", "no pair"),
            ],
            &[],
        ),
    ];
    for (variables, told) in rows {
        let (_, notes) = all(variables).unwrap_or_else(|error| panic!("{variables:?}: {error}"));
        assert_eq!(notes.len(), told.len(), "{variables:?}: {notes:?}");
        for (note, told) in notes.iter().zip(*told) {
            assert!(note.starts_with(told), "{note}");
            assert!(!note.contains("hush"), "{note}");
        }
    }
}

#[test]
fn what_the_reference_does_not_start_with_does_not_start() {
    for (variables, named) in [
        // envconfig reads nothing as no number, no truth value and no duration.
        (&[("PORT", "")][..], "PORT"),
        (&[("USE_STATSD", "")], "USE_STATSD"),
        (&[("REDIS_TIMEOUT", "")], "REDIS_TIMEOUT"),
        (&[("NEAR_LIMIT_RATIO", "")], "NEAR_LIMIT_RATIO"),
        (
            &[("XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES", "")],
            "XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES",
        ),
        (&[("LOG_LEVEL", "")], "LOG_LEVEL"),
        (&[("CONFIG_TYPE", "")], "CONFIG_TYPE"),
        (&[("BACKEND_TYPE", "valkey")], "BACKEND_TYPE"),
        (&[("REDIS_TYPE", "")], "REDIS_TYPE"),
        (&[("REDIS_SOCKET_TYPE", "")], "REDIS_SOCKET_TYPE"),
        (&[("PORT", "-1")], "PORT"),
        (&[("GRPC_PORT", "65536")], "GRPC_PORT"),
        (&[("REDIS_POOL_SIZE", "ten")], "REDIS_POOL_SIZE"),
        (&[("STATS_FLUSH_INTERVAL", "-1s")], "STATS_FLUSH_INTERVAL"),
        (&[("EXTRA_TAGS", "no pair")], "EXTRA_TAGS"),
        (&[TCP, ("REDIS_URL", "")], "REDIS_URL"),
        (
            &[("GRPC_SERVER_USE_TLS", "1"), ("GRPC_SERVER_TLS_CERT", "/c")],
            "GRPC_SERVER_TLS_KEY",
        ),
        (
            &[TRACES, ("TRACING_EXPORTER_PROTOCOL", "carrier pigeon")],
            "TRACING_EXPORTER_PROTOCOL",
        ),
        (
            &[
                DOG,
                ("USE_DOG_STATSD_MOGRIFIERS", "A"),
                ("DOG_STATSD_MOGRIFIER_A_NAME", "a"),
            ],
            "DOG_STATSD_MOGRIFIER_A_PATTERN",
        ),
    ] {
        let error = all(variables).map(|_| ()).expect_err(named);
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn nothing_and_less_mean_what_they_mean_there() {
    let settings = |variables: &[(&str, &str)]| all(variables).unwrap().0;
    let age = settings(&[
        ("GRPC_MAX_CONNECTION_AGE", "-1s"),
        ("GRPC_MAX_CONNECTION_AGE_GRACE", "0"),
    ]);
    assert_eq!(age.connection_age, ConnectionAge::default());
    assert!(settings(&[("LOCAL_CACHE_SIZE_IN_BYTES", "-1")]).local_cache);
    let xds = settings(&[
        XDS,
        ("XDS_CLIENT_BACKOFF_INITIAL_INTERVAL", "0"),
        ("XDS_CLIENT_BACKOFF_MAX_INTERVAL", "-1s"),
        ("CONFIG_GRPC_XDS_NODE_METADATA", "a=b,c,,d=e=f"),
        (
            "CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS",
            "Authorization:me",
        ),
    ]);
    let xds = xds.xds.unwrap();
    assert_eq!(xds.backoff.initial, Duration::from_millis(100));
    assert_eq!(xds.backoff.max, Duration::from_secs(10));
    let pairs = [("a", "b"), ("d", "e=f")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(xds.node_metadata, pairs);
    assert_eq!(xds.headers[0].0.as_str(), "authorization");
    let statistics = settings(&[
        ("USE_PROMETHEUS", "1"),
        ("PROMETHEUS_ADDR", ""),
        ("PROMETHEUS_PATH", "numbers"),
        ("STATSD_HOST", ""),
    ]);
    let statistics = statistics.statistics;
    assert_eq!(statistics.metrics_path, "/numbers");
    assert_eq!(statistics.metrics_listen, ":9090".parse().ok());
    assert_eq!(statistics.statsd.unwrap().to.host, "localhost:8125");
}

#[test]
fn plan_files_are_where_the_reference_has_them() {
    let folder = |variables: &[(&str, &str)]| {
        let mut all_variables = vec![("RUNTIME_ROOT", "/root"), ("RUNTIME_APPDIRECTORY", "app")];
        all_variables.splice(0..0, variables.iter().copied());
        let paths = all(&all_variables).unwrap().0.plans.paths;
        paths.first().map(|path| path.display().to_string())
    };
    let nowhere = ("RUNTIME_SUBDIRECTORY", "");
    let unwatched = ("RUNTIME_WATCH_ROOT", "false");
    assert_eq!(folder(&[]).as_deref(), Some("/root/here/app"));
    assert_eq!(folder(&[unwatched]).as_deref(), Some("/root/here/app"));
    assert_eq!(folder(&[nowhere]), None);
    assert_eq!(folder(&[nowhere, unwatched]).as_deref(), Some("/root/app"));
    assert_eq!(folder(&[("RUNTIME_APPDIRECTORY", ""), unwatched]), None);
}

#[test]
fn both_redis_are_found() {
    let tcp = ("REDIS_SOCKET_TYPE", "tcp");
    let url = |text: &str| text.parse::<RedisUrl>().unwrap();
    let found = stores_of(&[]).unwrap();
    let socket = url("redis+unix:///var/run/nutcracker/ratelimit.sock");
    assert_eq!((found.main, found.per_second), (socket, None));
    let found = stores_of(&[
        tcp,
        ("REDIS_URL", "redis:6379"),
        ("REDIS_AUTH", "me:p@ss"),
        ("REDIS_PERSECOND", "true"),
        ("REDIS_PERSECOND_SOCKET_TYPE", "tcp"),
        ("REDIS_PERSECOND_TYPE", "cluster"),
        ("REDIS_PERSECOND_URL", "a:1,b:2"),
        ("REDIS_PERSECOND_TLS", "true"),
        ("REDIS_TLS_CACERT", "/ca.crt"),
    ])
    .unwrap();
    assert_eq!(found.main, url("redis://me:p%40ss@redis:6379"));
    let cluster = url("rediss+cluster://a:1,b:2?ca=/ca.crt");
    assert_eq!(found.per_second, Some(cluster));
}
