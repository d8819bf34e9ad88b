//! `tollgate bench`: load against any rate-limit service (RLS v3), and what it showed.
//!
//! Closed loop by default: `--in-flight` requests at a time, each followed by the next. With `--rate` an open loop: requests
//! are due at fixed times, and latency counts from that time even when the client or the server runs late, so that a
//! stall is felt by every request it delayed (no coordinated omission).

mod cpu;
mod keys;
mod load;
mod report;
mod schedule;
mod stated;
mod tally;

use std::{num::NonZeroU64, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};

pub use cpu::{CpuError, WatchedProcess};
pub use keys::{Distribution, DistributionError, Template, TemplateError};
pub use load::LoadError;
pub use report::{Cpu, Latency, LimitReport, OverAdmitted, Report};
pub use stated::StatedLimitError;

use self::schedule::Schedule;
use crate::limit::Limit;

/// What `tollgate bench` sends, how, and what it checks.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Server to load: `host:port`, `http://host:port` or `unix:PATH`; several are loaded evenly
    #[arg(
        long = "target",
        env = "TOLLGATE_BENCH_TARGET",
        default_value = "127.0.0.1:8081",
        value_delimiter = ','
    )]
    pub targets: Vec<String>,

    /// Requests in flight at once, over all targets (with --rate: at most)
    #[arg(long, env = "TOLLGATE_BENCH_IN_FLIGHT", default_value = "64", value_parser = count)]
    pub in_flight: usize,

    /// Connections to each target
    #[arg(long, env = "TOLLGATE_BENCH_CONNECTIONS", default_value = "1", value_parser = count)]
    pub connections: usize,

    /// Requests per second, due at fixed times (open loop)
    #[arg(long, env = "TOLLGATE_BENCH_RATE", value_parser = rate)]
    pub rate: Option<f64>,

    /// Stop after so many requests
    #[arg(long, env = "TOLLGATE_BENCH_REQUESTS")]
    pub requests: Option<NonZeroU64>,

    /// Stop after this time [default: 10s, or none with --requests]
    #[arg(long, env = "TOLLGATE_BENCH_DURATION", value_parser = span)]
    pub duration: Option<Duration>,

    /// Domain of every request
    #[arg(long, env = "TOLLGATE_BENCH_DOMAIN", default_value = "stats-api")]
    pub domain: String,

    /// A descriptor of every request, `key=value,key=value`; `{key}` in a value varies (repeatable)
    #[arg(
        long = "descriptor",
        env = "TOLLGATE_BENCH_DESCRIPTOR",
        default_value = "api_key=demo-free-key"
    )]
    pub descriptors: Vec<Template>,

    /// Ask ext_authz instead, for a request with these headers, `name=value,name=value`; `{key}` varies in them. Refused ones count as over limit
    #[arg(long, env = "TOLLGATE_BENCH_AUTHZ", value_name = "HEADERS")]
    pub authz: Option<Template>,

    /// How many different values `{key}` takes: the numbers from 0
    #[arg(long, env = "TOLLGATE_BENCH_KEYS", default_value = "10000")]
    pub keys: NonZeroU64,

    /// How the values of `{key}` are drawn
    #[arg(
        long,
        env = "TOLLGATE_BENCH_DISTRIBUTION",
        value_enum,
        default_value = "uniform"
    )]
    pub distribution: DistributionName,

    /// Exponent of the zipf distribution: the k-th key comes k^-exponent as often as the first
    #[arg(long, env = "TOLLGATE_BENCH_EXPONENT", default_value = "1.0")]
    pub exponent: f64,

    /// Seed of the draws; the same seed draws the same keys
    #[arg(long, env = "TOLLGATE_BENCH_SEED", default_value = "1")]
    pub seed: u64,

    /// Keep trying to connect for so long when a target does not answer yet [default: try once]
    #[arg(long, env = "TOLLGATE_BENCH_WAIT", value_parser = span)]
    pub wait: Option<Duration>,

    /// Deadline of each request, sent as grpc-timeout [default: 10s, not sent]
    #[arg(long, env = "TOLLGATE_BENCH_TIMEOUT", value_parser = span)]
    pub timeout: Option<Duration>,

    /// Local process whose CPU per decision is shown, `PID` or `LABEL=PID` (repeatable)
    #[arg(long = "pid", env = "TOLLGATE_BENCH_PID", value_delimiter = ',')]
    pub pids: Vec<WatchedProcess>,

    /// The limit each key should meet, `N/PERIOD [burst B | sliding]`: more admitted than it allows is exit code 1
    #[arg(long, env = "TOLLGATE_BENCH_LIMIT", value_parser = stated::parse)]
    pub limit: Option<Limit>,

    /// Exit with 1 when a request got an error
    #[arg(long, env = "TOLLGATE_BENCH_FAIL_ON_ERROR")]
    pub fail_on_error: bool,

    /// How the result is printed
    #[arg(
        long,
        env = "TOLLGATE_BENCH_OUTPUT",
        value_enum,
        default_value = "text"
    )]
    pub output: Output,
}

