//! Buckets that outlive the process: a [`snapshot`] in a state directory, read at the start, written now and then and at the
//! end. One process at a time writes it, by a lock; a second one begins with what the first has written, is told, and writes
//! once the first has ended.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval_at, timeout},
};

use super::{
    MemoryStore,
    snapshot::{self, SnapshotError, Written},
};
use crate::{clock::Clock, store::Store};

/// The file in the state directory.
const FILE: &str = "buckets.snapshot";

/// What a file is called that cannot be used.
const REFUSED: &str = "buckets.refused";

/// Why the buckets of a state directory cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Another process keeps its own there.
    #[error("another process keeps its buckets in {folder}")]
    Taken {
        /// The state directory.
        folder: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Where the buckets of a memory store are kept.
#[derive(Debug)]
pub struct KeptBuckets {
    folder: PathBuf,
    stats: Arc<SnapshotStats>,
    /// None while another process has it.
    lock: Mutex<Option<Flock<File>>>,
}

/// What is known of the file.
#[derive(Debug)]
pub struct SnapshotStats {
    last: Mutex<Last>,
    /// Times that it could not be written.
    pub errors: AtomicU64,
}

/// The newest file, or the start where none was written yet.
#[derive(Debug, Clone, Copy)]
pub struct Last {
    /// When writing it began.
    pub at: Instant,
    /// What is in it.
    pub written: Written,
    /// How long writing it took.
    pub took: Duration,
}

impl SnapshotStats {
    /// The newest file.
    pub fn last(&self) -> Last {
        *self.last.lock()
    }
}

impl KeptBuckets {
    /// A store of at most `max_buckets` with the buckets that `folder` keeps.
    ///
    /// A file that is torn, foreign or of another format is renamed and said so, and the store begins empty: all buckets full.
    ///
    /// # Errors
    /// [`KeepError::File`]
    pub fn open(
        folder: &Path,
        max_buckets: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<(MemoryStore, Self), KeepError> {
        let opened = Instant::now();
        let lock = match lock(folder) {
            Ok(lock) => Some(lock),
            Err(error @ KeepError::Taken { .. }) => {
                tracing::error!(
                    "{error}: this one begins with them, and its own are forgotten unless that one ends first. \
                     Give it a --state-dir of its own, or say --snapshot-every 0s if it is there for the API keys"
                );
                None
            }
            Err(error) => return Err(error),
        };
        let (store, written) = load(folder, max_buckets, clock, lock.is_some())?;
        let last = Last {
            at: opened,
            written,
            took: Duration::ZERO,
        };
        let stats = SnapshotStats {
            last: Mutex::new(last),
            errors: AtomicU64::default(),
        };
        let kept = Self {
            folder: folder.to_owned(),
            stats: Arc::new(stats),
            lock: Mutex::new(lock),
        };
        Ok((store, kept))
    }

    /// What is known of the file.
    pub fn stats(&self) -> &Arc<SnapshotStats> {
        &self.stats
    }

    /// Puts a file in place that holds the buckets of `store`: the one of before stays until this one is on the disk.
    ///
    /// # Errors
    /// [`KeepError`]; the file of before is as it was.
    pub fn save(&self, store: &MemoryStore) -> Result<(), KeepError> {
        let saved = self.try_save(store);
        if saved.is_err() {
            self.stats.errors.fetch_add(1, Relaxed);
        }
        saved
    }

    fn try_save(&self, store: &MemoryStore) -> Result<(), KeepError> {
        let mut held = self.lock.lock();
        if held.is_none() {
            *held = Some(lock(&self.folder)?);
        }
        let (path, draft) = (self.folder.join(FILE), self.folder.join(".buckets.draft"));
        let at = Instant::now();
        let write = || -> io::Result<Written> {
            let file = OpenOptions::new()
                .mode(0o600)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&draft)?;
            let mut writer = BufWriter::with_capacity(256 * 1024, &file);
            let written = snapshot::write(store, &mut writer)?;
            drop(writer);
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()?;
            Ok(written)
        };
        let written = write().map_err(|source| file_error(&path, source))?;
        let took = at.elapsed();
        *self.stats.last.lock() = Last { at, written, took };
        Ok(())
    }

    /// Saves the buckets of `store` every so often, until [`Keeping::finish`].
    pub fn keep(self, store: Arc<Store>, every: Duration) -> Keeping {
        let (stop, mut stopped) = oneshot::channel();
        let kept = Arc::new(self);
        let task = tokio::spawn(async move {
            let mut turns = interval_at((Instant::now() + every).into(), every);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut well = kept.lock.lock().is_some();
            loop {
                let last = tokio::select! {
                    _ = turns.tick() => false,
                    _ = &mut stopped => true,
                };
                let (kept, store) = (kept.clone(), store.clone());
                let saved = spawn_blocking(move || match &*store {
                    Store::Memory(memory) => kept.save(memory),
                    Store::Redis(_) | Store::Shards(_) => Ok(()),
                });
                let saved = saved.await.expect("writing buckets does not panic");
                say(&saved, &mut well);
                if last {
                    return;
                }
            }
        });
        Keeping { stop, task }
    }
}

/// The task that saves.
#[derive(Debug)]
pub struct Keeping {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Keeping {
    /// Saves a last time: nothing is taken any more. Waits for it up to `patience`.
    pub async fn finish(self, patience: Duration) {
        drop(self.stop);
        if timeout(patience, self.task).await.is_err() {
            tracing::error!(
                ?patience,
                "the buckets could not be written in time: what was taken since they last were is forgotten"
            );
        }
    }
}

/// Says when it begins to fail, and when it is over.
fn say(saved: &Result<(), KeepError>, well: &mut bool) {
    match saved {
        Err(error) if *well => tracing::error!(
            %error,
            "cannot keep the buckets: what is taken from now on is forgotten if this process ends; trying again"
        ),
        Ok(()) if !*well => tracing::info!("the buckets are kept from now on"),
        _ => {}
    }
    *well = saved.is_ok();
}

fn lock(folder: &Path) -> Result<Flock<File>, KeepError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| file_error(folder, source))?;
    let path = folder.join("buckets.lock");
    let file = OpenOptions::new()
        .mode(0o600)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|source| file_error(&path, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => KeepError::Taken {
            folder: folder.display().to_string(),
        },
        error => file_error(&path, error.into()),
    })
}

