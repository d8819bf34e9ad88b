//! The supervisor of a node: keeps its lanes in connections, and says every second that this replica lives.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Shared,
    breaker::{Failure, Wires},
    checks,
    dial::{DIAL_TIMEOUT, DialError, Dialer, within},
};

/// How often a replica says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Between two pieces of what Redis is told of decisions made without it.
const PIECE: Duration = Duration::from_millis(5);

/// A dial that gets no answer for so long is joined by another, and by how many at most: what it sent into a black hole is sent
/// again only seconds after that has closed.
const COMPANY: Duration = Duration::from_millis(400);
const MOST_DIALS: usize = 4;

/// Counts the replicas that have said within 3 s that they live, this one among them, scored by Redis' time in seconds. One
/// without a name is none, and writes all the same.
const HEARTBEAT_SCRIPT: &str = r#"
local now = tonumber(redis.call("TIME")[1])
if ARGV[1] ~= "" then redis.call("ZADD", KEYS[1], now, ARGV[1]) end
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - 4)
redis.call("EXPIRE", KEYS[1], 60)
return redis.call("ZCARD", KEYS[1])
"#;

/// Dials whenever the breaker is open, and says every second that this replica lives.
pub async fn supervise(shared: Arc<Shared>, dialer: Arc<Dialer>) {
    let replica = match shared.settings.looks_only {
        true => String::new(),
        false => format!("{:032x}", rand::random::<u128>()),
    };
    let mut said = Said::default();
    for generation in 1.. {
        let connections = dial_until_well(&shared, &dialer, &replica, &mut said).await;
        let first = connections[0].clone();
        let wires = Wires {
            generation,
            connections: connections.into(),
        };
        said.closed(&shared, &dialer);
        shared.breaker.close(wires.clone());
        tokio::select! {
            () = beat_while_closed(&shared, wires, &replica) => {}
            () = checks::keep_looking(&shared, first) => {}
            () = settle_ledger(&shared) => {}
        }
        said.opened(&shared);
    }
}

/// Says that this replica lives, which proves that Redis takes writes, and counts it and the others. None if this node of a
/// cluster has no slot to say it in.
async fn heartbeat(
    shared: &Shared,
    connection: &mut MultiplexedConnection,
    replica: &str,
) -> Result<Option<u32>, RedisError> {
    let Some(key) = shared.replicas_key() else {
        // A node without a slot of ours takes no key.
        let () = redis::cmd("PING").query_async(connection).await?;
        return Ok(None);
    };
    let mut command = redis::cmd("EVAL");
    command.arg(HEARTBEAT_SCRIPT).arg(1).arg(key).arg(replica);
    match command.query_async(connection).await {
        // It lives, though the slot is elsewhere by now.
        Err(error) if shared.redirect(&error).is_some() => Ok(None),
        counted => counted.map(Some),
    }
}

async fn dial_until_well(
    shared: &Shared,
    dialer: &Dialer,
    replica: &str,
    said: &mut Said,
) -> Vec<MultiplexedConnection> {
    let patience = shared.patience().min(DIAL_TIMEOUT);
    let mut failures = 0;
    let mut dials = FuturesUnordered::new();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(next), if dials.len() < MOST_DIALS => {
                dials.push(dial(shared, dialer, replica, patience));
                next = Instant::now() + jittered(COMPANY);
            }
            Some(dialled) = dials.next() => match dialled {
                Ok((connections, replicas)) => {
                    // The others may not be back yet.
                    let known = shared.replicas.load(Relaxed);
                    shared.count_replicas(replicas.map_or(known, |replicas| replicas.max(known)));
                    return connections;
                }
                Err(error) => {
                    let failure = error.failure();
                    shared.breaker.explain(&error.to_string());
                    said.failed(shared, failure);
                    next = Instant::now() + jittered(failure.delay(failures));
                    failures += 1;
                }
            }
        }
    }
}

/// Replicas that lost Redis together must not come back together.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.5..1.0))
}

/// Connections to a Redis that takes writes within `patience`, and the replicas of Tollgate on it.
async fn dial(
    shared: &Shared,
    dialer: &Dialer,
    replica: &str,
    patience: Duration,
) -> Result<(Vec<MultiplexedConnection>, Option<u32>), DialError> {
    let mut connections = dialer.dial().await?;
    let beat = heartbeat(shared, &mut connections[0], replica);
    let replicas = within(patience, "a write", beat).await?;
    Ok((connections, replicas))
}

async fn beat_while_closed(shared: &Shared, wires: Wires, replica: &str) {
    let mut watched = shared.breaker.wires();
    let mut connection = wires.connections[0].clone();
    loop {
        tokio::select! {
            _ = watched.wait_for(Option::is_none) => return,
            () = sleep(HEARTBEAT) => {}
        }
        match timeout(DIAL_TIMEOUT, heartbeat(shared, &mut connection, replica)).await {
            Ok(Ok(Some(replicas))) => shared.count_replicas(replicas),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => shared.trip(wires.generation, &error.to_string()),
            // The lanes judge slowness by their own batches.
            Err(_) => {}
        }
    }
}

/// Tells Redis what was decided without it, whether anybody asks or not; for ever. Piece by piece, so that requests find room between.
async fn settle_ledger(shared: &Shared) {
    loop {
        shared.nudge_ledger();
        sleep(match shared.ledger.is_empty() {
            true => HEARTBEAT,
            false => PIECE,
        })
        .await;
    }
}

/// What the log has said, so that it says transitions only.
#[derive(Default)]
struct Said {
    failure: Option<Failure>,
}

impl Said {
    fn closed(&mut self, shared: &Shared, dialer: &Dialer) {
        self.failure = None;
        let at = dialer.last().map(|endpoint| endpoint.to_string());
        tracing::info!(node = shared.node(), at, "connected to Redis");
    }

    fn opened(&mut self, shared: &Shared) {
        let reason = shared.breaker.reason();
        tracing::warn!(node = shared.node(), %reason, "Redis is unwell: deciding without it as on_store_error says");
    }

    fn failed(&mut self, shared: &Shared, failure: Failure) {
        if self.failure.replace(failure) == Some(failure) {
            return;
        }
        let (node, reason) = (shared.node(), shared.breaker.reason());
        if failure == Failure::Refused {
            tracing::error!(node, %reason, "Redis refuses to work for us: change its settings or ours; trying again slowly");
        } else {
            tracing::warn!(node, %reason, "cannot reach Redis; trying again in the background");
        }
    }
}
