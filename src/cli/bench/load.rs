//! Makes the load: one task per request in flight, over all connections.

use std::{
    io,
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::{
    BenchArgs, Distribution, DistributionError, DistributionName, Template, schedule::Schedule,
    tally::Tally,
};
use crate::proto::envoy::service::ratelimit::v3::{
    RateLimitRequest, rate_limit_service_client::RateLimitServiceClient,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two tries to connect; short, since `scripts/bench start` measures with it how soon a server answers.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// How long an answer is waited for without `--timeout`. The server is not told.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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

/// What to send.
pub(super) struct Load {
    domain: String,
    templates: Vec<Template>,
    distribution: Distribution,
    seed: u64,
    in_flight: usize,
    timeout: Option<Duration>,
    count_keys: bool,
}

impl Load {
    pub(super) fn new(args: &BenchArgs) -> Result<Self, DistributionError> {
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
        Ok(Self {
            domain: args.domain.clone(),
            templates: args.descriptors.clone(),
            distribution,
            seed: args.seed,
            in_flight: args.in_flight,
            timeout: args.timeout,
            count_keys: args.limit.is_some(),
        })
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
pub(super) async fn run(
    load: Load,
    schedule: Schedule,
    clients: Vec<Client>,
) -> Result<Tally, LoadError> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let load = Arc::new(load);
    let schedule = Arc::new(schedule);
    let mut workers = JoinSet::new();
    // One tally per worker, kept here, so that what was counted outlives a worker that still waits.
    let tallies: Vec<_> = (0..load.in_flight)
        .map(|_| Arc::<Mutex<Tally>>::default())
        .collect();
    for (number, tally) in tallies.iter().enumerate() {
        let client = &clients[number % clients.len()];
        let rng = SmallRng::seed_from_u64(load.seed.wrapping_add(number as u64));
        workers.spawn(work(
            client.clone(),
            load.clone(),
            schedule.clone(),
            rng,
            tally.clone(),
        ));
    }
    let pacer = schedule.rate().map(|rate| {
        let schedule = schedule.clone();
        tokio::task::spawn_blocking(move || schedule.pace(rate))
    });
    let progress = tokio::spawn(show_progress(schedule.clone()));
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                Some(worker) => worker.expect("a worker neither panics nor is aborted"),
                None => break,
            },
            _ = interrupts.recv() => if schedule.stop() { break },
        }
    }
    let mut sum = Tally {
        elapsed: schedule.elapsed(),
        ..Tally::default()
    };
    schedule.stop();
    if let Some(pacer) = pacer {
        pacer.await.expect("the pacer does not panic");
    }
    progress.abort();
    // Waits until the bar is gone; that the task was aborted is no news.
    let _ = progress.await;
    for tally in tallies {
        sum.merge(std::mem::take(&mut tally.lock()));
    }
    Ok(sum)
}

async fn work(
    mut client: Client,
    load: Arc<Load>,
    schedule: Arc<Schedule>,
    mut rng: SmallRng,
    tally: Arc<Mutex<Tally>>,
) {
    while let Some(due) = schedule.next().await {
        let key = load.distribution.draw(&mut rng);
        let request = load.request(key);
        let sent = Instant::now();
        let answer = client.should_rate_limit(request).await;
        let answered = Instant::now();
        let mut tally = tally.lock();
        tally.record(answered.saturating_duration_since(due.unwrap_or(sent)));
        let admitted = tally.count(answer.map(tonic::Response::into_inner));
        if load.count_keys
            && let Some(admitted) = admitted
        {
            tally.count_key(key, sent, answered, admitted);
        }
    }
}

/// Draws on stderr until it is aborted; indicatif draws nothing where that is no terminal.
async fn show_progress(schedule: Arc<Schedule>) {
    let bar = match schedule.total() {
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