/// The buckets of a folder, and what they were read from. A file that cannot be used is renamed if it is `ours`.
fn load(
    folder: &Path,
    max_buckets: usize,
    clock: Arc<dyn Clock>,
    ours: bool,
) -> Result<(MemoryStore, Written), KeepError> {
    let path = folder.join(FILE);
    let store = MemoryStore::new(max_buckets, clock.clone());
    let nothing = Written {
        buckets: 0,
        bytes: 0,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::info!(folder = %folder.display(), "this state directory keeps no buckets yet: all are full");
            return Ok((store, nothing));
        }
        Err(source) => return Err(file_error(&path, source)),
    };
    let bytes = file
        .metadata()
        .map_err(|source| file_error(&path, source))?
        .len();
    match snapshot::read(file, &store) {
        Ok(loaded) => {
            let (buckets, age) = (loaded.buckets, loaded.age);
            tracing::info!(path = %path.display(), buckets, ?age, "the buckets are as they were kept, refilled since");
            if loaded.ahead > Duration::from_secs(1) {
                tracing::warn!(
                    path = %path.display(),
                    ahead = ?loaded.ahead,
                    "the buckets were kept at a time that is yet to come by the clock of this machine: they refill from then on; \
                     if the clock was wrong then, end this process and remove the file"
                );
            }
            Ok((store, Written { buckets, bytes }))
        }
        Err(SnapshotError::Io(source)) => Err(file_error(&path, source)),
        Err(error) => {
            let aside = folder.join(REFUSED);
            if ours {
                fs::rename(&path, &aside).map_err(|source| file_error(&path, source))?;
            }
            tracing::error!(
                path = %path.display(), renamed = ours.then(|| aside.display().to_string()), %error,
                "the kept buckets cannot be used: all buckets begin full"
            );
            Ok((MemoryStore::new(max_buckets, clock), nothing))
        }
    }
}

fn file_error(path: &Path, source: io::Error) -> KeepError {
    KeepError::File {
        path: path.display().to_string(),
        source,
    }
}
