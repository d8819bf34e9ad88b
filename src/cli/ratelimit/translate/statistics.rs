//! Where statistics go.

use std::{path::Path, sync::Arc};

use regex::Regex;

use super::{Environment, EnvironmentError, host_and_port};
use crate::{
    cli::ratelimit::environment::{self, Stats, StatsdProtocol},
    settings::{
        Mapping, Mogrifier, Protocol, StatisticsSettings, StatsdAddress, StatsdSettings, TagStyle,
    },
};

pub(super) fn settings(environment: &Environment) -> Result<StatisticsSettings, EnvironmentError> {
    let stats = &environment.stats;
    let shown = stats.use_prometheus && !stats.disabled;
    let sent = (stats.use_statsd || stats.use_dog_statsd) && !stats.disabled;
    let page = || {
        let parsed = stats.prometheus_addr.parse();
        parsed.map_err(|source| EnvironmentError::Address {
            variables: "PROMETHEUS_ADDR",
            source,
        })
    };
    Ok(StatisticsSettings {
        on_pages: shown,
        metrics_listen: shown.then(page).transpose()?,
        metrics_path: stats.prometheus_path.clone(),
        mapping: shown.then(|| mapping(stats)).flatten(),
        response_time_in_ms: stats.prometheus_response_time_as_milliseconds,
        near_limit_ratio: environment.counting.near_limit_ratio as f32,
        statsd: sent.then(|| statsd(stats)).transpose()?,
    })
}

/// The mapping that a file has instead of the reference's own. One that cannot be used never keeps the service from starting:
/// Envoy Gateway names a file whether it is there or not.
fn mapping(stats: &Stats) -> Option<Arc<Mapping>> {
    let path = Some(&stats.prometheus_mapper_yaml).filter(|path| !path.is_empty())?;
    match Mapping::read(Path::new(path)) {
        Ok(mapping) => Some(Arc::new(mapping)),
        Err(error) => {
            tracing::warn!(
                "PROMETHEUS_MAPPER_YAML: metrics keep their usual names: {path}: {error}"
            );
            None
        }
    }
}

// Source: envoyproxy/ratelimit: DogStatsD is spoken over UDP, StatsD as gostats does.
fn statsd(stats: &Stats) -> Result<StatsdSettings, EnvironmentError> {
    if stats.flush_interval.is_zero() {
        return Err(EnvironmentError::FlushInterval);
    }
    let udp = stats.use_dog_statsd || stats.statsd_protocol == StatsdProtocol::Udp;
    Ok(StatsdSettings {
        to: StatsdAddress {
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            host: host_and_port(&stats.statsd_host, stats.statsd_port),
        },
        flush_interval: stats.flush_interval,
        tags: stats.extra_tags.0.clone(),
        tag_style: match stats.use_dog_statsd {
            true => TagStyle::Dog,
            false => TagStyle::InName,
        },
        mogrifiers: match stats.use_dog_statsd {
            true => stats
                .mogrifiers
                .iter()
                .map(mogrifier)
                .collect::<Result<_, _>>()?,
            false => Vec::new(),
        },
    })
}

fn mogrifier(from: &environment::Mogrifier) -> Result<Mogrifier, EnvironmentError> {
    let pattern = Regex::new(&from.pattern).map_err(|source| EnvironmentError::Pattern {
        variable: from.variable("PATTERN"),
        source,
    })?;
    Ok(Mogrifier {
        pattern,
        name: from.name.clone(),
        tags: from.tags.0.clone(),
    })
}
