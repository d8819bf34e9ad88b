//! Quotas of time zones on a Redis whose clock is far from this machine's: its own clock picks the period.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use tollgate::{
    clock::{Clock, Timestamp},
    store::redis::RedisSettings,
};

use crate::{
    ask::{ask, connected, one, patient, rule},
    redis_server::RedisServer,
};

const DAY_US: u64 = 86_400_000_000;
const START_US: u64 = 1_795_000_000_000_000;

/// Shows these days in turn, and then the last one for ever. A batch with a quota of a time zone reads it twice: as this
/// machine's clock, then as that of Redis; and once more if that was another day.
#[derive(Debug)]
struct Days(Mutex<VecDeque<u64>>);

impl Days {
    fn new(days: impl IntoIterator<Item = u64>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(days.into_iter().collect())))
    }
}

impl Clock for Days {
    fn now(&self) -> Timestamp {
        let mut days = self.0.lock().expect("nobody panics");
        let day = if days.len() > 1 {
            days.pop_front()
        } else {
            days.front().copied()
        };
        Timestamp::from_micros(START_US + day.expect("a day") * DAY_US)
    }
}

#[tokio::test]
async fn redis_says_where_its_clock_is_and_is_asked_again() {
    let server = RedisServer::start();
    let clock = Days::new([0, 10, 0, 0, 10, 0, 10, 0, 10]);
    let settings = RedisSettings {
        clock: Some(clock),
        ..patient(&server)
    };
    let store = connected(settings).await;
    let limit = rule("5/day calendar in Europe/Berlin");
    let asked = || store.stats().script_calls.load(Relaxed);
    let first = ask(&store, one(&limit, "a", 4)).await;
    assert!(first.admitted && !first.degraded, "{first:?}");
    assert_eq!(asked(), 2);
    let second = ask(&store, one(&limit, "a", 1)).await;
    assert_eq!(second.balances[0].left, 0, "{second:?}");
    assert_eq!(asked(), 3, "where its clock is has been learnt");
    assert!(!ask(&store, one(&limit, "a", 1)).await.admitted);
}

#[tokio::test]
async fn a_clock_that_never_stays_is_a_redis_that_cannot_decide() {
    let server = RedisServer::start();
    let settings = RedisSettings {
        clock: Some(Days::new((0..9).map(|step| step * step * 10))),
        ..patient(&server)
    };
    let store = connected(settings).await;
    let limit = rule("5/day calendar in Europe/Berlin");
    let taken = ask(&store, one(&limit, "a", 4)).await;
    assert!(taken.admitted && taken.degraded, "{taken:?}");
    // Redis itself is well, and decides what needs no zone.
    assert!(
        !ask(&store, one(&rule("5/day calendar"), "a", 4))
            .await
            .degraded
    );
}
