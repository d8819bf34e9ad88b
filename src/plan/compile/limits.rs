//! What a rule allows, from the limits of its file; and what does not go together there.

use std::sync::Arc;

use smallvec::smallvec;

use crate::{
    limit::{Algorithm, Kind, Limit, Period},
    plan::{
        beyond::Beyond,
        domain::{RuleNames, rule_limit},
        file::{LimitFile, RateLimitFile},
        rule::{Allowance, Charge, Counting, RuleLimit},
    },
};

pub fn from_rate_limit(
    file: &RateLimitFile,
    algorithm: Algorithm,
    names: RuleNames<'_>,
    beyond: Beyond,
) -> Allowance {
    match (file.unlimited, file.unit) {
        (false, Some(unit)) => {
            let limit = Limit::per(file.requests_per_unit, Period::of(unit), algorithm)
                .expect("read() rejects limits that cannot be counted");
            Allowance::Limits(smallvec![Arc::new(rule_limit(names, limit, None, beyond))])
        }
        _ => Allowance::Unlimited,
    }
}

/// Limits as they count under `algorithm`, each with what else is said of it.
pub fn counted(files: &[LimitFile], algorithm: Algorithm) -> Vec<(Limit, &LimitFile)> {
    let limits = files.iter().map(|file| match algorithm {
        Algorithm::FixedWindow if file.plain => (file.limit.in_fixed_windows(), file),
        _ => (file.limit.clone(), file),
    });
    limits.collect()
}

/// What is wrong with limits of which two are one bucket. `read` refuses those that are so whatever the algorithm.
pub fn shared_bucket(limits: &[(Limit, &LimitFile)]) -> Option<String> {
    limits.iter().enumerate().find_map(|(index, (limit, _))| {
        let same = |(first, _): &&(Limit, &LimitFile)| first.identity() == limit.identity();
        let (first, _) = limits[..index].iter().find(same)?;
        Some(format!(
            "under `algorithm: fixed_window`, `{first}` and `{limit}` are of one kind and period and would share a bucket; keep one, or write another period or kind"
        ))
    })
}

/// Why no lease goes with a rule.
pub fn unleasable(allowance: &Allowance, counting: Counting, durable: bool) -> Option<String> {
    if counting.charge != Charge::AllOrNothing || counting.overdraw {
        return Some(
            "a lease goes with `charge: all_or_nothing` without `overdraw` only: what a refusal charges must reach Redis"
                .to_owned(),
        );
    }
    if durable {
        return Some(
            "no lease goes with `durable`: what is spent from a lease waits for no replica"
                .to_owned(),
        );
    }
    let mut limits = allowance.limits().peekable();
    if limits.peek().is_none() {
        return Some("a lease goes with limits, and this rule has none".to_owned());
    }
    let beyond = |limit: &&Arc<RuleLimit>| limit.limit.delay_us() > 0 || limit.guard().is_some();
    if let Some(limit) = allowance.limits().find(beyond) {
        let limit = &limit.limit;
        return Some(format!(
            "no lease goes with `{limit}`: what is beyond it is for Redis to tell"
        ));
    }
    let sliding = limits.find(|limit| limit.limit.kind() == Kind::Sliding)?;
    Some(format!(
        "no lease goes with `{}`, which counts a hit at the moment it passes; use a token bucket, or leave `lease` out",
        sliding.limit
    ))
}

pub fn from_limits<L: FromIterator<Arc<RuleLimit>>>(
    limits: &[(Limit, &LimitFile)],
    names: RuleNames<'_>,
    beyond: Beyond,
) -> L {
    let limits = limits.iter().map(|(limit, file)| {
        let limit = rule_limit(names, limit.clone(), file.name.as_deref(), beyond);
        let limit = limit.in_mode(file.mode.unwrap_or(beyond.mode));
        Arc::new(match file.warn_at {
            Some(warn_at) => limit.warning_at(warn_at),
            None => limit,
        })
    });
    limits.collect()
}
