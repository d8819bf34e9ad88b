//! A compiled rule, and what matching hands to the limiter.

use std::{
    borrow::Cow,
    fmt,
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use smallvec::SmallVec;

use super::beyond::{Mode, WarnAt};
use crate::{
    descriptor::{Descriptor, Hits},
    limit::{Algorithm, Kind, Limit},
    statistics::{HitSum, RuleStatistics},
};

/// One rule of a domain, compiled.
#[derive(Debug)]
pub struct Rule {
    /// The domain it belongs to.
    pub domain: Arc<str>,
    /// Keys and values from the top of the domain, for people, metrics and bucket keys: `tier=free/ip`.
    pub path: Arc<str>,
    /// The same as envoyproxy/ratelimit says it, with the domain: `shop.tier_free.ip`.
    pub key: Box<str>,
    /// The rule's `name`, which the answer's `current_limit.name` shows.
    pub name: Option<Box<str>>,
    /// What it allows.
    pub allowance: Allowance,
    /// How it takes part in the request's decision.
    pub role: Role,
    /// Whether it says `quota_mode`. In shadow mode it then stands for a quota rule that passes.
    pub quota: bool,
    /// How its limits count, and when hits are charged.
    pub counting: Counting,
    /// What answers while the store does not.
    pub on_store_error: OnStoreError,
    /// Names of rules that do not count in a request which this rule matches.
    pub replaces: Box<[Box<str>]>,
    /// Copied to the answer's `dynamic_metadata` when it lets a descriptor pass.
    pub metadata: Option<Box<serde_json::Map<String, serde_json::Value>>>,
    /// What it has decided since the process started; handed on to the rule of the same domain and path at a reload.
    pub counters: Arc<RuleCounters>,
    /// Where it counts under the names of envoyproxy/ratelimit.
    pub statistics: Box<RuleStatistics>,
}

/// What a rule allows.
#[derive(Debug)]
pub enum Allowance {
    /// Everything: the rule says so.
    Unlimited,
    /// Everything: the rule has no limit. It is there to let a value through that another rule would match.
    Listed,
    /// Nothing.
    Denied,
    /// What all of these limits allow; never empty.
    Limits(SmallVec<[Arc<RuleLimit>; 1]>),
    /// What the tier of the API key allows; one entry per tier of the plans, by the tier's index. A tier without limits
    /// has an empty list.
    Tiers(Box<[Box<[Arc<RuleLimit>]>]>),
}

impl Allowance {
    /// Its limits, those of every tier.
    pub fn limits(&self) -> impl Iterator<Item = &Arc<RuleLimit>> {
        let (limits, tiers): (&[_], &[_]) = match self {
            Self::Limits(limits) => (limits, &[]),
            Self::Tiers(tiers) => (&[], tiers),
            Self::Unlimited | Self::Listed | Self::Denied => (&[], &[]),
        };
        limits.iter().chain(tiers.iter().flatten())
    }
}

/// How far what a rule charges must be handed on before a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Replicas of Redis that must have it, from 1 to [`MOST_REPLICAS`].
    pub replicas: u8,
    /// Longest wait for them, in milliseconds.
    pub within_ms: u16,
}

/// The most replicas that a rule may wait for.
pub const MOST_REPLICAS: u8 = 5;

impl Durable {
    /// Longest wait.
    pub fn within(self) -> Duration {
        Duration::from_millis(self.within_ms.into())
    }

    /// What both ask for.
    pub fn and(self, other: Self) -> Self {
        Self {
            replicas: self.replicas.max(other.replicas),
            within_ms: self.within_ms.max(other.within_ms),
        }
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.replicas == 1 { "" } else { "s" };
        write!(
            f,
            "{} replica{s} within {} ms",
            self.replicas, self.within_ms
        )
    }
}

/// One limit of a rule.
#[derive(Debug)]
pub struct RuleLimit {
    /// What is allowed.
    pub limit: Limit,
    /// The limit's or its rule's `name`, which the answer's `current_limit.name` shows.
    pub name: Option<Arc<str>>,
    /// What becomes of requests that do not fit.
    pub mode: Mode,
    /// Hits in use from which answers warn; none if they never do.
    pub warns_from: Option<u64>,
    /// Whether a request is answered only once replicas of Redis have what it charged.
    pub durable: Option<Durable>,
    /// Whether replicas take tokens ahead, in a store that they share.
    pub lease: Option<Lease>,
    /// Key prefix and policy in one piece: a decision reads both, and with many rules neither is in a near cache.
    texts: Box<str>,
    /// Where the policy begins in it.
    policy: u32,
    /// The label's length; it stands at the policy's beginning, behind a quote.
    label: u32,
    guard: Option<Arc<RuleLimit>>,
}

