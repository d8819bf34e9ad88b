//! Flags that say whether and how usage is metered.

use std::time::Duration;

use clap::{Args, builder::BoolishValueParser};

use super::serve::some_time;
use crate::{settings::UsageSettings, usage::Retention};

/// Metering, which is off unless told.
#[derive(Debug, Clone, Args)]
pub struct MeteringArgs {
    /// Meter what each API key uses of each limit, for `tollgate usage`; kept in the Redis store, else in the state directory
    #[arg(long, env = "TOLLGATE_USAGE", value_parser = BoolishValueParser::new())]
    usage: bool,
    /// How often usage is written to where it is kept; a crash loses no more than this
    #[arg(long, value_name = "D", env = "TOLLGATE_USAGE_FLUSH_INTERVAL", default_value = "10s", value_parser = some_time)]
    usage_flush_interval: Duration,
    /// How long usage is kept; in Redis, per hour 35 days at most
    #[arg(long, value_name = "D", env = "TOLLGATE_USAGE_RETENTION", default_value = "400d", value_parser = whole_days)]
    usage_retention: Retention,
}

impl MeteringArgs {
    pub(super) fn settings(&self) -> Option<UsageSettings> {
        self.usage.then_some(UsageSettings {
            flush_interval: self.usage_flush_interval,
            retention: self.usage_retention,
        })
    }
}

/// Longest retention in days: a hundred years.
const MOST_DAYS: u64 = 36_525;

fn whole_days(text: &str) -> Result<Retention, String> {
    let time = some_time(text)?.as_secs();
    match time.div_ceil(86_400) {
        days @ 1..=MOST_DAYS => Ok(Retention { days: days as u32 }),
        days => Err(format!("{days} days are not between 1 and {MOST_DAYS}")),
    }
}
