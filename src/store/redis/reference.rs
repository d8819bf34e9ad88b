//! Where a Redis is, as envoyproxy/ratelimit's `REDIS_…` variables say it.
//!
//! Source: its README and settings: `REDIS_URL` is `host:port` or a URL for a single Redis, `service,host:port,…` for sentinels,
//! `host:port,…` for a cluster, and a path where `REDIS_SOCKET_TYPE` is unix. Its driver, radix, reads each of a list as a URL,
//! too, and of what follows a URL's question mark it passes over what it does not know.

use std::borrow::Cow;

use super::url::{
    Endpoint, Login, PARAMETERS, Password, RedisUrl, RedisUrlError, Tls, Topology, without_secrets,
};

/// What the variables say of one Redis.
#[derive(Debug, Clone)]
pub struct ReferenceRedis<'a> {
    /// `REDIS_TYPE`
    pub kind: ReferenceKind,
    /// Whether `REDIS_SOCKET_TYPE` is unix.
    pub unix: bool,
    /// `REDIS_URL`
    pub url: &'a str,
    /// `REDIS_AUTH`: a password, or user:password; empty for none.
    pub auth: &'a str,
    /// `REDIS_SENTINEL_AUTH`, the same for the sentinels.
    pub sentinel_auth: &'a str,
    /// The files of `REDIS_TLS_…`, if `REDIS_TLS` is true.
    pub tls: Option<Tls>,
}

/// `REDIS_TYPE`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceKind {
    /// One server.
    Single,
    /// A primary that sentinels know.
    Sentinel,
    /// A cluster.
    Cluster,
}

impl RedisUrl {
    /// The Redis that envoyproxy/ratelimit would use.
    ///
    /// # Errors
    /// [`RedisUrlError`]: what `REDIS_URL` should be instead.
    pub fn from_reference(said: &ReferenceRedis<'_>) -> Result<Self, RedisUrlError> {
        let mut url = match said.kind {
            ReferenceKind::Single if said.url.contains("://") => known_only(said.url).parse()?,
            ReferenceKind::Single if said.unix => {
                Self::new(Topology::Single(Endpoint::Unix(said.url.into())))
            }
            ReferenceKind::Single => {
                let endpoint = endpoint(said, said.url, 6379)?;
                Self::new(Topology::Single(endpoint))
            }
            ReferenceKind::Sentinel => by_sentinels(said)?,
            ReferenceKind::Cluster => {
                let (nodes, first) = members(said, said.url, 6379)?;
                let mut url = Self::new(Topology::Cluster(nodes));
                url.login = first.login;
                url.tls = first.tls;
                url
            }
        };
        if !said.auth.is_empty() {
            let user = url.login.username.take();
            url.login = Login::from_pair(said.auth);
            url.login.username = url.login.username.or(user);
        }
        if !said.sentinel_auth.is_empty() {
            url.sentinel_login = Login::from_pair(said.sentinel_auth);
        }
        if said.tls.is_some() {
            url.tls = said.tls.clone();
        }
        Ok(url)
    }
}

fn by_sentinels(said: &ReferenceRedis<'_>) -> Result<RedisUrl, RedisUrlError> {
    let (service, hosts) = match said.url.split_once(',') {
        Some((service, hosts)) if !service.is_empty() => (service, hosts),
        _ => {
            let reason = "no service and sentinels are named";
            return Err(mistake(said, reason.to_owned()));
        }
    };
    let (sentinels, first) = members(said, hosts, 26379)?;
    let mut url = RedisUrl::new(Topology::Sentinel {
        service: service.to_owned(),
        sentinels,
    });
    url.sentinel_login = first.login;
    url.tls = first.tls;
    Ok(url)
}

/// What the first member that is a URL says beside its host. It holds for all.
#[derive(Default)]
struct First {
    login: Login,
    tls: Option<Tls>,
}

/// Where the members of a list are, each `host:port` or a URL.
fn members(
    said: &ReferenceRedis<'_>,
    hosts: &str,
    port: u16,
) -> Result<(Vec<Endpoint>, First), RedisUrlError> {
    let mut endpoints = Vec::new();
    let mut first = First::default();
    for host in hosts.split(',').map(str::trim) {
        if host.contains("://") {
            let url: RedisUrl = known_only(host).parse()?;
            if first.login.password == Password::None {
                first.login = url.login;
            }
            first.tls = first.tls.or(url.tls);
            match url.topology {
                Topology::Single(endpoint) if url.db == 0 => endpoints.push(endpoint),
                _ => {
                    return Err(mistake(
                        said,
                        "each of a list is one host, database 0".to_owned(),
                    ));
                }
            }
        } else if !host.is_empty() {
            endpoints.push(endpoint(said, host, port)?);
        }
    }
    match endpoints.is_empty() {
        true => Err(mistake(said, "a host is missing".to_owned())),
        false => Ok((endpoints, first)),
    }
}

