//! What a fault is felt by: gRPC clients that ask without a pause, and count what they are told.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    env,
    error::Error,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tollgate::proto::envoy::service::ratelimit::v3::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
    rate_limit_service_client::RateLimitServiceClient,
};
use tonic::{
    Code as Grpc, Request, Status, TimeoutExpired,
    transport::{Channel, Endpoint},
};

use super::foreign::{Foreign, foreign, is_foreign};
use crate::common::{PATIENCE, request};

/// Buckets per rule: enough to be on every node of a cluster.
pub const KEYS: usize = 6;

/// What a bucket of `local`, `deny`, `error` and `allow` holds, and what it is given each second.
pub const LIMIT: u64 = 10;

/// What a bucket of `quota` holds; hardly anything comes back while a fault lasts.
pub const QUOTA: u64 = 100_000;

/// The rules that are asked for; `free` has no limit and so no use for Redis.
pub const RULES: [&str; 6] = ["local", "deny", "error", "allow", "quota", "free"];

/// Between two questions of one client.
const PAUSE: Duration = Duration::from_millis(4);

/// So many answers, all but so few of them by the store, show that it decides again: one that is late is no outage.
const ENOUGH: usize = 60;
const LATE: usize = 2;

type Client = RateLimitServiceClient<Channel>;

/// What one rule's client was told.
#[derive(Debug, Default, Clone)]
pub struct Told {
    pub answers: u64,
    pub degraded: u64,
    /// By gRPC code, but for those that `error` asks for.
    pub failed: BTreeMap<String, u64>,
    /// Asked again elsewhere, as a server had gone away under the question.
    pub moved: u64,
    pub longest: Duration,
    keys: HashMap<usize, Key>,
}

#[derive(Debug, Clone)]
struct Key {
    admitted: u64,
    since: Instant,
    until: Instant,
    /// By second of the calendar, those that were asked and answered in it.
    seconds: HashMap<u64, u64>,
}

impl Key {
    /// Hits admitted beyond `LIMIT` and what was refilled.
    fn over(&self) -> u64 {
        let refilled = (self.until - self.since).as_secs_f64() * LIMIT as f64;
        let over = self.admitted.saturating_sub(LIMIT + refilled as u64);
        if !is_foreign() {
            return over;
        }
        // It may count by the calendar, and then admits twice as much around the turn of a second, as it promises.
        let beyond = |admitted: &u64| admitted.saturating_sub(LIMIT);
        over.min(self.seconds.values().map(beyond).sum())
    }
}

impl Told {
    /// Hits admitted beyond the limit, over all keys.
    pub fn over(&self) -> u64 {
        self.keys.values().map(Key::over).sum()
    }

    pub fn admitted(&self, key: usize) -> u64 {
        self.keys.get(&key).map_or(0, |key| key.admitted)
    }

    fn admit(&mut self, key: usize, sent: Instant, sent_in: u64) {
        let now = Instant::now();
        let key = self.keys.entry(key).or_insert(Key {
            admitted: 0,
            since: sent,
            until: now,
            seconds: HashMap::new(),
        });
        key.admitted += 1;
        key.until = now;
        if second() == sent_in {
            *key.seconds.entry(sent_in).or_default() += 1;
        }
    }
}

/// What all clients were told.
#[derive(Debug, Default)]
struct Tally {
    rules: HashMap<&'static str, Told>,
    /// The last answers: when, and whether by the store.
    last: VecDeque<(Instant, bool)>,
    /// Since when the store decides.
    exact: Option<Instant>,
    /// Whether an answer was not.
    inexact: bool,
}

impl Tally {
    fn begin(&mut self) {
        self.last.clear();
        self.exact = None;
    }

    fn count(&mut self, exact: bool) {
        self.inexact |= !exact;
        if self.last.len() == ENOUGH {
            self.last.pop_front();
        }
        self.last.push_back((Instant::now(), exact));
        let exact = self.last.iter().filter(|(_, exact)| *exact);
        if self.exact.is_none() && exact.clone().count() >= ENOUGH - LATE {
            self.exact = exact.map(|(at, _)| *at).next();
        }
    }
}

