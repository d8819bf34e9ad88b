//! A table in Redis: a hash of records, a version, and which records changed lately; and the audit log beside it.
//!
//! A replica asks for the version several times a second and reads what changed; where that is not known any more, or the
//! history is another (a Redis restored or failed over), it reads everything again.

use std::{collections::HashMap, marker::PhantomData, time::Duration};

use ::redis::{Cmd, FromRedisValue, RedisError, Script, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{Edit, Entry, HomeError, Kind, Record, Table, audit::MOST_ENTRIES};
use crate::{keys::Change, store::redis::RedisUrl};

/// How all keys begin: one slot of a cluster holds them all, so that a change and its audit entry are written in one step.
const PREFIX: &str = "tollgate:{api-keys}:1:";

/// The stream of audit entries.
pub(super) const AUDIT: &str = "tollgate:{api-keys}:1:audit";

/// The version of the format that this build writes, and the only one it reads.
const FORMAT: &str = "1";

/// Changes that a replica may have missed before it reads all records again.
const KEPT_CHANGES: usize = 10_000;

/// Records read at a time.
const PAGE: usize = 1_000;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A table in Redis.
#[derive(Debug)]
pub struct RedisHome<T> {
    link: Link,
    script: Script,
    names: Names,
    /// The stamp of the version that was read last.
    stamp: String,
    table: PhantomData<fn() -> T>,
}

/// The keys of one table.
#[derive(Debug)]
struct Names {
    records: String,
    meta: String,
    changed: String,
}

impl Names {
    fn of(kind: Kind) -> Self {
        let name = |last: &str| format!("{PREFIX}{}{last}", kind.in_redis);
        Self {
            records: name("records"),
            meta: name("meta"),
            changed: name("changed"),
        }
    }
}

/// A Redis, and the connection to it while there is one.
#[derive(Debug)]
pub(super) struct Link {
    url: RedisUrl,
    connection: Option<Connection>,
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

impl<T: Table> RedisHome<T> {
    /// A table in the Redis of that URL. Connects to nothing yet.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            link: Link::new(url),
            script: Script::new(include_str!("change.lua")),
            names: Names::of(T::KIND),
            stamp: String::new(),
            table: PhantomData,
        }
    }

    /// As [`Home::refresh`](super::Home::refresh).
    pub async fn refresh(&mut self, table: &T) -> Result<Option<T>, HomeError> {
        let meta = self.meta().await?;
        if meta.version == table.version() && meta.stamp == self.stamp {
            return Ok(None);
        }
        let known = table.version() >= meta.floor
            && table.version() < meta.version
            && !self.stamp.is_empty();
        let new = match known {
            true => self.changed_since(table.version(), table.editor()).await?,
            false => self.all().await?,
        };
        self.stamp = meta.stamp;
        Ok(Some(new.finish(meta.version)))
    }

    /// As [`Home::append`](super::Home::append).
    pub async fn append(
        &mut self,
        table: &T,
        changes: &[Change<T::Record>],
        entry: &Entry,
    ) -> Result<(), HomeError> {
        let mut connection = self.link.connect().await?;
        let stamp = format!("{:016x}", rand::random::<u64>());
        let mut call = self.script.key(&self.names.records);
        call.key(&self.names.meta)
            .key(&self.names.changed)
            .key(AUDIT);
        call.arg(table.version()).arg(stamp).arg(KEPT_CHANGES);
        call.arg(entry.json()).arg(MOST_ENTRIES);
        for change in changes {
            match change {
                Change::Put(record) => {
                    let json = serde_json::to_string(record).expect("texts and numbers only");
                    call.arg(record.key()).arg(json);
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
            Ok(Ok(_)) => {
                let what = T::KIND.what;
                Err(HomeError::Stale { what })
            }
            Ok(Err(error)) if !error.is_io_error() => Err(self.link.failed(&error)),
            Ok(Err(error)) => Err(self.link.unsure(reason(&error))),
            Err(_) => Err(self.link.unsure(format!("waited {PATIENCE:?}"))),
        }
    }

    async fn meta(&mut self) -> Result<Meta, HomeError> {
        let mut command = ::redis::cmd("HGETALL");
        let mut fields: HashMap<String, String> =
            self.link.ask(command.arg(&self.names.meta)).await?;
        if let Some(format) = fields.get("format").filter(|format| *format != FORMAT) {
            let reason = format!(
                "its {} have format {format}, and this build reads {FORMAT}",
                T::KIND.what
            );
            return Err(self.link.unfit(reason));
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
        mut editor: T::Editor,
    ) -> Result<T::Editor, HomeError> {
        let mut command = ::redis::cmd("ZRANGEBYSCORE");
        command.arg(&self.names.changed).arg(version).arg("+inf");
        let ids: Vec<String> = self.link.ask(&command).await?;
        for page in ids.chunks(PAGE) {
            let mut command = ::redis::cmd("HMGET");
            let records: Vec<Option<String>> = self
                .link
                .ask(command.arg(&self.names.records).arg(page))
                .await?;
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

    /// All records, a page at a time, so that Redis goes on deciding meanwhile. What changes during that is read once more.
    async fn all(&mut self) -> Result<T::Editor, HomeError> {
        let before = self.meta().await?.version;
        let mut editor = T::default().editor();
        let mut cursor = 0_u64;
        loop {
            let mut command = ::redis::cmd("HSCAN");
            command
                .arg(&self.names.records)
                .arg(cursor)
                .arg("COUNT")
                .arg(PAGE);
            let (next, page): (u64, Vec<(String, String)>) = self.link.ask(&command).await?;
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

    fn record(&self, id: &str, json: &str) -> Result<T::Record, HomeError> {
        let unfit = |reason: String| {
            self.link.unfit(format!(
                "of its {}, the record `{id}` is none: {reason}",
                T::KIND.what
            ))
        };
        let record: T::Record =
            serde_json::from_str(json).map_err(|error| unfit(error.to_string()))?;
        record.valid().map_err(unfit)?;
        match record.key() == id {
            true => Ok(record),
            false => Err(unfit("it has another id".to_owned())),
        }
    }
}

impl Link {
    /// Connects to nothing yet.
    pub fn new(url: RedisUrl) -> Self {
        Self {
            url,
            connection: None,
        }
    }

    pub async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, HomeError> {
        let mut connection = self.connect().await?;
        match timeout(PATIENCE, command.query_async(&mut connection)).await {
            Ok(answer) => answer.map_err(|error| self.failed(&error)),
            Err(_) => {
                self.connection = None;
                Err(self.unfit(format!("no answer within {PATIENCE:?}")))
            }
        }
    }

    async fn connect(&mut self) -> Result<MultiplexedConnection, HomeError> {
        if let Some(Connection(connection)) = &self.connection {
            return Ok(connection.clone());
        }
        match timeout(PATIENCE, self.url.connect(AUDIT)).await {
            Ok(Ok(connection)) => {
                self.connection = Some(Connection(connection.clone()));
                Ok(connection)
            }
            Ok(Err(error)) => Err(self.unfit(error.to_string())),
            Err(_) => Err(self.unfit(format!("no connection within {PATIENCE:?}"))),
        }
    }

    /// The next question dials anew: after a failover this node may be the wrong one.
    fn failed(&mut self, error: &RedisError) -> HomeError {
        self.connection = None;
        self.unfit(reason(error))
    }

    fn unsure(&mut self, reason: String) -> HomeError {
        self.connection = None;
        HomeError::Unsure {
            node: self.url.to_string(),
            reason,
        }
    }

    fn unfit(&self, reason: String) -> HomeError {
        HomeError::Redis {
            node: self.url.to_string(),
            reason,
        }
    }
}

fn reason(error: &RedisError) -> String {
    error.to_string()
}
