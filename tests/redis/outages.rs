//! What callers feel of each way in which Redis fails: a `tollgate serve` of its own, real Redis processes, gRPC clients that ask
//! without a pause. `scripts/faults` makes the table of docs/reliability.md of what is printed here.

mod foreign;
mod load;
pub mod proxy;
mod several;
mod single;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use envoy_types::pb::google::protobuf::UInt64Value;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;
use tollgate::proto::envoy::service::ratelimit::v3::{
    RateLimitResponse, rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
};
use tonic::transport::Endpoint;

use self::{
    foreign::{Foreign, foreign, is_foreign},
    load::{KEYS, LIMIT, Load, QUOTA, Told, is_degraded, subject},
};
use crate::{
    common::{Process, Tollgate, ask, request, tollgate_command, wait_until},
    redis_server::RedisServer,
};

/// How long an outage lasts. The tests are quick; the script is thorough.
fn outage() -> Duration {
    let told = env::var("TOLLGATE_FAULTS_SECONDS").map(|text| text.parse().expect("a number"));
    Duration::from_secs_f64(told.unwrap_or(0.8))
}

/// How long a decision waits for Redis: longer in tests, so that a busy machine is no fault.
fn store_timeout() -> String {
    env::var("TOLLGATE_FAULTS_STORE_TIMEOUT").unwrap_or_else(|_| "50ms".to_owned())
}

fn timeout() -> Duration {
    humantime::parse_duration(&store_timeout()).expect("a time")
}

/// Where Redis is expected: any free port, or the one that the target knows.
fn redis_port() -> u16 {
    let told = env::var("TOLLGATE_FAULTS_REDIS_PORT").map(|text| text.parse().expect("a port"));
    told.unwrap_or(0)
}

/// A Redis that forgets nothing when it is killed: what it has written, the kernel keeps.
fn durable_redis() -> RedisServer {
    RedisServer::reserve_at(
        redis_port(),
        &["--appendonly", "yes", "--appendfsync", "no"],
    )
}

/// Whether that server has decided for us. What another service asks of it is not known.
fn has_decided(server: &RedisServer) -> bool {
    is_foreign() || server.calls("evalsha") > 0
}

/// What may pass beyond the limits in a fault.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// In buckets of `deny` and of `error` together: what came back as a failover lost it, else nothing.
    over: u64,
    /// Hits that Redis never hears of: those whose answer was lost, and what a failover lost.
    uncharged: u64,
}

impl Bounds {
    /// Redis loses nothing and answers everything it took.
    const NONE: Self = Self {
        over: 0,
        uncharged: 0,
    };

    /// A primary died that had handed on what it had taken, but for the last moment: six clients take about a thousand a second.
    const FAILOVER: Self = Self {
        over: 30,
        uncharged: 30,
    };

    /// So many times connections broke, with one take of each client under way.
    fn broken(times: u64) -> Self {
        Self {
            over: 0,
            uncharged: times,
        }
    }
}

/// A service that a fault is played to. It dies when this is dropped, and its folder goes after it.
struct Server {
    /// What stands in the place of a Tollgate has no pages.
    service: Tollgate,
    _folder: Option<TempDir>,
}

/// A Tollgate on `store`, or the service in its place, with more in its environment.
fn serve(store: &str, environment: &[(&str, &Path)]) -> Server {
    if let Some(Foreign::Command(command)) = foreign() {
        return foreign::start(&command, store, environment);
    }
    let mut command = tollgate_command();
    command.args(["serve", "--config", "tests/redis/outages/plans.yaml"]);
    command.args([
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ]);
    command.args(["--store", store, "--store-timeout", &store_timeout()]);
    command.envs(environment.iter().copied());
    Server {
        service: Tollgate::from_process(Process::start(&mut command)),
        _folder: None,
    }
}

