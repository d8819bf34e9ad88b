//! What is answered: the code, a status per descriptor, and what the headers tell.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{
    bucket::Balance,
    descriptor::Hits,
    limit::Period,
    plan::{Mode, ResponseOptions, Rule, RuleLimit},
};

/// Whether the hits pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// They pass.
    Ok,
    /// They do not.
    OverLimit,
}

impl Code {
    /// As it stands in metrics and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::OverLimit => "OVER_LIMIT",
        }
    }
}

/// The answer to a query.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Whether the request passes.
    pub code: Code,
    /// One per descriptor, in the query's order.
    pub statuses: SmallVec<[Status; 2]>,
    /// Every limit that was judged, in the order of descriptors and, within a rule, of its limits. None where a rule refuses
    /// without counting: then no bucket is asked.
    pub limits: SmallVec<[LimitState; 2]>,
    /// When refused: how long until the same request would pass if nobody else came; none if it never will.
    pub retry_after: Option<Duration>,
    /// The rule that decided, and its limit: when over, the one with the longest wait; else the one with the least
    /// remaining. None if no rule with a limit matched.
    pub decided_by: Option<DecidedBy>,
    /// The rules that let their descriptor pass and have `metadata`, in the query's order.
    pub passed_with_metadata: SmallVec<[Arc<Rule>; 1]>,
    /// Whether it passes only because all requests do: see [`Modes::shadow`](crate::plan::Modes::shadow).
    pub shadowed: bool,
    /// Decided without the store.
    pub degraded: bool,
    /// Too few replicas of the store had in time what a rule wants them to have.
    pub not_replicated: bool,
    /// Whether any plan has the domain.
    pub known_domain: bool,
    /// How long the answer waited for tokens, or would have to, in microseconds.
    pub delay_us: u32,
    /// What the answer shows of all this.
    pub response: Arc<ResponseOptions>,
}

impl Decision {
    /// How long the answer waited for tokens, or would have to.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.into())
    }

    /// Whether the limit that decided has a penalty that runs.
    pub fn is_penalised(&self) -> bool {
        let by = self.decided_by.as_ref().and_then(|by| by.limit.as_ref());
        let mut limits = self.limits.iter();
        limits.any(|state| {
            state.balance.penalised && by.is_some_and(|by| Arc::ptr_eq(by, &state.limit))
        })
    }
}

/// The answer to one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether this descriptor would let the request pass.
    pub code: Code,
    /// Whether its refusal alone refuses no request.
    pub quota: bool,
    /// The limit that decides; none if nothing matched, or the rule has no limit.
    pub limit: Option<ShownLimit>,
    /// Hits that would still pass; 4294967295 where the rule says unlimited, 0 where nothing matched.
    pub remaining: u32,
    /// When over: how long until it would pass, or one period if never. Else: until its bucket is full. None without a limit.
    pub reset_after: Option<Duration>,
}

/// A limit as a status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLimit {
    /// Requests per period.
    pub count: u32,
    /// The period.
    pub period: Period,
    /// The rule's or the limit's name.
    pub name: Option<Arc<str>>,
}

/// A limit of the request and its state after the decision.
#[derive(Debug, Clone)]
pub struct LimitState {
    /// The limit.
    pub limit: Arc<RuleLimit>,
    /// What its bucket says.
    pub balance: Balance,
    /// What was asked of it.
    pub hits: Hits,
    /// What becomes of requests that do not fit: as the limit says, or its rule's shadow mode.
    pub mode: Mode,
}

impl LimitState {
    /// Hits in use, if answers are to warn of so many.
    pub fn warns(&self) -> Option<u64> {
        let warns_from = self.limit.warns_from?;
        let capacity = i64::from(self.limit.limit.capacity());
        let used = capacity
            .saturating_sub(self.balance.left)
            .max(0)
            .unsigned_abs();
        (used >= warns_from).then_some(used)
    }

    /// Whether it is a soft limit that the request is beyond.
    pub fn is_soft_over(&self) -> bool {
        self.mode == Mode::Soft && !self.balance.fits
    }
}

/// Which rule and limit decided.
#[derive(Debug, Clone)]
pub struct DecidedBy {
    /// The rule's path in its domain; none for a limit that the request itself brought.
    pub rule: Option<Arc<Rule>>,
    /// The limit; none where the rule refuses without counting.
    pub limit: Option<Arc<RuleLimit>>,
}

impl Status {
    /// No rule with a limit matched.
    pub const fn bare() -> Self {
        Self {
            code: Code::Ok,
            quota: false,
            limit: None,
            remaining: 0,
            reset_after: None,
        }
    }

    /// The rule says unlimited.
    pub const fn unlimited() -> Self {
        Self {
            code: Code::Ok,
            quota: false,
            limit: None,
            remaining: u32::MAX,
            reset_after: None,
        }
    }

    /// The rule refuses without counting.
    pub const fn refused() -> Self {
        Self {
            code: Code::OverLimit,
            quota: false,
            limit: None,
            remaining: 0,
            reset_after: None,
        }
    }
}
