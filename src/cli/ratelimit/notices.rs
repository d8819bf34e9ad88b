//! What whoever set the environment should know: which variables have no effect, and which are misspelt.

use std::{borrow::Cow, collections::BTreeSet};

use super::environment::{ConfigType, Environment};

/// Variables that have no effect here where they are set, and why. Those of `REDIS_PERSECOND_` are as those of `REDIS_`.
const NO_EFFECT: &[(&[&str], &str)] = &[
    (
        &["RUNTIME_IGNOREDOTFILES"],
        "names that begin with a dot are never read",
    ),
    (
        &["EXPIRATION_JITTER_MAX_SECONDS"],
        "buckets expire on their own when they are full",
    ),
    (
        &["REDIS_POOL_SIZE", "REDIS_POOL_ON_EMPTY_BEHAVIOR"],
        "two connections carry all decisions",
    ),
    (
        &[
            "REDIS_PIPELINE_WINDOW",
            "REDIS_PIPELINE_LIMIT",
            "REDIS_CLUSTER_PIPELINE_PARALLELISM",
        ],
        "batches form without waiting, and nodes are asked at once",
    ),
    (
        &["REDIS_TIMEOUT"],
        "a decision waits for Redis as long as TOLLGATE_STORE_TIMEOUT says",
    ),
    (
        &[
            "REDIS_STARTUP_INITIAL_INTERVAL",
            "REDIS_STARTUP_MAX_INTERVAL",
            "REDIS_STARTUP_MAX_ELAPSED_TIME",
        ],
        "starting needs no Redis",
    ),
    (
        &["REDIS_CLOSE_CONNECTION_ON_READONLY_ERROR"],
        "it is always so",
    ),
    (
        &[
            "MEMCACHE_HOST_PORT",
            "MEMCACHE_SRV",
            "MEMCACHE_SRV_REFRESH",
            "MEMCACHE_MAX_IDLE_CONNS",
            "MEMCACHE_TLS",
            "MEMCACHE_TLS_CLIENT_CERT",
            "MEMCACHE_TLS_CLIENT_KEY",
            "MEMCACHE_TLS_CACERT",
            "MEMCACHE_TLS_SKIP_HOSTNAME_VERIFICATION",
        ],
        "buckets live in Redis",
    ),
];

/// Names that begin so are meant for the reference. Others, like HOST and PORT, have many owners.
const PREFIXES: [&str; 14] = [
    "CONFIG_",
    "FORCE_START_",
    "GRPC_",
    "HEALTHY_WITH_",
    "LIMIT_",
    "MEMCACHE_",
    "PROMETHEUS_",
    "REDIS_",
    "RUNTIME_",
    "STATSD_",
    "STATS_",
    "TRACING_",
    "USE_",
    "XDS_CLIENT_",
];

/// One line of those that are set to something else than their default and change nothing, and of `ours`, with why; none if there
/// are none.
pub fn without_effect(environment: &Environment, ours: Vec<(Vec<String>, &str)>) -> Option<String> {
    let is_set = |name: &str| environment.changed.contains(name);
    let mut parts = Vec::new();
    for (names, why) in NO_EFFECT {
        let per_second = names
            .iter()
            .filter_map(|name| Some(format!("REDIS_PERSECOND_{}", name.strip_prefix("REDIS_")?)));
        let names = names.iter().map(|name| (*name).to_owned());
        let set: Vec<_> = names
            .chain(per_second)
            .filter(|name| is_set(name))
            .collect();
        if !set.is_empty() {
            parts.push(format!("{} ({why})", set.join(", ")));
        }
    }
    let plans = &environment.plans;
    let watch = "RUNTIME_WATCH_ROOT";
    if is_set(watch) && !plans.runtime_subdirectory.is_empty() {
        parts.push(format!(
            "{watch} (the files and all links to them are watched)"
        ));
    }
    let force = "FORCE_START_WITHOUT_INITIAL_CONFIG";
    if is_set(force) && plans.config_type == ConfigType::File {
        parts.push(format!("{force} (with files it always starts)"));
    }
    let ours = ours.into_iter();
    parts.extend(ours.map(|(names, why)| format!("{} ({why})", names.join(", "))));
    (!parts.is_empty()).then(|| format!("set without effect: {}", parts.join("; ")))
}

/// A line for each variable of `set` that nobody reads and that is one letter from one that is read and not set.
pub fn misspelt(set: &BTreeSet<String>) -> Vec<String> {
    let known = Environment::names();
    let foreign = set.iter().filter(|name| {
        let ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        ours && !known.contains(&Cow::Borrowed(name.as_str()))
    });
    let lines = foreign.filter_map(|name| {
        let near = |known: &&Cow<'_, str>| {
            strsim::osa_distance(name, known) == 1 && !set.contains(known.as_ref())
        };
        let mut near = known.iter().filter(near);
        let (meant, other) = (near.next()?, near.next());
        other
            .is_none()
            .then(|| format!("{name} is not known, did you mean {meant}?"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).into())
        };
        Environment::read(&lookup).unwrap()
    }

    #[test]
    fn what_has_no_effect_is_told_in_one_line() {
        let line = |variables: &[(&str, &str)]| without_effect(&read(variables), Vec::new());
        assert_eq!(line(&[("REDIS_POOL_SIZE", "10")]), None, "its default");
        let told = line(&[
            ("REDIS_TIMEOUT", "3s"),
            ("REDIS_PERSECOND", "true"),
            ("REDIS_PERSECOND_TIMEOUT", "3s"),
            ("FORCE_START_WITHOUT_INITIAL_CONFIG", "true"),
        ]);
        let expected = "set without effect: REDIS_TIMEOUT, REDIS_PERSECOND_TIMEOUT (a decision waits for Redis as long as \
                        TOLLGATE_STORE_TIMEOUT says); FORCE_START_WITHOUT_INITIAL_CONFIG (with files it always starts)";
        assert_eq!(told.as_deref(), Some(expected));
        let xds = ("CONFIG_TYPE", "GRPC_XDS_SOTW");
        assert_eq!(
            line(&[xds, ("FORCE_START_WITHOUT_INITIAL_CONFIG", "1")]),
            None
        );
    }

    #[test]
    fn every_variable_without_effect_is_one() {
        let names = Environment::names();
        for name in NO_EFFECT.iter().flat_map(|(names, _)| *names) {
            assert!(names.contains(*name), "{name}");
        }
    }

    #[test]
    fn only_what_is_surely_meant_is_asked_for() {
        for (set, asked) in [
            (
                &["REDIS_ULR"][..],
                Some("REDIS_ULR is not known, did you mean REDIS_URL?"),
            ),
            (
                &["REDIS_TLS_CA_CERT"],
                Some("REDIS_TLS_CA_CERT is not known, did you mean REDIS_TLS_CACERT?"),
            ),
            (&["REDIS_URI", "REDIS_URL"], None),
            (
                &[
                    "REDIS_PORT",
                    "GRPC_SERVER_TLS_CA_CERT",
                    "HOSTS",
                    "REDIS_PORT_6379_TCP",
                ],
                None,
            ),
            (&["REDIS_URL", "GRPC_PORT"], None),
        ] {
            let set = set.iter().map(|name| (*name).to_owned()).collect();
            let lines = misspelt(&set);
            assert_eq!(lines.first().map(String::as_str), asked);
            assert!(lines.len() < 2);
        }
    }
}
