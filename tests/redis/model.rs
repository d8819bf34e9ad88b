//! What a store must answer, written as plainly as can be and for nothing but this: token buckets count in parts of a
//! token as long as the period, sliding windows list every hit, calendar quotas list the days of each month.

use std::collections::HashMap;

use tollgate::{
    descriptor::Hits,
    limit::{Kind, Limit, Unit},
    plan::{Charge, Role},
    store::{Item, Take},
};

use crate::zones;

/// Slots of a sliding window, as the limit's documentation promises.
const SLOTS: i128 = 60;

/// (fits, charged, left, retry_after in µs, reset_after in µs, delay in µs)
pub type Row = (bool, bool, i128, Option<i128>, i128, i128);

#[derive(Default)]
pub struct Model {
    buckets: HashMap<Vec<u8>, State>,
    changed: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Parts of a token, `parts` of which make one; when it was last refilled; the denominator that its fraction counts in.
    Tokens {
        level: i128,
        at: i128,
        denominator: u64,
    },
    /// The slot of each hit.
    Hits(Vec<i128>),
    /// Hits since the start of a period.
    Used { used: i128, start: i128 },
    /// When each refusal was that counts; length and end of the last penalty; whether it ran at the last look.
    Strikes {
        refusals: Vec<i128>,
        last: i128,
        end: i128,
        runs: bool,
    },
}

impl Model {
    /// Decides, and remembers.
    pub fn take(&mut self, take: &Take, now: u64) -> (bool, Vec<Row>) {
        let now = i128::from(now);
        let mut work: HashMap<Vec<u8>, State> = HashMap::new();
        for item in &take.items {
            let key = item.key.as_bytes().to_vec();
            let stored = self.buckets.get(&key).cloned();
            let state = work
                .entry(key)
                .or_insert_with(|| stored.unwrap_or_else(|| full(&item.limit.limit, now)));
            refill(state, &item.limit.limit, now);
        }
        let fits = fits(take, &mut work.clone(), now);
        let fit = |role| {
            let mut of_role = take
                .items
                .iter()
                .zip(&fits)
                .filter(move |(item, _)| item.role == role);
            let any = of_role.clone().next().is_some();
            (
                of_role.clone().all(|(_, fit)| *fit),
                !any || of_role.any(|(_, fit)| *fit),
            )
        };
        let admitted = fit(Role::Enforced).0 && fit(Role::Quota).1;
        let all_fit = !fits.contains(&false);
        let charged: Vec<bool> = take
            .items
            .iter()
            .zip(&fits)
            .enumerate()
            .map(|(index, (item, fit))| {
                !take.dry
                    && match item.charge {
                        // It follows the item of its limit.
                        Charge::Strike => *fit && !fits[index - 1],
                        _ => is_charged(item, *fit, all_fit, admitted),
                    }
            })
            .collect();
        let mut lefts = Vec::new();
        for (item, charged) in take.items.iter().zip(&charged) {
            let (key, limit) = (item.key.as_bytes(), &item.limit.limit);
            let state = work.get_mut(key).expect("refilled above");
            let before = free(state, limit);
            if *charged {
                apply(state, limit, item.hits, now);
            }
            lefts.push(free(state, limit));
            let strikes = matches!(state, State::Strikes { .. });
            if free(state, limit) != before || *charged && strikes {
                self.changed.push(key.to_vec());
            }
        }
        for key in self.changed.drain(..) {
            self.buckets.insert(key.clone(), work[&key].clone());
        }
        let mut asked: HashMap<&[u8], i128> = HashMap::new();
        let rows = take.items.iter().enumerate().map(|(index, item)| {
            let (state, limit) = (&work[item.key.as_bytes()], &item.limit.limit);
            let hits = match item.hits {
                Hits::Take(hits) => i128::from(hits),
                Hits::Give(_) => 0,
            };
            let sum = asked.entry(item.key.as_bytes()).or_default();
            let wanted = *sum + hits;
            if fits[index] {
                *sum = wanted;
            }
            let left = match item.charge {
                Charge::Independent | Charge::Strike => lefts[index],
                _ => free(state, limit),
            };
            let patience = i128::from(item.patience_us);
            let retry = (!fits[index])
                .then(|| until(state, limit, wanted, now))
                .flatten()
                // As it would wait.
                .map(|wait| (wait - patience).max(0));
            let retry = match state {
                State::Strikes {
                    end, runs: true, ..
                } => Some(end - now),
                _ => retry,
            };
            let delay = match fits[index] && patience > 0 {
                true if charged[index] => until(state, limit, 0, now),
                true if take.dry => until(state, limit, wanted, now),
                _ => None,
            };
            let reset = match state {
                State::Used { start, .. } if limit.kind() == Kind::FixedWindow => {
                    (start + period(limit) - now).max(0)
                }
                _ if fits[index] => until_full(state, limit, now),
                _ => retry.unwrap_or(period(limit)),
            };
            let delay = delay.filter(|_| admitted).unwrap_or(0);
            (fits[index], charged[index], left, retry, reset, delay)
        });
        (admitted, rows.collect())
    }
}

