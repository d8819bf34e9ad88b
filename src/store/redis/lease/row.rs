//! One bucket's leases in this replica: what may still be spent, what Redis must be told, how much to ask for. Pure.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::{Ask, Grant};
use crate::{
    bucket::{Balance, Bucket, Found},
    clock::Timestamp,
    descriptor::Hits,
    store::Item,
};

/// So many requests that Redis had to answer, within a lease's life, make a bucket worth one. A lease that was used less says that it is
/// not.
const HOT: u64 = 4;

/// Tokens of the first lease.
const FIRST: u64 = 8;

/// How long an answer is waited for before Redis is asked again.
const PATIENCE: Duration = Duration::from_secs(1);

/// One bucket.
#[derive(Debug)]
pub struct Row {
    item: Item,
    leases: SmallVec<[Lease; 2]>,
    /// Numbers leases.
    count: u64,
    /// Tokens of the next lease.
    size: u64,
    /// The same, while Redis is to be asked for it.
    wanted: u64,
    not_before: Instant,
    misses: u64,
    misses_since: Instant,
    seen: Option<Seen>,
}

/// The bucket, as Redis told of it.
#[derive(Debug)]
struct Seen {
    bucket: Bucket,
    at: Timestamp,
    sent_at: Instant,
}

#[derive(Debug)]
struct Lease {
    number: u64,
    date_us: u64,
    start_us: u64,
    /// When it ends.
    until: Instant,
    /// When nothing of it is worth telling any more.
    dead_at: Instant,
    ended: bool,
    granted: u64,
    left: u64,
    held: u64,
    /// Spent, and not yet told.
    spent: u64,
}

/// What became of tokens of a lease.
#[derive(Debug, Clone)]
pub struct Settled {
    /// [`Grant::date_us`]
    pub date_us: u64,
    /// Start of the quota's period; 0 for a token bucket.
    pub start_us: u64,
    /// Tokens spent.
    pub spent: u64,
    /// Tokens that come back.
    pub back: u64,
    dead_at: Instant,
}

impl Row {
    /// The bucket of `item`, without leases.
    pub fn new(item: &Item, now: Instant) -> Self {
        Self {
            item: Item {
                hits: Hits::Take(0),
                ..item.clone()
            },
            leases: SmallVec::new(),
            count: 0,
            size: FIRST,
            wanted: 0,
            not_before: now,
            misses: 0,
            misses_since: now,
            seen: None,
        }
    }

    /// The bucket, of which nothing is wanted.
    pub fn item(&self) -> &Item {
        &self.item
    }

    /// Goes over to the limit of `item`. Other numbers end what was leased under the old ones.
    pub fn follow(&mut self, item: &Item) {
        let (old, new) = (&self.item.limit, &item.limit);
        if std::sync::Arc::ptr_eq(old, new) {
            return;
        }
        if old.limit != new.limit || old.lease != new.lease {
            self.end_all();
            self.seen = None;
        }
        self.item.limit = new.clone();
    }

    /// Ends every lease.
    pub fn end_all(&mut self) {
        for lease in &mut self.leases {
            lease.ended = true;
        }
    }

    /// Ends what has lived its time, and learns from how much of it was used.
    pub fn expire(&mut self, now: Instant) {
        for lease in &mut self.leases {
            if lease.ended || now < lease.until {
                continue;
            }
            lease.ended = true;
            if lease.left > 0 {
                let used = lease.granted - lease.left;
                self.size = used.max(1);
                (self.misses, self.misses_since) = (used.min(HOT), now);
            }
        }
    }

    /// Sets `hits` of one lease apart, or spends them at once. Returns the lease's number, the balance that is left, and when the
    /// lease is dead.
    pub fn hold(
        &mut self,
        hits: u64,
        now: Instant,
        is_final: bool,
    ) -> Option<(u64, Balance, Instant)> {
        let lease = self.live().find(|lease| lease.left >= hits)?;
        lease.left -= hits;
        match is_final {
            true => lease.spent += hits,
            false => lease.held += hits,
        }
        let (number, dead_at) = (lease.number, lease.dead_at);
        Some((number, self.balance(hits, now)?, dead_at))
    }

    /// Ends a hold.
    pub fn end(&mut self, number: u64, hits: u64, spent: bool) {
        let lease = self.leases.iter_mut().find(|lease| lease.number == number);
        if let Some(lease) = lease {
            lease.held -= hits;
            match spent {
                true => lease.spent += hits,
                false => lease.left += hits,
            }
        }
    }

