//! Where a Redis is, who we are there and whom we trust: what a store URL says. Pure: reads no file, connects to nothing.
//!
//! Unlike the URLs of the `redis` crate, one may name several hosts, and what TLS and Sentinel need.

use std::{
    borrow::Cow,
    fmt,
    num::NonZeroU16,
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Most hosts that a URL may name.
const MOST_HOSTS: usize = 64;

/// A Redis, however it is run. `Display` and `Debug` show no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where it is.
    pub topology: Topology,
    /// Who we are there.
    pub login: Login,
    /// The database, 0 to 15 unless Redis is told otherwise; a cluster has 0 only.
    pub db: u32,
    /// How it is spoken to over TLS; none for plain TCP and for sockets. Holds for the sentinels too.
    pub tls: Option<Tls>,
    /// Who we are to the sentinels.
    pub sentinel_login: Login,
}

/// How a Redis is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single(Endpoint),
    /// A primary that sentinels know.
    Sentinel {
        /// The name that the sentinels know it by.
        service: String,
        /// At least one of them.
        sentinels: Vec<Endpoint>,
    },
    /// A cluster, by at least one of its nodes.
    Cluster(Vec<Endpoint>),
}

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name, which is resolved at each dial, or an address.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Who we are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// The ACL user; none for `default`.
    pub username: Option<String>,
    /// The password.
    pub password: Password,
}

/// A password, or where it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Password {
    /// None is asked for.
    #[default]
    None,
    /// This one.
    Text(String),
    /// The first line of a file, which is read again at each dial.
    File(PathBuf),
}

/// Whom we trust, and how we prove who we are. Files are PEM, and read again at each dial.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The only certificate authorities to trust, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Takes a certificate of a trusted authority whatever host it names.
    pub skip_hostname_verification: bool,
}

/// Why a text is no address of a Redis.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// Another scheme, or no URL.
    #[error("`{shown}` is not a Redis URL: write redis://[user:password@]host[:port][/db]")]
    NotRedis {
        /// The text without what may be secret.
        shown: String,
    },
    /// A Redis URL with a mistake.
    #[error("`{shown}`: {reason}: write {write}")]
    Part {
        /// The text without what may be secret.
        shown: String,
        /// What is wrong.
        reason: String,
        /// What to write.
        write: &'static str,
    },
}

impl RedisUrl {
    /// A Redis without a password and without TLS.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            login: Login::default(),
            db: 0,
            tls: None,
            sentinel_login: Login::default(),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, endpoints: &[Endpoint]| {
            endpoints.iter().enumerate().try_for_each(|(i, endpoint)| {
                write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })
            })
        };
        match &self.topology {
            Topology::Single(endpoint) => endpoint.fmt(f),
            Topology::Sentinel { service, sentinels } => {
                write!(f, "{service} by sentinels ")?;
                list(f, sentinels)
            }
            Topology::Cluster(seeds) => {
                write!(f, "cluster ")?;
                list(f, seeds)
            }
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, RedisUrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(RedisUrlError::NotRedis {
                shown: without_secrets(text),
            });
        };
        let Some((form, tls)) = Form::of(scheme) else {
            return Err(RedisUrlError::NotRedis {
                shown: without_secrets(text),
            });
        };
        let read = Parts::of(rest, form).and_then(|parts| parts.url(form, tls));
        read.map_err(|reason| RedisUrlError::Part {
            shown: without_secrets(text),
            reason,
            write: form.write(),
        })
    }
}

/// The scheme at most if there may be a password.
pub(super) fn without_secrets(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://…"),
        None if text.contains('@') => "…".to_owned(),
        None => text.to_owned(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    Unix,
    Sentinel,
    Cluster,
}

impl Form {
    /// The form that a scheme stands for, and whether it asks for TLS.
    fn of(scheme: &str) -> Option<(Self, bool)> {
        let (base, form) = match scheme.split_once('+') {
            None if scheme == "unix" => return Some((Self::Unix, false)),
            None => (scheme, Self::Single),
            Some((base, "unix")) => (base, Self::Unix),
            Some((base, "sentinel")) => (base, Self::Sentinel),
            Some((base, "cluster")) => (base, Self::Cluster),
            Some(_) => return None,
        };
        let tls = match base {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" if form != Self::Unix => true,
            _ => return None,
        };
        Some((form, tls))
    }

    fn write(self) -> &'static str {
        match self {
            Self::Single => "redis://[user:password@]host[:port][/db]",
            Self::Unix => "redis+unix://[user:password@]/path/of/the/socket[?db=1]",
            Self::Sentinel => {
                "redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]"
            }
            Self::Cluster => "redis+cluster://[user:password@]host[:port],host[:port]",
        }
    }
}

