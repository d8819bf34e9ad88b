//! A lane: one connection, one batch in flight, the next batch being what has arrived meanwhile. A lone take waits for
//! nothing; load makes batches grow.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures::future::{BoxFuture, join_all};
use redis::{
    ErrorKind, RedisError, Script, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use smallvec::SmallVec;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    Shared,
    batch::{Answer, Request, Wanted},
    breaker::Wires,
    cluster::Redirect,
    lease::{Ask, Told},
};
use crate::{
    clock::micros,
    descriptor::Hits,
    store::{
        Item, StoreError, Take, Taken,
        key::{BucketKey, TAGS},
        seen::News,
    },
};

/// Most takes per batch.
pub const BATCH: usize = 128;

/// Most turns of the other tasks that a batch waits for.
const MOST_TURNS: usize = 4;

/// A batch ends with the take that brings it to so many items: a long script blocks Redis for everyone.
const BATCH_ITEMS: usize = 1_024;

/// How often a batch is sent whose time zones need to know where Redis' clock is: its first refusal tells.
const CLOCKS: usize = 3;

/// How long a batch that tripped the breaker may still be answered, and how many such batches a lane keeps.
const LATE: Duration = Duration::from_secs(10);
const LATE_BATCHES: usize = 4;

/// What a lane hands back to a request.
pub type Reply = Result<Taken, Undecided>;

/// Why a take was not decided.
#[derive(Debug, Clone)]
pub enum Undecided {
    /// The server failed.
    Failed(StoreError),
    /// The server is well, and another one of its cluster may decide. Nothing was taken.
    Redirected(Redirect),
}

/// How a take goes its way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    /// Applied whether it fits or not.
    pub forced: bool,
    /// Not in one call with others, though their keys share its slot: the slot is on its way to another server.
    pub alone: bool,
    /// To the server that the slot is on its way to.
    pub asking: bool,
    /// Not a take: names a bucket of whose leases Redis is told.
    pub lease: bool,
}

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
    /// How it goes.
    pub way: Way,
    /// Who waits; nobody for a correction.
    pub reply: Option<oneshot::Sender<Reply>>,
}

impl Asked {
    /// A take that nobody has decided yet.
    pub fn new(take: Take) -> Self {
        Self {
            take,
            meanwhile: OnceLock::new(),
        }
    }
}

impl Job {
    /// Hits that were decided without the store and are now told to it.
    pub fn correction(take: Take) -> Self {
        Self {
            asked: Arc::new(Asked::new(take)),
            way: Way {
                forced: true,
                ..Way::default()
            },
            reply: None,
        }
    }
}

