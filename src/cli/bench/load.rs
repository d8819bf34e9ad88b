//! Makes the load: one task per request in flight, over all connections.

use std::{
    io,
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest,
    attribute_context::{HttpRequest, Request as HttpAttributes},
    authorization_client::AuthorizationClient,
};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use super::{
    BenchArgs, Distribution, DistributionError, DistributionName, Template, schedule::Schedule,
    tally::Tally,
};
use crate::proto::envoy::service::ratelimit::v3::{
    RateLimitRequest, rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two tries to connect; short, since `scripts/bench start` measures with it how soon a server answers.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// How long an answer is waited for without `--timeout`. The server is not told.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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

/// What each request asks.
enum Question {
    RateLimit {
        domain: String,
        descriptors: Vec<Template>,
    },
    /// Whether a request with these headers is let in.
    Authz(Template),
}

/// What to send.
pub(super) struct Load {
    question: Question,
    distribution: Distribution,
    seed: u64,
    in_flight: usize,
    timeout: Option<Duration>,
    count_keys: bool,
}

impl Load {
    pub(super) fn new(args: &BenchArgs) -> Result<Self, DistributionError> {
        let question = match &args.authz {
            Some(headers) => Question::Authz(headers.clone()),
            None => Question::RateLimit {
                domain: args.domain.clone(),
                descriptors: args.descriptors.clone(),
            },
        };
        let varies = match &question {
            Question::RateLimit { descriptors, .. } => descriptors.iter().any(Template::varies),
            Question::Authz(headers) => headers.varies(),
        };
        // Without a placeholder every request names the same buckets, whatever --keys says.
        let keys = if varies { args.keys } else { NonZeroU64::MIN };
        let distribution = match args.distribution {
            DistributionName::Uniform => Distribution::Uniform(keys),
            DistributionName::Zipf => Distribution::zipf(keys, args.exponent)?,
        };
        Ok(Self {
            question,
            distribution,
            seed: args.seed,
            in_flight: args.in_flight,
            timeout: args.timeout,
            count_keys: args.limit.is_some(),
        })
    }

    /// Asks once, and returns what the answer says.
    async fn ask(&self, channel: &Channel, key: u64) -> Result<Code, Status> {
        match &self.question {
            Question::RateLimit {
                domain,
                descriptors,
            } => {
                let request = RateLimitRequest {
                    domain: domain.clone(),
                    descriptors: descriptors.iter().map(|one| one.fill(key)).collect(),
                    hits_addend: 0,
                };
                let mut client = RateLimitServiceClient::new(channel.clone());
                let answer = client.should_rate_limit(self.request(request)).await?;
                Ok(answer.into_inner().overall_code())
            }
            Question::Authz(headers) => {
                let request = self.request(check(headers, key));
                let mut client = AuthorizationClient::new(channel.clone());
                let answer = client.check(request).await?.into_inner();
                // Source: external_auth.proto: OK is the status 0, whatever else the answer says.
                Ok(match answer.status.map_or(0, |status| status.code) {
                    0 => Code::Ok,
                    _ => Code::OverLimit,
                })
            }
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }
}

fn check(headers: &Template, key: u64) -> CheckRequest {
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: "/".to_owned(),
        headers: headers.pairs(key).collect(),
        ..HttpRequest::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(HttpAttributes {
                http: Some(http),
                ..HttpAttributes::default()
            }),
            ..AttributeContext::default()
        }),
    }
}

/// Connects to every target, `connections` times each; neighbours in the answer are different targets.
pub(super) async fn connect(args: &BenchArgs) -> Result<Vec<Channel>, LoadError> {
    let patience = Instant::now() + args.wait.unwrap_or_default();
    let mut channels = Vec::with_capacity(args.targets.len() * args.connections);
    for _ in 0..args.connections {
        for target in &args.targets {
            let endpoint = endpoint(target)?
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(args.timeout.unwrap_or(ANSWER_TIMEOUT))
                .tcp_nodelay(true);
            channels.push(connect_one(target, endpoint, patience).await?);
        }
    }
    Ok(channels)
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
) -> Result<Channel, LoadError> {
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
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
    channels: Vec<Channel>,
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
        let channel = &channels[number % channels.len()];
        let rng = SmallRng::seed_from_u64(load.seed.wrapping_add(number as u64));
        workers.spawn(work(
            channel.clone(),
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
    channel: Channel,
    load: Arc<Load>,
    schedule: Arc<Schedule>,
    mut rng: SmallRng,
    tally: Arc<Mutex<Tally>>,
) {
    while let Some(due) = schedule.next().await {
        let key = load.distribution.draw(&mut rng);
        let sent = Instant::now();
        let answer = load.ask(&channel, key).await;
        let answered = Instant::now();
        let mut tally = tally.lock();
        tally.record(answered.saturating_duration_since(due.unwrap_or(sent)));
        let admitted = tally.count(answer);
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