/// The parts of a URL behind its scheme; why not, as a reason.
struct Parts<'a> {
    login: Login,
    hosts: &'a str,
    /// Without the slash before it, but for a socket.
    path: String,
    query: Query,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str, form: Form) -> Result<Self, String> {
        if rest.contains('#') {
            return Err("a `#` in a name or password is written %23".to_owned());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (read_login(login)?, hosts),
            None => (Login::default(), authority),
        };
        let path = match form {
            Form::Unix => path,
            _ => path.strip_prefix('/').unwrap_or(path),
        };
        Ok(Self {
            login,
            hosts,
            path: decoded(path)?.into_owned(),
            query: Query::of(query)?,
        })
    }

    fn url(self, form: Form, tls: bool) -> Result<RedisUrl, String> {
        let (topology, db) = match form {
            Form::Single => (Topology::Single(self.one_host()?), read_db(&self.path)?),
            Form::Unix => (Topology::Single(self.socket()?), None),
            Form::Sentinel => {
                let (service, db) = self.path.split_once('/').unwrap_or((&self.path, ""));
                if service.is_empty() {
                    return Err("the name that the sentinels know the primary by is missing".into());
                }
                let topology = Topology::Sentinel {
                    service: service.to_owned(),
                    sentinels: read_hosts(self.hosts, SENTINEL_PORT)?,
                };
                (topology, read_db(db)?)
            }
            Form::Cluster => {
                let topology = Topology::Cluster(read_hosts(self.hosts, PORT)?);
                (topology, read_db(&self.path)?)
            }
        };
        self.query.applied(topology, self.login, db, tls)
    }

    fn one_host(&self) -> Result<Endpoint, String> {
        match &read_hosts(self.hosts, PORT)?[..] {
            [host] => Ok(host.clone()),
            _ => {
                Err("several hosts are redis+sentinel://…/service or redis+cluster://…".to_owned())
            }
        }
    }

    fn socket(&self) -> Result<Endpoint, String> {
        if !self.hosts.is_empty() {
            return Err("the path of a socket begins with a slash".to_owned());
        }
        if self.path.len() < 2 {
            return Err("the path of the socket is missing".to_owned());
        }
        Ok(Endpoint::Unix(self.path.clone().into()))
    }
}

/// What follows the question mark.
#[derive(Default)]
struct Query {
    db: Option<u32>,
    login: Login,
    sentinel_login: Login,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    skip_hostname_verification: bool,
}

impl Query {
    fn of(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in form_urlencoded::parse(text.as_bytes()) {
            let path = || PathBuf::from(&*value);
            match &*name {
                "db" => query.db = read_db(&value)?,
                "user" | "username" => query.login.username = some_text(&value),
                "pass" | "password" => query.login.password = Password::of(&value),
                "password_file" => query.login.password = Password::File(path()),
                "sentinel_username" => query.sentinel_login.username = some_text(&value),
                "sentinel_password" => query.sentinel_login.password = Password::of(&value),
                "sentinel_password_file" => query.sentinel_login.password = Password::File(path()),
                "ca" => query.ca = Some(path()),
                "cert" => query.cert = Some(path()),
                "key" => query.key = Some(path()),
                "skip_hostname_verification" => {
                    query.skip_hostname_verification = value.parse().map_err(|_| {
                        "skip_hostname_verification is `true` or `false`".to_owned()
                    })?;
                }
                _ => return Err(unknown(&name)),
            }
        }
        Ok(query)
    }

