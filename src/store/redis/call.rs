//! One call of `take.lua`: the takes of a batch, sent together, and the answer handed out to each.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::Instant,
};

use futures::future::BoxFuture;
use redis::{
    ErrorKind, RedisError, Script, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::{
    Shared,
    batch::{Answer, Request, Wanted},
    lane::{Job, Undecided},
    lease::{Ask, Told},
};
use crate::{
    clock::micros,
    store::{StoreError, key::BucketKey, seen::News},
};

/// `take.lua` as it is sent, and its hash.
pub struct TakeScript {
    script: Script,
    code: String,
}

impl TakeScript {
    /// The text, without its comments and indents.
    pub fn code(&self) -> &str {
        &self.code
    }
}

/// `take.lua`.
pub fn script() -> &'static TakeScript {
    static SCRIPT: OnceLock<TakeScript> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        // Without its comments and indents, as it travels with each new connection.
        let code: String = include_str!("take.lua")
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.starts_with("--"))
            .flat_map(|line| [line, "\n"])
            .collect();
        TakeScript {
            script: Script::new(&code),
            code,
        }
    })
}

/// A batch under way, and what Redis answers to it.
pub type Call = BoxFuture<'static, Result<Value, RedisError>>;

/// How a batch was answered.
pub enum Settled {
    /// Whole.
    Answered,
    /// Not at all: a key is not on this node, or its server does not let a script read what it was not told of.
    Apart(Vec<Job>),
    /// Not at all: Redis' clock is elsewhere than thought.
    AnotherTime(Vec<Job>),
}

/// A batch that is sent.
pub struct Batch {
    jobs: Vec<Job>,
    asks: Vec<Ask>,
    request: Request,
    command: Arc<redis::Cmd>,
    sent_at: Instant,
}

impl Batch {
    /// None if there is nothing to send.
    pub fn new(shared: &Shared, mut jobs: Vec<Job>) -> Option<Self> {
        let asks = drawn(shared, &mut jobs);
        if jobs.is_empty() && asks.is_empty() {
            return None;
        }
        let request = Request::encode(&wanted(&jobs), &asks, || shared.redis_time());
        let mut command = redis::cmd("EVALSHA");
        command.arg(script().script.get_hash());
        let keys = request.keys.iter().map(|(job, item)| match jobs.get(*job) {
            Some(job) => &job.asked.take.items[*item].key,
            None => &asks[*job - jobs.len()].item.key,
        });
        let mut tags = keys.clone().map(BucketKey::tag);
        let first = tags.next();
        if shared.membership.is_some() && tags.any(|tag| Some(tag) != first) {
            // Redis takes no keys of several slots, so they go as arguments.
            command.arg(0).arg("slots");
        }
        command.arg(keys.len());
        for key in keys {
            command.arg(key.as_bytes());
        }
        match &shared.settings.clock {
            Some(clock) => command.arg(clock.now().as_micros()),
            None => command.arg(""),
        };
        command.arg(&request.payload[..]);
        for bound in request.holds.iter().flatten() {
            command.arg(bound.as_micros());
        }
        if let Some(leases) = &request.leases {
            command.arg(&leases[..]);
        }
        shared.stats.batch_size.observe(jobs.len() as u64);
        shared.stats.script_calls.fetch_add(1, Relaxed);
        Some(Self {
            jobs,
            asks,
            request,
            command: Arc::new(command),
            sent_at: Instant::now(),
        })
    }

    /// Sends it, where a slot of a cluster is on its way to if `asking`.
    pub fn call(&self, connection: MultiplexedConnection, asking: bool) -> Call {
        Box::pin(call(connection, self.command.clone(), asking))
    }

    /// Nobody waits for an answer any more.
    pub fn forget(&self, shared: &Shared) {
        self.asks.iter().for_each(|ask| shared.leases.lost(ask));
    }

    /// Answers everyone, unless nothing was taken and they must be asked again.
    pub fn settle(
        self,
        shared: &Shared,
        generation: u64,
        answer: Result<Value, RedisError>,
    ) -> Settled {
        if let (Ok(Value::Nil), Some(membership)) = (&answer, &shared.membership) {
            membership.parts_slots();
            return Settled::Apart(self.not_heard(shared));
        }
        match answer {
            Ok(value) if self.was_outside(shared, &value) => {
                return Settled::AnotherTime(self.not_heard(shared));
            }
            Ok(value) => self.answered(shared, generation, value),
            Err(error) => {
                let undecided = shared.undecided(generation, &error);
                let lost = matches!(undecided, Undecided::Failed(StoreError::Lost { .. }));
                for ask in self.asks {
                    match lost {
                        true => shared.leases.lost(&ask),
                        false => shared.leases.not_heard(ask),
                    }
                }
                for job in self.jobs {
                    shared.failed(job, &undecided);
                }
            }
        }
        Settled::Answered
    }

