//! Reaching Redis: the URL, the pool that dials, and the supervisor that keeps the lanes in connections.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use deadpool_redis::{Connection, Manager, Pool, PoolError, Runtime, Timeouts};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    breaker::{Failure, Wires},
    lane::script,
};

/// Longest wait for a dial, and for each answer while dialling.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a replica says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The replicas that have said so lately, scored by Redis' time in seconds.
const REPLICAS_KEY: &str = "tollgate:1:replicas";

/// Counts the replicas that have said within 3 s that they live, this one among them.
const HEARTBEAT_SCRIPT: &str = r#"
local now = tonumber(redis.call("TIME")[1])
redis.call("ZADD", KEYS[1], now, ARGV[1])
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - 4)
redis.call("EXPIRE", KEYS[1], 60)
return redis.call("ZCARD", KEYS[1])
"#;

/// Where a Redis is and who we are there. Shows host and port only.
#[derive(Clone)]
pub struct RedisUrl {
    info: ConnectionInfo,
    node: Arc<str>,
}

/// Why a text is no address of a Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Another scheme, or no URL.
    #[error(
        "`{shown}` is not a Redis URL: write redis://[user:password@]host[:port][/db] or `memory`"
    )]
    NotRedis {
        /// The text without what may be secret.
        shown: String,
    },
    /// `rediss://`
    #[error("`{shown}` asks for TLS, which this build cannot speak: write redis://…")]
    Tls {
        /// The text without what may be secret.
        shown: String,
    },
    /// A Redis URL with a mistake.
    #[error("`{shown}`: {reason}: write redis://[user:password@]host[:port][/db]")]
    Part {
        /// The text without what may be secret.
        shown: String,
        /// What is wrong.
        reason: String,
    },
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, RedisUrlError> {
        let shown = without_secrets(text);
        if text.starts_with("rediss:") || text.starts_with("valkeys:") {
            return Err(RedisUrlError::Tls { shown });
        }
        if redis::parse_redis_url(text).is_none() {
            return Err(RedisUrlError::NotRedis { shown });
        }
        let info = text
            .into_connection_info()
            .map_err(|error| RedisUrlError::Part {
                shown,
                reason: reason(&error),
            })?;
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_user_timeout(Duration::from_secs(2));
        let node = match info.addr() {
            ConnectionAddr::Tcp(host, port) if host.contains(':') => format!("[{host}]:{port}"),
            ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
            other => other.to_string(),
        };
        Ok(Self {
            info: info.set_tcp_settings(tcp),
            node: node.into(),
        })
    }
}

impl RedisUrl {
    /// Host and port, or the path of the socket.
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// One connection apart from those of the store, for what is no decision.
    ///
    /// # Errors
    /// What Redis, or the network, says.
    pub async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DIAL_TIMEOUT))
            .set_response_timeout(None);
        let client = redis::Client::open(self.info.clone())?;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({})", self.node)
    }
}

/// What the crate says about a URL; none of its texts repeats a part of it.
fn reason(error: &RedisError) -> String {
    let text = error.to_string();
    text.split(" - ").next().unwrap_or_default().to_lowercase()
}

/// The scheme at most if there may be a password.
fn without_secrets(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://…"),
        None if text.contains('@') => "…".to_owned(),
        None => text.to_owned(),
    }
}

/// Makes connections for the lanes, by the deadpool pool.
pub struct Dialer {
    pool: Pool,
    lanes: usize,
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Redis or the network said no.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// No connection from the pool.
    #[error("{0}")]
    Pool(#[from] PoolError),
    /// No answer to `step`.
    #[error("no answer within {within:?} to {step}")]
    Silent {
        /// What was asked.
        step: &'static str,
        /// How long was waited.
        within: Duration,
    },
}

impl DialError {
    fn failure(&self) -> Failure {
        match self {
            Self::Redis(error) | Self::Pool(PoolError::Backend(error)) => Failure::of(error),
            _ => Failure::Broken,
        }
    }
}

impl Dialer {
    /// A dialer for `lanes` connections to `url`. Connects to nothing yet.
    pub fn new(url: &RedisUrl, lanes: usize) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DIAL_TIMEOUT))
            // The lanes wait as long as they see fit, and a late answer is still of use.
            .set_response_timeout(None);
        let manager = Manager::new_with_config(url.info.clone(), config)
            .expect("the URL has been read before");
        let pool = Pool::builder(manager)
            .max_size(lanes)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(DIAL_TIMEOUT),
                create: Some(DIAL_TIMEOUT),
                recycle: Some(DIAL_TIMEOUT),
            })
            .build()
            .expect("a runtime is given, which is all that timeouts need");
        Self { pool, lanes }
    }

    /// Connections that have the script, to a Redis that takes writes within `patience`.
    async fn dial(
        &self,
        replica: &str,
        patience: Duration,
    ) -> Result<(Vec<MultiplexedConnection>, u32), DialError> {
        self.pool.retain(|_, _| false);
        let mut connections = Vec::with_capacity(self.lanes);
        for _ in 0..self.lanes {
            connections.push(Connection::take(self.pool.get().await?));
        }
        let first = &mut connections[0];
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script().code());
        within(DIAL_TIMEOUT, "SCRIPT LOAD", load.exec_async(first)).await?;
        let replicas = within(patience, "a write", heartbeat(first, replica)).await?;
        Ok((connections, replicas))
    }
}

