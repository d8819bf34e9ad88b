//! The page that tells what is loaded. API keys show as id and tier; their hashes stay inside.

use serde_json::{Value, json};

use crate::plan::{Allowance, Domain, List, Rule, RuleLimit, SharedPlans, StreamStatus};

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
        "deny": domain.lists().map(|lists| list(&lists.deny)),
        "allow": domain.lists().map(|lists| list(&lists.allow)),
        "rules": domain.rules().map(|rule| self::rule(domain, rule)).collect::<Vec<_>>(),
        "api_keys": keys.iter().map(|key| json!({ "id": &*key.id, "tier": &*key.tier })).collect::<Vec<_>>(),
    })
}

fn list(list: &List) -> Value {
    let cidr: Vec<_> = list.cidr().iter().map(ToString::to_string).collect();
    json!({ "cidr": cidr, "api_key": list.api_keys() })
}

fn rule(domain: &Domain, rule: &Rule) -> Value {
    json!({
        "rule": &*rule.path,
        "name": rule.name,
        "allows": allows(domain, &rule.allowance),
        "mode": format!("{:?}", rule.role).to_lowercase(),
        "lease": leases(rule),
        "on_store_error": format!("{:?}", rule.on_store_error).to_lowercase(),
    })
}

/// What replicas take ahead, by limit; null where they do not.
fn leases(rule: &Rule) -> Value {
    let leased = rule.allowance.limits().filter_map(|limit| {
        let lease = limit.lease?.to_string();
        Some((limit.limit.to_string(), json!(lease)))
    });
    let leased: serde_json::Map<_, _> = leased.collect();
    match leased.is_empty() {
        true => Value::Null,
        false => leased.into(),
    }
}

/// A list of limits, tiers with theirs by name, or what the rule says instead of limits.
fn allows(domain: &Domain, allowance: &Allowance) -> Value {
    let texts = |limits: &[std::sync::Arc<RuleLimit>]| -> Vec<String> {
        limits.iter().map(|limit| limit.to_string()).collect()
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