    fn applied(
        self,
        topology: Topology,
        login: Login,
        db: Option<u32>,
        tls: bool,
    ) -> Result<RedisUrl, String> {
        let says_tls = self.ca.is_some()
            || self.cert.is_some()
            || self.key.is_some()
            || self.skip_hostname_verification;
        if says_tls && !tls {
            return Err("ca, cert, key and skip_hostname_verification are for rediss://…".into());
        }
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("cert and key go together".to_owned()),
        };
        let db = self.db.or(db).unwrap_or(0);
        if db != 0 && matches!(topology, Topology::Cluster(_)) {
            return Err("a cluster has database 0 only".to_owned());
        }
        let sentinel = matches!(topology, Topology::Sentinel { .. });
        if !sentinel && self.sentinel_login != Login::default() {
            return Err("sentinel_… are for redis+sentinel://…".to_owned());
        }
        Ok(RedisUrl {
            topology,
            login: Login {
                username: self.login.username.or(login.username),
                password: match self.login.password {
                    Password::None => login.password,
                    password => password,
                },
            },
            db,
            tls: tls.then_some(Tls {
                ca: self.ca,
                identity,
                skip_hostname_verification: self.skip_hostname_verification,
            }),
            sentinel_login: self.sentinel_login,
        })
    }
}

/// What may follow the question mark of a URL.
pub(super) const PARAMETERS: [&str; 11] = [
    "db",
    "username",
    "password",
    "password_file",
    "sentinel_username",
    "sentinel_password",
    "sentinel_password_file",
    "ca",
    "cert",
    "key",
    "skip_hostname_verification",
];

fn unknown(name: &str) -> String {
    // What is unknown may be half of a password with a `?` in it, so it is not repeated.
    let near = PARAMETERS
        .into_iter()
        .find(|known| strsim::osa_distance(known, name) <= 2);
    match near {
        Some(near) => format!("unknown parameter, did you mean `{near}`?"),
        None => format!("unknown parameter, known are {}", PARAMETERS.join(", ")),
    }
}

