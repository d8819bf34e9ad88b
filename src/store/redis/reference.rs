//! Where a Redis is, as envoyproxy/ratelimit's `REDIS_…` variables say it.
//!
//! Source: its README and settings: `REDIS_URL` is `host:port` or a URL for a single Redis, `service,host:port,…` for sentinels,
//! `host:port,…` for a cluster, and a path where `REDIS_SOCKET_TYPE` is unix.

use super::url::{Endpoint, Login, RedisUrl, RedisUrlError, Tls, Topology, without_secrets};

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
            ReferenceKind::Single if said.url.contains("://") => said.url.parse()?,
            _ => Self::new(topology(said)?),
        };
        if !said.auth.is_empty() {
            url.login = Login::from_pair(said.auth);
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

fn topology(said: &ReferenceRedis<'_>) -> Result<Topology, RedisUrlError> {
    match said.kind {
        ReferenceKind::Single if said.unix => Ok(Topology::Single(Endpoint::Unix(said.url.into()))),
        ReferenceKind::Single => endpoint(said, said.url, 6379).map(Topology::Single),
        ReferenceKind::Sentinel => {
            let (service, hosts) = match said.url.split_once(',') {
                Some((service, hosts)) if !service.is_empty() => (service, hosts),
                _ => {
                    return Err(mistake(
                        said,
                        "no service and sentinels are named".to_owned(),
                    ));
                }
            };
            Ok(Topology::Sentinel {
                service: service.to_owned(),
                sentinels: endpoints(said, hosts, 26379)?,
            })
        }
        ReferenceKind::Cluster => endpoints(said, said.url, 6379).map(Topology::Cluster),
    }
}

fn endpoints(
    said: &ReferenceRedis<'_>,
    hosts: &str,
    port: u16,
) -> Result<Vec<Endpoint>, RedisUrlError> {
    hosts
        .split(',')
        .map(|host| endpoint(said, host.trim(), port))
        .collect()
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
