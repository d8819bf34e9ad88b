//! A batch of takes as `take.lua` reads it, and its reply. Pure: no connection, no clock.
//!
//! The script gets each distinct key once, as `KEYS` or before its other arguments, and one flat MessagePack array of integers:
//! - the number of distinct limits, then 7 numbers for each (14 where answers wait for tokens, which counts as two limits): `1, burst, tick_us, whole, part, denominator, ticks` of a token
//!   bucket, `ticks` being those that fill it from the deepest debt; `2, count, slot_us, 0, 0, 0, 0` of a sliding window;
//!   `3, count, months, length_us, anchor_us, most, bounds` of a calendar quota or a fixed window, `months` being 0 where the
//!   length is fixed, and `most` the most that is counted; `bounds` is 0, or for the calendar of a time zone the place of a
//!   further row, which stands among the limits and is counted as one: where four of its periods begin, one after the other;
//!   `0`, the six others of a token bucket, `debt, patience_us, 0, 0, 0, 0, 0` of one whose answers wait, `debt` being the
//!   deepest; `4, 1, after, within_us, first_us, longest_us, 0` of a penalty;
//! - the number of takes, then for each `3 + 2 × items + dry`, then 4 numbers per item: number of the key from 1, place of the
//!   limit in this array from 1, hits, and how they count: 0 enforced, 1 shadow, 2 quota, 3 forced; 4 more to give; 8 more to
//!   overdraw, 16 to stop when over, 24 for independent, 32 for a penalty, whose item follows that of
//!   its limit;
//! - for a usual take, of hits that are enforced, from one bucket that no other take of the batch names, instead: how, number
//!   of the key, place of the limit, hits. How is 0 for a token bucket, all or nothing; 1 for a period of fixed length that is
//!   counted from the epoch, all or nothing; 2 for the same, charged whether they fit or not.
//!
//! Redis' clock picks the period, and where it lies outside the bounds of a zone the script does nothing and tells the time alone:
//! then the batch is written anew with the bounds around that time.

use std::{collections::HashMap, sync::Arc};

use rmp::{
    decode::{bytes::Bytes, read_array_len, read_int},
    encode::{write_array_len, write_uint},
};
use smallvec::SmallVec;

use crate::{
    bucket::{Bucket, Found, Spent, Strikes, Tokens, Window, calendar},
    clock::{Timestamp, micros},
    descriptor::Hits,
    limit::{EXACT, Kind, Limit, Unit},
    plan::{Charge, Role},
    store::{
        Item, Take, Taken,
        judge::{Flags, charged, taken_hits},
        key::Prehashed,
        pace::pace,
    },
};

use super::lease::{Ask, Grant, Rows, Told};

/// Numbers per limit.
const FIELDS: u64 = 7;

/// One take of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What is asked.
    pub take: &'a Take,
    /// Applied whether it fits or not: hits that were admitted without the store.
    pub forced: bool,
}

/// An encoded batch.
#[derive(Debug)]
pub struct Request {
    /// `ARGV[2]`.
    pub payload: Vec<u8>,
    /// The last argument, where buckets may be leased from.
    pub leases: Option<Vec<u8>>,
    /// For each distinct key, in order, the take and the item that name it; behind the takes, the asks.
    pub keys: Vec<(usize, usize)>,
    rows: Rows,
    /// For which times of Redis' clock the bounds of time zones hold: from, and before; none where there are no such bounds.
    pub holds: Option<[Timestamp; 2]>,
    /// For each item of the batch, the number of its key from 0.
    places: Vec<usize>,
}

/// What the script said about one take.
#[derive(Debug)]
pub struct Answer {
    /// Redis' time of the batch.
    pub now: Timestamp,
    /// The decision, as the service answers it.
    pub taken: Taken,
    /// Per item, its bucket after the decision.
    pub buckets: SmallVec<[Bucket; 2]>,
}

