//! Hands what was decided to the statistics of envoyproxy/ratelimit.

use super::{conclude::deciding, parts::Part};
use crate::{
    bucket::Balance,
    decision::{Decision, LimitState},
    descriptor::{Descriptor, Hits, Query},
    keys::KeyTable,
    limit::Kind,
    plan::{Domain, Match, Mode, Role, RuleLimit},
    statistics::{Judged, StatKey, Statistics, key::level},
};

/// Counts each descriptor of the query with its rule, or with what it says of itself if it brought its limit along.
pub(super) fn count(
    statistics: &Statistics,
    (domain, stored): (&Domain, &KeyTable),
    query: &Query,
    parts: &[Part<'_>],
    decision: &Decision,
) {
    for (part, descriptor) in parts.iter().zip(&query.descriptors) {
        let states = &decision.limits[part.items.0..part.items.1];
        let Some(judged) = judged(part, descriptor, states) else {
            continue;
        };
        let shown = |entry| domain.public_value(entry, stored);
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
fn judged(part: &Part<'_>, descriptor: &Descriptor, states: &[LimitState]) -> Option<Judged> {
    if matches!(part.found, Match::Refuses(_)) {
        return Some(Judged {
            hits: descriptor.hits,
            capacity: 0,
            left: 0,
            fits: false,
            shadow: part.role == Role::Shadow,
            by_cache: false,
        });
    }
    let LimitState {
        limit,
        balance,
        mode,
        ..
    } = deciding(states)?;
    Some(Judged {
        hits: descriptor.hits,
        capacity: u64::from(limit.limit.capacity()),
        left: left_before(limit, balance, descriptor.hits),
        fits: balance.fits,
        shadow: *mode != Mode::Enforce,
        by_cache: balance.cached,
    })
}

/// Hits that the limit had left before these.
fn left_before(limit: &RuleLimit, balance: &Balance, hits: Hits) -> u64 {
    let capacity = i64::from(limit.limit.capacity());
    let bounded = limit.limit.kind() != Kind::FixedWindow;
    let left = match hits {
        // At the bound of debt it is not known any more, and taken for nothing.
        Hits::Take(_) if balance.charged && bounded && balance.left == -capacity => 0,
        Hits::Take(hits) if balance.charged => balance.left.saturating_add_unsigned(hits),
        _ => balance.left,
    };
    left.max(0).unsigned_abs()
}
