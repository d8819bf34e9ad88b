//! When each request goes out: one after the other, or at fixed times.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::BenchArgs;

/// How long a run takes that is told neither a time nor a number of requests.
const DURATION: Duration = Duration::from_secs(10);

/// The longest sleep of the pacer, so that Ctrl-C ends a slow rate soon.
const PACER_SLEEP_MAX: Duration = Duration::from_millis(50);

/// Says when the next request goes out.
pub(super) struct Schedule {
    start: Instant,
    rate: Option<f64>,
    total: Option<u64>,
    deadline: Option<Instant>,
    in_flight: usize,
    taken: AtomicU64,
    stopped: AtomicBool,
    /// Open loop: one permit per request that is due, so that no timer of the runtime (1 ms coarse) decides when.
    due: Semaphore,
}

impl Schedule {
    /// The schedule that `args` ask for, from now on.
    pub(super) fn start(args: &BenchArgs) -> Self {
        let start = Instant::now();
        let requests = args.requests.map(NonZeroU64::get);
        let duration = args.duration.or(requests.is_none().then_some(DURATION));
        let due_within =
            |(rate, duration): (f64, Duration)| (rate * duration.as_secs_f64()).ceil() as u64;
        let due = args.rate.zip(duration).map(due_within);
        Self {
            start,
            rate: args.rate,
            total: requests.into_iter().chain(due).min(),
            // An open loop sends all that is due within its duration, however late.
            deadline: duration
                .filter(|_| args.rate.is_none())
                .map(|duration| start + duration),
            in_flight: args.in_flight,
            taken: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            due: Semaphore::new(0),
        }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Requests per second, in an open loop.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// How many requests are due in all; `None` when only the clock ends the load.
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// Waits until a request may go out. `None`: there are no more; `Some(Some(time))`: it was due then.
    pub(super) async fn next(&self) -> Option<Option<Instant>> {
        let Some(rate) = self.rate else {
            let late = self
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline);
            return (!late && self.take().is_some()).then_some(None);
        };
        self.due.acquire().await.ok()?.forget();
        let index = self.take()?;
        Some(Some(self.start + due_after(index, rate)))
    }

    fn take(&self) -> Option<u64> {
        let index = self.taken.fetch_add(1, Relaxed);
        (!self.stopped.load(Relaxed) && self.total.is_none_or(|total| index < total))
            .then_some(index)
    }

    /// Releases the requests of an open loop as they come due, then lets every worker see the end.
    pub(super) fn pace(&self, rate: f64) {
        let mut released = 0;
        while !self.stopped.load(Relaxed) && self.total.is_none_or(|total| released < total) {
            let elapsed = self.start.elapsed();
            let due = (elapsed.as_secs_f64() * rate) as u64 + 1;
            let due = self.total.map_or(due, |total| due.min(total)).max(released);
            self.due.add_permits((due - released) as usize);
            released = due;
            std::thread::sleep(
                due_after(released, rate)
                    .saturating_sub(elapsed)
                    .min(PACER_SLEEP_MAX),
            );
        }
        self.due.add_permits(self.in_flight);
    }

    /// Sends no more; answers whether that was so before.
    pub(super) fn stop(&self) -> bool {
        self.stopped.swap(true, Relaxed)
    }

    pub(super) fn taken(&self) -> u64 {
        let taken = self.taken.load(Relaxed);
        self.total.map_or(taken, |total| taken.min(total))
    }
}

fn due_after(index: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(index as f64 / rate)
}
