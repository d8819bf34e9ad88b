//! Hands what was decided to the statistics of envoyproxy/ratelimit.

use super::{Part, deciding};
use crate::{
    decision::{Code, Decision, LimitState},
    descriptor::{Descriptor, Hits, Query},
    plan::{Domain, Match, Role},
    statistics::{Judged, StatKey, Statistics, key::level},
};

/// Counts each descriptor of the query with its rule, or with what it says of itself if it brought its limit along.
pub(super) fn count(
    statistics: &Statistics,
    domain: &Domain,
    query: &Query,
    parts: &[Part<'_>],
    decision: &Decision,
) {
    for (part, descriptor) in parts.iter().zip(&query.descriptors) {
        let states = &decision.limits[part.items.0..part.items.1];
        let Some(judged) = judged(part, descriptor, states, decision.code) else {
            continue;
        };
        let shown = |entry| domain.public_value(entry);
        let entries = &descriptor.entries;
        match part.rule() {
            Some(rule) => {
                rule.statistics
                    .count(statistics, domain.name(), entries, shown, &judged);
            }
            None => {
                let levels = entries.iter().map(|entry| level(&entry.key, shown(entry)));
                let key = StatKey::new(domain.name(), levels);
                let counts = statistics.of_request(key);
                counts.count(&judged, statistics.near_limit_ratio());
            }
        }
    }
}

/// How a descriptor fared. Of several limits the one counts that its status shows. None where nothing was limited, or where
/// another descriptor refused so that nobody looked.
fn judged(
    part: &Part<'_>,
    descriptor: &Descriptor,
    states: &[LimitState],
    code: Code,
) -> Option<Judged> {
    let shadow = part.role() == Role::Shadow;
    if matches!(part.found, Match::Refuses(_)) {
        return Some(Judged {
            hits: descriptor.hits,
            capacity: 0,
            left: 0,
            fits: false,
            shadow,
            by_cache: false,
        });
    }
    let LimitState { limit, balance } = deciding(states)?;
    // All or nothing: the balances of a refused request are those of untouched buckets.
    let charged = balance.fits && code == Code::Ok;
    let taken = match descriptor.hits {
        Hits::Take(hits) if charged => hits,
        _ => 0,
    };
    Some(Judged {
        hits: descriptor.hits,
        capacity: u64::from(limit.limit.capacity()),
        left: balance.remaining.saturating_add(taken),
        fits: balance.fits,
        shadow,
        by_cache: false,
    })
}
