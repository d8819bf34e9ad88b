//! New connections: finds the server, proves who we are, and hands over connections that have the script.
//!
//! Everything that may change under a running process is read again at each dial: names are resolved, files of passwords and
//! certificates are read, sentinels are asked for the primary.

mod error;

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{
    breaker::Failure,
    call::script,
    url::{Endpoint, Login, Password, RedisUrl, Tls, Topology},
};
use crate::{
    small_file,
    tls::{IdentityFiles, Pem, TlsFile, TlsFileError},
};

pub use self::error::DialError;

/// Longest wait for a dial, and for each answer while dialling.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest password file that is read, in bytes.
const LONGEST_PASSWORD: u64 = 64 * 1024;

/// Dials one server, for as many connections as there are lanes.
#[derive(Debug)]
pub struct Dialer {
    url: RedisUrl,
    whom: Whom,
    lanes: usize,
    /// The address of the last dial.
    last: Mutex<Option<Endpoint>>,
}

#[derive(Debug)]
enum Whom {
    /// Always this one.
    Fixed(Endpoint),
    /// Whom the sentinels name.
    Primary {
        service: String,
        sentinels: Vec<Endpoint>,
    },
}

impl Dialer {
    /// Dials `endpoint`, which `url` names or leads to.
    pub fn of_server(url: &RedisUrl, endpoint: Endpoint, lanes: usize) -> Self {
        Self::new(url, Whom::Fixed(endpoint), lanes)
    }

    /// Dials whom the sentinels name at that time.
    pub fn of_primary(url: &RedisUrl, service: &str, sentinels: &[Endpoint], lanes: usize) -> Self {
        let (service, sentinels) = (service.to_owned(), sentinels.to_vec());
        Self::new(url, Whom::Primary { service, sentinels }, lanes)
    }

    fn new(url: &RedisUrl, whom: Whom, lanes: usize) -> Self {
        Self {
            url: url.clone(),
            whom,
            lanes,
            last: Mutex::new(None),
        }
    }

    /// The address of the last dial.
    pub fn last(&self) -> Option<Endpoint> {
        self.last.lock().clone()
    }

    /// Connections that have the script.
    pub async fn dial(&self) -> Result<Vec<MultiplexedConnection>, DialError> {
        let endpoint = match &self.whom {
            Whom::Fixed(endpoint) => endpoint.clone(),
            Whom::Primary { service, sentinels } => {
                let last = self.last();
                primary(&self.url, service, sentinels, last.as_ref()).await?
            }
        };
        *self.last.lock() = Some(endpoint.clone());
        let dialled = self.dial_at(&endpoint).await;
        dialled.map_err(|error| match &self.whom {
            Whom::Fixed(_) => error,
            // The URL does not name it.
            Whom::Primary { .. } => error.at(format!("primary {endpoint}")),
        })
    }

    async fn dial_at(&self, endpoint: &Endpoint) -> Result<Vec<MultiplexedConnection>, DialError> {
        let (url, login) = (&self.url, &self.url.login);
        let pool = pool(url.info(endpoint, login).await?, self.lanes)?;
        let mut connections = Vec::with_capacity(self.lanes);
        for _ in 0..self.lanes {
            let connection = pool.get().await.map_err(DialError::from);
            let connection = connection.map_err(|error| error.of_connection(url, login))?;
            connections.push(Connection::take(connection));
        }
        // The first word is short: a Redis that has not let us in says so only to those who do not bring 16 KiB at once.
        let hello = redis::cmd("TIME");
        within(DIAL_TIMEOUT, "TIME", hello.exec_async(&mut connections[0])).await?;
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script().code());
        let loaded = load.exec_async(&mut connections[0]);
        within(DIAL_TIMEOUT, "SCRIPT LOAD", loaded).await?;
        Ok(connections)
    }
}

/// A connection to one of the nodes of a cluster, to ask about the others.
pub async fn connect(
    url: &RedisUrl,
    endpoint: &Endpoint,
) -> Result<MultiplexedConnection, DialError> {
    connect_as(url, endpoint, &url.login).await
}