impl RuleLimit {
    /// A limit whose buckets' keys have `key_prefix` before the subject.
    pub fn new(limit: Limit, name: Option<Arc<str>>, key_prefix: &str, label: &str) -> Self {
        let (quota, window) = (limit.count(), limit.period().seconds());
        Self {
            texts: format!("{key_prefix}\"{label}\";q={quota};w={window}").into(),
            policy: key_prefix.len() as u32,
            label: label.len() as u32,
            // In a namespace of their own, as no limit's kind and period look so.
            guard: limit.guard().map(|guard| {
                let key_prefix = format!("{key_prefix}#p");
                Arc::new(Self::new(guard, None, &key_prefix, label))
            }),
            limit,
            name,
            durable: None,
            lease: None,
            mode: Mode::Enforce,
            warns_from: None,
        }
    }

    /// The same in another mode.
    pub fn in_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// The same, warning from so much use on.
    pub fn warning_at(self, warn_at: WarnAt) -> Self {
        let warns_from = warn_at.hits(self.limit.capacity());
        Self { warns_from, ..self }
    }

    /// The limit's penalty, if it has one.
    pub fn guard(&self) -> Option<&Arc<RuleLimit>> {
        self.guard.as_ref()
    }

    /// The same with such leases.
    pub fn leased(self, lease: Option<Lease>) -> Self {
        Self { lease, ..self }
    }

    /// What its buckets' keys have before the subject: domain, rule path, kind, period.
    pub fn key_prefix(&self) -> &str {
        &self.texts[..self.policy as usize]
    }

    /// Its name in the `RateLimit` headers and in metadata: `ip:50/minute sliding`. Printable ASCII without `"` and `\`.
    pub fn label(&self) -> &str {
        &self.policy()[1..][..self.label as usize]
    }

    /// All that tells it from other limits: domain, rule path, what it is called, its numbers.
    pub fn identity(&self) -> &str {
        &self.texts
    }

    /// Its item of the `RateLimit-Policy` header: `"ip:50/minute sliding";q=50;w=60`.
    pub fn policy(&self) -> &str {
        &self.texts[self.policy as usize..]
    }
}

/// As its plan says it: `5/day calendar (soft)`.
impl fmt::Display for RuleLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Enforce => self.limit.fmt(f),
            mode => write!(f, "{} ({})", self.limit, mode.name()),
        }
    }
}

/// How replicas take tokens of a limit ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Most tokens that one replica holds of one bucket.
    pub portion: NonZeroU32,
    life_ms: NonZeroU32,
}

impl Lease {
    /// At most so many percent of `limit` and at least one token, for so many milliseconds and at least one; none of a limit that
    /// allows nothing, or that counts when its hits come.
    pub fn new(limit: &Limit, percent: u32, life_ms: u32) -> Option<Self> {
        if limit.kind() == Kind::Sliding {
            return None;
        }
        let capacity = u64::from(limit.capacity());
        let portion = (capacity * u64::from(percent) / 100).clamp(capacity.min(1), capacity);
        Some(Self {
            portion: NonZeroU32::new(portion as u32)?,
            life_ms: NonZeroU32::new(life_ms).unwrap_or(NonZeroU32::MIN),
        })
    }

    /// How long they may be spent.
    pub fn life(self) -> Duration {
        Duration::from_millis(self.life_ms.get().into())
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {} ahead for {:?}", self.portion, self.life())
    }
}

/// How a rule takes part in the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// Its refusal refuses the request.
    #[default]
    Enforced,
    /// It is counted and measured, and never refuses.
    Shadow,
    /// The request is refused only when every quota rule it meets refuses.
    Quota,
}

/// When hits are charged; the later it stands here, the more is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Charge {
    /// If the request passes and they fit: all such hits of a request together or none.
    #[default]
    AllOrNothing,
    /// As all or nothing; but hits that do not fit are charged in full, into debt, whether the request passes or not.
    Overdraw,
    /// Hits that do not fit, in full, and hits that fit only if all of the request's do; a refund always.
    // Source: envoyproxy/ratelimit under STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT.
    StopWhenOver,
    /// Always, whatever becomes of the request.
    // Source: envoyproxy/ratelimit.
    Independent,
    /// Of a penalty, which stands behind the item of its limit: if that one does not fit and no penalty runs, whether the
    /// request passes or not.
    Strike,
}

impl Charge {
    /// Those that settings and plans choose from, by name.
    pub const NAMES: &[(&str, Self)] = &[
        ("all_or_nothing", Self::AllOrNothing),
        ("independent", Self::Independent),
        ("stop_when_over", Self::StopWhenOver),
    ];

    /// As plans say it.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, charge)| *charge == self);
        found.map_or("overdraw", |(name, _)| name)
    }
}

/// How limits count and when hits are charged: of a rule, or where no rule says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counting {
    /// How limits count that do not say it themselves.
    pub algorithm: Algorithm,
    /// When hits are charged.
    pub charge: Charge,
    /// Under [`Charge::AllOrNothing`]: whether hits are charged although they do not fit, if it is the descriptor that says
    /// how many. What is known only after the response, as bytes or tokens of a language model, has been spent already.
    pub overdraw: bool,
}

impl Counting {
    /// The same but for what is said here.
    pub fn but(
        self,
        algorithm: Option<Algorithm>,
        charge: Option<Charge>,
        overdraw: Option<bool>,
    ) -> Self {
        Self {
            algorithm: algorithm.unwrap_or(self.algorithm),
            charge: charge.unwrap_or(self.charge),
            overdraw: overdraw.unwrap_or(self.overdraw),
        }
    }