impl Login {
    /// `password` or `user:password`, neither encoded; a first part that is empty is no user.
    pub fn from_pair(text: &str) -> Self {
        match text.split_once(':') {
            Some((user, password)) => Self {
                username: some_text(user),
                password: Password::of(password),
            },
            None => Self {
                username: None,
                password: Password::of(text),
            },
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

impl Password {
    /// No text is no password.
    fn of(text: &str) -> Self {
        some_text(text).map_or(Self::None, Self::Text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Endpoint {
    /// `host`, `host:port`, `[address]`, `[address]:port`, or `:port` of this machine.
    ///
    /// # Errors
    /// What is wrong, without the text.
    pub fn from_host(text: &str, default_port: u16) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("a `]` is missing")?;
                (host, port.strip_prefix(':').unwrap_or(port))
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let host = match (host, port) {
            ("", "") => return Err("a host is missing".to_owned()),
            ("", _) => "localhost",
            (host, _) => host,
        };
        let port = match port {
            "" => default_port,
            port => port
                .parse::<NonZeroU16>()
                .map_err(|_| "a port is a number from 1 to 65535".to_owned())?
                .get(),
        };
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }

    /// A socket.
    pub fn socket(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

fn read_hosts(text: &str, default_port: u16) -> Result<Vec<Endpoint>, String> {
    let hosts: Vec<Endpoint> = text
        .split(',')
        .map(|host| Endpoint::from_host(&decoded(host)?, default_port))
        .collect::<Result<_, _>>()?;
    if hosts.len() > MOST_HOSTS {
        return Err(format!("more than {MOST_HOSTS} hosts"));
    }
    Ok(hosts)
}

fn read_login(text: &str) -> Result<Login, String> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok(Login {
        username: some_text(&decoded(user)?),
        password: Password::of(&decoded(password)?),
    })
}

fn read_db(text: &str) -> Result<Option<u32>, String> {
    match text.trim_end_matches('/') {
        "" => Ok(None),
        number => match number.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err("a database is a number, like 0".to_owned()),
        },
    }
}

fn decoded(text: &str) -> Result<Cow<'_, str>, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| "what %… stands for is no UTF-8".to_owned())
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RedisUrl {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        let host = host.to_owned();
        Endpoint::Tcp { host, port }
    }

    #[test]
    fn reads_every_form() {
        let single = url("redis://me:p%40ss@[::1]:7000/3");
        assert_eq!(single.topology, Topology::Single(tcp("::1", 7000)));
        assert_eq!(single.login.username.as_deref(), Some("me"));
        assert_eq!(single.login.password, Password::Text("p@ss".to_owned()));
        assert_eq!((single.db, single.tls), (3, None));

        let secure = url("valkeys://cache?ca=/ca.pem&cert=/c.pem&key=/k.pem");
        assert_eq!(secure.topology, Topology::Single(tcp("cache", 6379)));
        let tls = secure.tls.expect("TLS");
        assert_eq!(tls.identity, Some(("/c.pem".into(), "/k.pem".into())));

        let socket = url("redis+unix://:secret@/run/redis.sock?db=2");
        let path = Endpoint::socket(Path::new("/run/redis.sock"));
        assert_eq!(socket.topology, Topology::Single(path));
        assert_eq!(socket.login.password, Password::Text("secret".to_owned()));
        assert_eq!(socket.db, 2);
        assert_eq!(url("unix:///run/redis.sock?db=2").db, 2);

        let sentinel =
            url("redis+sentinel://a,b:1/mymaster/4?sentinel_password=x&password_file=/pw");
        let sentinels = vec![tcp("a", 26379), tcp("b", 1)];
        let service = "mymaster".to_owned();
        assert_eq!(sentinel.topology, Topology::Sentinel { service, sentinels });
        assert_eq!(sentinel.db, 4);
        assert_eq!(sentinel.login.password, Password::File("/pw".into()));
        assert_eq!(
            sentinel.sentinel_login.password,
            Password::Text("x".to_owned())
        );

        let cluster = url("rediss+cluster://u:p@a:1,b/?skip_hostname_verification=true");
        assert_eq!(
            cluster.topology,
            Topology::Cluster(vec![tcp("a", 1), tcp("b", 6379)])
        );
        assert!(cluster.tls.expect("TLS").skip_hostname_verification);
    }

    #[test]
    fn says_what_to_write_and_no_secret() {
        for (text, expected) in [
            (
                "redis://u:hush@h:x",
                "a port is a number from 1 to 65535: write redis://[",
            ),
            ("redis://:hush@h:0", "a port is a number from 1 to 65535"),
            ("redis://hush@", "a host is missing"),
            (
                "redis://:hush@a,b",
                "several hosts are redis+sentinel://…/service or redis+cluster://…",
            ),
            ("redis://:hush@a/b", "a database is a number, like 0"),
            (
                "redis://:hush@a?passwort=hush",
                "unknown parameter, did you mean `password`?",
            ),
            (
                "redis://:hush@a?foo=hush",
                "unknown parameter, known are db, username",
            ),
            (
                "redis://:hu#sh@a",
                "a `#` in a name or password is written %23",
            ),
            ("redis://:hush@a?ca=/x", "are for rediss://…"),
            ("rediss://:hush@a?cert=/x", "cert and key go together"),
            (
                "redis+sentinel://:hush@a",
                "the name that the sentinels know the primary by is missing: write redis+sentinel://[",
            ),
            ("redis+cluster://:hush@a/1", "a cluster has database 0 only"),
            (
                "redis+unix://hush",
                "the path of a socket begins with a slash",
            ),
            (
                "redis://:hush@a?sentinel_password=hush",
                "sentinel_… are for redis+sentinel://…",
            ),
            ("rediss+unix://:hush@/x", "is not a Redis URL"),
        ] {
            let error = text.parse::<RedisUrl>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let shown = format!("{:?} {}", url("redis://u:hush@h"), url("redis://u:hush@h"));
        assert_eq!(shown, "RedisUrl(h:6379) h:6379");
    }

    #[test]
    fn a_pair_is_a_password_or_user_and_password() {
        assert_eq!(Login::from_pair("p").username, None);
        let pair = Login::from_pair("u:p:q");
        assert_eq!(pair.username.as_deref(), Some("u"));
        assert_eq!(pair.password, Password::Text("p:q".to_owned()));
    }
}