/// Which items fit, in order, if what fits before them is taken, and what is charged anyhow is charged.
fn fits(take: &Take, work: &mut HashMap<Vec<u8>, State>, now: i128) -> Vec<bool> {
    let mut passed: HashMap<&[u8], i128> = HashMap::new();
    let items = take.items.iter();
    items
        .map(|item| {
            let limit = &item.limit.limit;
            let state = work.get_mut(item.key.as_bytes()).expect("refilled above");
            let passed = passed.entry(item.key.as_bytes()).or_default();
            let fits = match item.hits {
                Hits::Take(hits) => {
                    let hits = i128::from(hits);
                    let later = item.patience_us > 0
                        && *passed + hits <= i128::from(limit.capacity())
                        && will_be_free(state, limit, now + i128::from(item.patience_us)) >= hits;
                    let fits = free(state, limit) >= hits || later;
                    *passed += if fits { hits } else { 0 };
                    fits
                }
                Hits::Give(_) => true,
            };
            if fits && item.charge != Charge::Strike || item.charge == Charge::Independent {
                apply(state, limit, item.hits, now);
            }
            fits
        })
        .collect()
}

fn is_charged(item: &Item, fits: bool, all_fit: bool, admitted: bool) -> bool {
    match (item.charge, fits) {
        (Charge::Independent, _) | (Charge::Overdraw | Charge::StopWhenOver, false) => true,
        (Charge::AllOrNothing, false) => false,
        (Charge::AllOrNothing | Charge::Overdraw, true) => admitted,
        (Charge::Strike, _) => unreachable!("it depends on another item"),
        (Charge::StopWhenOver, true) => all_fit || matches!(item.hits, Hits::Give(_)),
    }
}

fn period(limit: &Limit) -> i128 {
    i128::from(limit.period().micros())
}

fn tick(limit: &Limit) -> i128 {
    i128::from(limit.refill().tick_us)
}

fn count(limit: &Limit) -> i128 {
    i128::from(limit.count())
}

fn full(limit: &Limit, now: i128) -> State {
    match limit.kind() {
        Kind::Bucket { burst } => State::Tokens {
            level: i128::from(burst) * period(limit),
            at: now,
            denominator: limit.refill().denominator,
        },
        Kind::Sliding => State::Hits(Vec::new()),
        Kind::Calendar | Kind::FixedWindow => State::Used {
            used: 0,
            start: start(limit, now),
        },
        Kind::Penalty => State::Strikes {
            refusals: Vec::new(),
            last: 0,
            end: 0,
            runs: false,
        },
    }
}

fn us(duration: std::time::Duration) -> i128 {
    duration.as_micros() as i128
}

