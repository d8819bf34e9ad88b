//! Keys in Redis: a hash of records, a version, and which keys changed lately. Secrets are not among them.
//!
//! A replica asks for the version several times a second and reads what changed; where that is not known any more, or the
//! history is another (a Redis restored or failed over), it reads everything again.

use std::{collections::HashMap, time::Duration};

use ::redis::{Cmd, FromRedisValue, RedisError, Script, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::KeyStoreError;
use crate::{
    keys::{Change, KeyRecord, KeyTable, TableEditor},
    store::redis::RedisUrl,
};

/// One slot of a cluster holds all three.
const RECORDS: &str = "tollgate:{api-keys}:1:records";
const META: &str = "tollgate:{api-keys}:1:meta";
const CHANGED: &str = "tollgate:{api-keys}:1:changed";

/// The version of the format that this build writes, and the only one it reads.
const FORMAT: &str = "1";

/// Changes that a replica may have missed before it reads all keys again.
const KEPT_CHANGES: usize = 10_000;

/// Keys read at a time.
const PAGE: usize = 1_000;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keys in Redis.
#[derive(Debug)]
pub struct RedisKeys {
    url: RedisUrl,
    connection: Option<Connection>,
    script: Script,
    /// The stamp of the version that was read last.
    stamp: String,
}

struct Connection(MultiplexedConnection);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// What Redis says of its keys as a whole.
struct Meta {
    version: u64,
    stamp: String,
    floor: u64,
}

impl RedisKeys {
    /// Keys in the Redis of that URL. Connects to nothing yet.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            connection: None,
            script: Script::new(include_str!("keys.lua")),
            stamp: String::new(),
        }
    }

    /// As [`KeyStore::refresh`](super::KeyStore::refresh).
    pub async fn refresh(&mut self, table: &KeyTable) -> Result<Option<KeyTable>, KeyStoreError> {
        let meta = self.meta().await?;
        if meta.version == table.version() && meta.stamp == self.stamp {
            return Ok(None);
        }
        let known = table.version() >= meta.floor
            && table.version() < meta.version
            && !self.stamp.is_empty();
        let new = match known {
            true => self.changed_since(table.version(), table.edit()).await?,
            false => self.all().await?,
        };
        self.stamp = meta.stamp;
        Ok(Some(new.finish(meta.version)))
    }

    /// As [`KeyStore::append`](super::KeyStore::append).
    pub async fn append(
        &mut self,
        table: &KeyTable,
        changes: &[Change],
    ) -> Result<(), KeyStoreError> {
        let mut connection = self.connect().await?;
        let stamp = format!("{:016x}", rand::random::<u64>());
        let mut call = self.script.key(RECORDS);
        call.key(META).key(CHANGED);
        call.arg(table.version()).arg(stamp).arg(KEPT_CHANGES);
        for change in changes {
            match change {
                Change::Put(record) => {
                    let json = serde_json::to_string(record).expect("texts and numbers only");
                    call.arg(&record.id).arg(json);
                }
                Change::Remove(id) => {
                    call.arg(id).arg("");
                }
            }
        }
        let answer = timeout(PATIENCE, call.invoke_async::<u8>(&mut connection)).await;
        drop(call);
        match answer {
            Ok(Ok(1)) => Ok(()),
            Ok(Ok(_)) => Err(KeyStoreError::Stale),
            Ok(Err(error)) if !error.is_io_error() => Err(self.failed(&error)),
            Ok(Err(error)) => Err(self.unsure(reason(&error))),
            Err(_) => Err(self.unsure(format!("waited {PATIENCE:?}"))),
        }
    }

    async fn meta(&mut self) -> Result<Meta, KeyStoreError> {
        let mut command = ::redis::cmd("HGETALL");
        let mut fields: HashMap<String, String> = self.ask(command.arg(META)).await?;
        if let Some(format) = fields.get("format").filter(|format| *format != FORMAT) {
            let reason =
                format!("its API keys have format {format}, and this build reads {FORMAT}");
            return Err(self.unfit(reason));
        }
        let number = |name: &str| {
            fields
                .get(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        Ok(Meta {
            version: number("version"),
            floor: number("floor"),
            stamp: fields.remove("stamp").unwrap_or_else(|| "none".to_owned()),
        })
    }

    /// What changed since `version` was made, which a failover may have made anew. Changes that come meanwhile may be in it,
    /// and are read once more later.
    async fn changed_since(
        &mut self,
        version: u64,
        mut editor: TableEditor,
    ) -> Result<TableEditor, KeyStoreError> {
        let mut command = ::redis::cmd("ZRANGEBYSCORE");
        command.arg(CHANGED).arg(version).arg("+inf");
        let ids: Vec<String> = self.ask(&command).await?;
        for page in ids.chunks(PAGE) {
            let mut command = ::redis::cmd("HMGET");
            let records: Vec<Option<String>> = self.ask(command.arg(RECORDS).arg(page)).await?;
            for (id, record) in page.iter().zip(records) {
                let change = match record {
                    Some(json) => Change::Put(self.record(id, &json)?),
                    None => Change::Remove(id.clone()),
                };
                editor.apply(change);
            }
        }
        Ok(editor)
    }

    /// All keys, a page at a time, so that Redis goes on deciding meanwhile. What changes during that is read once more.
    async fn all(&mut self) -> Result<TableEditor, KeyStoreError> {
        let before = self.meta().await?.version;
        let mut editor = KeyTable::default().edit();
        let mut cursor = 0_u64;
        loop {
            let mut command = ::redis::cmd("HSCAN");
            command.arg(RECORDS).arg(cursor).arg("COUNT").arg(PAGE);
            let (next, page): (u64, Vec<(String, String)>) = self.ask(&command).await?;
            for (id, json) in page {
                editor.apply(Change::Put(self.record(&id, &json)?));
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        self.changed_since(before, editor).await
    }

    fn record(&self, id: &str, json: &str) -> Result<KeyRecord, KeyStoreError> {
        let unfit =
            |reason: String| self.unfit(format!("the record of API key `{id}` is none: {reason}"));
        let record: KeyRecord =
            serde_json::from_str(json).map_err(|error| unfit(error.to_string()))?;
        record.check().map_err(|error| unfit(error.to_string()))?;
        match record.id == id {
            true => Ok(record),
            false => Err(unfit("it has another id".to_owned())),
        }
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, KeyStoreError> {
        let mut connection = self.connect().await?;
        match timeout(PATIENCE, command.query_async(&mut connection)).await {
            Ok(answer) => answer.map_err(|error| self.failed(&error)),
            Err(_) => {
                self.connection = None;
                Err(self.unfit(format!("no answer within {PATIENCE:?}")))
            }
        }
    }

    async fn connect(&mut self) -> Result<MultiplexedConnection, KeyStoreError> {
        if let Some(Connection(connection)) = &self.connection {
            return Ok(connection.clone());
        }
        match timeout(PATIENCE, self.url.connect(RECORDS)).await {
            Ok(Ok(connection)) => {
                self.connection = Some(Connection(connection.clone()));
                Ok(connection)
            }
            Ok(Err(error)) => Err(self.unfit(error.to_string())),
            Err(_) => Err(self.unfit(format!("no connection within {PATIENCE:?}"))),
        }
    }

    /// The next question dials anew: after a failover this node may be the wrong one.
    fn failed(&mut self, error: &RedisError) -> KeyStoreError {
        self.connection = None;
        self.unfit(reason(error))
    }

    fn unsure(&mut self, reason: String) -> KeyStoreError {
        self.connection = None;
        KeyStoreError::Unsure {
            node: self.url.to_string(),
            reason,
        }
    }

    fn unfit(&self, reason: String) -> KeyStoreError {
        KeyStoreError::Redis {
            node: self.url.to_string(),
            reason,
        }
    }
}

fn reason(error: &RedisError) -> String {
    error.to_string()
}
