//! The use case: find the rules of a query, take from all their buckets in one step, conclude.

mod conclude;
mod pacing;
mod parts;
mod penalties;
mod statistics;
mod usage;

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use self::{
    conclude::{conclude, count},
    parts::{Part, plan_take},
};
use crate::{
    decision::{Code, Decision, Status},
    descriptor::Query,
    limit::LimitError,
    plan::{Plans, RuleLimit, SharedPlans},
    statistics::Statistics,
    store::{Store, StoreError, Taken},
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
        let key = key.filter(|_| self.meter.is_some());
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
                usage::count(meter, (domain, key), query, &parts, &decision);
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