/// Builds a library that changes what the C library tells whoever loads it before that.
fn preload(name: &str, folder: &Path) -> PathBuf {
    let library = folder.join(name).with_extension("so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(format!("tests/redis/outages/{name}.c"))
        .status();
    // Rust itself links by it.
    assert!(
        built.is_ok_and(|status| status.success()),
        "`cc` does not run"
    );
    library
}

/// One fault and its load.
struct Run {
    name: &'static str,
    title: &'static str,
    ours: Vec<Server>,
    servers: Vec<String>,
    load: Load,
}

impl Run {
    /// Starts the service on `store`, and the load as soon as Redis decides.
    async fn start(name: &'static str, title: &'static str, store: &str) -> Self {
        let run = Self::start_cold(name, title, store, 1).await;
        run.begin().await;
        run
    }

    /// Starts the service, so many times, and the load, whether there is a Redis or not.
    async fn start_cold(
        name: &'static str,
        title: &'static str,
        store: &str,
        times: usize,
    ) -> Self {
        let ours = match foreign() {
            Some(Foreign::Running(_)) => Vec::new(),
            _ => (0..times).map(|_| serve(store, &[])).collect(),
        };
        Self::of(name, title, ours).await
    }

    /// The load on what has been started.
    async fn of(name: &'static str, title: &'static str, ours: Vec<Server>) -> Self {
        let servers: Vec<_> = match foreign() {
            Some(Foreign::Running(target)) => vec![target],
            _ => ours.iter().map(|ours| ours.service.grpc.clone()).collect(),
        };
        let load = Load::start(name, &servers).await;
        Self {
            name,
            title,
            ours,
            servers,
            load,
        }
    }

    /// Waits until Redis decides. Another service must have the plans.
    async fn begin(&self) {
        if is_foreign() {
            let target = &self.servers[0];
            let what = format!("{target} to decide by tests/redis/outages/plans.yaml");
            wait_until(&what, async || {
                let look = look(target, "five", self.name, 0).await;
                let limit = look.and_then(|answer| answer.statuses.first()?.current_limit.clone());
                limit.is_some_and(|limit| limit.requests_per_unit == 5)
            })
            .await;
        }
        let exact = self.load.until_exact(Instant::now()).await;
        assert!(exact.is_some(), "Redis does not come to decide");
    }

    /// Waits until the fault is felt; of another service it is not known how that shows.
    async fn feel(&self) {
        if !is_foreign() {
            self.load.until_degraded().await;
        }
    }

    /// Lets the fault be felt, and last.
    async fn endure(&self) {
        self.feel().await;
        sleep(outage()).await;
    }

    /// Ends the load once Redis, well again since `moment`, decides everything; says and checks what was seen.
    async fn finish(mut self, moment: Instant, bounds: Bounds) {
        let back = self.load.until_exact(moment).await;
        // Of another service it is not known how being without its store would show.
        let back = back.filter(|_| !is_foreign() || self.load.was_degraded());
        // What was admitted meanwhile comes due.
        sleep(Duration::from_millis(500)).await;
        let told = self.load.stop().await;
        let server = self.servers.pop().expect("one server");
        let gone = |ours: &mut Server| usize::from(!ours.service.process.is_running());
        let row = Row {
            name: self.name,
            title: self.title,
            back,
            restarts: (!self.ours.is_empty()).then(|| self.ours.iter_mut().map(gone).sum()),
            uncharged: uncharged(&server, self.name, &told["quota"]).await,
            exact: admits_five(&server, self.name).await,
            told,
        };
        row.print();
        if !is_foreign() {
            row.check(bounds);
        }
    }
}

/// What a fault came to.
struct Row {
    name: &'static str,
    title: &'static str,
    /// None if it did not come to that, or cannot be known.
    back: Option<Duration>,
    /// None if its processes are not ours.
    restarts: Option<usize>,
    /// None where to look costs.
    uncharged: Option<i64>,
    exact: bool,
    told: std::collections::HashMap<&'static str, Told>,
}

impl Row {
    fn failed(&self) -> u64 {
        self.told
            .values()
            .flat_map(|told| told.failed.values())
            .sum()
    }

    /// The longest answer, and the longest of those that need no Redis.
    fn longest(&self) -> (Duration, Duration) {
        let limited = self.told.iter().filter(|(rule, _)| **rule != "free");
        let longest = limited.map(|(_, told)| told.longest).max();
        (longest.unwrap_or_default(), self.told["free"].longest)
    }

    fn sum(&self, of: impl Fn(&Told) -> u64) -> u64 {
        self.told.values().map(of).sum()
    }

    /// A line for people, and one for the script if it says where.
    fn print(&self) {
        let (longest, free) = self.longest();
        let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
        let over = |rule: &str| self.told[rule].over();
        let row = json!({
            "name": self.name,
            "title": self.title,
            "answers": self.sum(|told| told.answers),
            "degraded": self.sum(|told| told.degraded),
            "failed": self.failed(),
            "failed_without_redis": self.told["free"].failed.values().sum::<u64>(),
            "moved": self.sum(|told| told.moved),
            "longest_ms": ms(longest),
            "longest_without_redis_ms": ms(free),
            "over": { "local": over("local"), "deny": over("deny"), "error": over("error") },
            "uncharged": self.uncharged,
            "exact_after_s": self.back.map(|back| back.as_secs_f64()),
            "exact": self.exact,
            "restarts": self.restarts,
            "foreign": is_foreign(),
        });
        println!("{row}");
        if let Ok(folder) = env::var("TOLLGATE_FAULTS_ROWS") {
            let file = Path::new(&folder).join(format!("{}.json", self.name));
            fs::write(file, row.to_string()).expect("the folder is there");
        }
    }

    fn check(&self, bounds: Bounds) {
        for (rule, told) in &self.told {
            assert!(told.failed.is_empty(), "{rule}: {:?}", told.failed);
        }
        // What the machine does to answers that need no Redis is not Redis' doing.
        let (longest, free) = self.longest();
        assert!(
            longest < Duration::from_millis(250) + 4 * free,
            "{longest:?}, {free:?}"
        );
        for rule in ["deny", "error"] {
            let over = self.told[rule].over();
            assert!(over <= bounds.over, "{rule}: {over} over");
        }
        // The balance last seen, the shares of all replicas, which make one, and answers that were lost.
        let over = self.told["local"].over();
        let most = 2 * LIMIT * KEYS as u64 + bounds.uncharged;
        assert!(over <= most, "local: {over} over");
        let uncharged = self.uncharged.expect("to look costs nothing");
        assert!(
            uncharged.unsigned_abs() <= bounds.uncharged,
            "{uncharged} uncharged"
        );
        assert!(self.exact, "limits are not exact afterwards");
        assert_eq!(self.restarts, Some(0));
        // A dial has many steps, and the machine may spoil each.
        let goal = Duration::from_secs(1) + 20 * free;
        let back = self.back.expect("Redis decides again");
        assert!(back < goal, "{back:?}, not {goal:?}");
    }
}

async fn look(server: &str, rule: &str, subject: &str, hits: u64) -> Option<RateLimitResponse> {
    let mut question = request("faults", &[&[(rule, subject)]]);
    question.descriptors[0].hits_addend = Some(UInt64Value { value: hits });
    // It may be gone.
    let channel = Endpoint::from_shared(format!("http://{server}"))
        .expect("an address")
        .timeout(Duration::from_secs(1))
        .connect_lazy();
    let mut client = RateLimitServiceClient::new(channel);
    let answer = ask(&mut client, question).await.ok()?;
    (!is_degraded(&answer)).then_some(answer)
}

/// Hits of the quota that were admitted and that Redis has not been told of within a few seconds; none if that is not told.
async fn uncharged(server: &str, run: &str, told: &Told) -> Option<i64> {
    if is_foreign() {
        let first = look(server, "quota", run, 0).await?;
        let second = look(server, "quota", run, 0).await?;
        if first.statuses != second.statuses {
            return None;
        }
    }
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let mut missing = 0;
        for key in 0..KEYS {
            let Some(answer) = look(server, "quota", &subject(run, key), 0).await else {
                continue;
            };
            let taken = QUOTA as i64 - i64::from(answer.statuses[0].limit_remaining);
            missing += told.admitted(key) as i64 - taken;
        }
        if missing == 0 || Instant::now() > end {
            return Some(missing);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a bucket that nobody has used admits what it holds, and no more.
async fn admits_five(server: &str, run: &str) -> bool {
    for attempt in 0..10 {
        let subject = subject(run, attempt);
        let mut admitted = Vec::new();
        for _ in 0..7 {
            let answer = look(server, "five", &subject, 1).await;
            admitted.extend(answer.map(|answer| answer.overall_code() == Code::Ok));
        }
        // One answer that came late says nothing about the others.
        if admitted.len() == 7 {
            return admitted == [true, true, true, true, true, false, false];
        }
    }
    false
}
