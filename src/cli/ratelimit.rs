//! `tollgate ratelimit`, or a start under the name `ratelimit`: the service as envoyproxy/ratelimit's environment variables
//! set it up, and nothing else. docs/environment.md tells what becomes of each.

pub mod environment;
pub mod native;
pub mod notices;
pub mod tls_and_xds;
pub mod translate;
pub mod values;

use std::{env, ffi::OsString, path::Path, process::ExitCode};

use self::environment::{Environment, LogFormat, LogLevel};
use super::{LogArgs, serve};

/// The name under which the command starts so.
const NAME: &str = "ratelimit";

/// Whether the process was started under that name, or with that command and nothing else: then no flag, and no variable of
/// another command, keeps it from its start.
pub fn is_meant(args: &[OsString]) -> bool {
    let file_name = |program| Path::new(program).file_name();
    match args {
        [program, ..] if file_name(program).is_some_and(|name| name == NAME) => true,
        [_, command] => command == NAME,
        _ => false,
    }
}

/// Serves until SIGTERM or Ctrl-C. Exit 0 after a drain, 1 if it could not start or a listener failed.
pub fn run() -> ExitCode {
    match prepared() {
        Ok((settings, native)) => serve::run_with(settings, native.worker_threads()),
        Err(message) => {
            super::say(format_args!("error: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn prepared() -> Result<(crate::settings::Settings, Box<serve::ServeArgs>), String> {
    // What the reference has no variable for is set by ours, as for `serve`.
    let native = native::read()?;
    let environment = Environment::read(&|name| env::var_os(name)).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    super::start_logging(&log(&environment))?;
    let mut notes = environment.notes.clone();
    let ours = native.settings();
    let ours = ours.map_err(|message| native::in_variables(&message))?;
    let settings =
        translate::settings(&environment, ours, &mut notes).map_err(|error| error.to_string())?;
    let set = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    notes.extend(notices::misspelt(&set.collect()));
    notes.extend(notices::without_effect(
        &environment,
        native::without_effect(),
    ));
    for note in notes {
        tracing::warn!("{note}");
    }
    Ok((settings, native))
}

fn log(environment: &Environment) -> LogArgs {
    let filter = match environment.log_level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        // Of ourselves; the libraries would say much that is of no use.
        LogLevel::Debug => "info,tollgate=debug",
        LogLevel::Trace => "info,tollgate=trace",
    };
    LogArgs {
        log: filter.to_owned(),
        log_format: match environment.log_format {
            LogFormat::Text => super::LogFormat::Text,
            LogFormat::Json => super::LogFormat::Json,
        },
    }
}
