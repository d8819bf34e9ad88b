//! Flags of `serve` about statistics under the names of envoyproxy/ratelimit, and who gets them.

use std::time::Duration;

use clap::{Args, builder::BoolishValueParser};

use crate::settings::{Address, StatisticsSettings, StatsdAddress, StatsdSettings, TagStyle};

#[derive(Debug, Clone, Args)]
pub(super) struct StatisticsArgs {
    /// Show metrics under the names of envoyproxy/ratelimit, too
    #[arg(long, env = "TOLLGATE_RATELIMIT_METRICS", value_parser = BoolishValueParser::new())]
    ratelimit_metrics: bool,
    /// Where to serve the metrics page on its own, too
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_METRICS_LISTEN")]
    metrics_listen: Option<Address>,
    /// Path of that page
    #[arg(long, value_name = "PATH", env = "TOLLGATE_METRICS_PATH", default_value = "/metrics", value_parser = path)]
    metrics_path: String,
    /// StatsD server to report to, under the names of envoyproxy/ratelimit: tcp://HOST:PORT or udp://HOST:PORT
    #[arg(long, value_name = "SERVER", env = "TOLLGATE_STATSD")]
    statsd: Option<StatsdAddress>,
    /// Time between two reports to StatsD
    #[arg(long, value_name = "D", env = "TOLLGATE_STATSD_INTERVAL", default_value = "10s", value_parser = super::serve::some_time)]
    statsd_interval: Duration,
    /// Tags of every report, as DogStatsD has them: key:value,key:value
    #[arg(long, value_name = "TAGS", env = "TOLLGATE_STATSD_TAGS", value_delimiter = ',', value_parser = tag)]
    statsd_tags: Vec<(String, String)>,
    /// Part of a limit beyond which hits count as near it
    #[arg(long, value_name = "R", env = "TOLLGATE_NEAR_LIMIT_RATIO", default_value = "0.8", value_parser = ratio)]
    near_limit_ratio: f32,
}

impl StatisticsArgs {
    pub(super) fn settings(&self) -> StatisticsSettings {
        StatisticsSettings {
            on_pages: self.ratelimit_metrics,
            metrics_listen: self.metrics_listen.clone(),
            metrics_path: self.metrics_path.clone(),
            mapping: None,
            response_time_in_ms: false,
            near_limit_ratio: self.near_limit_ratio,
            statsd: self.statsd.clone().map(|to| StatsdSettings {
                to,
                flush_interval: self.statsd_interval,
                tags: self.statsd_tags.clone(),
                tag_style: TagStyle::Dog,
                mogrifiers: Vec::new(),
            }),
        }
    }
}

fn path(text: &str) -> Result<String, &'static str> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err("must begin with a slash, like /metrics"),
    }
}

pub(super) fn ratio(text: &str) -> Result<f32, &'static str> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or("must be a number from 0 to 1, like 0.8")
}

fn tag(text: &str) -> Result<(String, String), &'static str> {
    let whole = |(key, value): &(&str, &str)| !key.is_empty() && !value.contains(['|', '\n']);
    text.split_once(':')
        .filter(whole)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or("must be key:value")
}
