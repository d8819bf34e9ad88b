//! What a Redis server says of itself that may harm limits: looked at whenever Tollgate connects, and by `tollgate check --store`.
//! A few cheap questions, which nothing waits for.

use std::{
    fmt,
    future::pending,
    time::{Duration, Instant},
};

use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{
    Shared,
    cluster::primaries,
    dial::{DIAL_TIMEOUT, DialError, connect, primary, within},
    url::{RedisUrl, Topology},
};
use crate::{
    clock::{Clock as _, SystemClock, Timestamp},
    plan::{Plans, RuleLimit},
};

/// The oldest release that the scripts are tested with.
const OLDEST: u32 = 7;

/// From which difference on clocks are worth a word.
const SKEW: Duration = Duration::from_secs(1);

/// A period that outlives most servers' uptime without a copy on disk.
const LONG_PERIOD_S: u64 = 86_400;

/// What loaded plans ask of Redis beyond what all do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// A limit has a period of a day or longer.
    pub long_limits: bool,
    /// Replicas of Redis that a rule waits for, the most of all.
    pub replicas: u8,
}

impl Needs {
    /// What `plans` ask.
    pub fn of(plans: &Plans) -> Self {
        let mut needs = Self::default();
        let rules = plans.domains().flat_map(|domain| domain.rules());
        for rule in rules {
            rule.allowance.limits().for_each(|limit| needs.add(limit));
        }
        needs
    }

    fn add(&mut self, limit: &RuleLimit) {
        self.long_limits |= limit.limit.period().seconds() >= LONG_PERIOD_S;
        let replicas = limit.durable.map_or(0, |durable| durable.replicas);
        self.replicas = self.replicas.max(replicas);
    }
}

/// What was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// Whether it may forget buckets: `maxmemory-policy`.
    Eviction,
    /// Whether it is new enough.
    Version,
    /// Whether it is a primary.
    Role,
    /// Whether it has the replicas that rules wait for, and lets us wait.
    Replicas,
    /// Whether it is of a cluster where the URL says so, and only there, and whether that cluster is well.
    Cluster,
    /// Whether it keeps its data on disk.
    Persistence,
    /// Whether its clock shows our time.
    Clock,
    /// Whether it may be asked at all.
    Rights,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Eviction,
        Self::Version,
        Self::Role,
        Self::Replicas,
        Self::Cluster,
        Self::Persistence,
        Self::Clock,
        Self::Rights,
    ];

    /// As metrics and logs name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eviction => "eviction",
            Self::Version => "version",
            Self::Role => "role",
            Self::Replicas => "replicas",
            Self::Cluster => "cluster",
            Self::Persistence => "persistence",
            Self::Clock => "clock",
            Self::Rights => "rights",
        }
    }

    /// Whether what it finds wants a change, or is only worth knowing.
    pub const fn warns(self) -> bool {
        match self {
            Self::Eviction | Self::Version | Self::Role | Self::Replicas | Self::Cluster => true,
            Self::Persistence | Self::Clock | Self::Rights => false,
        }
    }
}

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// What is so, what that means, what to change.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What was found on one server.
#[derive(Debug)]
pub struct Examined {
    /// Its address.
    pub node: String,
    /// What it is: `Redis 7.2.4`.
    pub server: String,
    /// What may harm.
    pub findings: Vec<Finding>,
}

impl RedisUrl {
    /// Asks every server that the URL stands for now: the primary, or all primaries of a cluster.
    ///
    /// # Errors
    /// Whatever keeps it from one of them.
    pub async fn examine(&self, needs: Needs) -> Result<Vec<Examined>, DialError> {
        let endpoints = match &self.topology {
            Topology::Single(endpoint) => vec![endpoint.clone()],
            Topology::Sentinel { service, sentinels } => {
                vec![primary(self, service, sentinels, None).await?]
            }
            Topology::Cluster(seeds) => primaries(self, seeds).await?,
        };
        let clustered = matches!(self.topology, Topology::Cluster(_));
        let mut examined = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let mut connection = connect(self, &endpoint).await?;
            let asked = ask(&mut connection, needs, clustered);
            let (server, findings) = match timeout(DIAL_TIMEOUT * 2, asked).await {
                Ok(asked) => asked?,
                Err(_) => {
                    return Err(DialError::Silent {
                        step: "INFO",
                        within: DIAL_TIMEOUT * 2,
                    });
                }
            };
            examined.push(Examined {
                node: endpoint.to_string(),
                server,
                findings,
            });
        }
        Ok(examined)
    }
}

