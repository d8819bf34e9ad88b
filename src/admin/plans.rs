//! The page that tells what is loaded. API keys show as id and tier; their hashes stay inside.

use serde_json::{Value, json};

use crate::plan::{Allowance, Domain, Rule, RuleLimit, SharedPlans, StreamStatus};

/// The page, as JSON.
pub fn page(shared: &SharedPlans) -> Value {
    let plans = shared.load();
    let status = shared.status();
    json!({
        "version": format!("{:016x}", plans.version()),
        "loaded_at": plans.loaded_at().map(|at| humantime::format_rfc3339_seconds(at).to_string()),
        "control_plane": status.stream.map(stream),
        "files": plans.files(),
        "stored": plans.documents().iter().map(|document| json!({
            "domain": &*document.domain, "version": document.version,
        })).collect::<Vec<_>>(),
        "warnings": plans.warnings().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "last_error": status.error.map(|error| error.to_string()),
        "reloads": { "success": status.changed, "failure": status.failed },
        "stored_api_keys": {
            "count": plans.stored_keys().len(),
            "version": plans.stored_keys().version(),
            "complete": plans.keys_are_complete(),
        },
        "domains": plans.domains().map(domain).collect::<Vec<_>>(),
    })
}

fn stream(stream: StreamStatus) -> Value {
    json!({
        "server": stream.server,
        "connected": stream.connected,
        "version": stream.version,
        "updates": { "accepted": stream.accepted, "rejected": stream.rejected },
    })
}

fn domain(domain: &Domain) -> Value {
    let mut keys: Vec<_> = domain.api_keys().collect();
    keys.sort_by_key(|key| &key.id);
    json!({
        "domain": domain.name(),
        "rules": domain.rules().map(|rule| self::rule(domain, rule)).collect::<Vec<_>>(),
        "api_keys": keys.iter().map(|key| json!({ "id": &*key.id, "tier": &*key.tier })).collect::<Vec<_>>(),
    })
}

fn rule(domain: &Domain, rule: &Rule) -> Value {
    json!({
        "rule": &*rule.path,
        "name": rule.name,
        "allows": allows(domain, &rule.allowance),
        "mode": format!("{:?}", rule.role).to_lowercase(),
        "on_store_error": format!("{:?}", rule.on_store_error).to_lowercase(),
    })
}

/// A list of limits, tiers with theirs by name, or what the rule says instead of limits.
fn allows(domain: &Domain, allowance: &Allowance) -> Value {
    let texts = |limits: &[std::sync::Arc<RuleLimit>]| -> Vec<String> {
        limits.iter().map(|limit| limit.limit.to_string()).collect()
    };
    match allowance {
        Allowance::Unlimited => json!("unlimited"),
        Allowance::Listed => json!("listed without a limit"),
        Allowance::Denied => json!("nothing"),
        Allowance::Limits(limits) => json!(texts(limits)),
        Allowance::Tiers(tiers) => {
            let named = domain.tiers().iter().zip(tiers);
            named
                .map(|(name, limits)| (name.to_string(), json!(texts(limits))))
                .collect()
        }
    }
}
