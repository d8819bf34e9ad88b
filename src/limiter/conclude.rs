//! After the store has answered: what the request gets, which limit decided, how long to wait.

use std::{
    cmp::Reverse,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smallvec::SmallVec;

use super::{pacing, parts::Part};
use crate::{
    decision::{Code, DecidedBy, Decision, LimitState, Status},
    descriptor::{Hits, Query},
    plan::{Domain, Match, Mode, Modes, Role, RuleLimit},
    statistics::counted,
    store::{Taken, judge::admits},
};

/// For each item of the take, in order, its part and what is asked.
fn asked<'a, 'p>(
    parts: &'a [Part<'p>],
    query: &'a Query,
) -> impl Iterator<Item = (&'a Part<'p>, Hits)> {
    let asked = parts.iter().zip(&query.descriptors);
    asked.flat_map(|(part, descriptor)| {
        std::iter::repeat_n((part, descriptor.hits), part.items.1 - part.items.0)
    })
}

/// The decision on a query, from what was taken for it.
pub(super) fn conclude(
    (domain, query): (&Domain, &Query),
    parts: &[Part<'_>],
    limits: SmallVec<[Arc<RuleLimit>; 2]>,
    taken: Taken,
    refused: bool,
    modes: Modes,
) -> Decision {
    let limits: SmallVec<[LimitState; 2]> = limits
        .into_iter()
        .zip(&taken.balances)
        .zip(asked(parts, query))
        .map(|((limit, balance), (part, hits))| LimitState {
            mode: part.mode_of(&limit),
            limit,
            balance: *balance,
            hits,
        })
        .collect();
    let statuses: SmallVec<[Status; 2]> = parts
        .iter()
        .map(|part| part.status(&limits[part.items.0..part.items.1]))
        .collect();
    let passed_with_metadata = parts
        .iter()
        .zip(&statuses)
        .filter(|(_, status)| status.code == Code::Ok)
        .filter_map(|(part, _)| part.rule().filter(|rule| rule.metadata.is_some()).cloned())
        .collect();
    let over = (refused || !taken.admitted) && !modes.shadow;
    Decision {
        code: if over { Code::OverLimit } else { Code::Ok },
        shadowed: modes.shadow && (refused || !admits(roles_and_fits(parts, &limits))),
        statuses,
        retry_after: if over && !refused {
            wait(parts, &limits)
        } else {
            None
        },
        decided_by: decided_by(parts, &limits, over),
        passed_with_metadata,
        limits,
        degraded: taken.degraded,
        not_replicated: taken.not_replicated,
        known_domain: true,
        delay_us: match domain.paces() && taken.admitted {
            true => pacing::delay_us(&taken),
            false => 0,
        },
        response: domain.response().clone(),
    }
}

fn roles_and_fits(parts: &[Part<'_>], limits: &[LimitState]) -> impl Iterator<Item = (Role, bool)> {
    parts.iter().flat_map(|part| {
        let states = &limits[part.items.0..part.items.1];
        states
            .iter()
            .map(|state| (part.acts_as(state), state.balance.fits))
    })
}

/// The limit that a status of several shows, of those that refuse if there are any: when over, the one with the longest wait;
/// else the one with the least remaining.
pub(super) fn deciding(limits: &[LimitState]) -> Option<&LimitState> {
    limits.iter().max_by_key(|state| deciding_order(state))
}

/// Greater decides: what refuses before what does not, not fitting before fitting, then waiting for ever, then the longest wait
/// or the least remaining; of none remaining, the longest delay.
fn deciding_order(state: &LimitState) -> (bool, bool, bool, Duration, Reverse<u64>, u32) {
    let balance = &state.balance;
    let wait = balance.retry_after.unwrap_or_default();
    let never = !balance.fits && balance.retry_after.is_none();
    let refuses = state.mode == Mode::Enforce;
    let remaining = Reverse(balance.remaining());
    (
        refuses,
        !balance.fits,
        never,
        wait,
        remaining,
        balance.delay_us,
    )
}

/// How long until the request would pass: every enforced limit, and at least one quota rule if there are any.
fn wait(parts: &[Part<'_>], limits: &[LimitState]) -> Option<Duration> {
    let mut longest = Duration::ZERO;
    let mut quota: Option<Option<Duration>> = None;
    for part in parts {
        let states = &limits[part.items.0..part.items.1];
        let wait = states
            .iter()
            .filter(|state| !state.balance.fits && state.mode == Mode::Enforce)
            .try_fold(Duration::ZERO, |longest, state| {
                Some(longest.max(state.balance.retry_after?))
            });
        match part.acts_as {
            Role::Enforced => longest = longest.max(wait?),
            Role::Quota if !states.is_empty() => {
                quota = Some(match (quota.flatten(), wait) {
                    (Some(known), Some(wait)) => Some(known.min(wait)),
                    (known, wait) => known.or(wait),
                });
            }
            Role::Quota | Role::Shadow => {}
        }
    }
    match quota {
        Some(quota) => Some(longest.max(quota?)),
        None => Some(longest),
    }
}

fn decided_by(parts: &[Part<'_>], limits: &[LimitState], over: bool) -> Option<DecidedBy> {
    if let Some(part) = parts.iter().find(|part| part.refuses()) {
        return Some(DecidedBy {
            rule: part.rule().cloned(),
            limit: None,
        });
    }
    parts
        .iter()
        .filter(|part| part.acts_as != Role::Shadow)
        .flat_map(|part| {
            limits[part.items.0..part.items.1]
                .iter()
                .map(move |state| (part, state))
        })
        .filter(|(_, state)| state.mode == Mode::Enforce && (!over || !state.balance.fits))
        .max_by_key(|(_, state)| deciding_order(state))
        .map(|(part, state)| DecidedBy {
            rule: part.rule().cloned(),
            limit: Some(state.limit.clone()),
        })
}

/// Counts the decision with each rule that took part in it.
pub(super) fn count(parts: &[Part<'_>], decision: &Decision) {
    for (part, status) in parts.iter().zip(&decision.statuses) {
        let Some(rule) = part.rule() else { continue };
        let states = &decision.limits[part.items.0..part.items.1];
        if decision.code == Code::Ok
            && let Some(beyond) = states.iter().find(|state| state.is_soft_over())
            && let Hits::Take(hits) = beyond.hits
        {
            rule.counters.overage.add(counted(hits));
        }
        let over = match part.found {
            // Another descriptor refused without counting, so nobody asked this one's buckets.
            Match::Limited { .. } if states.is_empty() => continue,
            Match::Refuses(_) => true,
            _ => states
                .iter()
                .any(|state| !state.balance.fits && state.mode != Mode::Soft),
        };
        let counter = match status.code {
            Code::OverLimit => &rule.counters.over_limit,
            Code::Ok if over => &rule.counters.shadow_over_limit,
            Code::Ok => &rule.counters.ok,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
