//! The use case: find the rules of a query, take from all their buckets in one step, conclude.

mod pacing;
mod penalties;
mod statistics;
mod usage;

use std::{
    cmp::Reverse,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{
    decision::{Code, DecidedBy, Decision, LimitState, ShownLimit, Status},
    descriptor::{Hits, Query},
    limit::LimitError,
    plan::{
        Allowance, Domain, KnownKey, Match, Mode, Modes, Plans, Role, Rule, RuleLimit, SharedPlans,
    },
    statistics::Statistics,
    store::{BucketKey, Item, Store, StoreError, Take, Taken, judge::admits},
    usage::Meter,
};

pub use self::pacing::Pacing;

/// Decides queries by the plans in force.
#[derive(Debug)]
pub struct Limiter {
    plans: Arc<SharedPlans>,
    store: Arc<Store>,
    statistics: Option<Arc<Statistics>>,
    pacing: Arc<Pacing>,
    meter: Option<Arc<Meter>>,
}

/// Why a query was not decided.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// No plans were loaded yet.
    // Source: envoyproxy/ratelimit's text.
    #[error("no rate limit configuration loaded")]
    NoPlans,
    /// A limit that the request brings along cannot be counted.
    #[error("descriptors[{index}].limit: {source}")]
    Override {
        /// Which descriptor.
        index: usize,
        /// What is wrong with it.
        source: LimitError,
    },
    /// A rule says `on_store_error: error`, and the store did not decide.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What one descriptor has to do with the items of the request's take.
struct Part<'p> {
    found: Match<'p>,
    /// Its items in the take: from, to.
    items: (usize, usize),
    /// How its rule takes part, by what the rule and the modes say.
    role: Role,
    /// The same in view of the others: a quota rule beside one that passes refuses as little as one in shadow mode.
    acts_as: Role,
}

impl Limiter {
    /// A limiter of these plans on this store.
    pub fn new(plans: Arc<SharedPlans>, store: Arc<Store>) -> Self {
        Self {
            plans,
            store,
            statistics: None,
            pacing: Arc::default(),
            meter: None,
        }
    }

    /// Lets requests wait there for their tokens.
    pub fn with_pacing(mut self, pacing: Arc<Pacing>) -> Self {
        self.pacing = pacing;
        self
    }

    /// Counts what it decides in `statistics`, too.
    pub fn with_statistics(mut self, statistics: Option<Arc<Statistics>>) -> Self {
        self.statistics = statistics;
        self
    }

    /// Counts in `meter`, too, who has used what.
    pub fn with_meter(mut self, meter: Option<Arc<Meter>>) -> Self {
        self.meter = meter;
        self
    }

