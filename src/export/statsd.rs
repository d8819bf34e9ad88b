//! Reports to a StatsD server what has been counted since the last report.
//!
//! Nothing is queued: what a server did not get is still in the counters, and the next report that arrives has it. So a
//! server that is away costs one attempt to reach it now and then.

mod connection;
mod lines;

use std::{io, sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::{connection::Connection, lines::Lines};
use super::reference::Reference;
use crate::settings::StatsdSettings;

/// Longest wait for the server, to connect and to take a report.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reports never come closer together.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// Shortest and longest wait before a server that is away is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Reports until `stop`, and once more then.
pub async fn report(reference: Arc<Reference>, settings: StatsdSettings, stop: CancellationToken) {
    let mut ticks = interval(settings.flush_interval.max(SHORTEST_INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reporter = Reporter {
        lines: Lines::new(&settings),
        connection: None,
        trouble: None,
        reference,
        settings,
    };
    loop {
        let stopped = tokio::select! {
            _ = ticks.tick() => false,
            () = stop.cancelled() => true,
        };
        if stopped || reporter.may_try() {
            reporter.report().await;
        }
        if stopped {
            return;
        }
    }
}

struct Reporter {
    reference: Arc<Reference>,
    settings: StatsdSettings,
    lines: Lines,
    connection: Option<Connection>,
    trouble: Option<Trouble>,
}

/// The server is away.
struct Trouble {
    wait: Duration,
    again_at: Instant,
}

impl Reporter {
    fn may_try(&self) -> bool {
        let waits = |trouble: &Trouble| Instant::now() < trouble.again_at;
        !self.trouble.as_ref().is_some_and(waits)
    }

    async fn report(&mut self) {
        let report = self.lines.since_last(&self.reference);
        let sent = match timeout(PATIENCE, self.send(&report.text)).await {
            Ok(sent) => sent,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match sent {
            Ok(()) => {
                self.lines.arrived(report);
                if self.trouble.take().is_some() {
                    tracing::info!(server = %self.settings.to, "StatsD takes reports again; none of the counts is lost");
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn send(&mut self, text: &str) -> io::Result<()> {
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.connection = None;
            self.connection = Some(Connection::open(&self.settings.to).await?);
        }
        let connection = self.connection.as_mut().expect("opened above");
        connection.send(text).await
    }

    fn failed(&mut self, error: &io::Error) {
        self.connection = None;
        let wait = match &self.trouble {
            Some(trouble) => (2 * trouble.wait).min(BACK_OFF.1),
            None => {
                tracing::warn!(server = %self.settings.to, %error, "StatsD takes no reports; trying again, the counts are kept");
                BACK_OFF.0
            }
        };
        self.trouble = Some(Trouble {
            wait,
            again_at: Instant::now() + wait,
        });
    }
}
