//! Why a connection could not be made, in words that say what to change. Names users, never passwords.

use std::{io, time::Duration};

use deadpool_redis::PoolError;
use redis::{ErrorKind, RedisError};

use super::{DIAL_TIMEOUT, Failure, Login, RedisUrl};
use crate::tls::TlsFileError;

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Redis or the network said no.
    #[error("{0}")]
    Redis(#[from] RedisError),
    /// No connection from the pool.
    #[error("{0}")]
    Pool(PoolError),
    /// No answer to `step`.
    #[error("no answer within {within:?} to {step}")]
    Silent {
        /// What was asked.
        step: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// Redis does not let us in.
    #[error("Redis refuses user `{user}` with this password")]
    Login {
        /// The name.
        user: String,
    },
    /// TLS is spoken on one side only, as it seems.
    #[error("{source}: {hint}")]
    Tongue {
        /// What was seen.
        source: Box<Self>,
        /// What to look at.
        hint: &'static str,
    },
    /// One of several servers, or one that another led to.
    #[error("{server}: {source}")]
    At {
        /// Which.
        server: String,
        /// What of it.
        source: Box<Self>,
    },
    /// A certificate or key could not be used.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// A password could not be read.
    #[error("cannot read the password file {path}: {source}")]
    Password {
        /// Where.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// No node of a cluster says who has its slots.
    #[error(
        "no node says who has the slots of the cluster: is cluster-enabled set, and are slots assigned?"
    )]
    NoMap,
    /// The sentinels that answer know no such service.
    #[error("no sentinel knows a primary called `{service}`")]
    UnknownService {
        /// The name.
        service: String,
    },
}

impl From<PoolError> for DialError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::Redis(error),
            PoolError::Timeout(_) => Self::Silent {
                step: "a connection",
                within: DIAL_TIMEOUT,
            },
            error => Self::Pool(error),
        }
    }
}

impl DialError {
    /// What it means.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Redis(error) => Failure::of(error),
            Self::Tongue { source, .. } | Self::At { source, .. } => source.failure(),
            Self::Login { .. }
            | Self::Tls(_)
            | Self::Password { .. }
            | Self::UnknownService { .. }
            | Self::NoMap => Failure::Refused,
            Self::Pool(_) | Self::Silent { .. } => Failure::Broken,
        }
    }

    /// The same of a new connection of `login`, where that says more.
    pub(super) fn of_connection(self, url: &RedisUrl, login: &Login) -> Self {
        let (late, torn) = match &self {
            Self::Redis(error) if error.kind() == ErrorKind::AuthenticationFailed => {
                let user = login.username.as_deref().unwrap_or("default").to_owned();
                return Self::Login { user };
            }
            Self::Redis(error) => (
                error.is_timeout(),
                error.is_connection_dropped() && !error.is_connection_refusal(),
            ),
            Self::Silent { .. } => (true, false),
            _ => (false, false),
        };
        let hint = match url.tls {
            Some(_) if late => "is TLS spoken on that port?",
            None if torn => "if TLS is spoken on that port, the URL begins with rediss",
            _ => return self,
        };
        let source = Box::new(self);
        Self::Tongue { source, hint }
    }

    /// The same, of one of several servers.
    pub fn at(self, server: impl Into<String>) -> Self {
        let (server, source) = (server.into(), Box::new(self));
        Self::At { server, source }
    }
}
