//! Usage in Redis: a hash per hour and one per day, `tollgate:{usage}:1:2026-11-30T05` and `tollgate:{usage}:1:2026-11-30`, which
//! are written together. A field is a column's letter and a row in JSON. Replicas add to the same fields.
//!
//! A chunk whose answer was lost is sent again under its number, and the script adds it once.

use std::{collections::HashMap, time::Duration};

use ::redis::{Cmd, FromRedisValue, Script, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{Chunk, Counts, Day, Period, Retention, Row, UsageError};
use crate::store::redis::RedisUrl;

/// One slot of a cluster holds all keys. The number is the format's.
const PREFIX: &str = "tollgate:{usage}:1:";

/// How long the number of a writer's last chunk is known after that. A chunk whose answer was lost is not sent again later.
const WRITER_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Fields read at a time, so that Redis goes on deciding meanwhile.
const PAGE: usize = 1_000;

/// Usage in Redis.
#[derive(Debug)]
pub struct RedisUsage {
    url: RedisUrl,
    retention: Retention,
    connection: Option<Connection>,
    script: Script,
    /// Tells this writer from others.
    writer: String,
}

struct Connection(MultiplexedConnection);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl RedisUsage {
    /// Usage in the Redis of that URL. Connects to nothing yet.
    pub fn new(url: RedisUrl, retention: Retention) -> Self {
        Self {
            url,
            retention,
            connection: None,
            script: Script::new(include_str!("usage.lua")),
            writer: format!("{PREFIX}writer:{:032x}", rand::random::<u128>()),
        }
    }

    /// As [`UsageStore::add`](super::UsageStore::add).
    pub async fn add(&mut self, number: u64, chunk: &Chunk) -> Result<(), UsageError> {
        let mut connection = self.connect().await?;
        let hour = Period::Hour(chunk.hour);
        let day = Period::Day(Day::of_hour(chunk.hour));
        let mut call = self.script.key(key_of(hour));
        call.key(key_of(day)).key(&self.writer).arg(number);
        // From now, not from the period's end: that would be a moment of this machine's clock, which may be wrong.
        for days in [self.retention.hours_for_days(), self.retention.days] {
            call.arg(u64::from(days + 1) * 86_400);
        }
        call.arg(WRITER_KEPT.as_secs());
        for (row, counts) in &chunk.rows {
            let row = serde_json::to_string(&**row).expect("texts only");
            let columns = [
                ('a', counts.admitted),
                ('r', counts.refused),
                ('o', counts.overage),
            ];
            for (column, hits) in columns.into_iter().filter(|(_, hits)| *hits != 0) {
                call.arg(format!("{column}{row}")).arg(hits);
            }
        }
        let answer = timeout(PATIENCE, call.invoke_async::<u8>(&mut connection)).await;
        drop(call);
        match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// As [`UsageStore::read`](super::UsageStore::read).
    pub async fn read(&mut self, period: Period) -> Result<HashMap<Row, Counts>, UsageError> {
        let mut rows: HashMap<Row, Counts> = HashMap::new();
        let mut cursor = 0_u64;
        loop {
            let mut command = ::redis::cmd("HSCAN");
            command.arg(key_of(period)).arg(cursor);
            let (next, page): (u64, Vec<(String, i64)>) =
                self.ask(command.arg("COUNT").arg(PAGE)).await?;
            for (field, hits) in page {
                let (row, column) = self.field(&field)?;
                let counts = rows.entry(row).or_default();
                // A scan may show a field twice.
                match column {
                    'a' => counts.admitted = hits,
                    'r' => counts.refused = hits,
                    _ => counts.overage = hits,
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(rows);
            }
        }
    }

    fn field(&self, field: &str) -> Result<(Row, char), UsageError> {
        let unfit = || self.error(format!("`{field}` is no field of usage"));
        let column = field
            .chars()
            .next()
            .filter(|column| "aro".contains(*column));
        let column = column.ok_or_else(unfit)?;
        let row = serde_json::from_str(&field[1..]).map_err(|_| unfit())?;
        Ok((row, column))
    }

    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, UsageError> {
        let mut connection = self.connect().await?;
        match timeout(PATIENCE, command.query_async(&mut connection)).await {
            Ok(answer) => answer.map_err(|error| self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("no answer within {PATIENCE:?}"))),
        }
    }

    async fn connect(&mut self) -> Result<MultiplexedConnection, UsageError> {
        if let Some(Connection(connection)) = &self.connection {
            return Ok(connection.clone());
        }
        match timeout(PATIENCE, self.url.connect(PREFIX)).await {
            Ok(Ok(connection)) => {
                self.connection = Some(Connection(connection.clone()));
                Ok(connection)
            }
            Ok(Err(error)) => Err(self.error(error.to_string())),
            Err(_) => Err(self.error(format!("no connection within {PATIENCE:?}"))),
        }
    }

    /// The next question dials anew: after a failover this node may be the wrong one.
    fn failed(&mut self, reason: String) -> UsageError {
        self.connection = None;
        self.error(reason)
    }

    fn error(&self, reason: String) -> UsageError {
        UsageError::Redis {
            node: self.url.to_string(),
            reason,
        }
    }
}

fn key_of(period: Period) -> String {
    format!("{PREFIX}{period}")
}