/// The reply is none of this script.
#[derive(Debug, thiserror::Error)]
#[error("the reply of take.lua has another shape")]
pub struct Malformed;

impl Request {
    /// Writes a batch, with what is told and asked of leases. `now` is asked where the limits of time zones are among its own:
    /// about what Redis' clock shows.
    pub fn encode(takes: &[Wanted<'_>], asks: &[Ask], now: impl FnOnce() -> Timestamp) -> Self {
        let items = takes.iter().map(|wanted| wanted.take.items.len()).sum();
        let mut keys = Vec::with_capacity(items);
        let mut places = Vec::with_capacity(items);
        let mut by_hash: ByHash<u128> = HashMap::with_capacity_and_hasher(items, <_>::default());
        let mut limits = Limits::default();
        let mut body = Numbers::with_capacity(16 * items + 64);
        let mut limit_places = Vec::with_capacity(items);
        let mut named = Vec::with_capacity(items);
        let mut rows = Rows::default();
        for (t, wanted) in takes.iter().enumerate() {
            for (i, item) in wanted.take.items.iter().enumerate() {
                let place = *by_hash.entry(item.key.hash()).or_insert_with(|| {
                    keys.push((t, i));
                    named.push(0_u32);
                    keys.len() - 1
                });
                named[place] += 1;
                places.push(place);
                limit_places.push(match item.limit.lease {
                    Some(lease) => rows.place(place, lease, &item.limit, &mut limits),
                    None => limits.place(item),
                });
            }
        }
        for (number, ask) in asks.iter().enumerate() {
            let place = *by_hash.entry(ask.item.key.hash()).or_insert_with(|| {
                keys.push((takes.len() + number, 0));
                keys.len() - 1
            });
            rows.ask(place, number, &ask.item.limit, &mut limits);
        }
        let holds = body.limits(&limits, now);
        body.push(takes.len() as u64);
        let mut next = 0;
        for wanted in takes {
            let items = next..next + wanted.take.items.len();
            next = items.end;
            let place = |item: usize| [places[item] as u64 + 1, limit_number(limit_places[item])];
            match usual(wanted) {
                Some((how, hits)) if named[places[items.start]] == 1 => {
                    let [key, limit] = place(items.start);
                    body.extend([how, key, limit, hits]);
                }
                _ => body.take(wanted, items.map(place)),
            }
        }
        Self {
            payload: body.finish(),
            leases: (!rows.is_empty()).then(|| {
                let mut body = Numbers::with_capacity(64);
                let numbers = rows.numbers(asks, limit_number);
                numbers.into_iter().for_each(|number| body.push(number));
                body.finish()
            }),
            rows,
            keys,
            holds,
            places,
        }
    }

    /// Redis' time, if its reply is that the bounds do not hold there. Nothing was taken then.
    pub fn outside(&self, reply: &[u8]) -> Option<Timestamp> {
        self.holds?;
        let mut reply = Reply(Bytes::new(reply));
        let told = read_array_len(&mut reply.0).ok()?;
        (told == 1)
            .then(|| reply.next().ok())
            .flatten()
            .map(Timestamp::from_micros)
    }

    /// Reads the reply to this batch, which was encoded from the same `takes` and `asks`.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn decode(
        &self,
        reply: &[u8],
        takes: &[Wanted<'_>],
        asks: &[Ask],
    ) -> Result<(Vec<Answer>, Vec<Told>), Malformed> {
        let mut reply = Reply(Bytes::new(reply));
        read_array_len(&mut reply.0).map_err(|_| Malformed)?;
        let now = Timestamp::from_micros(reply.next()?);
        let mut told: Vec<Option<Bucket>> = vec![None; self.keys.len()];
        let mut asked = vec![0_u64; self.keys.len()];
        let mut rest = &self.places[..];
        let answers = takes
            .iter()
            .map(|wanted| {
                let (places, others) = rest
                    .split_at_checked(wanted.take.items.len())
                    .ok_or(Malformed)?;
                rest = others;
                reply.answer(wanted, places, &mut told, &mut asked, now)
            })
            .collect::<Result<_, _>>()?;
        let grant = |reply: &mut Reply<'_>, ask: &Ask| {
            Ok(Grant {
                tokens: reply.next()?,
                date_us: reply.next()?,
                bucket: reply.bucket(&ask.item.limit.limit, now)?,
                at: now,
            })
        };
        let leases = self.rows.read(asks, &mut reply, Reply::next, grant)?;
        Ok((answers, leases))
    }
}

