//! The demo's folder: logs, a state directory, a token. It goes when the demo ends, however that ends.

use std::{
    env,
    fs::{self, DirBuilder},
    io::{self, PipeReader, PipeWriter},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
};

use super::children::ChildError;

/// Waits until nobody holds the other end of the pipe on its stdin any more.
const SWEEP: &str = r#"while read -r _; do :; done; rm -rf -- "$0""#;

/// A folder that only this user can read. Dropping it removes it; should this process be killed, a shell does, once all
/// that write to the folder have ended, too.
pub struct Folder {
    path: PathBuf,
    sweeper: Option<Sweeper>,
}

struct Sweeper {
    shell: Child,
    /// Held by this process, and as stdin by all that it starts.
    held: PipeWriter,
}

impl Folder {
    /// Makes one among the system's temporary files.
    pub fn new() -> Result<Self, ChildError> {
        let name = format!(
            "tollgate-demo-{}-{:08x}",
            process::id(),
            rand::random::<u32>()
        );
        let path = env::temp_dir().join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| ChildError::Folder {
            path: path.display().to_string(),
            source,
        })?;
        // Without a shell it is removed all the same, unless this process is killed.
        let sweeper = io::pipe().and_then(|pipe| Sweeper::start(&path, pipe)).ok();
        Ok(Self { path, sweeper })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stdin of a process that writes to it, from which nothing is ever read.
    pub fn hold(&self) -> io::Result<Stdio> {
        match &self.sweeper {
            Some(sweeper) => Ok(sweeper.held.try_clone()?.into()),
            None => Ok(Stdio::null()),
        }
    }
}

impl Sweeper {
    fn start(folder: &Path, (end, held): (PipeReader, PipeWriter)) -> io::Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", SWEEP])
            .arg(folder)
            .stdin(end)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal is not for it.
            .process_group(0)
            .spawn()?;
        Ok(Self { shell, held })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left lies among the system's temporary files.
        let _ = fs::remove_dir_all(&self.path);
        if let Some(Sweeper { mut shell, held }) = self.sweeper.take() {
            drop(held);
            // It has nothing more to do.
            let _ = shell.wait();
        }
    }
}
