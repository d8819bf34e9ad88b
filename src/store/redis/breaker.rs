//! Whether Redis is used now, over which connections, and what its errors mean.
//!
//! Closed, the lanes have connections. Open, there are none: no request waits, and the supervisor in `connect.rs` dials
//! until a fresh connection takes the script and a write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection};
use tokio::sync::watch;

/// The connections of one dial, one per lane.
#[derive(Clone)]
pub struct Wires {
    /// Counts dials, so that a late failure of an earlier connection does not trip the present one.
    pub generation: u64,
    /// One per lane.
    pub connections: Arc<[MultiplexedConnection]>,
}

/// The state that lanes, requests and the supervisor share.
pub struct Breaker {
    open: AtomicBool,
    wires: watch::Sender<Option<Wires>>,
    reason: Mutex<Arc<str>>,
}

/// What to do about an error of Redis or of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection broke, or its answers make no sense: dial again at once.
    Broken,
    /// Another server may answer behind the same address by now (READONLY, MASTERDOWN, LOADING, …): dial again soon.
    Elsewhere,
    /// Redis is occupied for a moment (BUSY, TRYAGAIN).
    Busy,
    /// Somebody has to change something (OOM, NOAUTH, WRONGPASS, NOPERM, …): said loudly, tried slowly.
    Refused,
}

impl Failure {
    /// What `error` means.
    pub fn of(error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Self::Refused,
            ErrorKind::Server(
                ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask,
            ) => Self::Elsewhere,
            ErrorKind::Server(ServerErrorKind::TryAgain) => Self::Busy,
            ErrorKind::Server(_) => Self::Refused,
            ErrorKind::Extension if error.code() == Some("BUSY") => Self::Busy,
            ErrorKind::Extension => Self::Refused,
            _ => Self::Broken,
        }
    }

    /// Whether Redis itself answered, so that certainly nothing was taken.
    pub fn answered(self) -> bool {
        self != Self::Broken
    }

    /// The shortest wait before the next dial after `failures` failed ones in a row.
    pub fn delay(self, failures: u32) -> Duration {
        let first = match self {
            Self::Broken | Self::Elsewhere => 10,
            Self::Busy => 50,
            Self::Refused => 400,
        };
        Duration::from_millis((first << failures.min(5)).min(400))
    }
}

impl Breaker {
    /// An open breaker.
    pub fn new() -> Self {
        Self {
            open: AtomicBool::new(true),
            wires: watch::Sender::new(None),
            reason: Mutex::new("not connected yet".into()),
        }
    }

    /// Whether Redis is not used now.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Why it is open, or was last.
    pub fn reason(&self) -> Arc<str> {
        self.reason.lock().clone()
    }

    /// Says why it stays open.
    pub fn explain(&self, reason: &str) {
        *self.reason.lock() = reason.into();
    }

    /// The present connections, now and whenever they change.
    pub fn wires(&self) -> watch::Receiver<Option<Wires>> {
        self.wires.subscribe()
    }

    /// Uses Redis again.
    pub fn close(&self, wires: Wires) {
        self.wires.send_modify(|present| {
            *present = Some(wires);
            self.open.store(false, Ordering::Release);
        });
    }

    /// Stops using the connections of `generation`. Returns false if that was done before.
    pub fn trip(&self, generation: u64, reason: &str) -> bool {
        self.wires.send_if_modified(|wires| {
            let present = wires
                .as_ref()
                .is_some_and(|wires| wires.generation == generation);
            if present {
                self.open.store(true, Ordering::Release);
                self.explain(reason);
                *wires = None;
            }
            present
        })
    }
}

impl std::fmt::Debug for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breaker")
            .field("open", &self.is_open())
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    /// MOVED and ASK of a cluster are followed before they come here.
    #[test]
    fn what_redis_says_is_dialled_again_soon_or_slowly() {
        for (said, expected) in [
            (
                "READONLY You can't write against a read only replica.",
                Failure::Elsewhere,
            ),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                Failure::Elsewhere,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                Failure::Elsewhere,
            ),
            ("CLUSTERDOWN The cluster is down", Failure::Elsewhere),
            ("MOVED 3999 127.0.0.1:6381", Failure::Elsewhere),
            ("ASK 3999 127.0.0.1:6381", Failure::Elsewhere),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                Failure::Busy,
            ),
            ("BUSY Redis is busy running a script.", Failure::Busy),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Failure::Refused,
            ),
            ("NOAUTH Authentication required.", Failure::Refused),
            ("NOPERM User limiter has no permissions", Failure::Refused),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                Failure::Refused,
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                Failure::Refused,
            ),
            ("ERR max number of clients reached", Failure::Refused),
        ] {
            let answer = parse_redis_value(format!("-{said}\r\n").as_bytes()).expect("an answer");
            let error = answer.extract_error().expect_err(said);
            let failure = Failure::of(&error);
            assert_eq!(failure, expected, "{said}");
            assert!(failure.answered(), "nothing was taken");
        }
    }

    #[test]
    fn pauses_between_dials_grow_to_four_tenths_of_a_second() {
        let pauses = |failure: Failure| [0, 1, 4, 5, 1_000].map(|n| failure.delay(n).as_millis());
        assert_eq!(pauses(Failure::Broken), [10, 20, 160, 320, 320]);
        assert_eq!(pauses(Failure::Busy), [50, 100, 400, 400, 400]);
        assert_eq!(pauses(Failure::Refused), [400; 5]);
    }
}
