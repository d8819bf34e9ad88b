//! The one translation of envoyproxy/ratelimit's environment into our settings, and what it has to say about it.

mod statistics;
mod traces;

use std::{borrow::Cow, path::PathBuf, time::Duration};

use super::{
    environment::{
        Answers, BackendType, ConfigType, Environment, PlanFiles, Redis, RedisType, SocketType,
    },
    tls_and_xds,
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
    #[error("{variable}: `{value}` is not the name of a header")]
    Header {
        variable: &'static str,
        value: String,
    },
    #[error("BACKEND_TYPE: memcache has no exact counters; set it to redis, and REDIS_URL")]
    Memcache,
    #[error("STATS_FLUSH_INTERVAL must be longer than nothing, like 10s")]
    FlushInterval,
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
    #[error("REDIS_TLS_CLIENT_CERT and REDIS_TLS_CLIENT_KEY go together")]
    HalfIdentity,
}

impl EnvironmentError {
    /// A value that is not what the variable takes.
    pub(super) fn value(variable: &'static str, reason: impl ToString) -> Self {
        let reason = reason.to_string();
        Self::Value { variable, reason }
    }
}

/// Variables that have no effect here where they are set, and why.
const NO_EFFECT: &[(&str, &str)] = &[
    (
        "RUNTIME_IGNOREDOTFILES",
        "names that begin with a dot are never read",
    ),
    (
        "EXPIRATION_JITTER_MAX_SECONDS",
        "buckets expire on their own when they are full",
    ),
    (
        "REDIS_POOL_SIZE",
        "two connections carry all decisions, in batches",
    ),
    ("REDIS_PIPELINE_WINDOW", "batches form without waiting"),
    ("REDIS_PIPELINE_LIMIT", "batches have a fixed bound"),
    (
        "REDIS_CLUSTER_PIPELINE_PARALLELISM",
        "nodes are asked at once",
    ),
    (
        "REDIS_TIMEOUT",
        "a decision waits for Redis as long as TOLLGATE_STORE_TIMEOUT says",
    ),
    (
        "REDIS_POOL_ON_EMPTY_BEHAVIOR",
        "no call waits for a connection of its own",
    ),
    ("REDIS_STARTUP_INITIAL_INTERVAL", "starting needs no Redis"),
    ("REDIS_STARTUP_MAX_INTERVAL", "starting needs no Redis"),
    ("REDIS_STARTUP_MAX_ELAPSED_TIME", "starting needs no Redis"),
];

