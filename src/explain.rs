//! Why a request is decided as it is: which rules match, what each bucket holds, when it would pass. Nothing is taken.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{
    decision::{Code, Decision, LimitState},
    descriptor::{Descriptor, Entry, Hits, Query, QueryError},
    limiter::{DecideError, Limiter},
    plan::{Allowance, Charge, Match, Mode, Modes, Plans, Role, Rule, RuleLimit},
};

/// A question, in the shape of a `RateLimitRequest` in JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Which set of rules applies.
    pub domain: String,
    /// What the request is.
    pub descriptors: Vec<QuestionDescriptor>,
    /// Hits of the request; 0 means 1.
    #[serde(default, alias = "hitsAddend")]
    pub hits_addend: u32,
}

/// One descriptor of a question.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionDescriptor {
    /// Its entries, in order.
    pub entries: Vec<QuestionEntry>,
    /// Hits of the descriptor; wins over the request's.
    #[serde(default, alias = "hitsAddend")]
    pub hits_addend: Option<u64>,
}

/// A key and its value.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionEntry {
    /// The key.
    pub key: String,
    /// The value; may be left out.
    #[serde(default)]
    pub value: String,
}

/// The answer to a question.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// `OK` or `OVER_LIMIT`.
    pub code: &'static str,
    /// In a sentence.
    pub why: String,
    /// When refused: seconds until the same request would pass; absent if it never will.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<f64>,
    /// When it passes: seconds that the answer would wait for tokens; absent if it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<f64>,
    /// Decided without the store.
    pub degraded: bool,
    /// One per descriptor, same order.
    pub descriptors: Vec<DescriptorExplanation>,
}

/// What holds for one descriptor.
#[derive(Debug, Clone, Serialize)]
pub struct DescriptorExplanation {
    /// Its entries, `key=value`; values that may be API keys are left out.
    pub entries: String,
    /// Path of the rule that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// In a sentence.
    pub why: String,
    /// `OK` or `OVER_LIMIT`.
    pub code: &'static str,
    /// Every limit of the rule.
    pub limits: Vec<LimitExplanation>,
}

/// What one bucket holds.
#[derive(Debug, Clone, Serialize)]
pub struct LimitExplanation {
    /// The limit, as a plan says it; with its mode if it does not refuse: `5/day calendar (soft)`.
    pub limit: String,
    /// What replicas take ahead of its buckets; the tokens that lie in their leases are not in `remaining`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Whether the hits fit now.
    pub fits: bool,
    /// Hits that fit now.
    pub remaining: u64,
    /// Seconds until the hits fit; absent if they do, or never will.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<f64>,
    /// If the hits fit: seconds until their tokens are there; absent if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<f64>,
    /// Whether a penalty refuses them.
    pub penalised: bool,
    /// Seconds until the bucket is full; when over, until the hits fit.
    pub reset_after_seconds: f64,
}

