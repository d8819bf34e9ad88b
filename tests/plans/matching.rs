//! Which rule a request meets, and which buckets.

use tollgate::{
    descriptor::{Descriptor, Entry, Query},
    limit::{Period, Unit},
    plan::{Match, Plans},
};

/// Plans of one file.
pub fn plans(text: &str) -> Plans {
    Plans::from_texts(&[("plans.yaml", text)]).unwrap_or_else(|error| panic!("{error}"))
}

pub fn descriptor(entries: &[(&str, &str)]) -> Descriptor {
    Descriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry::new(*key, *value))
            .collect(),
        ..Descriptor::default()
    }
}

pub fn query(domain: &str, descriptors: &[&[(&str, &str)]]) -> Query {
    Query {
        domain: domain.to_owned(),
        descriptors: descriptors
            .iter()
            .map(|entries| descriptor(entries))
            .collect(),
    }
}

/// What one match says, as text: `none`, `passes PATH`, `refuses PATH`, or `PATH: LIMIT, LIMIT of SUBJECT`.
pub fn shown(found: &Match<'_>) -> String {
    match found {
        Match::None => "none".to_owned(),
        Match::Passes(rule) => format!("passes {}", rule.path),
        Match::Refuses(rule) => format!("refuses {}", rule.path),
        Match::Limited {
            rule,
            limits,
            subject,
        } => {
            let limits: Vec<_> = limits.iter().map(|limit| limit.limit.to_string()).collect();
            format!(
                "{}: {} of {}",
                rule.path,
                limits.join(", "),
                subject.escape_ascii()
            )
        }
    }
}

/// What the only domain of `plans` says about descriptors.
pub fn found(plans: &Plans, descriptors: &[&[(&str, &str)]]) -> Vec<String> {
    let domain = plans.domains().next().expect("one domain");
    let query = query(domain.name(), descriptors);
    domain.matches(&query).iter().map(shown).collect()
}

fn stats_api() -> Plans {
    plans(include_str!("../../config/stats-api.yaml"))
}

#[test]
fn shipped_plans_say_what_the_story_says() {
    let plans = stats_api();
    let address = "192.0.2.1";
    assert_eq!(
        found(
            &plans,
            &[
                &[("api_key", "demo-free")],
                &[("tier", "free"), ("ip", address)]
            ]
        ),
        [
            "api_key: 1/second of |9:demo-free",
            "tier=free/ip: 50/minute sliding, 500/hour sliding of |9:192.0.2.1"
        ]
    );
    assert_eq!(
        found(
            &plans,
            &[
                &[("api_key", "demo-premium-key")],
                &[("tier", "premium"), ("ip", address)]
            ]
        ),
        ["api_key: 10/second burst 100 of |12:demo-premium", "none"]
    );
    assert_eq!(
        found(&plans, &[&[("tier", "anonymous"), ("ip", address)]]),
        ["tier=anonymous/ip: 50/minute sliding, 500/hour sliding of |9:192.0.2.1"]
    );
    assert_eq!(found(&plans, &[&[("api_key", "who")]]), ["refuses api_key"]);
}

#[test]
fn a_forged_tier_never_beats_that_of_a_known_key() {
    let plans = stats_api();
    let forged: &[&[(&str, &str)]] = &[
        &[("tier", "premium"), ("ip", "192.0.2.1")],
        &[("api_key", "demo-free-key")],
    ];
    assert!(found(&plans, forged)[0].starts_with("tier=free/ip: "));
}

#[test]
fn a_key_opens_by_its_secret_and_not_by_its_id() {
    let plans = stats_api();
    let key = plans.api_key("demo-free-key").unwrap();
    assert_eq!((&*key.id, &*key.tier), ("demo-free", "free"));
    assert!(plans.api_key("demo-free").is_none());
}

#[test]
fn a_changed_figure_of_a_request_sent_limit_keeps_its_bucket() {
    let plans = stats_api();
    let domain = plans.domain("stats-api").unwrap();
    let asked = |entries: &[(&str, &str)], requests, unit| {
        let limit = tollgate::descriptor::LimitOverride {
            requests,
            period: Period::of(unit),
        };
        let (limit, subject) = domain.override_limit(&descriptor(entries), limit).unwrap();
        (limit.key_prefix.to_string(), subject)
    };
    let first = asked(&[("user", "a")], 5, Unit::Minute);
    assert_eq!(first, asked(&[("user", "a")], 6, Unit::Minute));
    assert_ne!(first, asked(&[("user", "b")], 5, Unit::Minute));
    assert_ne!(first, asked(&[("user", "a")], 5, Unit::Hour));
    let id = asked(&[("api_key", "demo-free")], 5, Unit::Minute);
    assert_eq!(id, asked(&[("api_key", "demo-free-key")], 5, Unit::Minute));
}
