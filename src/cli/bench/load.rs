//! Makes the load: one task per request in flight, over all connections.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use super::{BenchArgs, Distribution, DistributionName, Template, keys, stated::KeyTally};
use crate::proto::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
    rate_limit_service_client::RateLimitServiceClient,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two tries to connect; short, since `scripts/bench start` measures with it how soon a server answers.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// How long an answer is waited for without `--timeout`. The server is not told.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest sleep of the pacer, so that Ctrl-C ends a slow rate soon.
const PACER_SLEEP_MAX: Duration = Duration::from_millis(50);

type Client = RateLimitServiceClient<Channel>;

/// Why no load could be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The text of `--target` names no address.
    #[error("target `{target}` is not host:port, http://host:port or unix:PATH")]
    Target {
        /// What was given.
        target: String,
        /// Why it is none.
        source: tonic::transport::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to `{target}`; is the server running?")]
    Connect {
        /// What was given.
        target: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// Ctrl-C cannot be heard.
    #[error("cannot listen for signals")]
    Signal(#[from] io::Error),
}

/// What to send, and for how long.
pub(super) struct Load {
    domain: String,
    templates: Vec<Template>,
    distribution: Distribution,
    seed: u64,
    in_flight: usize,
    rate: Option<f64>,
    requests: Option<u64>,
    duration: Option<Duration>,
    timeout: Option<Duration>,
    count_keys: bool,
}

impl Load {
    pub(super) fn new(args: &BenchArgs) -> Result<Self, keys::DistributionError> {
        // Without a placeholder every request names the same buckets, whatever --keys says.
        let keys = if args.descriptors.iter().any(Template::varies) {
            args.keys
        } else {
            NonZeroU64::MIN
        };
        let distribution = match args.distribution {
            DistributionName::Uniform => Distribution::Uniform(keys),
            DistributionName::Zipf => Distribution::zipf(keys, args.exponent)?,
        };
        let requests = args.requests.map(NonZeroU64::get);
        let duration = args
            .duration
            .or(requests.is_none().then_some(Duration::from_secs(10)));
        Ok(Self {
            domain: args.domain.clone(),
            templates: args.descriptors.clone(),
            distribution,
            seed: args.seed,
            in_flight: args.in_flight,
            rate: args.rate,
            requests,
            duration,
            timeout: args.timeout,
            count_keys: args.limit.is_some(),
        })
    }

    /// How many requests are due in all; `None` when only the clock ends the load.
    fn total(&self) -> Option<u64> {
        let due = |rate: f64| {
            self.duration
                .map(|duration| (rate * duration.as_secs_f64()).ceil() as u64)
        };
        match (self.requests, self.rate.and_then(due)) {
            (Some(requests), Some(due)) => Some(requests.min(due)),
            (requests, due) => requests.or(due),
        }
    }

    fn request(&self, key: u64) -> Request<RateLimitRequest> {
        let mut request = Request::new(RateLimitRequest {
            domain: self.domain.clone(),
            descriptors: self
                .templates
                .iter()
                .map(|template| template.fill(key))
                .collect(),
            hits_addend: 0,
        });
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

/// Connects to every target, `connections` times each; neighbours in the answer are different targets.
pub(super) async fn connect(args: &BenchArgs) -> Result<Vec<Client>, LoadError> {
    let patience = Instant::now() + args.wait.unwrap_or_default();
    let mut clients = Vec::with_capacity(args.targets.len() * args.connections);
    for _ in 0..args.connections {
        for target in &args.targets {
            let endpoint = endpoint(target)?
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(args.timeout.unwrap_or(ANSWER_TIMEOUT))
                .tcp_nodelay(true);
            clients.push(connect_one(target, endpoint, patience).await?);
        }
    }
    Ok(clients)
}

fn endpoint(target: &str) -> Result<Endpoint, LoadError> {
    let uri = if target.starts_with("unix:") || target.contains("://") {
        target.to_owned()
    } else {
        format!("http://{target}")
    };
    Endpoint::from_shared(uri).map_err(|source| LoadError::Target {
        target: target.to_owned(),
        source,
    })
}

async fn connect_one(
    target: &str,
    endpoint: Endpoint,
    patience: Instant,
) -> Result<Client, LoadError> {
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(Client::new(channel)),
            Err(_) if Instant::now() < patience => tokio::time::sleep(CONNECT_PAUSE).await,
            Err(source) => {
                return Err(LoadError::Connect {
                    target: target.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Sends the whole load and counts the answers. Ctrl-C ends it early; a second one waits for no answer any more.
pub(super) async fn run(load: Load, clients: Vec<Client>) -> Result<Tally, LoadError> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let load = Arc::new(load);
    let schedule = Arc::new(Schedule::new(&load));
    let mut workers = JoinSet::new();
    for (worker, client) in (0..load.in_flight).zip(clients.iter().cycle()) {
        workers.spawn(work(worker, client.clone(), load.clone(), schedule.clone()));
    }
    let pacer = schedule.rate.map(|rate| {
        let schedule = schedule.clone();
        tokio::task::spawn_blocking(move || schedule.pace(rate))
    });
    let progress = tokio::spawn(show_progress(schedule.clone()));
    let mut tally = Tally::default();
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                Some(worker) => tally.merge(worker.expect("a worker neither panics nor is aborted")),
                None => break,
            },
            _ = interrupts.recv() => if schedule.stop() { break },
        }
    }
    tally.elapsed = schedule.start.elapsed();
    schedule.stop();
    if let Some(pacer) = pacer {
        pacer.await.expect("the pacer does not panic");
    }
    progress.abort();
    // Waits until the bar is gone; that the task was aborted is no news.
    let _ = progress.await;
    Ok(tally)
}

async fn work(
    worker: usize,
    mut client: Client,
    load: Arc<Load>,
    schedule: Arc<Schedule>,
) -> Tally {
    let mut rng = SmallRng::seed_from_u64(load.seed.wrapping_add((worker as u64) << 32));
    let mut tally = Tally::default();
    while let Some(due) = schedule.next().await {
        let key = load.distribution.draw(&mut rng);
        let request = load.request(key);
        let sent = Instant::now();
        let answer = client.should_rate_limit(request).await;
        let answered = Instant::now();
        let admitted = tally.count(answer.map(tonic::Response::into_inner));
        tally.record(answered.saturating_duration_since(due.unwrap_or(sent)));
        if load.count_keys
            && let Some(admitted) = admitted
        {
            tally
                .keys
                .entry(key)
                .or_insert_with(|| KeyTally::new(sent, answered))
                .count(sent, answered, admitted);
        }
    }
    tally
}

/// Says when the next request goes out.
struct Schedule {
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
    fn new(load: &Load) -> Self {
        let start = Instant::now();
        Self {
            start,
            rate: load.rate,
            total: load.total(),
            // An open loop sends all that is due within its duration, however late.
            deadline: load
                .duration
                .filter(|_| load.rate.is_none())
                .map(|duration| start + duration),
            in_flight: load.in_flight,
            taken: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            due: Semaphore::new(0),
        }
    }

    /// Waits until a request may go out. `None`: there are no more; `Some(Some(time))`: it was due then.
    async fn next(&self) -> Option<Option<Instant>> {
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
    fn pace(&self, rate: f64) {
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
    fn stop(&self) -> bool {
        self.stopped.swap(true, Relaxed)
    }

    fn taken(&self) -> u64 {
        let taken = self.taken.load(Relaxed);
        self.total.map_or(taken, |total| taken.min(total))
    }
}

fn due_after(index: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(index as f64 / rate)
}

/// Draws on stderr until it is aborted; indicatif draws nothing where that is no terminal.
async fn show_progress(schedule: Arc<Schedule>) {
    let bar = match schedule.total {
        Some(total) => ProgressBar::new(total).with_style(style(
            "{wide_bar} {pos}/{len} requests, {per_sec}, {eta} left",
        )),
        None => ProgressBar::no_length()
            .with_style(style("{spinner} {elapsed} {pos} requests, {per_sec}")),
    };
    let clear = ClearOnDrop(bar);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        clear.0.set_position(schedule.taken());
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants and well formed")
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// What came back.
pub(super) struct Tally {
    pub(super) elapsed: Duration,
    pub(super) latency_ns: Histogram<u64>,
    pub(super) ok: u64,
    pub(super) over_limit: u64,
    pub(super) unknown: u64,
    /// By gRPC code: how many, and the message of the first.
    pub(super) errors: BTreeMap<String, (u64, String)>,
    pub(super) keys: HashMap<u64, KeyTally>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            elapsed: Duration::ZERO,
            latency_ns: Histogram::new(3).expect("three digits are within the histogram's range"),
            ok: 0,
            over_limit: 0,
            unknown: 0,
            errors: BTreeMap::new(),
            keys: HashMap::new(),
        }
    }
}

impl Tally {
    /// Whether the answer admits; `None` when it decides nothing.
    fn count(&mut self, answer: Result<RateLimitResponse, Status>) -> Option<bool> {
        match answer.map(|response| response.overall_code()) {
            Ok(Code::Ok) => {
                self.ok += 1;
                Some(true)
            }
            Ok(Code::OverLimit) => {
                self.over_limit += 1;
                Some(false)
            }
            Ok(Code::Unknown) => {
                self.unknown += 1;
                None
            }
            Err(status) => {
                let code = format!("{:?}", status.code());
                self.errors
                    .entry(code)
                    .or_insert_with(|| (0, status.message().to_owned()))
                    .0 += 1;
                None
            }
        }
    }

    fn record(&mut self, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency_ns
            .record(latency_ns)
            .expect("the histogram grows as needed");
    }

    fn merge(&mut self, other: Self) {
        self.latency_ns
            .add(&other.latency_ns)
            .expect("the histogram grows as needed");
        self.ok += other.ok;
        self.over_limit += other.over_limit;
        self.unknown += other.unknown;
        for (code, (count, message)) in other.errors {
            self.errors.entry(code).or_insert((0, message)).0 += count;
        }
        for (key, tally) in other.keys {
            self.keys
                .entry(key)
                .and_modify(|own| own.merge(&tally))
                .or_insert(tally);
        }
    }
}