fn refill(state: &mut State, limit: &Limit, now: i128) {
    match state {
        State::Tokens {
            level,
            at,
            denominator,
        } => {
            let parts = period(limit);
            if *denominator != limit.refill().denominator {
                // The documented rule: whole tokens stay when the numbers change.
                *level = level.div_euclid(parts) * parts;
                *denominator = limit.refill().denominator;
            }
            // And so does debt, of one burst at most.
            let debt = -deepest_debt(limit) * parts;
            if *level < debt {
                *level = debt + level.rem_euclid(parts);
            }
            if now > *at {
                let ticks = now / tick(limit) - *at / tick(limit);
                *level += ticks * tick(limit) * count(limit);
                *at = now;
            }
            *level = (*level).min(i128::from(limit.capacity()) * parts);
        }
        State::Hits(slots) => slots.retain(|slot| *slot >= now / slot_us(limit) - SLOTS),
        State::Used { used, start } => {
            let present = self::start(limit, now);
            if present > *start {
                (*used, *start) = (0, present);
            }
        }
        State::Strikes {
            refusals,
            last,
            end,
            runs,
        } => {
            let terms = limit.penalty().expect("a penalty");
            *end = (*end).min(now + us(terms.longest));
            if *last > 0 && now - *end >= us(terms.longest) {
                (*last, *end) = (0, 0);
            }
            if refusals
                .first()
                .is_some_and(|first| now - first >= us(terms.within))
            {
                refusals.clear();
            }
            *runs = *last > 0 && now < *end;
        }
    }
}

/// One burst, and where answers wait what refills meanwhile, in begun ticks.
fn deepest_debt(limit: &Limit) -> i128 {
    let ticks = match i128::from(limit.delay_us()) {
        0 => 0,
        delay => delay / tick(limit) + 1,
    };
    let refilled = ticks * tick(limit) * count(limit);
    i128::from(limit.capacity()) + (refilled + period(limit) - 1) / period(limit)
}

/// What a refilled bucket will hold at `then` if nobody takes from it, and if it could hold more than a full one.
fn will_be_free(state: &State, limit: &Limit, then: i128) -> i128 {
    let State::Tokens { level, at, .. } = state else {
        return free(state, limit);
    };
    let ticks = (then / tick(limit) - at / tick(limit)).max(0);
    (level + ticks * tick(limit) * count(limit)).div_euclid(period(limit))
}

fn slot_us(limit: &Limit) -> i128 {
    (period(limit) + SLOTS - 1) / SLOTS
}

fn free(state: &State, limit: &Limit) -> i128 {
    match state {
        State::Tokens { level, .. } => level.div_euclid(period(limit)),
        State::Hits(slots) => count(limit) - slots.len() as i128,
        State::Used { used, .. } => count(limit) - used,
        State::Strikes { runs, .. } => i128::from(!runs),
    }
}

fn apply(state: &mut State, limit: &Limit, hits: Hits, now: i128) {
    match (state, hits) {
        (State::Tokens { level, .. }, Hits::Take(hits)) => {
            let (whole, part) = (
                level.div_euclid(period(limit)),
                level.rem_euclid(period(limit)),
            );
            let most_debt = whole.min(-deepest_debt(limit));
            *level = (whole - i128::from(hits)).max(most_debt) * period(limit) + part;
        }
        (State::Tokens { level, .. }, Hits::Give(hits)) => {
            let most = i128::from(limit.capacity()) * period(limit);
            *level = (*level + i128::from(hits) * period(limit)).min(most);
        }
        (State::Hits(slots), Hits::Take(hits)) => {
            let slot = now / slot_us(limit);
            let slot = slots.last().map_or(slot, |newest| slot.max(*newest));
            let room = (2 * count(limit) - slots.len() as i128).clamp(0, i128::from(hits));
            slots.extend((0..room).map(|_| slot));
        }
        (State::Hits(slots), Hits::Give(hits)) => {
            slots.truncate(slots.len().saturating_sub(hits as usize));
        }
        (State::Used { used, .. }, Hits::Take(hits)) => {
            let most = match limit.kind() {
                Kind::FixedWindow => (1 << 53) - 1,
                _ => 2 * count(limit),
            };
            *used = (*used + i128::from(hits)).min(most.max(*used));
        }
        (State::Used { used, .. }, Hits::Give(hits)) => *used = (*used - i128::from(hits)).max(0),
        (State::Strikes { .. }, Hits::Give(0))
        | (State::Strikes { runs: true, .. }, Hits::Take(_)) => {}
        (state @ State::Strikes { .. }, Hits::Give(_)) => *state = full(limit, now),
        (
            State::Strikes {
                refusals,
                last,
                end,
                runs,
            },
            Hits::Take(hits),
        ) => {
            let terms = limit.penalty().expect("a penalty");
            refusals.extend((0..hits).map(|_| now));
            if refusals.len() >= terms.after as usize {
                *last = match *last {
                    0 => us(terms.first),
                    last => us(terms.longest).min(2 * last),
                };
                (*end, *runs) = (now + *last, true);
                refusals.clear();
            }
        }
    }
}

