//! Takes that are answered only once replicas of Redis have what they charged.
//!
//! After Redis has decided such a take, a fence is written on a connection apart from the lanes', and `WAIT` on that connection
//! says how many replicas have it. A primary hands on its writes in order, so who has the fence has the take. So batches are the
//! same for all, nobody waits for a `WAIT` but who asks for it, and those who ask meanwhile share the next one.
//!
//! What is not handed on in time is not undone: the decision stands, and says so.

use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{timeout, timeout_at},
};

use super::{
    RedisStore, Shared, Task,
    breaker::Failure,
    dial::{DIAL_TIMEOUT, DialError, Dialer, connect},
    lane::{Asked, Reply, Way},
};
use crate::{
    descriptor::Hits,
    plan::{Durable, MOST_REPLICAS},
    store::{Take, Taken},
};

/// Takes that may wait for one number of replicas; more are answered at once, as not handed on.
const QUEUE: usize = 4_096;

/// How long a fence lives: it is there to be handed on.
const FENCE_SECONDS: u64 = 60;

/// The fences of one server: for each number of replicas a task with a connection of its own, made when it is asked for
/// first. A `WAIT` for many replicas so never holds up one for few.
#[derive(Debug, Default)]
pub struct Fences {
    lanes: Mutex<[Option<Fence>; MOST_REPLICAS as usize]>,
}

#[derive(Debug)]
struct Fence {
    queue: mpsc::Sender<Waiter>,
    _task: Task,
}

/// Who waits until something is handed on.
struct Waiter {
    /// Of the connections over which it was charged.
    generation: u64,
    until: Instant,
    reply: oneshot::Sender<bool>,
}

/// What the rules of a take ask for together, if they ask for anything: the most replicas, and the longest wait.
pub fn asked_by(take: &Take) -> Option<Durable> {
    let mut all: Option<Durable> = None;
    for item in &take.items {
        if let (Some(durable), Hits::Take(_)) = (item.limit.durable, item.hits) {
            all = Some(all.map_or(durable, |all| all.and(durable)));
        }
    }
    all.filter(|_| !take.dry)
}

impl RedisStore {
    /// Asks as [`RedisStore::ask`] does, and waits for replicas if something was charged.
    pub(super) async fn ask_durably(
        &self,
        asked: &Arc<Asked>,
        until: Instant,
        way: Way,
        durable: Durable,
    ) -> Reply {
        let generation = self.shared.generation();
        let mut taken = self.ask_now(asked, until, way).await?;
        if taken.degraded || !charges(&asked.take, &taken) {
            return Ok(taken);
        }
        let until = until.min(Instant::now() + durable.within());
        let handed_on = match generation {
            Some(generation) => self.handed_on(generation, durable.replicas, until).await,
            None => false,
        };
        if !handed_on {
            taken.not_replicated = true;
            self.shared.stats.not_replicated.fetch_add(1, Relaxed);
        }
        Ok(taken)
    }

    async fn handed_on(&self, generation: u64, replicas: u8, until: Instant) -> bool {
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter {
            generation,
            until,
            reply,
        };
        if self.fence(replicas).try_send(waiter).is_err() {
            return false;
        }
        matches!(timeout_at(until.into(), answer).await, Ok(Ok(true)))
    }

    fn fence(&self, replicas: u8) -> mpsc::Sender<Waiter> {
        let place = usize::from(replicas.clamp(1, MOST_REPLICAS)) - 1;
        let mut lanes = self.shared.fences.lanes.lock();
        let fence = lanes[place].get_or_insert_with(|| {
            let (queue, waiters) = mpsc::channel(QUEUE);
            let shared = Arc::downgrade(&self.shared);
            let task = tokio::spawn(serve(shared, replicas, waiters));
            Fence {
                queue,
                _task: Task(task),
            }
        });
        fence.queue.clone()
    }
}

impl Shared {
    /// Counts the dials; none while there is no connection.
    fn generation(&self) -> Option<u64> {
        let wires = self.breaker.wires();
        let wires = wires.borrow();
        wires.as_ref().map(|wires| wires.generation)
    }

