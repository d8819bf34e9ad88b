//! The one translation of envoyproxy/ratelimit's environment into our settings, and what it has to say about it.

mod statistics;

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
    settings::{Address, AddressError, ConnectionAge, Dialect, HealthNeeds, Settings, StoreChoice},
    store::redis::RedisUrlError,
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
    #[error("REDIS_URL: {0}")]
    RedisUrl(#[from] RedisUrlError),
    #[error("{variable}: {reason}")]
    Value {
        variable: &'static str,
        reason: String,
    },
    #[error("{variable} asks for what this build cannot do, and going on without would be wrong")]
    Unable { variable: &'static str },
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
        "CACHE_KEY_PREFIX",
        "keys begin with `tollgate:`; share no Redis between services that have the same domains",
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
    (
        "REDIS_PERSECOND",
        "rules per second count in the Redis of all rules",
    ),
    ("PROMETHEUS_MAPPER_YAML", "metrics have fixed names"),
    ("TRACING_ENABLED", "no traces are sent"),
];

/// The settings that `environment` asks for; what it has no variable for is as in `native`.
///
/// # Errors
/// [`EnvironmentError`], for what cannot be honoured and would be wrong to leave out.
pub fn settings(environment: &Environment, native: Settings) -> Result<Settings, EnvironmentError> {
    refuse(environment)?;
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
                merge_domains: environment.plans.merge_domain_config,
                response: response(&environment.answers)?,
                counting: counting(environment, native.plans.options.counting),
                modes: Modes {
                    shadow: environment.answers.shadow_mode,
                    quota: environment.answers.quota_mode,
                },
            },
        },
        wait_for_plans: true,
        local_cache: environment.counting.local_cache_size_in_bytes > 0,
        xds,
        grpc_listen: vec![grpc],
        grpc_tls: tls_and_xds::grpc_tls(&environment.grpc_tls)?,
        http_listen: address("HOST and PORT", &listen.host, listen.port)?,
        debug_listen: Some(debug),
        store: StoreChoice::Redis(redis_url(&environment.redis).parse()?),
        statistics: statistics::settings(environment)?,
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

/// Without these it would serve other than was asked for: unprotected, or with other counts.
fn refuse(environment: &Environment) -> Result<(), EnvironmentError> {
    if environment.counting.backend_type == BackendType::Memcache {
        return Err(EnvironmentError::Memcache);
    }
    let unable = [
        ("REDIS_TLS", environment.redis.tls),
        ("REDIS_TYPE", environment.redis.r#type != RedisType::Single),
    ];
    match unable.iter().find(|(_, asked)| *asked) {
        Some((variable, _)) => Err(EnvironmentError::Unable { variable }),
        None => Ok(()),
    }
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
        metadata: match answers.response_dynamic_metadata {
            true => MetadataStyle::Request,
            false => MetadataStyle::None,
        },
        limit_headers: answers
            .limit_response_headers_enabled
            .then(|| Box::new(headers)),
        body: "".into(),
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

/// `redis://[user:password@]host:port`, or a socket's path with the same.
fn redis_url(redis: &Redis) -> String {
    let (user, password) = match redis.auth.split_once(':') {
        Some((user, password)) => (user, password),
        None => ("", &*redis.auth),
    };
    let whole = redis.url.contains("://");
    let text = match redis.socket_type {
        _ if whole => redis.url.clone(),
        SocketType::Tcp => format!("redis://{}", redis.url),
        SocketType::Unix => format!("redis+unix://{}", redis.url),
    };
    let Ok(mut url) = url::Url::parse(&text) else {
        return text;
    };
    if redis.auth.is_empty() {
        return text;
    }
    if url.has_host() {
        // Fails only for URLs without a host.
        let _ = url.set_username(user);
        let _ = url.set_password(Some(password));
    } else {
        let mut query = url.query_pairs_mut();
        query.append_pair("pass", password);
        if !user.is_empty() {
            query.append_pair("user", user);
        }
    }
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis_of(variables: &[(&str, &str)]) -> String {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).into())
        };
        redis_url(&Environment::read(&lookup).unwrap().redis)
    }

    #[test]
    fn redis_is_found_by_each_of_the_references_forms() {
        let tcp = ("REDIS_SOCKET_TYPE", "tcp");
        for (variables, url) in [
            (vec![], "redis+unix:///var/run/nutcracker/ratelimit.sock"),
            (vec![tcp, ("REDIS_URL", "redis:6379")], "redis://redis:6379"),
            (
                vec![
                    tcp,
                    ("REDIS_URL", "redis:6379"),
                    ("REDIS_AUTH", "p@ss/w:rd"),
                ],
                "redis://p%40ss%2Fw:rd@redis:6379",
            ),
            (
                vec![tcp, ("REDIS_URL", "redis:6379"), ("REDIS_AUTH", "me:p@ss")],
                "redis://me:p%40ss@redis:6379",
            ),
            (
                vec![tcp, ("REDIS_URL", "redis:6379"), ("REDIS_AUTH", "p@ss")],
                "redis://:p%40ss@redis:6379",
            ),
            (
                vec![tcp, ("REDIS_URL", "redis://u:p@redis:6379/2")],
                "redis://u:p@redis:6379/2",
            ),
            (
                vec![("REDIS_URL", "/r.sock"), ("REDIS_AUTH", "me:a b")],
                "redis+unix:///r.sock?pass=a+b&user=me",
            ),
        ] {
            let found = redis_of(&variables);
            assert_eq!(found, url);
            assert!(
                found.parse::<crate::store::redis::RedisUrl>().is_ok(),
                "{found}"
            );
        }
    }

    #[test]
    fn every_variable_without_effect_is_one() {
        let names = Environment::names();
        for (name, _) in NO_EFFECT {
            assert!(names.contains(*name), "{name}");
        }
    }
}