impl From<&Question> for Query {
    fn from(question: &Question) -> Self {
        let hits = u64::from(question.hits_addend.max(1));
        let descriptors = question
            .descriptors
            .iter()
            .map(|descriptor| Descriptor {
                entries: descriptor
                    .entries
                    .iter()
                    .map(|entry| Entry::new(entry.key.clone(), entry.value.clone()))
                    .collect(),
                hits: Hits::Take(descriptor.hits_addend.unwrap_or(hits)),
                says_hits: descriptor.hits_addend.is_some(),
                limit: None,
            })
            .collect();
        Self {
            domain: question.domain.clone(),
            descriptors,
        }
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No such request would be judged.
    #[error(transparent)]
    Question(#[from] QueryError),
    /// It could not be decided.
    #[error(transparent)]
    Decide(#[from] DecideError),
}

/// Answers `question` from the plans in force and the buckets as they are.
///
/// # Errors
/// As [`Query::check`] and [`Limiter::preview`].
pub async fn explain(
    limiter: &Limiter,
    question: &Question,
    deadline: Instant,
) -> Result<Explanation, ExplainError> {
    let query = Query::from(question);
    query.check()?;
    let plans = limiter.plans().load_full();
    let Some(domain) = plans.domain(&query.domain) else {
        return Ok(unknown_domain(&plans, &query));
    };
    let decision = limiter.preview(&plans, &query, deadline).await?;
    let secret = |key: &str| domain.holds_api_key(key);
    let mut limits = decision.limits.iter();
    let descriptors = domain
        .matches(&query, plans.stored_keys())
        .iter()
        .zip(&query.descriptors)
        .zip(&decision.statuses)
        .map(|((found, descriptor), status)| DescriptorExplanation {
            entries: entries(descriptor, secret),
            rule: rule_path(found),
            why: why(found, plans.modes()),
            code: status.code.name(),
            limits: limits
                .by_ref()
                .take(limits_of(found))
                .map(LimitExplanation::from)
                .collect(),
        })
        .collect();
    Ok(Explanation {
        code: decision.code.name(),
        why: summary(&decision),
        retry_after_seconds: decision.retry_after.map(|wait| wait.as_secs_f64()),
        delay_seconds: seconds(decision.delay_us),
        degraded: decision.degraded,
        descriptors,
    })
}

impl From<&LimitState> for LimitExplanation {
    fn from(state: &LimitState) -> Self {
        let balance = &state.balance;
        Self {
            limit: state.limit.to_string(),
            lease: state.limit.lease.map(|lease| lease.to_string()),
            fits: balance.fits,
            remaining: balance.remaining(),
            retry_after_seconds: balance.retry_after.map(|wait| wait.as_secs_f64()),
            delay_seconds: seconds(balance.delay_us),
            penalised: balance.penalised,
            reset_after_seconds: balance.reset_after.as_secs_f64(),
        }
    }
}

fn seconds(delay_us: u32) -> Option<f64> {
    (delay_us > 0).then(|| f64::from(delay_us) / 1e6)
}

fn unknown_domain(plans: &Plans, query: &Query) -> Explanation {
    let why = format!("no plan has the domain `{}`", query.domain);
    // A mistyped domain: what holds keys in any domain is hidden.
    let secret = |key: &str| plans.domains().any(|domain| domain.holds_api_key(key));
    let descriptors = query
        .descriptors
        .iter()
        .map(|descriptor| DescriptorExplanation {
            entries: entries(descriptor, secret),
            rule: None,
            why: why.clone(),
            code: Code::Ok.name(),
            limits: Vec::new(),
        })
        .collect();
    Explanation {
        code: Code::Ok.name(),
        why,
        retry_after_seconds: None,
        delay_seconds: None,
        degraded: false,
        descriptors,
    }
}

/// `key=value`, without the values of keys that are `secret`, or have the name that keys go by.
fn entries(descriptor: &Descriptor, secret: impl Fn(&str) -> bool) -> String {
    let shown = descriptor.entries.iter().map(|Entry { key, value }| {
        let hidden = key == "api_key" || secret(key);
        format!("{key}={}", if hidden { "…" } else { value })
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn rule_path(found: &Match<'_>) -> Option<String> {
    match found {
        Match::None => None,
        Match::Passes(rule) | Match::Refuses(rule) | Match::Limited { rule, .. } => {
            Some(rule.path.to_string())
        }
    }
}

fn limits_of(found: &Match<'_>) -> usize {
    if let Match::Limited { limits, .. } = found {
        limits.len()
    } else {
        0
    }
}

fn why(found: &Match<'_>, modes: Modes) -> String {
    let text = match found {
        Match::None => "no rule matches these entries to the last, so nothing limits them",
        Match::Passes(rule) if matches!(rule.allowance, Allowance::Unlimited) => {
            "the rule says unlimited"
        }
        Match::Passes(_) => "the rule has no limit",
        Match::Refuses(rule) if matches!(rule.allowance, Allowance::Denied) => "the rule denies",
        Match::Refuses(rule) if rule.role == Role::Shadow => {
            "the API key is unknown; in shadow mode that is counted, never refused"
        }
        Match::Refuses(_) => "the API key is unknown, and the rule denies unknown keys",
        Match::Limited { rule, limits, .. } => {
            return format!(
                "{}; {}",
                role(rule, limits, modes),
                charging(rule.counting.charge)
            );
        }
    };
    text.to_owned()
}

fn role(rule: &Rule, limits: &[Arc<RuleLimit>], modes: Modes) -> &'static str {
    let soft = limits
        .iter()
        .filter(|limit| limit.mode != Mode::Enforce)
        .count();
    let limits = limits.len();
    match rule.role {
        Role::Shadow => "in shadow mode: counted, never refused",
        _ if modes.shadow => "all rules are in shadow mode: counted, never refused",
        _ if soft == limits => "none of these limits refuses",
        Role::Enforced if !modes.quota || limits > 1 => match soft {
            0 => "all of these limits must hold",
            _ => "all of these limits must hold, but for those that do not refuse",
        },
        _ => "in quota mode: refuses only if every quota rule of the request does",
    }
}

fn charging(charge: Charge) -> &'static str {
    match charge {
        Charge::AllOrNothing => "charged if the request passes",
        Charge::Overdraw => "charged if the request passes, or if it does not fit",
        Charge::StopWhenOver => "charged unless another rule of the request is over",
        Charge::Independent => "charged even if the request is refused",
        Charge::Strike => "counts refusals",
    }
}

fn summary(decision: &Decision) -> String {
    let Some(by) = &decision.decided_by else {
        return "no limit applies".to_owned();
    };
    let rule = by
        .rule
        .as_ref()
        .map_or("the request's own limit", |rule| &rule.path);
    match (decision.code, &by.limit) {
        (Code::Ok, Some(limit)) if decision.shadowed => {
            format!(
                "passes, as all requests do; {} of {rule} would refuse",
                limit.limit
            )
        }
        (Code::Ok, Some(_)) if decision.delay_us > 0 => {
            let delay = decision.delay();
            format!("passes after {delay:?}, when the tokens are there that it takes of {rule}")
        }
        (Code::Ok, Some(limit)) => {
            format!("passes; {} of {rule} has the least remaining", limit.limit)
        }
        (Code::Ok, None) => format!("passes; {rule} would refuse, but does not count"),
        (Code::OverLimit, Some(limit)) if decision.is_penalised() => format!(
            "refused by the penalty of {:#} of {rule}, which it ran into too often",
            limit.limit
        ),
        (Code::OverLimit, Some(limit)) => format!("refused by {} of {rule}", limit.limit),
        (Code::OverLimit, None) => format!("refused by {rule}, which allows nothing here"),
    }
}
