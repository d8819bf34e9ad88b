//! The one translation of envoyproxy/ratelimit's environment into our settings.

mod statistics;
mod traces;

use std::{path::PathBuf, time::Duration};

use super::{
    environment::{Answers, BackendType, Environment, PlanFiles, Redis, RedisStart, RedisType},
    tls_and_xds,
    values::Port,
};
use crate::{
    plan::{
        Charge, Counting, LimitHeaders, LoadOptions, MetadataStyle, Modes, ResponseOptions, Sources,
    },
    settings::{
        Address, AddressError, ConnectionAge, Dialect, HealthNeeds, RedisChoice, Settings,
        StoreChoice,
    },
    store::redis::{RedisUrl, RedisUrlError, ReferenceKind, ReferenceRedis, Tls},
};

/// Why the environment cannot be served by.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum EnvironmentError {
    #[error("{variables}: {source}")]
    Address {
        variables: &'static str,
        source: AddressError,
    },
    #[error("BACKEND_TYPE: memcache has no exact counters; set it to redis, and REDIS_URL")]
    Memcache,
    #[error("STATS_FLUSH_INTERVAL must be longer than nothing, like 10s")]
    FlushInterval,
    #[error("{variable}: USE_DOG_STATSD_MOGRIFIERS needs it")]
    Mogrifier { variable: String },
    #[error("{variable}: {source}")]
    Pattern {
        variable: String,
        source: regex::Error,
    },
    #[error("{variable}: {source}")]
    RedisUrl {
        variable: &'static str,
        source: RedisUrlError,
    },
    #[error("{variable}: {reason}")]
    Value {
        variable: &'static str,
        reason: String,
    },
}

impl EnvironmentError {
    /// A value that is not what the variable takes.
    pub(super) fn value(variable: &'static str, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Self::Value { variable, reason }
    }
}

/// The settings that `environment` asks for; what it has no variable for is as in `native`. What the reference starts with and
/// cannot be done as it is said goes to `notes`, with what is done instead.
///
/// # Errors
/// [`EnvironmentError`], for what cannot be honoured and would be wrong to leave out.
pub fn settings(
    environment: &Environment,
    native: Settings,
    notes: &mut Vec<String>,
) -> Result<Settings, EnvironmentError> {
    if environment.counting.backend_type == BackendType::Memcache {
        return Err(EnvironmentError::Memcache);
    }
    let listen = &environment.listen;
    let grpc = match &*listen.grpc_uds {
        "" => address(
            ["GRPC_HOST", "GRPC_PORT"],
            &listen.grpc_host,
            listen.grpc_port,
        )?,
        path => Address::Unix(path.into()),
    };
    let debug = address(
        ["DEBUG_HOST", "DEBUG_PORT"],
        &listen.debug_host,
        listen.debug_port,
    );
    let debug = debug.map_err(|error| notes.push(format!("{error}; there are no debug pages")));
    let xds = tls_and_xds::xds(environment, notes);
    Ok(Settings {
        plans: Sources {
            paths: match xds {
                Some(_) => Vec::new(),
                None => folder(&environment.plans, notes).into_iter().collect(),
            },
            options: LoadOptions {
                every_file: true,
                last_wins: true,
                merge_domains: environment.plans.merge_domain_config,
                response: response(&environment.answers, notes),
                counting: counting(environment, native.plans.options.counting),
                modes: Modes {
                    shadow: environment.answers.shadow_mode,
                    quota: environment.answers.quota_mode,
                },
                key_prefix: environment.counting.cache_key_prefix.as_str().into(),
            },
        },
        wait_for_plans: true,
        local_cache: environment.counting.local_cache_size_in_bytes != 0,
        xds,
        grpc_listen: vec![grpc],
        grpc_tls: tls_and_xds::grpc_tls(&environment.grpc_tls, notes)?,
        http_listen: address(["HOST", "PORT"], &listen.host, listen.port)?,
        debug_listen: debug.ok(),
        store: StoreChoice::Redis(Box::new(stores(environment, notes)?)),
        statistics: statistics::settings(environment, notes)?,
        traces: traces::settings(&environment.tracing, notes)?,
        dialect: Dialect::Reference,
        health_needs: HealthNeeds {
            plans: listen.healthy_with_at_least_one_config_loaded,
            store: environment.redis_start.health_check_active_connection,
        },
        connection_age: ConnectionAge {
            limit: some_time(listen.grpc_max_connection_age),
            grace: some_time(listen.grpc_max_connection_age_grace),
        },
        ..native
    })
}

/// TOLLGATE_ALGORITHM and TOLLGATE_CHARGE, and what the reference says of charging.
fn counting(environment: &Environment, native: Counting) -> Counting {
    let stops = environment.counting.stop_cache_key_increment_when_overlimit;
    Counting {
        charge: match native.charge {
            Charge::Independent if stops => Charge::StopWhenOver,
            charge => charge,
        },
        // A cost that comes with the response is told as hits of a descriptor.
        overdraw: true,
        ..native
    }
}