async fn within<T>(
    limit: Duration,
    step: &'static str,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, DialError> {
    match timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(DialError::Silent {
            step,
            within: limit,
        }),
    }
}

async fn heartbeat(
    connection: &mut MultiplexedConnection,
    replica: &str,
) -> Result<u32, RedisError> {
    let mut command = redis::cmd("EVAL");
    command
        .arg(HEARTBEAT_SCRIPT)
        .arg(1)
        .arg(REPLICAS_KEY)
        .arg(replica);
    command.query_async(connection).await
}

/// Dials whenever the breaker is open, and says every second that this replica lives.
pub async fn supervise(shared: Arc<Shared>, dialer: Dialer) {
    let replica = format!("{:032x}", rand::random::<u128>());
    let mut said = Said::default();
    for generation in 1.. {
        let connections = dial_until_well(&shared, &dialer, &replica, &mut said).await;
        if generation == 1 {
            warn_of_eviction(connections[0].clone(), shared.node()).await;
        }
        let wires = Wires {
            generation,
            connections: connections.into(),
        };
        said.closed(&shared);
        shared.breaker.close(wires.clone());
        beat_while_closed(&shared, wires, &replica).await;
        said.opened(&shared);
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
    loop {
        match dialer.dial(replica, patience).await {
            Ok((connections, replicas)) => {
                // The others may not be back yet.
                shared.count_replicas(replicas.max(shared.replicas.load(Relaxed)));
                return connections;
            }
            Err(error) => {
                let failure = error.failure();
                shared.breaker.explain(&error.to_string());
                said.failed(shared, failure);
                let delay = failure.delay(failures);
                failures += 1;
                // Replicas that lost Redis together must not come back together.
                sleep(delay.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        }
    }
}

async fn beat_while_closed(shared: &Shared, wires: Wires, replica: &str) {
    let mut watched = shared.breaker.wires();
    let mut connection = wires.connections[0].clone();
    loop {
        tokio::select! {
            _ = watched.wait_for(Option::is_none) => return,
            () = sleep(HEARTBEAT) => {}
        }
        match timeout(DIAL_TIMEOUT, heartbeat(&mut connection, replica)).await {
            Ok(Ok(replicas)) => shared.count_replicas(replicas),
            Ok(Err(error)) => shared.trip(wires.generation, &error.to_string()),
            // The lanes judge slowness by their own batches.
            Err(_) => {}
        }
        shared.nudge_ledger();
    }
}

/// A Redis that evicts keys forgets what was taken.
async fn warn_of_eviction(mut connection: MultiplexedConnection, node: &str) {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let Ok(Ok(info)) = timeout(DIAL_TIMEOUT, command.query_async::<String>(&mut connection)).await
    else {
        return;
    };
    let policy = info
        .lines()
        .find_map(|line| line.strip_prefix("maxmemory_policy:"));
    if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
        tracing::warn!(
            node,
            policy,
            "this Redis may evict buckets, and an evicted bucket is full again: set `maxmemory-policy noeviction`"
        );
    }
}

/// What the log has said, so that it says transitions only.
#[derive(Default)]
struct Said {
    failure: Option<Failure>,
}

impl Said {
    fn closed(&mut self, shared: &Shared) {
        self.failure = None;
        tracing::info!(node = shared.node(), "connected to Redis");
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