/// The URL without the parameters that nobody knows.
fn known_only(url: &str) -> Cow<'_, str> {
    let Some((before, parameters)) = url.split_once('?') else {
        return url.into();
    };
    let known = parameters.split('&').filter(|parameter| {
        let (name, _) = parameter.split_once('=').unwrap_or((parameter, ""));
        PARAMETERS.contains(&name)
    });
    let known: Vec<_> = known.collect();
    match &*known {
        [] => before.into(),
        known => format!("{before}?{}", known.join("&")).into(),
    }
}

fn endpoint(said: &ReferenceRedis<'_>, host: &str, port: u16) -> Result<Endpoint, RedisUrlError> {
    Endpoint::from_host(host, port).map_err(|reason| mistake(said, reason))
}

fn mistake(said: &ReferenceRedis<'_>, reason: String) -> RedisUrlError {
    RedisUrlError::Part {
        shown: without_secrets(said.url),
        reason,
        write: match said.kind {
            ReferenceKind::Single => "host:port, or redis://[user:password@]host[:port][/db]",
            ReferenceKind::Sentinel => "service,host:port,host:port",
            ReferenceKind::Cluster => "host:port,host:port",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redis::Password;

    fn read(kind: ReferenceKind, unix: bool, url: &str) -> Result<RedisUrl, String> {
        let said = ReferenceRedis {
            kind,
            unix,
            url,
            auth: "me:p:w",
            sentinel_auth: "watch",
            tls: Some(Tls::default()),
        };
        RedisUrl::from_reference(&said).map_err(|error| error.to_string())
    }

    #[test]
    fn every_form_is_read() {
        for (kind, unix, url, same) in [
            (
                ReferenceKind::Single,
                false,
                "redis:6380",
                "redis://redis:6380",
            ),
            (
                ReferenceKind::Single,
                true,
                "/run/r.sock",
                "redis+unix:///run/r.sock",
            ),
            (
                ReferenceKind::Single,
                false,
                "redis://u:x@redis/2",
                "redis://redis/2",
            ),
            (
                ReferenceKind::Sentinel,
                false,
                "main,a:1,b",
                "redis+sentinel://a:1,b/main",
            ),
            (
                ReferenceKind::Cluster,
                false,
                "a:1,b:2",
                "redis+cluster://a:1,b:2",
            ),
        ] {
            let read = read(kind, unix, url).expect(url);
            let same: RedisUrl = same.parse().expect(same);
            assert_eq!((&read.topology, read.db), (&same.topology, same.db));
            assert_eq!(read.login.username.as_deref(), Some("me"));
            assert_eq!(read.login.password, Password::Text("p:w".to_owned()));
            let watch = Password::Text("watch".to_owned());
            assert_eq!(read.sentinel_login.password, watch);
            assert!(read.tls.is_some());
        }
    }

    #[test]
    fn what_the_references_driver_takes_is_taken() {
        let plain = |kind, url| {
            RedisUrl::from_reference(&ReferenceRedis {
                kind,
                unix: false,
                url,
                auth: "",
                sentinel_auth: "",
                tls: None,
            })
        };
        for (kind, url, same) in [
            (ReferenceKind::Single, ":6379", "redis://localhost:6379"),
            (
                ReferenceKind::Single,
                "redis://u:x@:7/2?colour=1&db=3",
                "redis://u:x@localhost:7/2?db=3",
            ),
            (
                ReferenceKind::Single,
                "redis://a?colour=1",
                "redis://a:6379",
            ),
            (
                ReferenceKind::Cluster,
                "redis://a:1,redis://me:p@b:2, c:3,",
                "redis+cluster://me:p@a:1,b:2,c:3",
            ),
            (
                ReferenceKind::Cluster,
                "rediss://a:1,b:2",
                "rediss+cluster://a:1,b:2",
            ),
            (
                ReferenceKind::Sentinel,
                "main,redis://:p@a:1,b",
                "redis+sentinel://a:1,b/main?sentinel_password=p",
            ),
        ] {
            assert_eq!(plain(kind, url), same.parse(), "{url}");
        }
        for (kind, url) in [
            (ReferenceKind::Cluster, ",,"),
            (ReferenceKind::Cluster, "redis://:hush@a/1"),
            (ReferenceKind::Cluster, "a:1,ftp://:hush@b"),
            (ReferenceKind::Sentinel, "main,"),
            (ReferenceKind::Sentinel, "main,redis+cluster://:hush@a,b"),
        ] {
            let error = plain(kind, url).expect_err(url).to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_password_alone_leaves_the_user_of_the_url() {
        let said = ReferenceRedis {
            kind: ReferenceKind::Single,
            unix: false,
            url: "redis://me:x@a",
            auth: "p",
            sentinel_auth: "",
            tls: None,
        };
        let url = RedisUrl::from_reference(&said);
        assert_eq!(url, "redis://me:p@a".parse());
    }

    #[test]
    fn a_mistake_says_what_to_write() {
        assert_eq!(
            read(ReferenceKind::Sentinel, false, "main"),
            Err(
                "`main`: no service and sentinels are named: write service,host:port,host:port"
                    .to_owned()
            )
        );
        let error = read(ReferenceKind::Cluster, false, "a:x").expect_err("no port");
        assert_eq!(
            error,
            "`a:x`: a port is a number from 1 to 65535: write host:port,host:port"
        );
    }
}