    /// A connection to the server that the lanes have; none if the address leads to another one by now, whose replicas have
    /// nothing of what the lanes charge.
    async fn dial_for_fences(&self) -> Result<Option<MultiplexedConnection>, DialError> {
        let wires = self.breaker.wires().borrow().clone();
        let name = format!("fence={:032x}", rand::random::<u128>());
        let endpoint = self.dialer.as_deref().and_then(Dialer::last);
        let (Some(wires), Some(key), Some(endpoint)) = (wires, self.own_key(&name), endpoint)
        else {
            return Ok(None);
        };
        let mut dialled = connect(&self.settings.url, &endpoint).await?;
        let mut mark = redis::cmd("SET");
        mark.arg(&key).arg("").arg("EX").arg(FENCE_SECONDS);
        mark.exec_async(&mut dialled).await?;
        // Who has what was written there is that server, or a replica of it, which takes no charges.
        let mut lane = wires.connections[0].clone();
        let mut look = redis::cmd("MGET");
        let found: (Option<String>,) = look.arg(&key).query_async(&mut lane).await?;
        Ok(found.0.map(|_| dialled))
    }
}

/// Whether Redis has charged anything that a rule wants handed on.
fn charges(take: &Take, taken: &Taken) -> bool {
    let items = take.items.iter().zip(&taken.balances);
    items
        .filter(|(item, _)| item.limit.durable.is_some())
        .any(|(_, balance)| balance.charged)
}

/// Serves those who wait for so many replicas until the store goes.
async fn serve(shared: Weak<Shared>, replicas: u8, mut waiters: mpsc::Receiver<Waiter>) {
    let mut wire: Option<(u64, MultiplexedConnection)> = None;
    let mut waiting = Vec::new();
    while waiters.recv_many(&mut waiting, QUEUE).await > 0 {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let now = Instant::now();
        waiting.retain(|waiter| waiter.until > now);
        let generation = shared.generation();
        if wire.as_ref().map(|(generation, _)| *generation) != generation {
            wire = None;
        }
        if let (None, Some(generation)) = (&wire, generation) {
            let dialled = timeout(DIAL_TIMEOUT, shared.dial_for_fences()).await;
            wire = match dialled {
                Ok(Ok(Some(connection))) => Some((generation, connection)),
                _ => None,
            };
        }
        let last = waiting.iter().map(|waiter| waiter.until).max();
        let reached = match (&mut wire, last) {
            (Some((generation, connection)), Some(last)) => {
                let patience = last.saturating_duration_since(Instant::now());
                let key = shared.own_key("fence");
                let answer = fence(connection, key, replicas, patience).await;
                // A server that took over meanwhile has not what the one before was told.
                let same = shared.generation() == Some(*generation);
                let reached = (answer == Some(true) && same).then_some(*generation);
                if answer.is_none() {
                    wire = None;
                }
                reached
            }
            _ => None,
        };
        for waiter in waiting.drain(..) {
            // Who has gone is answered already.
            let _ = waiter.reply.send(reached == Some(waiter.generation));
        }
    }
}

/// Writes a fence and waits until so many replicas have it. Returns whether they have; none if the connection is of no use any
/// more.
async fn fence(
    connection: &mut MultiplexedConnection,
    key: Option<String>,
    replicas: u8,
    patience: Duration,
) -> Option<bool> {
    let mut both = redis::pipe();
    both.cmd("SET")
        .arg(key?)
        .arg("")
        .arg("EX")
        .arg(FENCE_SECONDS)
        .ignore();
    // Whole milliseconds; 0 would be for ever.
    let limit = u64::try_from(patience.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    both.cmd("WAIT").arg(replicas).arg(limit);
    let asked = both.query_async::<(u64,)>(connection);
    match timeout(patience + DIAL_TIMEOUT, asked).await {
        Ok(Ok((reached,))) => Some(reached >= u64::from(replicas)),
        // It may not wait, say: what the checks warn of. Another connection could do no more.
        Ok(Err(error)) if Failure::of(&error).answered() => Some(false),
        _ => None,
    }
}