/// µs until `hits` fit if nobody else comes.
fn until(state: &State, limit: &Limit, hits: i128, now: i128) -> Option<i128> {
    if free(state, limit) >= hits {
        return Some(0);
    }
    if hits > i128::from(limit.capacity()) || limit.count() == 0 {
        return None;
    }
    let moment = match state {
        State::Tokens { level, at, .. } => {
            let missing = hits * period(limit) - level;
            let per_tick = count(limit) * tick(limit);
            (at / tick(limit) + (missing + per_tick - 1) / per_tick) * tick(limit)
        }
        State::Hits(slots) => {
            let leaving = (hits - free(state, limit)) as usize;
            (slots[leaving - 1] + SLOTS + 1) * slot_us(limit)
        }
        State::Used { start, .. } => end(limit, *start),
        State::Strikes { end, .. } => *end,
    };
    // No clock goes further.
    Some((moment.min(u64::MAX.into()) - now).max(0))
}

fn until_full(state: &State, limit: &Limit, now: i128) -> i128 {
    match state {
        State::Tokens { .. } if limit.count() == 0 => 0,
        State::Hits(slots) if slots.is_empty() => 0,
        State::Used { used: 0, .. } => 0,
        State::Strikes {
            refusals,
            last,
            end,
            ..
        } => {
            let terms = limit.penalty().expect("a penalty");
            let of_refusals = refusals.first().map_or(0, |first| first + us(terms.within));
            let of_penalty = if *last > 0 {
                end + us(terms.longest)
            } else {
                0
            };
            (of_refusals.max(of_penalty) - now).max(0)
        }
        _ => until(state, limit, i128::from(limit.capacity()), now).unwrap_or(0),
    }
}

const DAY: i128 = 86_400_000_000;

/// Counts days month by month from 1970.
fn months() -> impl Iterator<Item = i128> {
    let leap = |year: i128| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    (1970..).flat_map(move |year| {
        let february = if leap(year) { 29 } else { 28 };
        [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    })
}

fn per_period(limit: &Limit) -> Option<usize> {
    if limit.kind() == Kind::FixedWindow {
        return None;
    }
    let multiplier = limit.period().multiplier as usize;
    match limit.period().unit {
        Unit::Month => Some(multiplier),
        Unit::Year => Some(12 * multiplier),
        _ => None,
    }
}

/// Start and end of the period by the calendar of the limit's zone.
fn in_zone(limit: &Limit, now: i128) -> Option<(i128, i128)> {
    let zone = limit.zone()?;
    let (offset, now) = (
        zone.offset().as_secs() as i64,
        i64::try_from(now).expect("in range"),
    );
    let (start, end) = zones::period_around(zone.name(), offset, limit.period(), now);
    Some((start.into(), end.into()))
}

fn start(limit: &Limit, now: i128) -> i128 {
    if let Some((start, _)) = in_zone(limit, now) {
        return start;
    }
    let Some(length) = per_period(limit) else {
        // 1970-01-05 was the first Monday.
        let calendar = limit.kind() == Kind::Calendar;
        let anchor = if calendar && limit.period().unit == Unit::Week {
            4 * DAY
        } else {
            0
        };
        return (now - anchor).div_euclid(period(limit)) * period(limit) + anchor;
    };
    let mut day = 0;
    let mut begun = 0;
    for (index, days) in months().enumerate() {
        if day * DAY > now {
            break;
        }
        if index % length == 0 {
            begun = day * DAY;
        }
        day += days;
    }
    begun
}

fn end(limit: &Limit, start: i128) -> i128 {
    if let Some((_, end)) = in_zone(limit, start) {
        return end;
    }
    let Some(length) = per_period(limit) else {
        return start + period(limit);
    };
    let mut day = 0;
    let mut ends = months().map(move |days| {
        day += days;
        day * DAY
    });
    ends.by_ref()
        .find(|end| *end > start)
        .map_or(start, |first| {
            if length == 1 {
                first
            } else {
                ends.nth(length - 2).expect("there is no last month")
            }
        })
}
