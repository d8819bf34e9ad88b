//! Another rate-limit service in the place of ours: one that somebody has started, or one that each fault starts afresh.

use std::{
    env,
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::Server;
use crate::common::{Process, Tollgate, free_port};

/// A service that waits for its Redis does not listen before that. Callers come all the same, after this long.
const OPENING: Duration = Duration::from_secs(3);

/// Where the other service comes from.
pub enum Foreign {
    /// Somebody has started it at this address.
    Running(String),
    /// A program and its arguments, started for each fault. It is told by variables: `FAULTS_GRPC`, host:port to listen on;
    /// `FAULTS_STORE`, the URL of its Redis in the form of `--store`; `FAULTS_FOLDER`, an empty folder that goes with it.
    Command(String),
}

/// The service to be asked in the place of a Tollgate of ours, if it is another.
pub fn foreign() -> Option<Foreign> {
    let running = env::var("TOLLGATE_FAULTS_TARGET").map(Foreign::Running);
    let command = || env::var("TOLLGATE_FAULTS_TARGET_COMMAND").map(Foreign::Command);
    running.or_else(|_| command()).ok()
}

pub fn is_foreign() -> bool {
    foreign().is_some()
}

/// Starts it on `store`, with more in its environment.
pub fn start(command: &str, store: &str, environment: &[(&str, &Path)]) -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    let grpc = format!("127.0.0.1:{}", free_port());
    // In the place of the shell, so that what kills the one kills the other.
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]);
    shell.envs([("FAULTS_GRPC", &*grpc), ("FAULTS_STORE", store)]);
    shell.env("FAULTS_FOLDER", folder.path());
    shell.envs(environment.iter().copied());
    let mut process = Process::start(&mut shell);
    let end = Instant::now() + OPENING;
    while TcpStream::connect(&grpc).is_err() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
        assert!(
            process.is_running(),
            "`{command}` has ended:\n{}",
            process.log()
        );
    }
    let http = String::new();
    Server {
        service: Tollgate {
            process,
            grpc,
            http,
        },
        _folder: Some(folder),
    }
}
