//! Hands what was decided to the meter of usage.

use super::parts::Part;
use crate::{
    decision::{Code, Decision},
    descriptor::{Hits, Query},
    plan::{Domain, KnownKey, Match, Mode, Role},
    statistics::counted,
    usage::{Fate, Limited, Meter, Requester},
};

/// Counts each limit of the decision for `key`, or for all that come without one.
pub(super) fn count(
    meter: &Meter,
    (domain, key): (&Domain, Option<KnownKey<'_>>),
    query: &Query,
    parts: &[Part<'_>],
    decision: &Decision,
) {
    let requester = key.map(Requester::from).unwrap_or_default();
    let tab = meter.open(domain.name(), requester);
    for (part, descriptor) in parts.iter().zip(&query.descriptors) {
        let hits = match descriptor.hits {
            Hits::Take(hits) => counted(hits) as i64,
            Hits::Give(hits) => -(counted(hits) as i64),
        };
        let refuses = part.acts_as != Role::Shadow;
        for state in &decision.limits[part.items.0..part.items.1] {
            if let Some(fate) = fate(
                decision.code,
                refuses && state.mode == Mode::Enforce,
                state.balance.fits,
            ) {
                let rule = part.rule().map(AsRef::as_ref);
                tab.count(Limited::Limit(rule, &state.limit), fate, hits);
            }
        }
        // A rule without a limit is worth a row only where there is somebody to name in it.
        let (rule, fits) = match part.found {
            _ if key.is_none() => continue,
            Match::Passes(rule) => (Limited::Unlimited(rule), true),
            Match::Refuses(rule) => (Limited::Denied(rule), false),
            Match::None | Match::Limited { .. } => continue,
        };
        if let Some(fate) = fate(decision.code, refuses, fits) {
            tab.count(rule, fate, hits);
        }
    }
}

/// What became of hits that fit a limit or did not, in a request answered with `code`. None where another limit refused it.
fn fate(code: Code, refuses: bool, fits: bool) -> Option<Fate> {
    match (code, fits) {
        (Code::Ok, true) => Some(Fate::Admitted),
        (Code::Ok, false) => Some(Fate::Overage),
        (Code::OverLimit, false) if refuses => Some(Fate::Refused),
        (Code::OverLimit, _) => None,
    }
}