/// Looks at a server that was just connected to, and again whenever plans come to ask something else of it; for ever.
pub(super) async fn keep_looking(shared: &Shared, mut connection: MultiplexedConnection) {
    let mut needs = shared.settings.needs.clone();
    loop {
        let now = *needs.borrow_and_update();
        look(shared, &mut connection, now).await;
        if needs.changed().await.is_err() {
            // Nobody is there to change them.
            return pending().await;
        }
    }
}

/// Looks at a server, and logs what was not found before.
async fn look(shared: &Shared, connection: &mut MultiplexedConnection, needs: Needs) {
    let clustered = shared.membership.is_some();
    let asked = ask(connection, needs, clustered);
    // One that does not answer is the breaker's business.
    let Ok(Ok((_, findings))) = timeout(DIAL_TIMEOUT, asked).await else {
        return;
    };
    let before = std::mem::replace(&mut *shared.findings.lock(), findings.clone());
    // A clock's reading is never the same twice.
    let same = |known: &Finding, found: &Finding| {
        known.check == found.check && (found.check == Check::Clock || known.text == found.text)
    };
    let is_new = |found: &&Finding| !before.iter().any(|known| same(known, found));
    for finding in findings.iter().filter(is_new) {
        let (node, check) = (shared.node(), finding.check.name());
        if finding.check.warns() {
            tracing::warn!(node, check, "{finding}");
        } else {
            tracing::info!(node, check, "{finding}");
        }
    }
}

/// What the server is, and what may harm.
async fn ask(
    connection: &mut MultiplexedConnection,
    needs: Needs,
    clustered: bool,
) -> Result<(String, Vec<Finding>), DialError> {
    let mut findings = Vec::new();
    let mut found = |check, text: String| findings.push(Finding { check, text });
    let mut forbidden = Vec::new();
    let info: Option<String> = allowed(connection, &["INFO"], &mut forbidden).await?;
    let info = Info(info.unwrap_or_default());
    let policy = info.get("maxmemory_policy").unwrap_or("noeviction");
    if policy != "noeviction" {
        let text = format!(
            "maxmemory-policy is {policy}: this Redis may evict buckets, and an evicted bucket is full again; set `maxmemory-policy noeviction`"
        );
        found(Check::Eviction, text);
    }
    if let Some(version) = info.get("redis_version")
        && major(version).is_some_and(|major| major < OLDEST)
    {
        let text = format!(
            "it is version {version}, and Tollgate is made for Redis {OLDEST} or later, or Valkey: upgrade it"
        );
        found(Check::Version, text);
    }
    if info.get("role") == Some("slave") {
        let of = info.get("master_host").unwrap_or("another server");
        let text = format!(
            "it is a replica of {of}: what is taken here is lost when it copies its primary again; name the primary in --store"
        );
        found(Check::Role, text);
    } else if needs.replicas > 0 {
        let wanted = needs.replicas;
        let mut lacks = Vec::new();
        if let Some(replicas) = info.number("connected_slaves")
            && replicas < u64::from(wanted)
        {
            lacks.push(format!(
                "it has {replicas} replicas, and a rule with `durable` waits for {wanted}: its decisions are late and marked; add replicas, or ask for fewer"
            ));
        }
        let mut refused = Vec::new();
        // Waits for no replica, and so not at all.
        let _: Option<u64> = allowed(connection, &["WAIT", "0", "1"], &mut refused).await?;
        if !refused.is_empty() {
            lacks.push("this user may not run WAIT, and a rule with `durable` waits for replicas: whether they have its charges is never known, and all its decisions are marked; grant +wait".to_owned());
        }
        if !lacks.is_empty() {
            found(Check::Replicas, lacks.join("; and "));
        }
    }
    match (info.get("cluster_enabled"), clustered) {
        (Some("1"), false) => {
            let text = "it is a node of a cluster: begin --store with redis+cluster://";
            found(Check::Cluster, text.to_owned());
        }
        (Some("1"), true) => {
            let words = ["CLUSTER", "INFO"];
            let state: Option<String> = allowed(connection, &words, &mut forbidden).await?;
            let state = Info(state.unwrap_or_default());
            if state
                .get("cluster_state")
                .is_some_and(|state| state != "ok")
            {
                let text = "its cluster is not well (cluster_state is not ok): some slots have no node; see CLUSTER INFO";
                found(Check::Cluster, text.to_owned());
            }
        }
        _ => {}
    }
    if needs.long_limits && info.get("aof_enabled") == Some("0") {
        let words = ["CONFIG", "GET", "save"];
        let save: Option<Vec<String>> = allowed(connection, &words, &mut forbidden).await?;
        if let Some([_, save]) = save.as_deref()
            && save.is_empty()
        {
            let text = "it keeps nothing on disk, and plans have limits of a day or longer, which begin anew if it restarts: set `appendonly yes`";
            found(Check::Persistence, text.to_owned());
        }
    }
    if let Some((skew, direction)) = skew(connection, &mut forbidden).await? {
        let text = format!(
            "its clock is {skew:.0?} {direction} this machine's: buckets and calendar periods go by Redis' clock"
        );
        found(Check::Clock, text);
    }
    if !forbidden.is_empty() {
        let text = format!(
            "this user may not run {}, so not everything could be checked; grant {}",
            forbidden.join(", "),
            rights(&forbidden)
        );
        found(Check::Rights, text);
    }
    Ok((info.server(), findings))
}

