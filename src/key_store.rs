//! Where API keys are kept that are made and changed at run time: a state directory or Redis, behind one small interface, and
//! what is done with them.
//!
//! A home counts its changes. [`KeyStore::refresh`] turns a table into the newest one, and [`KeyStore::append`] adds changes
//! only to the version that the caller has seen, so that all checks made on that table hold when the change is written.

mod admin;
mod folder;
mod import;
mod redis;
mod view;

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;

pub(crate) use self::folder::{framed, private, unframed};
pub use self::{
    admin::{Imported, KeyAdmin, KeyError, KeyFilter, NewKey, follow},
    folder::FolderKeys,
    import::{AwsFile, AwsKey, AwsPlan, ImportError, read_aws},
    redis::RedisKeys,
    view::{KeyView, KeyWithSecret, parse_expiry},
};
use crate::{
    keys::{Change, KeyTable},
    store::redis::RedisUrl,
};

/// Most keys that a home takes.
pub const MOST_KEYS: usize = 2_000_000;

/// Where keys are kept.
#[derive(Debug)]
pub enum KeyStore {
    /// In a state directory.
    Folder(Arc<Mutex<FolderKeys>>),
    /// In Redis.
    Redis(Box<RedisKeys>),
}

/// Which home, before it is opened.
#[derive(Debug, Clone)]
pub enum KeyHome {
    /// A state directory.
    Folder(PathBuf),
    /// Redis.
    Redis(Box<RedisUrl>),
}

impl KeyHome {
    /// Opens it. Nothing is read yet.
    pub fn open(self) -> KeyStore {
        match self {
            Self::Folder(folder) => KeyStore::Folder(Arc::new(Mutex::new(FolderKeys::new(folder)))),
            Self::Redis(url) => KeyStore::Redis(Box::new(RedisKeys::new(*url))),
        }
    }
}

/// Why keys could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// Somebody else changed keys since the table was read.
    #[error("the keys were changed meanwhile")]
    Stale,
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not one of ours, or of a version that this build does not know.
    #[error("{path} is no file of API keys: {reason}; nothing was read from it or written to it")]
    Foreign {
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was ours once.
    #[error(
        "{path}:{line}: damaged ({reason}): the file is not used at all; put a copy of it back, or move it away to begin without keys"
    )]
    Damaged {
        /// Which file.
        path: String,
        /// Which line, from 1.
        line: u64,
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

impl KeyStore {
    /// The newest table, if it is another than `table`.
    ///
    /// # Errors
    /// [`KeyStoreError`]; then `table` is as good as before.
    pub async fn refresh(
        &mut self,
        table: &Arc<KeyTable>,
    ) -> Result<Option<KeyTable>, KeyStoreError> {
        match self {
            Self::Folder(folder) => {
                let table = Arc::clone(table);
                on_disk(folder, move |folder| folder.refresh(&table)).await
            }
            Self::Redis(redis) => redis.refresh(table).await,
        }
    }

    /// Adds `changes` to what `table` is, all or none. [`refresh`](Self::refresh) brings them into the table.
    ///
    /// # Errors
    /// [`KeyStoreError::Stale`] where `table` is not the newest.
    pub async fn append(
        &mut self,
        table: &Arc<KeyTable>,
        changes: Vec<Change>,
    ) -> Result<(), KeyStoreError> {
        match self {
            Self::Folder(folder) => {
                let table = Arc::clone(table);
                on_disk(folder, move |folder| folder.append(&table, &changes)).await
            }
            Self::Redis(redis) => redis.append(table, &changes).await,
        }
    }
}

/// Work on files, where it keeps no request waiting.
async fn on_disk<T: Send + 'static>(
    folder: &Arc<Mutex<FolderKeys>>,
    work: impl FnOnce(&mut FolderKeys) -> Result<T, KeyStoreError> + Send + 'static,
) -> Result<T, KeyStoreError> {
    let folder = Arc::clone(folder);
    match tokio::task::spawn_blocking(move || work(&mut folder.lock())).await {
        Ok(done) => done,
        Err(fault) => Err(KeyStoreError::File {
            path: "the state directory".to_owned(),
            source: std::io::Error::other(fault),
        }),
    }
}