/// Waits for an answer of Redis, but not for ever.
pub async fn within<T>(
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

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(DIAL_TIMEOUT))
        // The lanes wait as long as they see fit, and a late answer is still of use.
        .set_response_timeout(None)
}

fn pool(info: ConnectionInfo, size: usize) -> Result<Pool, DialError> {
    let manager = Manager::new_with_config(info, config())?;
    let pool = Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(DIAL_TIMEOUT),
            create: Some(DIAL_TIMEOUT),
            recycle: Some(DIAL_TIMEOUT),
        })
        .build()
        .expect("a runtime is given, which is all that timeouts need");
    Ok(pool)
}

async fn connect_as(
    url: &RedisUrl,
    endpoint: &Endpoint,
    login: &Login,
) -> Result<MultiplexedConnection, DialError> {
    let client = Client::open(url.info(endpoint, login).await?)?;
    let config = config();
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    let connection = within(DIAL_TIMEOUT, "a connection", connection).await;
    connection.map_err(|error| error.of_connection(url, login))
}

/// Whom the first sentinel to answer names. One that still names `last`, which was just lost, is believed only if the others
/// do so too, or say nothing.
pub async fn primary(
    url: &RedisUrl,
    service: &str,
    sentinels: &[Endpoint],
    last: Option<&Endpoint>,
) -> Result<Endpoint, DialError> {
    let asked = sentinels.iter().map(async |sentinel| {
        let answer = ask_sentinel(url, sentinel, service).await;
        answer.map_err(|error| error.at(format!("sentinel {sentinel}")))
    });
    let mut answers: FuturesUnordered<_> = asked.collect();
    let (mut found, mut failed, mut unknown) = (None, None, false);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(endpoint)) if Some(&endpoint) != last => return Ok(endpoint),
            Ok(Some(endpoint)) => found = Some(endpoint),
            Ok(None) => unknown = true,
            Err(error) => failed = Some(error),
        }
    }
    match (found, failed) {
        (Some(endpoint), _) => Ok(endpoint),
        // One that answers has said more than one that does not.
        (None, Some(error)) if !unknown => Err(error),
        _ => Err(DialError::UnknownService {
            service: service.to_owned(),
        }),
    }
}

async fn ask_sentinel(
    url: &RedisUrl,
    sentinel: &Endpoint,
    service: &str,
) -> Result<Option<Endpoint>, DialError> {
    let mut connection = connect_as(url, sentinel, &url.sentinel_login).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let answer = command.query_async::<Option<(String, u16)>>(&mut connection);
    let address = within(DIAL_TIMEOUT, "SENTINEL GET-MASTER-ADDR-BY-NAME", answer).await?;
    Ok(address.map(|(host, port)| Endpoint::Tcp { host, port }))
}

impl RedisUrl {
    /// One connection apart from those of the store, for what is no decision: to the server that has `key`.
    ///
    /// # Errors
    /// Whatever keeps it from that server now.
    pub async fn connect(&self, key: &str) -> Result<MultiplexedConnection, DialError> {
        match &self.topology {
            Topology::Single(endpoint) => connect(self, endpoint).await,
            Topology::Sentinel { service, sentinels } => {
                let endpoint = primary(self, service, sentinels, None).await?;
                connect(self, &endpoint).await
            }
            Topology::Cluster(seeds) => self.connect_to_owner(seeds, key).await,
        }
    }

    /// Asks the nodes of a cluster for `key` until one has it: the others say who does.
    async fn connect_to_owner(
        &self,
        seeds: &[Endpoint],
        key: &str,
    ) -> Result<MultiplexedConnection, DialError> {
        let mut found = Err(DialError::NoMap);
        for seed in seeds {
            let mut connection = match connect(self, seed).await {
                Ok(connection) => connection,
                Err(error) => {
                    found = Err(error);
                    continue;
                }
            };
            let mut command = redis::cmd("EXISTS");
            let answer = command.arg(key).query_async::<u8>(&mut connection);
            let error = match within(DIAL_TIMEOUT, "EXISTS", answer).await {
                Ok(_) => return Ok(connection),
                Err(error) => error,
            };
            if let DialError::Redis(moved) = &error
                && let Some(owner) = seed.redirected(moved)
            {
                return connect(self, &owner).await;
            }
            found = Err(error);
        }
        found
    }

