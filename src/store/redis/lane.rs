//! A lane: one connection, one batch in flight, the next batch being what has arrived meanwhile. A lone take waits for
//! nothing; load makes batches grow.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::join_all;
use smallvec::SmallVec;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    Shared,
    breaker::Wires,
    call::{Batch, Call, Settled},
    cluster::Redirect,
};
use crate::{
    descriptor::Hits,
    store::{Item, StoreError, Take, Taken, key::TAGS},
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
        let mut call = batch.call(connection, asking);
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