impl Job {
    /// Has Redis told of the leases of a bucket, and asked for one.
    pub fn lease(item: &Item) -> Self {
        let nothing = Item {
            hits: Hits::Take(0),
            ..item.clone()
        };
        let take = Take {
            items: SmallVec::from_iter([nothing]),
            dry: false,
        };
        Self {
            asked: Arc::new(Asked::new(take)),
            way: Way {
                lease: true,
                ..Way::default()
            },
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
                let error = Undecided::Failed(shared.unavailable());
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
    jobs.extend(shared.next_correction().map(Job::correction));
    let mut unanswered = Vec::new();
    match &shared.membership {
        None => match exchange(shared, index, wires, jobs).await {
            Exchanged::Late(batch, call) => unanswered.push((batch, call)),
            Exchanged::Done | Exchanged::Apart(_) => {}
        },
        Some(membership) => {
            let mut groups = match membership.spans_slots() {
                true => together(jobs),
                false => by_slot(jobs),
            };
            // What must go apart after all goes by slot, which is never again apart.
            while !groups.is_empty() {
                let calls = std::mem::take(&mut groups).into_iter();
                let calls = calls.map(|jobs| exchange(shared, index, wires, jobs));
                for exchanged in join_all(calls).await {
                    match exchanged {
                        Exchanged::Done => {}
                        Exchanged::Late(batch, call) => unanswered.push((batch, call)),
                        Exchanged::Apart(jobs) => groups.extend(by_slot(jobs)),
                    }
                }
            }
        }
    }
    if late.len() >= LATE_BATCHES {
        unanswered
            .iter()
            .for_each(|(batch, _)| batch.forget(shared));
        return;
    }
    if !unanswered.is_empty() {
        let (shared, generation) = (shared.clone(), wires.generation);
        late.spawn(async move {
            for (batch, call) in unanswered {
                match timeout(LATE, call).await {
                    Ok(answer) => match batch.settle(&shared, generation, answer) {
                        Settled::Answered => {}
                        Settled::Apart(jobs) => give_up(&shared, jobs, shared.unavailable()),
                        Settled::AnotherTime(jobs) => give_up(&shared, jobs, shared.without_time()),
                    },
                    Err(_) => batch.forget(&shared),
                }
            }
        });
    }
}

/// What became of a batch.
enum Exchanged {
    /// Everyone has an answer.
    Done,
    /// It takes so long that Redis counts as unwell; the call may still be answered.
    Late(Box<Batch>, Call),
    /// Nothing was taken: these cannot be asked together.
    Apart(Vec<Job>),
}

/// Sends one batch and answers everyone it can.
async fn exchange(shared: &Shared, index: usize, wires: &Wires, jobs: Vec<Job>) -> Exchanged {
    let asking = jobs.iter().any(|job| job.way.asking);
    let mut jobs = jobs;
    for _ in 0..CLOCKS {
        let Some(batch) = Batch::new(shared, jobs) else {
            return Exchanged::Done;
        };
        let connection = wires.connections[index].clone();
        let mut call: Call = Box::pin(call(connection, batch.command.clone(), asking));
        match timeout(shared.patience(), &mut call).await {
            Ok(answer) => match batch.settle(shared, wires.generation, answer) {
                Settled::Answered => return Exchanged::Done,
                Settled::Apart(unasked) => return Exchanged::Apart(unasked),
                Settled::AnotherTime(unasked) => jobs = unasked,
            },
            Err(_) => {
                let reason = format!("no answer within {:?}", shared.patience());
                shared.trip(wires.generation, &reason);
                return Exchanged::Late(Box::new(batch), call);
            }
        }
    }
    give_up(shared, jobs, shared.without_time());
    Exchanged::Done
}

/// Tells those who wait why nothing was taken for them.
fn give_up(shared: &Shared, jobs: Vec<Job>, error: StoreError) {
    let error = Undecided::Failed(error);
    for job in jobs {
        shared.not_sent(job, &error);
    }
}

/// Jobs as one node takes them in one call: all but those whose slots are on their way.
fn together(mut jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let alone = jobs.extract_if(.., |job| job.way.alone);
    let mut groups: Vec<_> = alone.map(|job| vec![job]).collect();
    groups.push(jobs);
    groups
}

/// Jobs whose keys carry one tag in one call, in the order in which they came.
fn by_slot(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    let mut places = [None; TAGS];
    for job in jobs {
        let tag = job.asked.take.items.first().map(|item| item.key.tag());
        match tag.filter(|_| !job.way.alone) {
            Some(tag) => {
                let place = *places[usize::from(tag)].get_or_insert_with(|| {
                    groups.push(Vec::new());
                    groups.len() - 1
                });
                groups[place].push(job);
            }
            None => groups.push(vec![job]),
        }
    }
    groups
}

/// How a batch was answered.
enum Settled {
    /// Whole.
    Answered,
    /// Not at all: a key is not on this node, or its server does not let a script read what it was not told of.
    Apart(Vec<Job>),
    /// Not at all: Redis' clock is elsewhere than thought.
    AnotherTime(Vec<Job>),
}

/// A batch that is sent.
struct Batch {
    jobs: Vec<Job>,
    asks: Vec<Ask>,
    request: Request,
    command: Arc<redis::Cmd>,
    sent_at: Instant,
}

impl Batch {
    /// None if there is nothing to send.
    fn new(shared: &Shared, mut jobs: Vec<Job>) -> Option<Self> {
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

    /// Nobody waits for an answer any more.
    fn forget(&self, shared: &Shared) {
        self.asks.iter().for_each(|ask| shared.leases.lost(ask));
    }

    /// Answers everyone, unless nothing was taken and they must be asked again.
    fn settle(
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

type Call = BoxFuture<'static, Result<Value, RedisError>>;

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