    /// What the `redis` crate needs to connect to `endpoint` as `login`, with the files as they are now.
    async fn info(&self, endpoint: &Endpoint, login: &Login) -> Result<ConnectionInfo, DialError> {
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_user_timeout(Duration::from_secs(2));
        let sentinel = matches!(&self.topology, Topology::Sentinel { sentinels, .. } if sentinels.contains(endpoint));
        let db = if sentinel { 0 } else { self.db };
        let info = self
            .address(endpoint)
            .await?
            .into_connection_info()?
            .set_tcp_settings(tcp)
            .set_redis_settings(identity(login).await?.set_db(i64::from(db)));
        Ok(info)
    }

    async fn address(&self, endpoint: &Endpoint) -> Result<ConnectionAddr, DialError> {
        Ok(match (endpoint, &self.tls) {
            (Endpoint::Unix(path), _) => ConnectionAddr::Unix(path.clone()),
            (Endpoint::Tcp { host, port }, None) => ConnectionAddr::Tcp(host.clone(), *port),
            (Endpoint::Tcp { host, port }, Some(tls)) => {
                let plain = ConnectionAddr::TcpTls {
                    host: host.clone(),
                    port: *port,
                    insecure: false,
                    tls_params: None,
                };
                let client = Client::build_with_tls(plain, certificates(tls).await?)?;
                let mut address = client.get_connection_info().addr().clone();
                address.set_danger_accept_invalid_hostnames(tls.skip_hostname_verification);
                address
            }
        })
    }
}

async fn identity(login: &Login) -> Result<RedisConnectionInfo, DialError> {
    let mut redis = RedisConnectionInfo::default();
    if let Some(username) = &login.username {
        redis = redis.set_username(username);
    }
    let password = match &login.password {
        Password::None => None,
        Password::Text(password) => Some(password.clone()),
        Password::File(path) => Some(read_password(path).await?),
    };
    Ok(match password {
        Some(password) => redis.set_password(password),
        None => redis,
    })
}

async fn read_password(path: &Path) -> Result<String, DialError> {
    let file = path.to_owned();
    let failed = |source| DialError::Password {
        path: path.display().to_string(),
        source,
    };
    let invalid = |what: &'static str| failed(io::Error::new(io::ErrorKind::InvalidData, what));
    let bytes = blocking(move || small_file::read(&file, LONGEST_PASSWORD)).await;
    let text = String::from_utf8(bytes.map_err(failed)?).map_err(|_| invalid("it is no UTF-8"))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(invalid("its first line is empty")),
    }
}

async fn certificates(tls: &Tls) -> Result<TlsCertificates, DialError> {
    choose_crypto();
    let tls = tls.clone();
    let certificates = blocking(move || {
        let read_authorities = |path: &Path| {
            let pem = Pem::read(path, TlsFile::Authorities)?;
            // Where there are none, the redis crate would trust nobody without a word.
            pem.authorities().map(|_| pem.into_text())
        };
        let root_cert = tls.ca.as_deref().map(read_authorities);
        let client_tls = tls.identity.map(|(cert, key)| {
            let pems = IdentityFiles { cert, key }.read()?;
            pems.pair(SystemTime::now())?;
            Ok::<_, TlsFileError>(ClientTlsConfig {
                client_cert: pems.cert.into_text(),
                client_key: pems.key.into_text(),
            })
        });
        Ok::<_, TlsFileError>(TlsCertificates {
            client_tls: client_tls.transpose()?,
            root_cert: root_cert.transpose()?,
        })
    });
    Ok(certificates.await?)
}

/// Reads files where that delays nobody.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    let read = tokio::task::spawn_blocking(read).await;
    read.expect("reading a file does not panic")
}

/// The `redis` crate leaves the choice to the process, and panics where none was made.
fn choose_crypto() {
    // An error says that it was made before.
    let _: Result<(), Arc<_>> = rustls::crypto::ring::default_provider().install_default();
}