/// One client per rule, until it is stopped.
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Asks these servers in turn; those that are left if one goes away.
    pub async fn start(run: &str, servers: &[String]) -> Self {
        let (tally, stop) = (Arc::<Mutex<Tally>>::default(), watch::Sender::new(false));
        let mut clients = JoinSet::new();
        for rule in RULES {
            let mut to = VecDeque::new();
            for server in servers {
                to.push_back(client(server).await);
            }
            let asker = Asker {
                rule,
                run: run.to_owned(),
                to,
                deadline: deadline(),
                tally: tally.clone(),
            };
            clients.spawn(asker.go_on(stop.subscribe()));
        }
        Self {
            tally,
            stop,
            clients,
        }
    }

    /// Waits until something was decided without the store.
    pub async fn until_degraded(&self) {
        let seen = self.until(|tally| tally.inexact).await;
        assert!(seen, "waited in vain for an answer without the store");
    }

    /// Whether an answer has told that it was decided without the store.
    pub fn was_degraded(&self) -> bool {
        self.tally.lock().inexact
    }

    /// Waits until the store decides everything, and says how long after `moment` that began; none if it does not come to that.
    pub async fn until_exact(&self, moment: Instant) -> Option<Duration> {
        self.tally.lock().begin();
        self.until(|tally| tally.exact.is_some()).await;
        let since = self.tally.lock().exact?;
        Some(since.saturating_duration_since(moment))
    }

    /// Returns whether it was seen within half a minute.
    async fn until(&self, seen: impl Fn(&Tally) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while !seen(&self.tally.lock()) {
            if Instant::now() > end {
                return false;
            }
            sleep(Duration::from_millis(2)).await;
        }
        true
    }

    /// What each rule's client was told.
    pub async fn stop(self) -> HashMap<&'static str, Told> {
        self.stop.send_replace(true);
        self.clients.join_all().await;
        std::mem::take(&mut self.tally.lock().rules)
    }
}

/// A client of a server that may not be there yet.
async fn client(server: &str) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{server}")).expect("an address");
    let channel = endpoint.connect().await;
    Client::new(channel.unwrap_or_else(|_| endpoint.connect_lazy()))
}

/// The longest that a client waits for an answer.
fn deadline() -> Duration {
    let told = env::var("TOLLGATE_FAULTS_DEADLINE");
    told.map_or(PATIENCE, |text| {
        humantime::parse_duration(&text).expect("a time")
    })
}

/// The second of the calendar.
fn second() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

struct Asker {
    rule: &'static str,
    run: String,
    /// The next one first.
    to: VecDeque<Client>,
    deadline: Duration,
    tally: Arc<Mutex<Tally>>,
}

impl Asker {
    async fn go_on(mut self, stop: watch::Receiver<bool>) {
        for key in (0..KEYS).cycle() {
            if *stop.borrow() {
                return;
            }
            // Each bucket is asked for at each server.
            if key > 0 {
                self.to.rotate_left(1 % self.to.len());
            }
            self.ask(key).await;
            sleep(PAUSE).await;
        }
    }

    async fn ask(&mut self, key: usize) {
        let value = subject(&self.run, key);
        let question = request("faults", &[&[(self.rule, &value)]]);
        let (sent, sent_in) = (Instant::now(), second());
        let mut answer = self.ask_first(question.clone()).await;
        let mut moved = false;
        if self.to.len() > 1 && answer.as_ref().is_err_and(is_gone) {
            self.to.pop_front();
            moved = true;
            answer = self.ask_first(question).await;
        }
        let took = sent.elapsed();
        let mut tally = self.tally.lock();
        let told = tally.rules.entry(self.rule).or_default();
        told.answers += 1;
        told.moved += u64::from(moved);
        told.longest = told.longest.max(took);
        let exact = match &answer {
            Ok(response) => {
                if response.overall_code() == Code::Ok {
                    told.admit(key, sent, sent_in);
                }
                !is_degraded(response)
            }
            Err(status) => {
                let asked_for =
                    !is_foreign() && self.rule == "error" && status.code() == Grpc::Unavailable;
                if !asked_for || is_gone(status) {
                    let code = format!("{:?}", status.code());
                    *told.failed.entry(code).or_default() += 1;
                }
                false
            }
        };
        told.degraded += u64::from(!exact);
        if self.rule != "free" {
            tally.count(exact);
        }
    }

    async fn ask_first(&mut self, question: RateLimitRequest) -> Result<RateLimitResponse, Status> {
        let mut question = Request::new(question);
        question.set_timeout(self.deadline);
        let answer = self.to[0].should_rate_limit(question).await;
        answer.map(tonic::Response::into_inner)
    }
}

/// Whose bucket. Another service may have seen an earlier run.
pub fn subject(run: &str, key: usize) -> String {
    match foreign() {
        Some(Foreign::Running(_)) => format!("{run}-{}-{key}", std::process::id()),
        _ => format!("{run}-{key}"),
    }
}

pub fn is_degraded(response: &RateLimitResponse) -> bool {
    let headers = &response.response_headers_to_add;
    headers
        .iter()
        .any(|header| header.key == "x-tollgate-degraded")
}

/// Whether the connection failed, not the service, and not the caller's patience.
fn is_gone(status: &Status) -> bool {
    let mut cause = status.source();
    let gone = cause.is_some();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return false;
        }
        cause = error.source();
    }
    gone
}