/// The distributions that `--distribution` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DistributionName {
    /// Every key as often as any other.
    Uniform,
    /// A few keys often, most of them seldom.
    Zipf,
}

/// The forms a [`Report`] is printed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs: one object.
    Json,
}

/// Why a run could not start or could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The keys cannot be drawn as asked.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// A process given by `--pid` cannot be measured.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The load could not be made.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Runs the load and prints the report to stdout.
///
/// The exit code is 0 when all is as asked, 1 on over-admission (or on errors with `--fail-on-error`), and 2 when no server
/// could be reached, no decision came back, or a `--pid` cannot be read.
pub async fn run(args: BenchArgs) -> ExitCode {
    match measure(&args).await {
        Ok(report) => {
            let code = exit_code(&report, args.fail_on_error);
            match args.output {
                Output::Text => super::answer(report.to_string().trim_end(), code),
                Output::Json => super::answer(report.to_json(), code),
            }
        }
        Err(error) => super::fail(&super::chain(&error)),
    }
}

/// Runs the load that `args` describe, until it is done or Ctrl-C ends it early.
///
/// # Errors
/// [`BenchError::Load`] when a target cannot be reached at the start; the other kinds before anything is sent.
pub async fn measure(args: &BenchArgs) -> Result<Report, BenchError> {
    let load = load::Load::new(args)?;
    let channels = load::connect(args).await?;
    let clocks = cpu::Clocks::start(&args.pids)?;
    let tally = load::run(load, Schedule::start(args), channels).await?;
    let cpu = clocks.stop()?;
    Ok(Report::new(tally, &cpu, args.limit.as_ref()))
}

fn exit_code(report: &Report, fail_on_error: bool) -> ExitCode {
    let over = report
        .limit
        .as_ref()
        .is_some_and(|limit| limit.over_admission > 0);
    if report.decisions() == 0 {
        ExitCode::from(2)
    } else if over || (fail_on_error && report.errors_total() > 0) {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    }
}

fn count(text: &str) -> Result<usize, &'static str> {
    let in_range = |number: &usize| (1..=100_000).contains(number);
    text.parse()
        .ok()
        .filter(in_range)
        .ok_or("must be a whole number from 1 to 100000")
}

fn rate(text: &str) -> Result<f64, &'static str> {
    let in_range = |rate: &f64| (0.001..=1e9).contains(rate);
    text.parse()
        .ok()
        .filter(in_range)
        .ok_or("must be a number per second from 0.001 to 1000000000")
}

fn span(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_secs(365 * 86_400);
    match humantime::parse_duration(text) {
        Ok(span) if !span.is_zero() && span <= longest => Ok(span),
        Ok(_) => Err("must be longer than nothing and at most 365 days".to_owned()),
        Err(error) => Err(format!("{error}; write it like 10s or 1m 30s")),
    }
}
