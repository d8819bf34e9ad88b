//! Where what is made at run time is kept, API keys and plan documents: a state directory or Redis, behind one small
//! interface; and the audit log of who changed what.
//!
//! A home counts its changes. [`Home::refresh`] turns a table into the newest one, and [`Home::append`] adds changes only to
//! the version that the caller has seen, so that all checks made on that table hold when the change is written.

mod audit;
mod folder;
mod redis;

use std::{fmt, future::Future, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use self::folder::{framed, private, unframed};
pub use self::{
    audit::{Actor, AuditLog, AuditPage, Entry, MOST_ON_A_PAGE},
    folder::FolderHome,
    redis::RedisHome,
};
use crate::{keys::Change, store::redis::RedisUrl};

/// How often a change is tried while others change the same table, too.
pub const TRIES: usize = 16;

/// What a home keeps, as it was at one version.
pub trait Table: Default + std::fmt::Debug + Send + Sync + 'static {
    /// One thing of it.
    type Record: Record;
    /// A table in the making.
    type Editor: Edit<Self>;
    /// What is kept.
    const KIND: Kind;

    /// Counts the changes of its home.
    fn version(&self) -> u64;
    /// How many records it holds.
    fn count(&self) -> usize;
    /// All of them.
    fn records(&self) -> impl Iterator<Item = Self::Record>;
    /// Begins a new table from this one.
    fn editor(&self) -> Self::Editor;
}

/// A table in the making.
pub trait Edit<T: Table>: Send {
    /// Makes a change. The last one for an id counts.
    fn apply(&mut self, change: Change<T::Record>);
    /// The new table, of that version.
    fn finish(self, version: u64) -> T;
}

/// One thing that a home keeps.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What it is known by in its table.
    fn key(&self) -> String;
    /// Whether it may be kept.
    ///
    /// # Errors
    /// What is wrong with it.
    fn valid(&self) -> Result<(), String>;
}

/// What a home keeps, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// For people: `API keys`.
    pub what: &'static str,
    /// Its file in a state directory: NAME.log.
    pub file: &'static str,
    /// What stands before the names of its keys in Redis.
    pub in_redis: &'static str,
    /// Changes in a file that are outdated, beyond the number of records, before it is written anew.
    pub slack: u64,
}

/// Which home, before it is opened.
#[derive(Debug, Clone)]
pub enum Place {
    /// A state directory.
    Folder(PathBuf),
    /// Redis.
    Redis(Box<RedisUrl>),
}

impl Place {
    /// Opens the home of one kind of table. Nothing is read yet.
    pub fn open<T: Table>(self) -> Home<T> {
        match self {
            Self::Folder(folder) => Home::Folder(Arc::new(Mutex::new(FolderHome::new(folder)))),
            Self::Redis(url) => Home::Redis(Box::new(RedisHome::new(*url))),
        }
    }
}

/// Where one kind of table is kept.
#[derive(Debug)]
pub enum Home<T: Table> {
    /// In a state directory.
    Folder(Arc<Mutex<FolderHome<T>>>),
    /// In Redis.
    Redis(Box<RedisHome<T>>),
}

/// Why something could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Somebody else changed something since the table was read.
    #[error("the {what} were changed meanwhile")]
    Stale {
        /// What is kept there.
        what: &'static str,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not one of ours, or of a version that this build does not know.
    #[error("{path} is no file of {what}: {reason}; nothing was read from it or written to it")]
    Foreign {
        /// Which file.
        path: String,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was ours once.
    #[error(
        "{path}:{line}: damaged ({reason}): the file is not used at all; put a copy of it back, or move it away to begin without {what}"
    )]
    Damaged {
        /// Which file.
        path: String,
        /// Which line, from 1.
        line: u64,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process holds the lock.
    #[error("{path} is locked by another process since 5 s: try again")]
    Locked {
        /// Which file.
        path: String,
    },
    /// Redis did not do it.
    #[error("redis at {node}: {reason}")]
    Redis {
        /// Which Redis.
        node: String,
        /// What it, or the network, said.
        reason: String,
    },
    /// Redis did not say whether it did it.
    #[error(
        "redis at {node} gave no answer ({reason}): the change may have been made or not; look before you try again"
    )]
    Unsure {
        /// Which Redis.
        node: String,
        /// What the network said.
        reason: String,
    },
}

impl<T: Table> Home<T> {
    /// The newest table, if it is another than `table`.
    ///
    /// # Errors
    /// [`HomeError`]; then `table` is as good as before.
    pub async fn refresh(&mut self, table: &Arc<T>) -> Result<Option<T>, HomeError> {
        match self {
            Self::Folder(folder) => {
                let table = Arc::clone(table);
                on_disk(folder, move |folder| folder.refresh(&table)).await
            }
            Self::Redis(redis) => redis.refresh(table).await,
        }
    }

    /// Adds `changes` to what `table` is, all or none, and `entry` to the audit log. [`refresh`](Self::refresh) brings them into
    /// the table.
    ///
    /// # Errors
    /// [`HomeError::Stale`] where `table` is not the newest.
    pub async fn append(
        &mut self,
        table: &Arc<T>,
        changes: Vec<Change<T::Record>>,
        entry: &Entry,
    ) -> Result<(), HomeError> {
        match self {
            Self::Folder(folder) => {
                let (table, entry) = (Arc::clone(table), entry.clone());
                on_disk(folder, move |folder| {
                    folder.append(&table, &changes, &entry)
                })
                .await
            }
            Self::Redis(redis) => redis.append(table, &changes, entry).await,
        }
    }
}

/// Work on files, where it keeps no request waiting.
async fn on_disk<F: Send + 'static, T: Send + 'static>(
    folder: &Arc<Mutex<F>>,
    work: impl FnOnce(&mut F) -> Result<T, HomeError> + Send + 'static,
) -> Result<T, HomeError> {
    let folder = Arc::clone(folder);
    match tokio::task::spawn_blocking(move || work(&mut folder.lock())).await {
        Ok(done) => done,
        Err(fault) => Err(HomeError::File {
            path: "the state directory".to_owned(),
            source: std::io::Error::other(fault),
        }),
    }
}

/// What follows the changes of a home.
pub trait Follower: Send + Sync + 'static {
    /// What it follows, for the log.
    const WHAT: &'static str;

    /// Brings the newest into force; answers whether that is something else than before.
    fn follow(&self) -> impl Future<Output = Result<bool, HomeError>> + Send;
}

/// Brings changes into force, looking `every` so often, until `stop`.
pub fn follow<F: Follower>(
    follower: Arc<F>,
    every: Duration,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let look = async move {
        let mut unwell: Option<String> = None;
        loop {
            tokio::time::sleep(every).await;
            match (follower.follow().await, &unwell) {
                (Ok(changed), _) => {
                    if unwell.take().is_some() {
                        tracing::info!("{} are read again", F::WHAT);
                    }
                    if changed {
                        tracing::debug!("{} changed", F::WHAT);
                    }
                }
                (Err(error), before) => {
                    let text = error.to_string();
                    if before.as_ref() != Some(&text) {
                        let what = F::WHAT;
                        tracing::error!(
                            "{what} cannot be read, those of before stay in force: {text}"
                        );
                        unwell = Some(text);
                    }
                }
            }
        }
    };
    tokio::spawn(async move {
        stop.run_until_cancelled(look).await;
    })
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Redis(url) => write!(f, "redis at {url}"),
        }
    }
}
