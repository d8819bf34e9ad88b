//! The processes that the demo starts: their logs, their end, and that none is left behind.
//!
//! Each runs in a process group of its own, so that a Ctrl-C in the terminal reaches the demo alone, which then stops them
//! in order. Should the demo itself be killed, the kernel ends them: `setpriv` of util-linux asks for that where it is at hand.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{self, Stdio},
    time::Duration,
};

use futures::future;
use nix::{sys::signal, unistd::Pid};
use tokio::process::{Child, Command};

use super::folder::Folder;

/// How long a process may take to end after SIGTERM before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const LINES_TOLD: usize = 15;

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot start {name} ({program}): {source}")]
    Start {
        /// Which part.
        name: &'static str,
        /// The program that was to run.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// It ended by itself.
    #[error("{name} ended by itself ({status}); the end of its log:\n{log}")]
    Ended {
        /// Which part.
        name: &'static str,
        /// How it ended.
        status: String,
        /// The last lines it wrote.
        log: String,
    },
    /// There is no folder for logs.
    #[error("cannot make the folder {path} for logs: {source}")]
    Folder {
        /// Which folder.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// The processes in the order of their start, and the folder they write to.
pub struct Children {
    running: Vec<Running>,
    folder: Folder,
    setpriv: bool,
}

struct Running {
    name: &'static str,
    child: Child,
}

impl Children {
    /// No process yet, and a new folder that goes when this does.
    pub fn new() -> Result<Self, ChildError> {
        Ok(Self {
            running: Vec::new(),
            folder: Folder::new()?,
            setpriv: setpriv_ends_with_parent(),
        })
    }

    /// For logs, and for whatever a process needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `command`, which writes to `NAME.log`. It ends with the thread that calls this.
    pub fn start(&mut self, name: &'static str, command: Command) -> Result<(), ChildError> {
        let program = command
            .as_std()
            .get_program()
            .to_string_lossy()
            .into_owned();
        let started = self.spawn(name, command);
        let child = started.map_err(|source| ChildError::Start {
            name,
            program,
            source,
        })?;
        self.running.push(Running { name, child });
        Ok(())
    }

    fn spawn(&self, name: &str, command: Command) -> io::Result<Child> {
        let log = File::create(self.log(name))?;
        let command = command.as_std();
        let mut wrapped = if self.setpriv {
            // setpriv would report a missing program in the log only.
            let program = super::envoy::in_path(command.get_program(), env::var_os("PATH"))
                .ok_or_else(|| {
                    io::Error::new(io::ErrorKind::NotFound, "no such program; install it")
                })?;
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--pdeathsig", "TERM", "--"]).arg(program);
            setpriv
        } else {
            Command::new(command.get_program())
        };
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
            .args(command.get_args())
            .stdin(self.folder.hold()?)
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Waits until one of them ends; forever where there is none.
    pub async fn first_exit(&mut self) -> ChildError {
        if self.running.is_empty() {
            return future::pending().await;
        }
        let ends = self.running.iter_mut().map(|running| {
            let name = running.name;
            Box::pin(async move { (name, running.child.wait().await) })
        });
        let ((name, status), _, others) = future::select_all(ends).await;
        drop(others);
        let status = match status {
            Ok(status) => status.to_string(),
            Err(error) => format!("and cannot be waited for: {error}"),
        };
        let log = self.end_of_log(name);
        ChildError::Ended { name, status, log }
    }

    /// Asks each to end, the last started first, and waits for it.
    pub async fn stop(&mut self) {
        while let Some(Running { name, mut child }) = self.running.pop() {
            terminate(&child);
            if tokio::time::timeout(ENDS_WITHIN, child.wait())
                .await
                .is_err()
            {
                crate::cli::say(format_args!(
                    "tollgate demo: {name} did not end within {ENDS_WITHIN:?} and is killed"
                ));
                // An error means that it is gone already.
                let _ = child.kill().await;
            }
        }
    }

    /// The last lines that it wrote.
    pub fn end_of_log(&self, name: &str) -> String {
        let text = fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_TOLD)..]
            .iter()
            .map(|line| format!("  {line}\n"))
            .collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.log"))
    }
}

fn terminate(child: &Child) {
    // Without an id it has ended and been waited for.
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // An error means that it ended this moment.
        let _ = signal::kill(Pid::from_raw(id), signal::Signal::SIGTERM);
    }
}

/// Whether `setpriv --pdeathsig` works here; other makes of setpriv do not know the option.
fn setpriv_ends_with_parent() -> bool {
    process::Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn is_running(id: u32) -> bool {
        signal::kill(Pid::from_raw(i32::try_from(id).unwrap()), None).is_ok()
    }

    #[tokio::test]
    async fn a_part_that_ends_is_named_with_its_last_words() {
        let mut children = Children::new().unwrap();
        children.start("steady", shell("exec sleep 60")).unwrap();
        children
            .start("hasty", shell("echo first; echo out of luck >&2; exit 3"))
            .unwrap();
        let told = children.first_exit().await.to_string();
        assert_eq!(
            told,
            "hasty ended by itself (exit status: 3); the end of its log:\n  first\n  out of luck\n"
        );
        children.stop().await;
    }

    #[tokio::test]
    async fn stop_leaves_no_process_and_no_folder() {
        let mut children = Children::new().unwrap();
        children.start("one", shell("exec sleep 60")).unwrap();
        children.start("two", shell("exec sleep 60")).unwrap();
        let ids: Vec<u32> = children
            .running
            .iter()
            .filter_map(|running| running.child.id())
            .collect();
        let folder = children.folder().to_owned();
        assert!(ids.len() == 2 && ids.iter().all(|id| is_running(*id)) && folder.is_dir());

        children.stop().await;
        assert!(!ids.iter().any(|id| is_running(*id)));
        drop(children);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let mut children = Children::new().unwrap();
        let error = children
            .start("redis-server", Command::new("no-such-redis-server"))
            .unwrap_err();
        let told = error.to_string();
        assert!(
            told.starts_with("cannot start redis-server (no-such-redis-server): "),
            "{told}"
        );
    }
}
