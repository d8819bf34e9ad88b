//! Where statistics go.

use std::{path::Path, sync::Arc};

use regex::Regex;

use super::{Environment, EnvironmentError, host_and_port};
use crate::{
    cli::ratelimit::environment::{self, Stats, StatsdProtocol},
    settings::{
        Address, Mapping, Mogrifier, Protocol, StatisticsSettings, StatsdAddress, StatsdSettings,
        TagStyle,
    },
};

pub(super) fn settings(
    environment: &Environment,
    notes: &mut Vec<String>,
) -> Result<StatisticsSettings, EnvironmentError> {
    let stats = &environment.stats;
    let shown = stats.use_prometheus && !stats.disabled;
    let sent = (stats.use_statsd || stats.use_dog_statsd) && !stats.disabled;
    Ok(StatisticsSettings {
        on_pages: shown,
        metrics_listen: shown.then(|| page(stats, notes)).flatten(),
        metrics_path: match &*stats.prometheus_path {
            "" => "/metrics".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        },
        mapping: shown.then(|| mapping(stats)).flatten(),
        response_time_in_ms: stats.prometheus_response_time_as_milliseconds,
        near_limit_ratio: environment.counting.near_limit_ratio as f32,
        statsd: match sent {
            true => statsd(stats, notes)?,
            false => None,
        },
    })
}

// Source: envoyproxy/ratelimit: nothing is its default, and without an address it has no page.
fn page(stats: &Stats, notes: &mut Vec<String>) -> Option<Address> {
    let address = match &*stats.prometheus_addr {
        "" => ":9090",
        said => said,
    };
    let no_page = |error| notes.push(format!("PROMETHEUS_ADDR: {error}; only PORT shows metrics"));
    address.parse().map_err(no_page).ok()
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
fn statsd(
    stats: &Stats,
    notes: &mut Vec<String>,
) -> Result<Option<StatsdSettings>, EnvironmentError> {
    if stats.flush_interval.is_zero() {
        return Err(EnvironmentError::FlushInterval);
    }
    let port = match stats.statsd_port.get() {
        Ok(port) => port,
        Err(reason) => {
            notes.push(format!("STATSD_PORT: {reason}; no statistics are sent"));
            return Ok(None);
        }
    };
    let host = match &*stats.statsd_host {
        // As Go has it.
        "" => "localhost",
        host => host,
    };
    let udp = stats.use_dog_statsd || stats.statsd_protocol == StatsdProtocol::Udp;
    Ok(Some(StatsdSettings {
        to: StatsdAddress {
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            host: host_and_port(host, port),
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
    }))
}

fn mogrifier(from: &environment::Mogrifier) -> Result<Mogrifier, EnvironmentError> {
    // Source: envoyproxy/ratelimit starts with neither.
    for (part, said) in [("PATTERN", &from.pattern), ("NAME", &from.name)] {
        if said.is_empty() {
            return Err(EnvironmentError::Mogrifier {
                variable: from.variable(part),
            });
        }
    }
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
