//! Where usage is kept: a state directory or Redis, behind one small interface.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{Chunk, Counts, Period, Row, folder::FolderUsage, redis::RedisUsage};
use crate::home::Place;

/// Days for which Redis keeps hours, if it keeps days that long.
const HOURS_FOR_DAYS: u32 = 35;

/// How long usage is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// For so many days.
    pub days: u32,
}

impl Retention {
    /// Days for which Redis keeps hours. In a state directory they are in the days' files.
    pub fn hours_for_days(self) -> u32 {
        self.days.min(HOURS_FOR_DAYS)
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { days: 400 }
    }
}

/// Keeps usage.
#[derive(Debug)]
pub enum UsageStore {
    /// In a state directory.
    Folder(Arc<Mutex<FolderUsage>>),
    /// In Redis, where replicas add up.
    Redis(Box<RedisUsage>),
}

/// Why usage was not kept, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that does not hold what it should.
    #[error(
        "{path}:{line}: {reason}: this file of usage is not used at all; put a copy of it back, or move it away to go on without it"
    )]
    Damaged {
        /// Which file.
        path: String,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Redis did not do it.
    #[error("redis at {node}: {reason}")]
    Redis {
        /// Which Redis.
        node: String,
        /// What it, or the network, said.
        reason: String,
    },
}

impl UsageStore {
    /// Opens that of a place. Nothing is read yet.
    pub fn open(place: Place, retention: Retention) -> Self {
        match place {
            Place::Folder(folder) => {
                Self::Folder(Arc::new(Mutex::new(FolderUsage::new(&folder, retention))))
            }
            Place::Redis(url) => Self::Redis(Box::new(RedisUsage::new(*url, retention))),
        }
    }

    /// Rows that it takes in one step.
    pub fn rows_at_a_time(&self) -> usize {
        match self {
            Self::Folder(_) => 8_192,
            // Redis decides nothing else meanwhile.
            Self::Redis(_) => 125,
        }
    }

    /// Adds the chunk to what is kept of its hour and of its day, all of it or nothing. The caller numbers its chunks; one that is sent again under its
    /// number, as nobody knows whether it was kept, is kept once.
    ///
    /// # Errors
    /// [`UsageError`]; then it is to be sent again.
    pub async fn add(&mut self, number: u64, chunk: &Arc<Chunk>) -> Result<(), UsageError> {
        match self {
            Self::Folder(folder) => {
                let chunk = Arc::clone(chunk);
                on_disk(folder, move |folder| folder.add(&chunk)).await
            }
            Self::Redis(redis) => redis.add(number, chunk).await,
        }
    }

    /// What was used in an hour or on a day.
    ///
    /// # Errors
    /// [`UsageError`].
    pub async fn read(&mut self, period: Period) -> Result<HashMap<Row, Counts>, UsageError> {
        match self {
            Self::Folder(folder) => on_disk(folder, move |folder| folder.read(period)).await,
            Self::Redis(redis) => redis.read(period).await,
        }
    }
}

/// Work on files, where it keeps no request waiting.
async fn on_disk<T: Send + 'static>(
    folder: &Arc<Mutex<FolderUsage>>,
    work: impl FnOnce(&mut FolderUsage) -> Result<T, UsageError> + Send + 'static,
) -> Result<T, UsageError> {
    let folder = Arc::clone(folder);
    match tokio::task::spawn_blocking(move || work(&mut folder.lock())).await {
        Ok(done) => done,
        Err(fault) => Err(UsageError::File {
            path: "the state directory".to_owned(),
            source: std::io::Error::other(fault),
        }),
    }
}