    fn not_heard(self, shared: &Shared) -> Vec<Job> {
        let asks = self.asks.into_iter();
        asks.for_each(|ask| shared.leases.not_heard(ask));
        self.jobs
    }

    /// Whether Redis' clock was elsewhere than thought, which is remembered.
    fn was_outside(&self, shared: &Shared, value: &Value) -> bool {
        let now = match value {
            Value::BulkString(reply) => self.request.outside(reply),
            _ => None,
        };
        if let Some(now) = now {
            shared.learn_time(now);
        }
        now.is_some()
    }

    fn answered(self, shared: &Shared, generation: u64, value: Value) {
        shared
            .stats
            .latency_us
            .observe(micros(self.sent_at.elapsed()));
        let answers = match &value {
            Value::BulkString(bytes) => {
                let jobs = wanted(&self.jobs);
                self.request.decode(bytes, &jobs, &self.asks).ok()
            }
            _ => None,
        };
        match answers {
            Some((answers, leases)) => self.hand_out(shared, answers, leases),
            None => {
                let reason = "the reply of take.lua has another shape";
                shared.trip(generation, reason);
                let error = Undecided::Failed(shared.lost(reason));
                self.forget(shared);
                for job in self.jobs {
                    shared.failed(job, &error);
                }
            }
        }
    }

    /// The buckets from which tokens are lent, by their keys' hashes.
    fn lent(&self, leases: &[Told]) -> Vec<u128> {
        let lent = leases.iter().filter(|told| told.lent > 0);
        lent.map(|told| {
            let (job, item) = self.request.keys[told.key];
            match self.jobs.get(job) {
                Some(job) => job.asked.take.items[item].key.hash(),
                None => self.asks[job - self.jobs.len()].item.key.hash(),
            }
        })
        .collect()
    }

    fn hand_out(self, shared: &Shared, answers: Vec<Answer>, leases: Vec<Told>) {
        let lent = self.lent(&leases);
        let only_told = self.asks.iter().filter(|ask| ask.portion == 0);
        only_told.for_each(|_| shared.leases.told());
        for (ask, grant) in leases.into_iter().filter_map(|told| told.grant) {
            shared.leases.granted(&self.asks[ask], grant);
        }
        for (job, answer) in self.jobs.into_iter().zip(answers) {
            let balances = &answer.taken.balances;
            for (index, item) in job.asked.take.items.iter().enumerate() {
                let news = News {
                    bucket: &answer.buckets[index],
                    over: !balances[index].fits,
                    at: answer.now,
                    sent_at: self.sent_at,
                    lent: lent.contains(&item.key.hash()),
                };
                shared.seen.report(item, news);
            }
            shared.answered(job, answer.taken);
        }
    }
}

/// Takes the jobs out that are about leases.
fn drawn(shared: &Shared, jobs: &mut Vec<Job>) -> Vec<Ask> {
    let about = jobs.extract_if(.., |job| job.way.lease);
    about
        .filter_map(|job| shared.leases.ask(&job.asked.take.items[0]))
        .collect()
}

fn wanted(jobs: &[Job]) -> Vec<Wanted<'_>> {
    jobs.iter()
        .map(|job| Wanted {
            take: &job.asked.take,
            forced: job.way.forced,
        })
        .collect()
}

/// Calls the script. A Redis that does not know it has done nothing, so the same call may follow with its text.
async fn call(
    mut connection: MultiplexedConnection,
    command: Arc<redis::Cmd>,
    asking: bool,
) -> Result<Value, RedisError> {
    match query(&mut connection, &command, asking).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            let mut with_text = redis::cmd("EVAL");
            with_text.arg(script().code());
            for arg in command.args_iter().skip(2) {
                if let redis::Arg::Simple(bytes) = arg {
                    with_text.arg(bytes);
                }
            }
            query(&mut connection, &with_text, asking).await
        }
        answer => answer,
    }
}

async fn query(
    connection: &mut MultiplexedConnection,
    command: &redis::Cmd,
    asking: bool,
) -> Result<Value, RedisError> {
    if !asking {
        return command.query_async(connection).await;
    }
    // ASKING holds for the next command, which must not be another's.
    let mut pair = redis::Pipeline::with_capacity(2);
    pair.cmd("ASKING").add_command(command.clone());
    let mut answers = connection.req_packed_commands(&pair, 1, 1).await?;
    answers.pop().unwrap_or(Value::Nil).extract_error()
}
