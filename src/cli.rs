//! The command line: one file per command. Answers go to stdout, everything else to stderr; exit 0 for yes, 1 for no, 2 when
//! a command could not tell.

mod admin_client;
pub mod audit;
pub mod bench;
pub mod buckets;
pub mod check;
mod counting;
pub mod demo;
pub mod explain;
pub mod healthcheck;
mod home;
pub mod keys;
mod metering;
mod pair;
pub mod plans;
pub mod ratelimit;
pub mod serve;
pub mod simulate;
mod statistics;
mod store;
pub mod tls;
mod traces;
pub mod usage;
pub mod xds;

use std::{
    env,
    fmt::Display,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{causes::chain, plan::Plans};

/// Exit status of a command that could not tell.
pub const CANNOT_TELL: u8 = 2;

/// Exact, all-or-nothing rate-limit decisions for Envoy.
///
/// Without a command it serves.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Box<serve::ServeArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve rate-limit decisions (the default)
    Serve(Box<serve::ServeArgs>),
    /// Check plan files: every mistake with its place
    Check(check::CheckArgs),
    /// Tell how a request would be decided, and why; needs no running server
    Explain(explain::ExplainArgs),
    /// Say what a change of plans changes; put plans in the place of files, also while a server runs
    #[command(subcommand)]
    Plans(plans::PlansCommand),
    /// Replay an access log against plans: who would have been refused?
    Simulate(simulate::SimulateArgs),
    /// Bring up Envoy, Tollgate and a service to protect on this machine, and tell what to try
    Demo(demo::DemoArgs),
    /// Measure a rate-limit server: throughput, latency, CPU per decision, over-admission
    Bench(bench::BenchArgs),
    /// Ask a running server whether it serves
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Make, show and change API keys, also while a server runs
    Keys(keys::KeysArgs),
    /// Show, fill and give to buckets, also while a server runs
    Buckets(buckets::BucketsArgs),
    /// Tell who changed what, and when
    Audit(audit::AuditArgs),
    /// Report what API keys have used of their limits, per hour, day or month
    Usage(usage::UsageArgs),
    /// Serve as envoyproxy/ratelimit: its environment variables set everything (docs/environment.md); so does a start under the name `ratelimit`
    Ratelimit,
}

/// How much to log, and how it looks.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log: a level, or module=level pairs
    #[arg(
        long,
        value_name = "FILTER",
        env = "TOLLGATE_LOG",
        default_value = "info"
    )]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "TOLLGATE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The plans that a command reads.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    // The variable is read below: clap would part the flag's paths, too, and a path may hold a colon.
    /// Plan file, or folder of *.yaml and *.yml files; repeatable [env: TOLLGATE_CONFIG, with `:` between] [default: config/]
    #[arg(long = "config", value_name = "PATH")]
    config: Vec<PathBuf>,
}

impl ConfigArgs {
    /// As if the flag had named these.
    fn of(files: &[PathBuf]) -> Self {
        Self {
            config: files.to_vec(),
        }
    }

    /// Whether anything is named.
    fn named(&self) -> bool {
        !self.config.is_empty() || env::var_os("TOLLGATE_CONFIG").is_some_and(|set| !set.is_empty())
    }

    /// The files and folders that are named: by flags, else by the variable, else `config/`.
    fn sources(&self) -> Vec<PathBuf> {
        if !self.config.is_empty() {
            return self.config.clone();
        }
        let named = env::var_os("TOLLGATE_CONFIG").unwrap_or_default();
        let mut sources: Vec<PathBuf> = env::split_paths(&named).collect();
        sources.retain(|path| !path.as_os_str().is_empty());
        if sources.is_empty() {
            sources.push("config/".into());
        }
        sources
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    if ratelimit::is_meant(&env::args_os().collect::<Vec<_>>()) {
        return ratelimit::run();
    }
    let matches = past_empty_variables(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => on_runtime(explain::run(args)),
        Command::Plans(command) => on_runtime(plans::run(command)),
        Command::Simulate(args) => on_runtime(simulate::run(args)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Bench(args) => on_runtime(bench::run(args)),
        Command::Healthcheck(args) => on_runtime(healthcheck::run(args)),
        Command::Keys(args) => on_runtime(keys::run(args)),
        Command::Buckets(args) => on_runtime(buckets::run(args)),
        Command::Audit(args) => on_runtime(audit::run(args)),
        Command::Usage(args) => on_runtime(usage::run(args)),
        Command::Ratelimit => ratelimit::run(),
    }
}

/// The command, to which a variable that holds nothing says nothing: a compose file's `${NAME:-}` sets it so.
fn past_empty_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_env().and_then(env::var_os) {
        Some(value) if value.is_empty() => arg.env(None::<&str>),
        _ => arg,
    });
    command.mut_subcommands(past_empty_variables)
}

/// Runs a command that needs no more than the default runtime.
fn on_runtime(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => fail(&format!("cannot start the runtime: {error}")),
    }
}

/// Writes a command's answer to stdout, and gives back the exit code that says the same.
///
/// A reader that has closed the pipe wants no more of it, and the exit code stands.
fn answer(text: impl Display, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write the answer: {error}"))
        }
        _ => code,
    }
}

/// Writes a line to stderr, if anybody still reads it.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says why a command could not tell.
fn fail(message: &str) -> ExitCode {
    say(format_args!("error: {message}"));
    ExitCode::from(CANNOT_TELL)
}

/// The domain that is named, or else the only one of the plans.
fn domain(named: Option<&String>, plans: &Plans) -> Result<String, String> {
    if let Some(domain) = named {
        return Ok(domain.clone());
    }
    let names: Vec<&str> = plans.domains().map(|domain| domain.name()).collect();
    match names[..] {
        [only] => Ok(only.to_owned()),
        [] => Err("say --domain: the plans have none".to_owned()),
        _ => Err(format!("say --domain: the plans have {}", names.join(", "))),
    }
}

/// Says which of the plan files and folders is not there, and the flag that names them.
fn readable(sources: &[PathBuf], flag: &str) -> Result<(), String> {
    match unreadable(sources) {
        None => Ok(()),
        Some((path, error)) => Err(format!(
            "cannot read plans from {}: {error}; name a plan file, or a folder of them, with {flag}",
            path.display()
        )),
    }
}

/// The first that cannot be looked at.
fn unreadable(files: &[PathBuf]) -> Option<(&Path, io::Error)> {
    files
        .iter()
        .find_map(|file| Some((file.as_path(), fs::metadata(file).err()?)))
}

/// Whether log lines are coloured: for a person, never in a file or pipe.
// Source: no-color.org.
fn colours() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// Starts logging to stderr.
fn start_logging(args: &LogArgs) -> Result<(), String> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| {
        format!("--log: `{}` is not a filter ({error}); write a level like `info`, or `tollgate=debug,info`", args.log)
    })?;
    // What watches files would tell of the log's own file, and so of each line it tells.
    let quiet = "notify=info".parse().expect("a directive");
    let filter = filter.add_directive(quiet);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours())
        .with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_has_a_flag_twice() {
        Cli::command().debug_assert();
    }
}
