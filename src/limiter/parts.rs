//! Before the store is asked: which rule each descriptor meets, and what to take for it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{DecideError, conclude::deciding};
use crate::{
    decision::{Code, LimitState, ShownLimit, Status},
    descriptor::Query,
    plan::{Allowance, Domain, KnownKey, Match, Mode, Modes, Plans, Role, Rule, RuleLimit},
    store::{BucketKey, Item, Take},
};

/// What one descriptor has to do with the items of the request's take.
pub(super) struct Part<'p> {
    pub(super) found: Match<'p>,
    /// Its items in the take: from, to.
    pub(super) items: (usize, usize),
    /// How its rule takes part, by what the rule and the modes say.
    pub(super) role: Role,
    /// The same in view of the others: a quota rule beside one that passes refuses as little as one in shadow mode.
    pub(super) acts_as: Role,
}

/// What to take for each descriptor, altogether, and the API key that it is for.
pub(super) type Planned<'p> = (SmallVec<[Part<'p>; 2]>, Take, Option<KnownKey<'p>>);

/// Matches every descriptor, and lists what to take.
pub(super) fn plan_take<'p>(
    domain: &'p Domain,
    query: &Query,
    plans: &'p Plans,
) -> Result<Planned<'p>, DecideError> {
    let mut take = Take {
        items: SmallVec::new(),
        dry: false,
    };
    let mut parts: SmallVec<[Part<'p>; 2]> = SmallVec::new();
    let (stored, modes) = (plans.stored_keys(), plans.modes());
    let brings_limit = query.descriptors.iter().any(|asked| asked.limit.is_some());
    let tier = brings_limit
        .then(|| domain.known_tier(query, stored))
        .flatten();
    let (matches, key) = domain.matches_and_key(query, stored);
    for (index, (found, descriptor)) in matches.into_iter().zip(&query.descriptors).enumerate() {
        let from = take.items.len();
        // Who is denied or allowed by a list meets that instead.
        if let (Some(wanted), Match::None) = (descriptor.limit, &found) {
            let (limit, subject) = domain
                .override_limit(descriptor, wanted, tier, stored)
                .map_err(|source| DecideError::Override { index, source })?;
            take.items.push(Item {
                key: BucketKey::new(limit.key_prefix(), &subject),
                charge: domain.counting().charge_of(descriptor, &limit.limit),
                limit,
                hits: descriptor.hits,
                role: Role::Enforced,
                patience_us: 0,
                on_store_error: domain.on_store_error(),
            });
            parts.push(Part::new(Match::None, (from, take.items.len()), modes));
            continue;
        }
        if let Match::Limited {
            rule,
            limits,
            subject,
        } = &found
        {
            take.items.extend(limits.iter().map(|limit| Item {
                key: BucketKey::new(limit.key_prefix(), subject),
                limit: limit.clone(),
                hits: descriptor.hits,
                role: rule.role,
                charge: rule.counting.charge_of(descriptor, &limit.limit),
                patience_us: 0,
                on_store_error: rule.on_store_error,
            }));
        }
        parts.push(Part::new(found, (from, take.items.len()), modes));
    }
    settle_roles(&mut parts, &mut take, modes);
    Ok((parts, take, key))
}

/// Gives each item the role in which it decides.
fn settle_roles(parts: &mut [Part<'_>], take: &mut Take, modes: Modes) {
    let quota_passes = parts.iter().any(|part| part.passes_as_quota(modes));
    for part in parts {
        part.acts_as = match part.role {
            // One quota rule that passes lets all of them pass.
            Role::Quota if quota_passes => Role::Shadow,
            role => role,
        };
        for item in &mut take.items[part.items.0..part.items.1] {
            // A request that passes anyhow is charged like one: what is over never keeps the rest from it.
            item.role = match item.limit.mode {
                Mode::Enforce if !modes.shadow => part.acts_as,
                _ => Role::Shadow,
            };
        }
    }
}

impl<'p> Part<'p> {
    fn new(found: Match<'p>, items: (usize, usize), modes: Modes) -> Self {
        let mut part = Self {
            found,
            items,
            role: Role::Enforced,
            acts_as: Role::Enforced,
        };
        part.role = match part.rule().map(|rule| rule.role).unwrap_or_default() {
            Role::Enforced if part.never_refuses() => Role::Shadow,
            Role::Enforced if modes.quota && items.1 - items.0 == 1 => Role::Quota,
            role => role,
        };
        part
    }

    /// Whether it has limits, and none of them refuses.
    fn never_refuses(&self) -> bool {
        let Match::Limited { limits, .. } = &self.found else {
            return false;
        };
        limits.iter().all(|limit| limit.mode != Mode::Enforce)
    }

    /// The mode in which a limit of it takes part.
    pub(super) fn mode_of(&self, limit: &RuleLimit) -> Mode {
        match self.role {
            Role::Shadow if limit.mode == Mode::Enforce => Mode::Shadow,
            _ => limit.mode,
        }
    }

    /// How a limit of it decides.
    pub(super) fn acts_as(&self, state: &LimitState) -> Role {
        match state.mode {
            Mode::Enforce => self.acts_as,
            Mode::Shadow | Mode::Soft => Role::Shadow,
        }
    }

    /// Whether it stands for a quota rule that passes, without any count.
    // Source: envoyproxy/ratelimit looks at statuses, and a rule in shadow mode has OK in its own.
    fn passes_as_quota(&self, modes: Modes) -> bool {
        match &self.found {
            Match::None => modes.quota && self.items.0 == self.items.1,
            Match::Passes(rule) => modes.quota && matches!(rule.allowance, Allowance::Listed),
            Match::Refuses(rule) | Match::Limited { rule, .. } => {
                self.role == Role::Shadow && (modes.quota || rule.quota)
            }
        }
    }

    /// Whether its rule refuses the request without counting. A quota rule does too: what is allowed nothing has no quota.
    pub(super) fn refuses(&self) -> bool {
        matches!(self.found, Match::Refuses(rule) if rule.role != Role::Shadow)
    }

    pub(super) fn rule(&self) -> Option<&Arc<Rule>> {
        match &self.found {
            Match::None => None,
            Match::Passes(rule) | Match::Refuses(rule) | Match::Limited { rule, .. } => Some(rule),
        }
    }

    /// The status of this descriptor; `limits` are those of its items.
    pub(super) fn status(&self, limits: &[LimitState]) -> Status {
        match &self.found {
            Match::Refuses(rule) if rule.role == Role::Shadow => Status::bare(),
            Match::Refuses(_) => Status::refused(),
            Match::Passes(rule) if matches!(rule.allowance, Allowance::Unlimited) => {
                Status::unlimited()
            }
            _ => deciding(limits).map_or(Status::bare(), |state| self.status_of(state)),
        }
    }

    fn status_of(&self, state: &LimitState) -> Status {
        let over = !state.balance.fits && state.mode == Mode::Enforce;
        let limit = &state.limit.limit;
        let remaining = if state.balance.fits {
            state.balance.remaining()
        } else {
            0
        };
        Status {
            code: if over { Code::OverLimit } else { Code::Ok },
            quota: self.role == Role::Quota,
            limit: Some(ShownLimit {
                count: limit.count(),
                period: limit.period(),
                name: state.limit.name.clone(),
            }),
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset_after: Some(state.balance.reset_after),
        }
    }
}
