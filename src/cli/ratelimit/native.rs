//! The variables of `tollgate serve` where those of envoyproxy/ratelimit set the service up: some say what the reference has no
//! variable for, the others have no effect, whatever they hold. They may be meant for another process of the same pod.

use std::{env, ffi::OsStr};

use clap::{Args as _, Command, FromArgMatches as _};

use super::{super::past_empty_variables, serve::ServeArgs};

/// Those that have their effect.
pub const TAKEN: [&str; 14] = [
    "TOLLGATE_STORE_TIMEOUT",
    "TOLLGATE_DRAIN_DELAY",
    "TOLLGATE_WORKER_THREADS",
    "TOLLGATE_ALGORITHM",
    "TOLLGATE_CHARGE",
    "TOLLGATE_USAGE",
    "TOLLGATE_USAGE_FLUSH_INTERVAL",
    "TOLLGATE_USAGE_RETENTION",
    "TOLLGATE_ADMIN_LISTEN",
    // No flag has the same value, so it is not among those of the command.
    "TOLLGATE_ADMIN_TOKEN",
    "TOLLGATE_ADMIN_TOKEN_FILE",
    "TOLLGATE_ADMIN_TLS_CERT",
    "TOLLGATE_ADMIN_TLS_KEY",
    "TOLLGATE_ADMIN_CLIENT_CA",
];

/// Those of a memory store.
const OF_MEMORY: [&str; 3] = [
    "TOLLGATE_MAX_BUCKETS",
    "TOLLGATE_SNAPSHOT_EVERY",
    "TOLLGATE_STATE_DIR",
];

/// Not read by the parser of flags.
const CONFIG: &str = "TOLLGATE_CONFIG";

/// What the variables say that have their effect.
///
/// # Errors
/// What is wrong with their values, by their names.
pub fn read() -> Result<Box<ServeArgs>, String> {
    let command = ServeArgs::augment_args(Command::new(super::NAME));
    let command = command.mut_args(|arg| match arg.get_env() {
        Some(name) if !is_taken(name) => arg.env(None::<&str>),
        _ => arg,
    });
    let command = past_empty_variables(command);
    let matches = command.try_get_matches_from([super::NAME]);
    let read = matches.and_then(|matches| ServeArgs::from_arg_matches(&matches));
    read.map(Box::new).map_err(|error| told(&error))
}

/// Those that are set and have no effect, and why.
pub fn without_effect() -> Vec<(Vec<String>, &'static str)> {
    let is_set = |name: &String| env::var_os(name).is_some();
    let (of_memory, said): (Vec<_>, Vec<_>) = names()
        .filter(|name| !is_taken(name.as_ref()))
        .filter(is_set)
        .partition(|name| OF_MEMORY.contains(&name.as_str()));
    let why = [
        (said, "variables of envoyproxy/ratelimit say it"),
        (of_memory, "buckets live in Redis"),
    ];
    let why = why.into_iter();
    why.filter(|(names, _)| !names.is_empty()).collect()
}

/// All variables of `serve` but the one that holds a secret.
pub fn names() -> impl Iterator<Item = String> {
    let command = ServeArgs::augment_args(Command::new(super::NAME));
    let names = command.get_arguments().filter_map(|arg| arg.get_env());
    let names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    std::iter::once(CONFIG.to_owned()).chain(names)
}

fn is_taken(name: &OsStr) -> bool {
    TAKEN.iter().any(|taken| *taken == name)
}

/// `message` with variables in the place of flags, which nobody can give here.
pub fn in_variables(message: &str) -> String {
    let mut command = ServeArgs::augment_args(Command::new(super::NAME));
    // Only then flags can tell how they are written.
    command.build();
    let mut flags: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| Some((arg.to_string(), arg.get_long()?, arg.get_env()?)))
        .collect();
    // No flag before one that begins with its name.
    flags.sort_unstable_by_key(|(_, long, _)| std::cmp::Reverse(long.len()));
    let mut text = message.to_owned();
    for (flag, long, name) in flags {
        let name = name.to_string_lossy();
        for said in [format!("'{flag}'"), flag, format!("--{long}")] {
            text = text.replace(&said, &name);
        }
    }
    text
}

/// The first paragraph of what the parser says; the others are about flags.
fn told(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    in_variables(text.split("\n\n").next().unwrap_or(text))
}
