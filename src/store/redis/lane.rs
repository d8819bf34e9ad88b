//! A lane: one connection, one batch in flight, the next batch being what has arrived meanwhile. A lone take waits for
//! nothing; load makes batches grow.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use redis::{ErrorKind, RedisError, Script, ServerErrorKind, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    Shared,
    batch::{Answer, Request, Wanted},
    breaker::{Failure, Wires},
};
use crate::{
    clock::micros,
    store::{StoreError, Take, Taken, seen::News},
};

/// Most takes per batch.
pub const BATCH: usize = 128;

/// Most turns of the other tasks that a batch waits for.
const MOST_TURNS: usize = 4;

/// A batch ends with the take that brings it to so many items: a long script blocks Redis for everyone.
const BATCH_ITEMS: usize = 1_024;

/// How long a batch that tripped the breaker may still be answered, and how many such batches a lane keeps.
const LATE: Duration = Duration::from_secs(10);
const LATE_BATCHES: usize = 4;

/// What a lane hands back to a request.
pub type Reply = Result<Taken, StoreError>;

/// A take on its way, shared by the lane and the request that waits for it.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub take: Take,
    /// What was answered without the store, because it did not answer in time.
    pub meanwhile: OnceLock<Taken>,
}

/// One place in a lane's queue.
#[derive(Debug)]
pub struct Job {
    /// The take.
    pub asked: Arc<Asked>,
    /// Applied whether it fits or not.
    pub forced: bool,
    /// Who waits; nobody for a correction.
    pub reply: Option<oneshot::Sender<Reply>>,
}

impl Job {
    /// Hits that were decided without the store and are now told to it.
    pub fn correction(take: Take) -> Self {
        Self {
            asked: Arc::new(Asked {
                take,
                meanwhile: OnceLock::new(),
            }),
            forced: true,
            reply: None,
        }
    }
}

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
        // Without its comments and indents, as Redis takes no more than 16 KiB from a client that it has not let in yet, and then says
        // something else than what is wrong.
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

/// Serves one lane until its queue closes.
pub async fn run(shared: Arc<Shared>, index: usize, mut queue: mpsc::Receiver<Job>) {
    let mut wires = shared.breaker.wires();
    let mut late = JoinSet::new();
    let mut jobs = Vec::with_capacity(BATCH);
    loop {
        if jobs.is_empty() && queue.recv_many(&mut jobs, BATCH).await == 0 {
            return;
        }
        gather(&mut jobs, &mut queue).await;
        while late.try_join_next().is_some() {}
        let wire = wires.borrow_and_update().clone();
        match wire {
            Some(wire) => {
                let rest = jobs.split_off(length(&jobs));
                let batch = std::mem::replace(&mut jobs, rest);
                send(&shared, index, &wire, batch, &mut late).await;
            }
            None => {
                let error = shared.unavailable();
                for job in jobs.drain(..) {
                    shared.not_sent(job, &error);
                }
            }
        }
    }
}

/// Adds what the tasks that are ready to run now have to ask: they run before this one goes on, and again for as long as
/// each turn brings more. So a lone request waits for nobody, while a busy server's batches hold what came in together.
async fn gather(jobs: &mut Vec<Job>, queue: &mut mpsc::Receiver<Job>) {
    for _ in 0..MOST_TURNS {
        tokio::task::yield_now().await;
        let before = jobs.len();
        while jobs.len() < BATCH
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        if jobs.len() == before || jobs.len() == BATCH {
            return;
        }
    }
}

/// Jobs of the next batch, at least one.
fn length(jobs: &[Job]) -> usize {
    let mut items = 0;
    jobs.iter()
        .position(|job| {
            items += job.asked.take.items.len();
            items >= BATCH_ITEMS
        })
        .map_or(jobs.len(), |last| last + 1)
}