/// The distinct limits of a batch, in the order of their places.
#[derive(Debug, Default)]
pub struct Limits<'a> {
    all: Vec<(&'a Limit, u32)>,
    by_address: ByHash<usize>,
    /// Those whose answers wait, by how long, too.
    by_patience: Option<HashMap<(usize, u32), usize>>,
    /// Places taken.
    length: usize,
}

impl<'a> Limits<'a> {
    fn place(&mut self, item: &'a Item) -> usize {
        let limit = &item.limit.limit;
        let address = Arc::as_ptr(&item.limit).addr();
        let place = match limit.delay_us() {
            0 => self.by_address.entry(address).or_insert(self.length),
            _ => {
                let by_patience = self.by_patience.get_or_insert_default();
                let entry = by_patience.entry((address, item.patience_us));
                entry.or_insert(self.length)
            }
        };
        let place = *place;
        if place == self.length {
            self.add(limit, item.patience_us);
        }
        place
    }

    /// Adds a limit, though it may stand there already; answers its place from 0.
    pub fn add(&mut self, limit: &'a Limit, patience_us: u32) -> usize {
        self.all.push((limit, patience_us));
        let place = self.length;
        self.length += 1 + usize::from(limit.delay_us() > 0);
        place
    }
}

/// Where a limit stands in the payload, from 1.
fn limit_number(place: usize) -> u64 {
    place as u64 * FIELDS + 2
}

/// How the script decides a take the short way, if its bucket stands in no other take of the batch; and its hits.
fn usual(wanted: &Wanted<'_>) -> Option<(u64, u64)> {
    let [item] = &wanted.take.items[..] else {
        return None;
    };
    let plain = item.role == Role::Enforced && !wanted.forced && !wanted.take.dry;
    let Hits::Take(hits @ 1..) = item.hits else {
        return None;
    };
    let all_or_nothing = item.charge == Charge::AllOrNothing;
    let how = match item.limit.limit.kind() {
        Kind::Bucket { .. } if all_or_nothing && item.limit.limit.delay_us() == 0 => 0,
        // What does not fit is charged under each of the other ways, and alone in its take what fits is too.
        Kind::FixedWindow => 1 + u64::from(!all_or_nothing),
        _ => return None,
    };
    plain.then_some((how, hits.min(EXACT as u64)))
}

/// How the hits of an item count.
fn op(item: &Item, forced: bool) -> u64 {
    let gives = match item.hits {
        Hits::Take(_) => 0,
        Hits::Give(_) => 4,
    };
    if forced {
        return gives + 3;
    }
    let role = match item.role {
        Role::Enforced => 0,
        Role::Shadow => 1,
        Role::Quota => 2,
    };
    let charge = match item.charge {
        Charge::AllOrNothing => 0,
        Charge::Overdraw => 8,
        Charge::StopWhenOver => 16,
        Charge::Independent => 24,
        Charge::Strike => 32,
    };
    role + gives + charge
}

/// Collects integers as a MessagePack array, whose length is known at the end only.
struct Numbers {
    bytes: Vec<u8>,
    count: u32,
}