    /// Whether Redis is to be asked for a lease now, when some hits were or were not to be had here.
    pub fn wants(&mut self, now: Instant, missed: bool) -> bool {
        let Some(terms) = self.item.limit.lease else {
            return false;
        };
        if missed {
            if now.saturating_duration_since(self.misses_since) > terms.life() {
                (self.misses, self.misses_since) = (0, now);
            }
            self.misses += 1;
        }
        let live = self.live().map(|lease| lease.left + lease.held).sum();
        let some = self.live().next().is_some();
        let low = match missed {
            true => some || self.misses >= HOT,
            false => live * 4 <= self.size,
        };
        if !low || now < self.not_before {
            return false;
        }
        let most = u64::from(terms.portion.get());
        if some {
            self.size = (self.size * 2).min(most);
        }
        self.wanted = self.size.min(most.saturating_sub(live));
        if self.wanted > 0 {
            self.not_before = now + PATIENCE;
        }
        self.wanted > 0
    }

    /// How many tokens to ask for, and what to tell.
    pub fn ask(&mut self, now: Instant) -> (u64, SmallVec<[Settled; 2]>) {
        let mut all = SmallVec::new();
        for lease in &mut self.leases {
            let settled = Settled {
                date_us: lease.date_us,
                start_us: lease.start_us,
                spent: std::mem::take(&mut lease.spent),
                back: match lease.ended && now < lease.dead_at {
                    true => std::mem::take(&mut lease.left),
                    false => 0,
                },
                dead_at: lease.dead_at,
            };
            if settled.spent + settled.back > 0 {
                all.push(settled);
            }
        }
        (std::mem::take(&mut self.wanted), all)
    }

    /// Redis has answered `ask`.
    pub fn granted(&mut self, ask: &Ask, grant: Grant, now: Instant) {
        if ask.portion == 0 {
            return;
        }
        let terms = ask.item.limit.lease.unwrap_or_else(|| {
            unreachable!("only limits with a lease are asked for one");
        });
        let life = terms.life();
        // An empty bucket is left alone for a while.
        self.not_before = match grant.tokens {
            0 => now + life / 4,
            _ => now,
        };
        let limit = &ask.item.limit.limit;
        let (start_us, rest) = match &grant.bucket {
            Bucket::Spent(spent) => (spent.start_us, spent.end(limit).since(grant.at)),
            _ => (0, life * 2),
        };
        if grant.tokens > 0 {
            self.count += 1;
            self.leases.push(Lease {
                number: self.count,
                date_us: grant.date_us,
                start_us,
                until: ask.sent_at + life.min(rest),
                dead_at: ask.sent_at + rest,
                ended: self.item.limit.limit != *limit,
                granted: grant.tokens,
                left: grant.tokens,
                held: 0,
                spent: 0,
            });
        }
        if self.item.limit.limit != *limit {
            return;
        }
        self.seen = Some(Seen {
            bucket: grant.bucket,
            at: grant.at,
            sent_at: ask.sent_at,
        });
    }

    /// Has it told again.
    pub fn not_heard(&mut self, settled: SmallVec<[Settled; 2]>) {
        for settled in settled {
            self.count += 1;
            self.leases.push(Lease {
                number: self.count,
                date_us: settled.date_us,
                start_us: settled.start_us,
                until: settled.dead_at,
                dead_at: settled.dead_at,
                ended: true,
                granted: settled.back,
                left: settled.back,
                held: 0,
                spent: settled.spent,
            });
        }
    }

    /// Lets go of leases of which nothing is to be told. Returns the tokens that are lost with them.
    pub fn forget(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        self.leases.retain(|lease| {
            let dead = lease.ended && now >= lease.dead_at;
            if dead {
                lost += std::mem::take(&mut lease.left);
            }
            // That they were spent only lets the bucket fill up earlier, and is told along with other things.
            let told = lease.left == 0 && now >= lease.until + PATIENCE;
            lease.held > 0 || !(dead || lease.ended && told)
        });
        lost
    }

    /// Whether something comes back that Redis has not been told.
    pub fn is_due(&self) -> bool {
        self.leases
            .iter()
            .any(|lease| lease.ended && lease.left > 0)
    }

    /// Whether there are leases.
    pub fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Whether nobody misses the row.
    pub fn is_idle(&self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.misses_since) > PATIENCE;
        self.leases.is_empty() && quiet && now >= self.not_before
    }

    fn live(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.leases.iter_mut().filter(|lease| !lease.ended)
    }

    /// What the bucket held when Redis told of it, refilled, with what is left of the leases here.
    fn balance(&self, hits: u64, now: Instant) -> Option<Balance> {
        let seen = self.seen.as_ref()?;
        let limit = &self.item.limit.limit;
        let at = seen.at.after(now.saturating_duration_since(seen.sent_at));
        let mut bucket = seen.bucket.clone();
        bucket.refill(limit, at);
        let live = self.leases.iter().filter(|lease| !lease.ended);
        let left = live.map(|lease| lease.left).sum();
        bucket.apply(limit, Hits::Give(left), at);
        let found = Found {
            fits: true,
            charged: true,
            left: bucket.balance(limit),
        };
        Some(bucket.conclude(limit, found, hits, at))
    }
}