    /// When the hits of `descriptor` on `limit` are charged.
    pub fn charge_of(self, descriptor: &Descriptor, limit: &Limit) -> Charge {
        // Source: envoyproxy/ratelimit: Redis counts no more than 63 bits hold, and the call fails. Counted as far as can be, they
        // would shut the window, whose debt has no bound of its own.
        let countable = !matches!(descriptor.hits, Hits::Take(hits) if hits > i64::MAX as u64);
        if !countable && limit.kind() == Kind::FixedWindow {
            return Charge::AllOrNothing;
        }
        self.charge_if(descriptor.says_hits && matches!(descriptor.hits, Hits::Take(1..)))
    }

    /// When hits are charged that were `spent` before they were asked for, or were not.
    pub fn charge_if(self, spent: bool) -> Charge {
        match self.charge {
            Charge::AllOrNothing if self.overdraw && spent => Charge::Overdraw,
            charge => charge,
        }
    }
}

/// What answers for a rule while the store does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnStoreError {
    /// An in-process bucket at limit ÷ live replicas.
    #[default]
    Local,
    /// The request passes.
    Allow,
    /// The request is refused.
    Deny,
    /// The call fails with UNAVAILABLE, which leaves it to Envoy's `failure_mode_deny`.
    Error,
}

/// Decisions of one rule since the process started.
#[derive(Debug, Default)]
pub struct RuleCounters {
    /// Descriptors that it let pass.
    pub ok: AtomicU64,
    /// Descriptors that it refused.
    pub over_limit: AtomicU64,
    /// Descriptors that it would have refused, were it not in shadow mode.
    pub shadow_over_limit: AtomicU64,
    /// Hits that it let pass beyond a soft limit.
    pub overage: HitSum,
}

/// What the rules of a domain say about one descriptor.
#[derive(Debug, Clone)]
pub enum Match<'p> {
    /// No rule matches.
    None,
    /// The rule has no limit, or says unlimited.
    Passes(&'p Arc<Rule>),
    /// The rule refuses without counting: nothing is allowed, or the API key is unknown.
    Refuses(&'p Arc<Rule>),
    /// All of these limits must hold.
    Limited {
        /// The rule.
        rule: &'p Arc<Rule>,
        /// Its limits, or those of the key or of its tier; never empty.
        limits: Cow<'p, [Arc<RuleLimit>]>,
        /// Whose bucket: the variable values of the descriptor, each length-prefixed, in order.
        subject: Subject,
    },
}

/// The end of a bucket's key: the variable values of a descriptor, written so that no two lists of values look alike.
pub type Subject = SmallVec<[u8; 64]>;

/// What an answer's `dynamic_metadata` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataStyle {
    /// Nothing.
    None,
    /// The rule and the limit that decided.
    Rule,
    /// What was asked. Source: envoyproxy/ratelimit, RESPONSE_DYNAMIC_METADATA.
    Request,
}

/// The names of the headers that tell of one descriptor's limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitHeaders {
    /// Of the limit's count.
    pub limit: Box<str>,
    /// Of what remains.
    pub remaining: Box<str>,
    /// Of the whole seconds until it is reset.
    pub reset: Box<str>,
}

/// What answers show beside the decision; per domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseOptions {
    /// `Retry-After` on refusals.
    pub retry_after: bool,
    /// `RateLimit` and `RateLimit-Policy`, naming every limit.
    pub ratelimit: bool,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`; off, since Envoy writes its own.
    pub x_ratelimit: bool,
    /// `X-Tollgate-Degraded: true` on what was decided without the store.
    pub degraded: bool,
    /// `dynamic_metadata`.
    pub metadata: MetadataStyle,
    /// Limit, remaining and reset of one descriptor, as envoyproxy/ratelimit shows them.
    pub limit_headers: Option<Box<LimitHeaders>>,
    /// Body of a refusal; empty for none.
    pub body: Box<str>,
    /// The same for a refusal that a calendar limit decides.
    pub quota_body: Box<str>,
    /// `content-type` of these bodies.
    pub content_type: Box<str>,
    /// Name of the header that warns of a limit that is nearly used up; empty for none.
    pub warning_header: Box<str>,
    /// From how much use of a calendar limit on it does.
    pub warn_at: WarnAt,
    /// Name of the header that tells which soft limits a request is beyond; empty for none.
    pub overage_header: Box<str>,
}

impl Default for ResponseOptions {
    fn default() -> Self {
        Self {
            retry_after: true,
            ratelimit: true,
            x_ratelimit: false,
            degraded: true,
            metadata: MetadataStyle::Rule,
            limit_headers: None,
            body: r#"{"message":"Too Many Requests"}"#.into(),
            // Source: API Gateway tells a quota that is used up from a rate that is exceeded so.
            quota_body: r#"{"message":"Limit Exceeded"}"#.into(),
            content_type: "application/json".into(),
            warning_header: "x-ratelimit-warning".into(),
            warn_at: WarnAt::default(),
            overage_header: "x-ratelimit-overage".into(),
        }
    }
}