/// The settings that `environment` asks for; what it has no variable for is as in `native`.
///
/// # Errors
/// [`EnvironmentError`], for what cannot be honoured and would be wrong to leave out.
pub fn settings(environment: &Environment, native: Settings) -> Result<Settings, EnvironmentError> {
    if environment.counting.backend_type == BackendType::Memcache {
        return Err(EnvironmentError::Memcache);
    }
    let listen = &environment.listen;
    let grpc = match &*listen.grpc_uds {
        "" => address(
            "GRPC_HOST and GRPC_PORT",
            &listen.grpc_host,
            listen.grpc_port,
        )?,
        path => Address::Unix(path.into()),
    };
    let debug = address(
        "DEBUG_HOST and DEBUG_PORT",
        &listen.debug_host,
        listen.debug_port,
    )?;
    let xds = tls_and_xds::xds(environment)?;
    Ok(Settings {
        plans: Sources {
            paths: match xds {
                Some(_) => Vec::new(),
                None => folder(&environment.plans).into_iter().collect(),
            },
            options: LoadOptions {
                every_file: true,
                last_wins: true,
                merge_domains: environment.plans.merge_domain_config,
                response: response(&environment.answers)?,
                counting: counting(environment, native.plans.options.counting),
                modes: Modes {
                    shadow: environment.answers.shadow_mode,
                    quota: environment.answers.quota_mode,
                },
                key_prefix: environment.counting.cache_key_prefix.as_str().into(),
            },
        },
        wait_for_plans: true,
        local_cache: environment.counting.local_cache_size_in_bytes > 0,
        xds,
        grpc_listen: vec![grpc],
        grpc_tls: tls_and_xds::grpc_tls(&environment.grpc_tls)?,
        http_listen: address("HOST and PORT", &listen.host, listen.port)?,
        debug_listen: Some(debug),
        store: StoreChoice::Redis(Box::new(stores(environment)?)),
        statistics: statistics::settings(environment)?,
        traces: traces::settings(&environment.tracing)?,
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

/// What whoever set the environment should know: which of the variables that are set have no effect.
pub fn notices(environment: &Environment) -> Vec<String> {
    let mut notices: Vec<String> = NO_EFFECT
        .iter()
        .filter(|(name, _)| environment.changed.contains(&Cow::Borrowed(*name)))
        .map(|(name, why)| format!("{name} has no effect: {why}"))
        .collect();
    let plans = &environment.plans;
    if plans.config_type == ConfigType::File && plans.runtime_subdirectory.is_empty() {
        notices.push("RUNTIME_SUBDIRECTORY is not set, so no plan file is read".to_owned());
    }
    notices
}

fn address(variables: &'static str, host: &str, port: u16) -> Result<Address, EnvironmentError> {
    host_and_port(host, port)
        .parse()
        .map_err(|source| EnvironmentError::Address { variables, source })
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

/// The folder of plan files. Source: envoyproxy/ratelimit: without a subdirectory it has no configuration, which is not an
/// error.
fn folder(plans: &PlanFiles) -> Option<PathBuf> {
    let root = PathBuf::from(&plans.runtime_root);
    (!plans.runtime_subdirectory.is_empty()).then(|| {
        root.join(&plans.runtime_subdirectory)
            .join(&plans.runtime_appdirectory)
    })
}

/// Nothing is shown that the variables do not ask for; a plan file may ask for more.
fn response(answers: &Answers) -> Result<ResponseOptions, EnvironmentError> {
    let headers = LimitHeaders {
        limit: header("LIMIT_LIMIT_HEADER", &answers.limit_limit_header)?,
        remaining: header("LIMIT_REMAINING_HEADER", &answers.limit_remaining_header)?,
        reset: header("LIMIT_RESET_HEADER", &answers.limit_reset_header)?,
    };
    Ok(ResponseOptions {
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
    })
}

fn header(variable: &'static str, name: &str) -> Result<Box<str>, EnvironmentError> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(_) => Ok(name.into()),
        Err(_) => Err(EnvironmentError::Header {
            variable,
            value: name.to_owned(),
        }),
    }
}

/// The Redis of all limits, and that of limits per second if there is one.
fn stores(environment: &Environment) -> Result<RedisChoice, EnvironmentError> {
    let files = &environment.redis_start;
    let named = |file: &str| (!file.is_empty()).then(|| PathBuf::from(file));
    let identity = match (named(&files.tls_client_cert), named(&files.tls_client_key)) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err(EnvironmentError::HalfIdentity),
    };
    let tls = Tls {
        ca: named(&files.tls_cacert),
        identity,
        skip_hostname_verification: files.tls_skip_hostname_verification,
    };
    let url = |variable, redis: &Redis| {
        let said = ReferenceRedis {
            kind: match redis.r#type {
                RedisType::Single => ReferenceKind::Single,
                RedisType::Sentinel => ReferenceKind::Sentinel,
                RedisType::Cluster => ReferenceKind::Cluster,
            },
            unix: redis.socket_type == SocketType::Unix,
            url: &redis.url,
            auth: &redis.auth,
            sentinel_auth: &redis.sentinel_auth,
            tls: redis.tls.then(|| tls.clone()),
        };
        RedisUrl::from_reference(&said)
            .map_err(|source| EnvironmentError::RedisUrl { variable, source })
    };
    let per_second = environment.redis_per_second.as_ref();
    Ok(RedisChoice {
        main: url("REDIS_URL", &environment.redis)?,
        per_second: per_second
            .map(|redis| url("REDIS_PERSECOND_URL", redis))
            .transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores_of(variables: &[(&str, &str)]) -> Result<RedisChoice, EnvironmentError> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).into())
        };
        stores(&Environment::read(&lookup).unwrap())
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

    #[test]
    fn half_an_identity_is_none() {
        let error = stores_of(&[("REDIS_TLS_CLIENT_CERT", "/c")]).unwrap_err();
        assert!(
            error.to_string().contains("REDIS_TLS_CLIENT_KEY"),
            "{error}"
        );
    }

    #[test]
    fn every_variable_without_effect_is_one() {
        let names = Environment::names();
        for (name, _) in NO_EFFECT {
            assert!(names.contains(*name), "{name}");
        }
    }
}