impl Numbers {
    fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            count: 0,
        }
    }

    fn push(&mut self, number: u64) {
        write_uint(&mut self.bytes, number).expect("a vector takes every byte");
        self.count += 1;
    }

    fn extend<const N: usize>(&mut self, numbers: [u64; N]) {
        for number in numbers {
            self.push(number);
        }
    }

    /// Writes a take; `places` are the key and the limit of each item.
    fn take(&mut self, wanted: &Wanted<'_>, places: impl Iterator<Item = [u64; 2]>) {
        self.push(3 + 2 * wanted.take.items.len() as u64 + u64::from(wanted.take.dry));
        for (item, [key, limit]) in wanted.take.items.iter().zip(places) {
            let (Hits::Take(hits) | Hits::Give(hits)) = item.hits;
            // No limit comes near; more would not be exact in Lua.
            let hits = hits.min(EXACT as u64);
            self.extend([key, limit, hits, op(item, wanted.forced)]);
        }
    }

    /// Writes the limits, and says for which times they hold.
    fn limits(
        &mut self,
        limits: &Limits<'_>,
        now: impl FnOnce() -> Timestamp,
    ) -> Option<[Timestamp; 2]> {
        let zones = limits
            .all
            .iter()
            .filter(|(limit, _)| limit.zone().is_some());
        let zoned = zones.count();
        self.push((limits.length + zoned) as u64);
        if zoned == 0 {
            for (limit, patience_us) in &limits.all {
                self.limit(limit, *patience_us);
            }
            return None;
        }
        let (now, mut all) = (now(), Vec::with_capacity(zoned));
        for (limit, patience_us) in &limits.all {
            let Some(zone) = limit.zone() else {
                self.limit(limit, *patience_us);
                continue;
            };
            let bounds = calendar::bounds(limit.period(), zone, now);
            let longest = bounds
                .windows(2)
                .map(|pair| micros(pair[1].since(pair[0])))
                .max();
            let place = limit_number(limits.length + all.len());
            let (count, most) = (u64::from(limit.count()), calendar::most(limit));
            self.extend([3, count, 0, longest.unwrap_or_default(), 0, most, place]);
            all.push(bounds);
        }
        for bounds in &all {
            let [before, present, next, last] = bounds.map(Timestamp::as_micros);
            self.extend([before, present, next, last, 0, 0, 0]);
        }
        let from = all.iter().map(|bounds| bounds[0]).max()?;
        Some([from, all.iter().map(|bounds| bounds[3]).min()?])
    }

    fn limit(&mut self, limit: &Limit, patience_us: u32) {
        let capacity = u64::from(limit.capacity());
        let period = limit.period();
        let fields = match limit.kind() {
            Kind::Bucket { .. } => {
                let refill = limit.refill();
                [
                    u64::from(limit.delay_us() == 0),
                    capacity,
                    refill.tick_us,
                    refill.whole,
                    refill.part,
                    refill.denominator,
                    limit.ticks_from_debt(),
                ]
            }
            Kind::Sliding => [2, capacity, limit.slot_us(), 0, 0, 0, 0],
            Kind::Calendar => {
                let multiplier = u64::from(period.multiplier);
                // The longest month and year: a key may outlive its period.
                let (months, days) = match period.unit {
                    Unit::Month => (multiplier, 31 * multiplier),
                    Unit::Year => (12 * multiplier, 366 * multiplier),
                    _ => (0, 0),
                };
                let length_us = if months == 0 {
                    period.micros()
                } else {
                    days * calendar::DAY_US
                };
                [
                    3,
                    capacity,
                    months,
                    length_us,
                    calendar::anchor(period.unit),
                    calendar::most(limit),
                    0,
                ]
            }
            Kind::FixedWindow => [3, capacity, 0, period.micros(), 0, calendar::most(limit), 0],
            Kind::Penalty => {
                let terms = limit.terms();
                let [within, first, longest] =
                    [terms.within, terms.first, terms.longest].map(micros);
                [4, capacity, terms.after.into(), within, first, longest, 0]
            }
        };
        self.extend(fields);
        if limit.delay_us() > 0 {
            let debt = limit.deepest_debt().unsigned_abs();
            self.extend([debt, patience_us.into(), 0, 0, 0, 0, 0]);
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes.len() + 5);
        write_array_len(&mut all, self.count).expect("a vector takes every byte");
        all.extend_from_slice(&self.bytes);
        all
    }
}

