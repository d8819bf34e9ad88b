//! Process settings: what a start needs to know, apart from the plans.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use crate::store::redis::{RedisUrl, RedisUrlError};

/// Everything `serve` needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Plan files and folders.
    pub config: Vec<PathBuf>,
    /// Where the gRPC services listen; at least one.
    pub grpc_listen: Vec<Address>,
    /// Where health, metrics and plans are served.
    pub http_listen: Address,
    /// Where buckets live.
    pub store: StoreChoice,
    /// Longest wait for Redis per decision.
    pub store_timeout: Duration,
    /// Most buckets of the memory store.
    pub max_buckets: usize,
    /// How long to keep serving after the health service says NOT_SERVING.
    pub drain_delay: Duration,
}

/// Where buckets live.
#[derive(Debug, Clone)]
pub enum StoreChoice {
    /// In this process.
    Memory,
    /// In Redis.
    Redis(Box<RedisChoice>),
}

/// Where buckets live in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisChoice {
    /// Of all limits.
    pub main: RedisUrl,
    /// Of limits per second instead, as envoyproxy/ratelimit's `REDIS_PERSECOND` has it.
    pub per_second: Option<RedisUrl>,
}

/// The text names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}, or `memory`")]
pub struct StoreChoiceError(#[from] RedisUrlError);

impl FromStr for StoreChoice {
    type Err = StoreChoiceError;

    fn from_str(text: &str) -> Result<Self, StoreChoiceError> {
        match text {
            "memory" => Ok(Self::Memory),
            url => Ok(Self::Redis(Box::new(RedisChoice {
                main: url.parse()?,
                per_second: None,
            }))),
        }
    }
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redis(choice) => choice.fmt(f),
        }
    }
}

impl fmt::Display for RedisChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis at {}", self.main)?;
        match &self.per_second {
            Some(url) => write!(f, ", of limits per second at {url}"),
            None => Ok(()),
        }
    }
}

/// Where to listen or to connect: `host:port` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// The text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: write host:port, like 0.0.0.0:8081, or unix:PATH")]
pub struct AddressError {
    text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError {
            text: text.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err(error())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        text.to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next())
            .map(Self::Tcp)
            .ok_or_else(error)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
