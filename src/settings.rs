//! Process settings: what a start needs to know, apart from the plans.

mod mapping;
mod statistics;
mod token;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use crate::{
    home::Place,
    plan::Sources,
    store::redis::{RedisUrl, RedisUrlError},
    tls::ServerFiles,
    traces::TracesSettings,
    usage::Retention,
    xds::XdsSettings,
};

pub use self::mapping::{Mapped, Mapping, MappingError, MetricKind, allowed_in_names};
pub use self::statistics::{
    Mogrifier, Protocol, StatisticsSettings, StatsdAddress, StatsdAddressError, StatsdSettings,
    TagStyle,
};
pub use self::token::{AdminTokens, TokenError};

/// Everything `serve` needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where plans come from, and how they are read; no files with `xds`.
    pub plans: Sources,
    /// Whether it starts though the plans do not load; calls fail until they do.
    pub wait_for_plans: bool,
    /// The control plane that plans come from instead of files.
    pub xds: Option<XdsSettings>,
    /// Where the gRPC services listen; at least one.
    pub grpc_listen: Vec<Address>,
    /// TLS on the TCP addresses of `grpc_listen`; none for plain HTTP/2.
    pub grpc_tls: Option<ServerFiles>,
    /// Where health, metrics and plans are served.
    pub http_listen: Address,
    /// Where the debug pages are served; nowhere if none.
    pub debug_listen: Option<Address>,
    /// Where buckets live.
    pub store: StoreChoice,
    /// Longest wait for Redis per decision.
    pub store_timeout: Duration,
    /// Most buckets of the memory store.
    pub max_buckets: usize,
    /// As [`RedisSettings::local_cache`](crate::store::redis::RedisSettings::local_cache).
    pub local_cache: bool,
    /// How long to keep serving after the health service says NOT_SERVING.
    pub drain_delay: Duration,
    /// Where this process keeps what must outlive it, where the store does not.
    pub state_dir: Option<PathBuf>,
    /// How often the memory store writes its buckets there; never if none.
    pub snapshot_every: Option<Duration>,
    /// The admin API; off if none.
    pub admin: Option<AdminSettings>,
    /// How usage is metered; not at all if none.
    pub usage: Option<UsageSettings>,
    /// What is counted and shown beyond our own metrics.
    pub statistics: StatisticsSettings,
    /// Where spans of decisions are sent; no spans are made if none.
    pub traces: Option<TracesSettings>,
    /// In whose words errors and health are said.
    pub dialect: Dialect,
    /// Without what health says that it does not serve.
    pub health_needs: HealthNeeds,
    /// How long gRPC connections live.
    pub connection_age: ConnectionAge,
}

/// The admin API: where it listens, and what opens it.
#[derive(Debug, Clone)]
pub struct AdminSettings {
    /// Where it listens.
    pub listen: Address,
    /// What opens it; none where only client certificates do.
    pub tokens: AdminTokens,
    /// TLS, with client certificates that open it too if it has an authority of theirs.
    pub tls: Option<ServerFiles>,
}

/// Where API keys, plans and the audit log are kept that are made at run time, and usage: with the buckets in Redis, else in the state
/// directory, else nowhere.
pub fn home_of(store: &StoreChoice, state_dir: Option<&Path>) -> Option<Place> {
    match (store, state_dir) {
        (StoreChoice::Redis(choice), _) => Some(Place::Redis(Box::new(choice.main.clone()))),
        (StoreChoice::Memory, Some(folder)) => Some(Place::Folder(folder.to_owned())),
        (StoreChoice::Memory, None) => None,
    }
}

/// How usage is metered. Where it is kept, [`home_of`] says.
#[derive(Debug, Clone)]
pub struct UsageSettings {
    /// How often what was counted is kept.
    pub flush_interval: Duration,
    /// How long it is kept.
    pub retention: Retention,
}

/// In whose words errors and health are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// gRPC's own: each error has the code that tells what to do; while draining nothing is SERVING.
    #[default]
    Tollgate,
    /// envoyproxy/ratelimit's: errors are UNKNOWN, and the unnamed health service is SERVING to the end.
    Reference,
}

impl Dialect {
    /// What moves the ports of gRPC, HTTP, metrics, the debug pages and the admin API: flags, or variables.
    pub fn movers(self) -> [&'static str; 5] {
        match self {
            Self::Tollgate => [
                "--grpc-listen",
                "--http-listen",
                "--metrics-listen",
                "--debug-listen",
                "--admin-listen",
            ],
            Self::Reference => [
                "GRPC_PORT",
                "PORT",
                "PROMETHEUS_ADDR",
                "DEBUG_PORT",
                "TOLLGATE_ADMIN_LISTEN",
            ],
        }
    }
}

/// Without what health says that the service does not serve, though it answers; nothing unless told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HealthNeeds {
    /// Plans of at least one domain.
    pub plans: bool,
    /// A store that can be reached.
    pub store: bool,
}

/// How long gRPC connections live. Clients that connect anew spread over replicas that came since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionAge {
    /// When they are told to end; never if none.
    pub limit: Option<Duration>,
    /// How long they may take to end then; as long as they like if none.
    pub grace: Option<Duration>,
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

/// Where to listen or to connect: `host:port`, `:port` for every address of this machine, or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// The text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: write host:port, like 0.0.0.0:8081, or :port, or unix:PATH")]
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
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().map(any_host).map_err(|_| error());
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

/// Every address of this machine, IPv6 and IPv4; only the latter where the machine has no other.
fn any_host(port: u16) -> Address {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let has_v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    Address::Tcp(if has_v6 { v6 } else { v4 })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_every_address_of_the_machine() {
        let Ok(Address::Tcp(address)) = ":9090".parse() else {
            panic!("no address");
        };
        assert!(address.ip().is_unspecified() && address.port() == 9090);
        for wrong in [":", ":x", ":70000", ":9090/"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
