//! Brings what the meter has counted to the store, every few seconds and at the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Chunk, Meter, Pending, UsageError, UsageStore, pending::MOST_PENDING};

/// Longest last flush.
const LAST_FLUSH: Duration = Duration::from_secs(5);

/// Takes from a meter and gives to a store.
#[derive(Debug)]
pub struct Recorder {
    meter: Arc<Meter>,
    way: Mutex<Way>,
    counts: FlushCounts,
}

/// Flushes so far.
#[derive(Debug, Default)]
pub struct FlushCounts {
    /// Those that kept everything.
    pub succeeded: AtomicU64,
    /// Those after which something still waits.
    pub failed: AtomicU64,
}

/// What is between meter and store.
#[derive(Debug)]
struct Way {
    pending: Pending,
    /// The chunk that was sent last, with its number, until the store has said that it is kept.
    sent: Option<(u64, Arc<Chunk>)>,
    number: u64,
    store: UsageStore,
    failing: bool,
}

impl Recorder {
    /// From `meter` to `store`.
    pub fn new(meter: Arc<Meter>, store: UsageStore) -> Self {
        Self {
            meter,
            way: Mutex::new(Way {
                pending: Pending::new(MOST_PENDING),
                sent: None,
                number: 0,
                store,
                failing: false,
            }),
            counts: FlushCounts::default(),
        }
    }

    /// The meter.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Flushes so far.
    pub fn counts(&self) -> &FlushCounts {
        &self.counts
    }

    /// Brings everything that was counted before to the store.
    ///
    /// # Errors
    /// [`UsageError`]; what is not kept yet waits for the next flush.
    pub async fn flush(&self) -> Result<(), UsageError> {
        let mut way = self.way.lock().await;
        self.meter.drain(|hour, row, counts| {
            if !way.pending.add(hour, &row, counts) {
                self.meter.lose_row(counts);
            }
        });
        let flushed = way.flush().await;
        let counter = match flushed {
            Ok(()) => &self.counts.succeeded,
            Err(_) => &self.counts.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let failed_before = std::mem::replace(&mut way.failing, flushed.is_err());
        match &flushed {
            Err(error) if !failed_before => {
                tracing::warn!("usage waits in memory until it can be kept: {error}");
            }
            Ok(()) if failed_before => tracing::info!("usage is kept again"),
            _ => {}
        }
        flushed
    }

    /// Flushes at every `period` until told to stop. [`close`](Self::close) is for what comes after that.
    pub async fn run(self: Arc<Self>, period: Duration, stop: CancellationToken) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first comes at once.
        ticks.tick().await;
        // A flush that has begun is not cut.
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            // It was said where it was found.
            let _ = self.flush().await;
        }
    }

    /// The last flush, when nothing is counted any more.
    pub async fn close(&self) {
        let lost = match timeout(LAST_FLUSH, self.flush()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {LAST_FLUSH:?}"),
        };
        tracing::error!("usage since the last flush is lost: {lost}");
    }
}

impl Way {
    async fn flush(&mut self) -> Result<(), UsageError> {
        loop {
            if self.sent.is_none() {
                let Some(chunk) = self.pending.take(self.store.rows_at_a_time()) else {
                    return Ok(());
                };
                self.number += 1;
                self.sent = Some((self.number, Arc::new(chunk)));
            }
            let (number, chunk) = self.sent.as_ref().expect("there is one now");
            self.store.add(*number, chunk).await?;
            self.sent = None;
        }
    }
}