async fn send(
    shared: &Arc<Shared>,
    index: usize,
    wires: &Wires,
    mut jobs: Vec<Job>,
    late: &mut JoinSet<()>,
) {
    jobs.extend(shared.ledger.next_correction().map(Job::correction));
    let batch = Batch::new(shared, jobs);
    let connection = wires.connections[index].clone();
    let mut call = Box::pin(call(connection, batch.command.clone()));
    match timeout(shared.patience(), &mut call).await {
        Ok(answer) => batch.settle(shared, wires.generation, answer),
        Err(_) => {
            let reason = format!("no answer within {:?}", shared.patience());
            shared.trip(wires.generation, &reason);
            let (shared, generation) = (shared.clone(), wires.generation);
            if late.len() < LATE_BATCHES {
                late.spawn(async move {
                    if let Ok(answer) = timeout(LATE, call).await {
                        batch.settle(&shared, generation, answer);
                    }
                });
            }
        }
    }
}

/// A batch that is sent.
struct Batch {
    jobs: Vec<Job>,
    request: Request,
    command: Arc<redis::Cmd>,
    sent_at: Instant,
}

impl Batch {
    fn new(shared: &Shared, jobs: Vec<Job>) -> Self {
        let request = Request::encode(&wanted(&jobs));
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(script().script.get_hash())
            .arg(request.keys.len());
        for (job, item) in &request.keys {
            command.arg(jobs[*job].asked.take.items[*item].key.as_bytes());
        }
        match &shared.settings.clock {
            Some(clock) => command.arg(clock.now().as_micros()),
            None => command.arg(""),
        };
        command.arg(&request.payload[..]);
        shared.stats.batch_size.observe(jobs.len() as u64);
        shared.stats.script_calls.fetch_add(1, Relaxed);
        Self {
            jobs,
            request,
            command: Arc::new(command),
            sent_at: Instant::now(),
        }
    }

    /// Answers everyone.
    fn settle(self, shared: &Shared, generation: u64, answer: Result<Value, RedisError>) {
        match answer {
            Ok(value) => self.answered(shared, generation, value),
            Err(error) => {
                let failure = Failure::of(&error);
                let reason = error.to_string();
                shared.trip(generation, &reason);
                let error = if failure.answered() {
                    shared.unavailable()
                } else {
                    shared.lost(&reason)
                };
                for job in self.jobs {
                    shared.failed(job, &error);
                }
            }
        }
    }

    fn answered(self, shared: &Shared, generation: u64, value: Value) {
        shared
            .stats
            .latency_us
            .observe(micros(self.sent_at.elapsed()));
        let answers = match &value {
            Value::BulkString(bytes) => self.request.decode(bytes, &wanted(&self.jobs)).ok(),
            _ => None,
        };
        match answers {
            Some(answers) => self.hand_out(shared, answers),
            None => {
                let reason = "the reply of take.lua has another shape";
                shared.trip(generation, reason);
                let error = shared.lost(reason);
                for job in self.jobs {
                    shared.failed(job, &error);
                }
            }
        }
    }

    fn hand_out(self, shared: &Shared, answers: Vec<Answer>) {
        for (job, answer) in self.jobs.into_iter().zip(answers) {
            let balances = &answer.taken.balances;
            for (index, item) in job.asked.take.items.iter().enumerate() {
                let news = News {
                    bucket: &answer.buckets[index],
                    over: !balances[index].fits,
                    at: answer.now,
                    sent_at: self.sent_at,
                };
                shared.seen.report(item, news);
            }
            shared.answered(job, answer.taken);
        }
    }
}

fn wanted(jobs: &[Job]) -> Vec<Wanted<'_>> {
    jobs.iter()
        .map(|job| Wanted {
            take: &job.asked.take,
            forced: job.forced,
        })
        .collect()
}

/// Calls the script. A Redis that does not know it has done nothing, so the same call may follow with its text.
async fn call(
    mut connection: MultiplexedConnection,
    command: Arc<redis::Cmd>,
) -> Result<Value, RedisError> {
    match command.query_async(&mut connection).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            let mut with_text = redis::cmd("EVAL");
            with_text.arg(script().code());
            for arg in command.args_iter().skip(2) {
                if let redis::Arg::Simple(bytes) = arg {
                    with_text.arg(bytes);
                }
            }
            with_text.query_async(&mut connection).await
        }
        answer => answer,
    }
}