fn address(
    [host_variable, port_variable]: [&'static str; 2],
    host: &str,
    port: Port,
) -> Result<Address, EnvironmentError> {
    let port = port.get();
    let port = port.map_err(|reason| EnvironmentError::value(port_variable, reason))?;
    let parsed = host_and_port(host, port).parse();
    parsed.map_err(|source| EnvironmentError::Address {
        variables: host_variable,
        source,
    })
}

/// `HOST:PORT`; an empty host is every address, as Go has it.
fn host_and_port(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Zero means "without end" in Go's gRPC.
fn some_time(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

/// The folder of plan files. Source: envoyproxy/ratelimit as run: without a subdirectory it has no configuration unless
/// RUNTIME_WATCH_ROOT is false, without an appdirectory never, and neither is an error.
fn folder(plans: &PlanFiles, notes: &mut Vec<String>) -> Option<PathBuf> {
    let (within, below) = (&plans.runtime_subdirectory, &plans.runtime_appdirectory);
    let missing = if within.is_empty() && plans.runtime_watch_root {
        "RUNTIME_SUBDIRECTORY"
    } else if below.is_empty() {
        "RUNTIME_APPDIRECTORY"
    } else {
        return Some(PathBuf::from(&plans.runtime_root).join(within).join(below));
    };
    notes.push(format!("{missing} is not set, so no plan file is read"));
    None
}

/// Nothing is shown that the variables do not ask for; a plan file may ask for more.
fn response(answers: &Answers, notes: &mut Vec<String>) -> ResponseOptions {
    let mut header = |variable, name: &str, usual: &str| {
        let is_name = http::HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !is_name {
            notes.push(format!(
                "{variable}: `{name}` is not the name of a header; it counts as {usual}"
            ));
        }
        if is_name { name } else { usual }.into()
    };
    let headers = LimitHeaders {
        limit: header(
            "LIMIT_LIMIT_HEADER",
            &answers.limit_limit_header,
            "RateLimit-Limit",
        ),
        remaining: header(
            "LIMIT_REMAINING_HEADER",
            &answers.limit_remaining_header,
            "RateLimit-Remaining",
        ),
        reset: header(
            "LIMIT_RESET_HEADER",
            &answers.limit_reset_header,
            "RateLimit-Reset",
        ),
    };
    ResponseOptions {
        retry_after: false,
        ratelimit: false,
        x_ratelimit: false,
        degraded: false,
        metadata: match answers.response_dynamic_metadata {
            true => MetadataStyle::Request,
            false => MetadataStyle::None,
        },
        limit_headers: answers
            .limit_response_headers_enabled
            .then(|| Box::new(headers)),
        body: "".into(),
        quota_body: "".into(),
        warning_header: "".into(),
        overage_header: "".into(),
        ..ResponseOptions::default()
    }
}

/// The Redis of all limits, and that of limits per second if there is one.
fn stores(
    environment: &Environment,
    notes: &mut Vec<String>,
) -> Result<RedisChoice, EnvironmentError> {
    let per_second = environment.redis_per_second.as_ref();
    let wants_tls = environment.redis.tls || per_second.is_some_and(|redis| redis.tls);
    let tls = wants_tls.then(|| redis_tls(&environment.redis_start, notes));
    let url = |[url, socket_type]: [&'static str; 2], redis: &Redis| {
        let said = ReferenceRedis {
            kind: match redis.r#type {
                RedisType::Single => ReferenceKind::Single,
                RedisType::Sentinel => ReferenceKind::Sentinel,
                RedisType::Cluster => ReferenceKind::Cluster,
            },
            // Source: envoyproxy/ratelimit gives it to Go's net.Dial, but for sentinels and clusters.
            unix: match &*redis.socket_type.to_lowercase() {
                "unix" => true,
                "tcp" | "tcp4" | "tcp6" => false,
                _ if redis.r#type != RedisType::Single => false,
                _ => {
                    let reason = format!("`{}` is not one of tcp, unix", redis.socket_type);
                    return Err(EnvironmentError::value(socket_type, reason));
                }
            },
            url: &redis.url,
            auth: &redis.auth,
            sentinel_auth: &redis.sentinel_auth,
            tls: tls.clone().filter(|_| redis.tls),
        };
        RedisUrl::from_reference(&said).map_err(|source| EnvironmentError::RedisUrl {
            variable: url,
            source,
        })
    };
    Ok(RedisChoice {
        main: url(["REDIS_URL", "REDIS_SOCKET_TYPE"], &environment.redis)?,
        per_second: per_second
            .map(|redis| {
                let variables = ["REDIS_PERSECOND_URL", "REDIS_PERSECOND_SOCKET_TYPE"];
                url(variables, redis)
            })
            .transpose()?,
    })
}

fn redis_tls(files: &RedisStart, notes: &mut Vec<String>) -> Tls {
    let identity = tls_and_xds::identity(
        ["REDIS_TLS_CLIENT_CERT", "REDIS_TLS_CLIENT_KEY"],
        &files.tls_client_cert,
        &files.tls_client_key,
        notes,
    );
    Tls {
        ca: (!files.tls_cacert.is_empty()).then(|| files.tls_cacert.clone().into()),
        identity: identity.map(|files| (files.cert, files.key)),
        skip_hostname_verification: files.tls_skip_hostname_verification,
    }
}

#[cfg(test)]
mod tests;
