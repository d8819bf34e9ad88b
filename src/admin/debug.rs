//! The debug pages of envoyproxy/ratelimit: an index, the rules in its own words, what runs here.

use std::{fmt::Write as _, sync::Arc};

use axum::{Json, Router, extract::State, http::header, response::IntoResponse, routing::get};
use serde_json::{Value, json};

use crate::{
    limit::Kind,
    plan::{Allowance, Domain, Mode, Plans, Role, Rule, RuleLimit, SharedPlans},
};

const INDEX: &str = "/rlconfig: the rules in force\n/stats: what runs here\n";

/// The pages.
pub fn router(plans: Arc<SharedPlans>) -> Router {
    Router::new()
        .route("/", get(INDEX))
        .route("/rlconfig", get(rules_page))
        .route("/stats", get(stats))
        .with_state(plans)
}

async fn rules_page(State(plans): State<Arc<SharedPlans>>) -> impl IntoResponse {
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (plain, rules(&plans.load()))
}

async fn stats(State(plans): State<Arc<SharedPlans>>) -> Json<Value> {
    let plans = plans.load();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "plans": {
            "version": format!("{:016x}", plans.version()),
            "domains": plans.domains().count(),
        },
    }))
}

/// One line per limit: `shop.user_vip: unit=MINUTE requests_per_unit=30, shadow_mode: false, quota_mode: false`.
///
/// A limit that envoyproxy/ratelimit cannot say has its own text at the end of the line.
pub fn rules(plans: &Plans) -> String {
    let mut page = String::new();
    for domain in plans.domains() {
        for rule in domain.rules() {
            for line in lines(domain, rule) {
                let (shadow, quota) = (rule.role == Role::Shadow, rule.role == Role::Quota);
                let written = writeln!(
                    page,
                    "{}{}, shadow_mode: {shadow}, quota_mode: {quota}{}",
                    rule.key, line.limit, line.more
                );
                written.expect("a String takes all");
            }
        }
    }
    page
}

/// What differs from limit to limit of a rule.
struct Line {
    /// Behind the rule's key.
    limit: String,
    /// At the end.
    more: String,
}

fn lines(domain: &Domain, rule: &Rule) -> Vec<Line> {
    match &rule.allowance {
        Allowance::Unlimited => vec![Line {
            limit: ": unit=UNKNOWN requests_per_unit=0".to_owned(),
            more: String::new(),
        }],
        Allowance::Listed => Vec::new(),
        Allowance::Denied => vec![Line {
            limit: ": unit=UNKNOWN requests_per_unit=0".to_owned(),
            more: ", limit: nothing passes".to_owned(),
        }],
        Allowance::Limits(limits) => limits.iter().map(|limit| line("", limit)).collect(),
        Allowance::Tiers(tiers) => {
            let named = domain.tiers().iter().zip(tiers);
            named
                .flat_map(|(tier, limits)| {
                    let tier = format!("[{tier}]");
                    limits.iter().map(move |limit| line(&tier, limit))
                })
                .collect()
        }
    }
}

fn line(tier: &str, limit: &RuleLimit) -> Line {
    let period = limit.limit.period();
    let told = limit.mode == Mode::Enforce
        && period.multiplier == 1
        && match limit.limit.kind() {
            Kind::Bucket { burst } => burst == limit.limit.count(),
            Kind::FixedWindow => true,
            Kind::Sliding | Kind::Calendar | Kind::Penalty => false,
        };
    Line {
        limit: format!(
            "{tier}: unit={} requests_per_unit={}",
            period.unit.name().to_uppercase(),
            limit.limit.count()
        ),
        more: if told {
            String::new()
        } else {
            format!(", limit: {limit}")
        },
    }
}