/// The answer to a command, or none if this user may not ask, which is noted.
async fn allowed<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
    forbidden: &mut Vec<String>,
) -> Result<Option<T>, DialError> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    match within(DIAL_TIMEOUT, "INFO", command.query_async(connection)).await {
        Ok(answer) => Ok(Some(answer)),
        Err(DialError::Redis(error)) if is_forbidden(&error) => {
            let named = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
            forbidden.push(named);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Not allowed, or not there: services that run Redis take some commands away.
fn is_forbidden(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoPerm) => true,
        ErrorKind::Server(ServerErrorKind::ResponseError) => error
            .detail()
            .is_some_and(|detail| detail.contains("unknown command")),
        _ => false,
    }
}

/// The commands as ACL rules: `+info +config|get`.
fn rights(commands: &[String]) -> String {
    let rights = commands
        .iter()
        .map(|command| format!("+{}", command.to_lowercase().replace(' ', "|")));
    rights.collect::<Vec<_>>().join(" ")
}

/// How far its clock certainly is from ours, if that is worth a word.
async fn skew(
    connection: &mut MultiplexedConnection,
    forbidden: &mut Vec<String>,
) -> Result<Option<(Duration, &'static str)>, DialError> {
    let (sent_at, before) = (Instant::now(), SystemClock.now());
    let time: Option<(u64, u64)> = allowed(connection, &["TIME"], forbidden).await?;
    let after = before.after(sent_at.elapsed());
    let Some((seconds, micros)) = time else {
        return Ok(None);
    };
    let theirs = Timestamp::from_micros(seconds.saturating_mul(1_000_000).saturating_add(micros));
    let (ahead, behind) = (theirs.since(after), before.since(theirs));
    Ok(match (ahead > SKEW, behind > SKEW) {
        (true, _) => Some((ahead, "ahead of")),
        (_, true) => Some((behind, "behind")),
        _ => None,
    })
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// What INFO says: lines of `name:value`.
struct Info(String);

impl Info {
    fn get(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    fn server(&self) -> String {
        match (self.get("valkey_version"), self.get("redis_version")) {
            (Some(version), _) => format!("Valkey {version}"),
            (None, Some(version)) => format!("Redis {version}"),
            (None, None) => "a server that does not say what it is".to_owned(),
        }
    }
}