struct Reply<'a>(Bytes<'a>);

impl Reply<'_> {
    fn next<T: TryFrom<i64>>(&mut self) -> Result<T, Malformed> {
        let number: i64 = read_int(&mut self.0).map_err(|_| Malformed)?;
        T::try_from(number).map_err(|_| Malformed)
    }

    fn answer(
        &mut self,
        wanted: &Wanted<'_>,
        places: &[usize],
        told: &mut [Option<Bucket>],
        asked: &mut [u64],
        now: Timestamp,
    ) -> Result<Answer, Malformed> {
        let take = wanted.take;
        // A usual take has one item, which fits if it is admitted.
        let head: u64 = self.next()?;
        let (admitted, usual) = (head % 2 == 1, (head >= 2).then_some(head % 2));
        let mut buckets = SmallVec::<[Bucket; 2]>::with_capacity(places.len());
        let mut lefts = SmallVec::<[Option<i64>; 2]>::with_capacity(places.len());
        let mut fits = Flags::with_capacity(places.len());
        for (item, place) in take.items.iter().zip(places) {
            let code = usual.map_or_else(|| self.next(), Ok)?;
            let independent = matches!(item.charge, Charge::Independent | Charge::Strike);
            let tells_left = independent && usual.is_none() && !wanted.forced;
            lefts.push(tells_left.then(|| self.next()).transpose()?);
            if code < 2 {
                told[*place] = Some(self.bucket(&item.limit.limit, now)?);
            }
            buckets.push(told[*place].clone().ok_or(Malformed)?);
            fits.push(code % 2 == 1);
        }
        let charged = charged(take, &fits, admitted);
        let mut balances = SmallVec::with_capacity(places.len());
        for (index, (item, place)) in take.items.iter().zip(places).enumerate() {
            let (limit, bucket) = (&item.limit.limit, &buckets[index]);
            let wanted = asked[*place].saturating_add(taken_hits(item));
            if fits[index] {
                asked[*place] = wanted;
            }
            let found = Found {
                fits: fits[index],
                charged: charged[index],
                left: lefts[index].unwrap_or_else(|| bucket.balance(limit)),
            };
            let mut balance = bucket.conclude(limit, found, wanted, now);
            if item.patience_us > 0 {
                pace(&mut balance, item, bucket, (wanted, take.dry), now);
            }
            balances.push(balance);
        }
        for place in places {
            asked[*place] = 0;
        }
        let taken = Taken {
            admitted,
            balances,
            degraded: false,
            not_replicated: false,
        };
        Ok(Answer {
            now,
            taken,
            buckets,
        })
    }

    fn bucket(&mut self, limit: &Limit, now: Timestamp) -> Result<Bucket, Malformed> {
        Ok(match limit.kind() {
            Kind::Bucket { .. } => Bucket::Tokens(Tokens {
                tokens: self.next()?,
                fraction: self.next()?,
                denominator: limit.refill().denominator,
                at_us: now.as_micros().saturating_add(self.next()?),
            }),
            Kind::Sliding => {
                let count: usize = self.next()?;
                let slots = (0..count).map(|_| Ok((self.next()?, self.next()?)));
                Bucket::Window(Window {
                    slots: slots.collect::<Result<_, _>>()?,
                })
            }
            Kind::Calendar | Kind::FixedWindow => Bucket::Spent(Spent {
                used: self.next()?,
                start_us: self.next()?,
            }),
            Kind::Penalty => {
                let mut strikes = Strikes {
                    strikes: self.next()?,
                    since_us: self.next()?,
                    last_us: self.next()?,
                    until_us: self.next()?,
                    running: false,
                };
                strikes.settle(limit, now);
                Bucket::Penalty(strikes)
            }
        })
    }
}

type ByHash<K> = HashMap<K, usize, Prehashed>;