    /// The plans in force and what happened to them.
    pub fn plans(&self) -> &Arc<SharedPlans> {
        &self.plans
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes everything the query asks for, or nothing, by `deadline`.
    ///
    /// # Errors
    /// [`DecideError::NoPlans`] before the first plans; [`DecideError::Override`] for a limit in the request that cannot be counted; [`DecideError::Store`] where a rule
    /// leaves the decision to the caller.
    pub async fn decide(&self, query: &Query, deadline: Instant) -> Result<Decision, DecideError> {
        let plans = self.plans.load_full();
        self.decide_by(&plans, query, deadline, false).await
    }

    /// What [`Limiter::decide`] would answer now by `plans`. Nothing is taken or counted.
    ///
    /// # Errors
    /// As [`Limiter::decide`].
    pub async fn preview(
        &self,
        plans: &Plans,
        query: &Query,
        deadline: Instant,
    ) -> Result<Decision, DecideError> {
        self.decide_by(plans, query, deadline, true).await
    }

    /// Where a decision counts that was not only looked at.
    fn statistics_of(&self, dry: bool) -> Option<&Statistics> {
        self.statistics.as_deref().filter(|_| !dry)
    }

    async fn decide_by(
        &self,
        plans: &Plans,
        query: &Query,
        deadline: Instant,
        dry: bool,
    ) -> Result<Decision, DecideError> {
        if !plans.loaded() {
            return Err(DecideError::NoPlans);
        }
        let Some(domain) = plans.domain(&query.domain) else {
            if let Some(statistics) = self.statistics_of(dry) {
                statistics.unknown_domain(&query.domain, query.descriptors.len());
            }
            return Ok(unknown_domain(plans, query));
        };
        let (mut parts, mut take, key) = plan_take(domain, query, plans)?;
        // Boxed, as it would lie in every wait for the store.
        let key = key.filter(|_| self.meter.is_some()).map(Box::new);
        let refused = parts.iter().any(Part::refuses);
        take.dry = dry;
        if refused && !dry && !plans.modes().shadow {
            // The answer is certain: no store is asked, and none that fails can turn it into an error.
            take.items.clear();
            parts.iter_mut().for_each(|part| part.items = (0, 0));
        }
        let limits: SmallVec<[Arc<RuleLimit>; 2]> =
            take.items.iter().map(|item| item.limit.clone()).collect();
        let taken = if take.items.is_empty() {
            Taken {
                admitted: true,
                balances: SmallVec::new(),
                degraded: false,
                not_replicated: false,
            }
        } else if domain.paces() {
            // Apart, so that the future of the usual way stays small.
            Box::pin(self.pacing.take(&self.store, take, deadline)).await?
        } else {
            self.store.take(take, deadline).await?
        };
        let decision = conclude(
            (domain, query),
            &parts,
            limits,
            taken,
            refused,
            plans.modes(),
        );
        let statistics = self.statistics_of(dry);
        if decision.shadowed
            && let Some(statistics) = statistics
        {
            statistics.count_global_shadow();
        }
        if !dry {
            count(&parts, &decision);
            if let Some(meter) = &self.meter {
                usage::count(meter, (domain, key.as_deref()), query, &parts, &decision);
            }
        }
        if let Some(statistics) = statistics {
            statistics::count(
                statistics,
                (domain, plans.stored_keys()),
                query,
                &parts,
                &decision,
            );
        }
        Ok(decision)
    }
}

fn unknown_domain(plans: &Plans, query: &Query) -> Decision {
    Decision {
        code: Code::Ok,
        statuses: query.descriptors.iter().map(|_| Status::bare()).collect(),
        limits: SmallVec::new(),
        retry_after: None,
        decided_by: None,
        passed_with_metadata: SmallVec::new(),
        shadowed: false,
        degraded: false,
        not_replicated: false,
        known_domain: false,
        delay_us: 0,
        response: plans.response().clone(),
    }
}

/// What to take for each descriptor, altogether, and the API key that it is for.
type Planned<'p> = (SmallVec<[Part<'p>; 2]>, Take, Option<KnownKey<'p>>);

/// Matches every descriptor, and lists what to take.
fn plan_take<'p>(
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
    fn mode_of(&self, limit: &RuleLimit) -> Mode {
        match self.role {
            Role::Shadow if limit.mode == Mode::Enforce => Mode::Shadow,
            _ => limit.mode,
        }
    }

    /// How a limit of it decides.
    fn acts_as(&self, state: &LimitState) -> Role {
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
    fn refuses(&self) -> bool {
        matches!(self.found, Match::Refuses(rule) if rule.role != Role::Shadow)
    }

    fn rule(&self) -> Option<&Arc<Rule>> {
        match &self.found {
            Match::None => None,
            Match::Passes(rule) | Match::Refuses(rule) | Match::Limited { rule, .. } => Some(rule),
        }
    }

    /// The status of this descriptor; `limits` are those of its items.
    fn status(&self, limits: &[LimitState]) -> Status {
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

fn conclude(
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
fn deciding(limits: &[LimitState]) -> Option<&LimitState> {
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
fn count(parts: &[Part<'_>], decision: &Decision) {
    for (part, status) in parts.iter().zip(&decision.statuses) {
        let Some(rule) = part.rule() else { continue };
        let states = &decision.limits[part.items.0..part.items.1];
        if decision.code == Code::Ok
            && let Some(beyond) = states.iter().find(|state| state.is_soft_over())
            && let Hits::Take(hits) = beyond.hits
        {
            rule.counters.overage.fetch_add(hits, Ordering::Relaxed);
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
