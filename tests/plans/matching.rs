//! Which rule a request meets, and which buckets.

use tollgate::{
    descriptor::{Descriptor, Entry, Query},
    limit::{Period, Unit},
    plan::{Allowance, LoadOptions, Match, Plans},
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
    domain
        .matches(&query, plans.stored_keys())
        .iter()
        .map(shown)
        .collect()
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
    let opened = |secret: &str| plans.check_secret(secret.as_bytes()).known();
    let key = opened("demo-free-key").unwrap();
    assert_eq!((key.id(), key.tier()), ("demo-free", "free"));
    assert!(opened("demo-free").is_none());
}

#[test]
fn a_prefix_keeps_the_buckets_of_services_with_the_same_domains_apart() {
    let text = "domain: shop\nunmatched: 5/day\n\
                descriptors: [{ key: ip, limits: [1/second] }]\n";
    let starts = |prefix: &str| -> Vec<String> {
        let options = LoadOptions {
            key_prefix: prefix.into(),
            ..LoadOptions::default()
        };
        let plans = Plans::from_texts_by(&[("plans.yaml", text)], &options).unwrap();
        let domain = plans.domain("shop").unwrap();
        let rules = domain.rules().map(|rule| match &rule.allowance {
            Allowance::Limits(limits) => limits[0].key_prefix().to_owned(),
            other => panic!("{other:?}"),
        });
        let asked = tollgate::descriptor::LimitOverride {
            requests: 5,
            period: Period::of(Unit::Day),
        };
        let overridden = domain.override_limit(
            &descriptor(&[("ip", "x")]),
            asked,
            None,
            plans.stored_keys(),
        );
        let overridden = overridden.unwrap().0.key_prefix().to_owned();
        rules.chain([overridden]).collect()
    };
    let plain = starts("");
    assert!(plain.iter().all(|start| start.starts_with("shop/")));
    // `=` stands in no domain's name, nor in a prefix as it is written here.
    for (prefix, written) in [("blue:", "blue:=shop/"), ("a=b", "a%3Db=shop/")] {
        let named = starts(prefix);
        assert_eq!(named.len(), plain.len());
        assert!(
            named.iter().all(|start| start.starts_with(written)),
            "{named:?}"
        );
    }
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
        let (limit, subject) = domain
            .override_limit(&descriptor(entries), limit, None, plans.stored_keys())
            .unwrap();
        (limit.key_prefix().to_string(), subject)
    };
    let first = asked(&[("user", "a")], 5, Unit::Minute);
    assert_eq!(first, asked(&[("user", "a")], 6, Unit::Minute));
    assert_ne!(first, asked(&[("user", "b")], 5, Unit::Minute));
    assert_ne!(first, asked(&[("user", "a")], 5, Unit::Hour));
    let id = asked(&[("api_key", "demo-free")], 5, Unit::Minute);
    assert_eq!(id, asked(&[("api_key", "demo-free-key")], 5, Unit::Minute));
    let (_, long) = asked(&[(&"k".repeat(1 << 20), "a")], 5, Unit::Minute);
    assert!(long.len() < 100, "long keys are named by their hash");
}

/// Matching as envoyproxy/ratelimit does it, row by row. Source: its `GetLimit`.
mod reference {
    use super::{found, plans};

    const SHOP: &str = "
domain: shop
descriptors:
  - {key: user, limits: [1/day]}
  - {key: user, value: vip, limits: [2/day]}
  - {key: user, value: robot}
  - {key: ord, value: a*, limits: [3/day]}
  - {key: ord, value: abc, limits: [4/day]}
  - {key: ord, value: '*c', limits: [5/day]}
  - {key: ord, limits: [6/day]}
  - key: svc
    value: a
    descriptors: [{key: path, value: /x, limits: [7/day]}]
  - key: svc
    limits: [8/day]
    descriptors: [{key: path, limits: [9/day]}]
  - {key: open, rate_limit: {unlimited: true}}
  - {key: over, value: ab*ba, limits: [1/day]}
  - {key: 'w*', value: x, limits: [1/day]}
  - {key: files, value: 'files/*', share_threshold: true, limits: [1/day]}
  - {key: a, value: b_c, limits: [1/day]}
  - {key: p_q, limits: [1/day]}
";

    fn one(entries: &[(&str, &str)]) -> String {
        found(&plans(SHOP), &[entries]).remove(0)
    }

    #[test]
    fn exact_then_first_wildcard_then_bare_key() {
        assert_eq!(one(&[("ord", "abc")]), "ord=abc: 4/day of ");
        assert_eq!(one(&[("ord", "ac")]), "ord=a*: 3/day of |2:ac");
        assert_eq!(one(&[("ord", "bc")]), "ord=*c: 5/day of |2:bc");
        assert_eq!(one(&[("ord", "b")]), "ord: 6/day of |1:b");
        assert_eq!(one(&[("ord", "a*")]), "ord=a*: 3/day of |2:a*");
        assert_eq!(one(&[("over", "aba")]), "none", "a text is not used twice");
    }

    #[test]
    fn each_value_of_a_bare_key_has_its_own_bucket() {
        assert_eq!(one(&[("user", "ada")]), "user: 1/day of |3:ada");
        assert_eq!(one(&[("user", "")]), "user: 1/day of |0:");
        assert_eq!(one(&[("user", "vip")]), "user=vip: 2/day of ");
        assert_eq!(one(&[("User", "vip")]), "none", "letter case counts");
    }

    #[test]
    fn only_the_last_entry_has_a_limit_and_no_branch_is_left_again() {
        assert_eq!(
            one(&[("svc", "a"), ("path", "/x")]),
            "svc=a/path=/x: 7/day of "
        );
        assert_eq!(
            one(&[("svc", "a"), ("path", "/y")]),
            "none",
            "no second try"
        );
        assert_eq!(
            one(&[("svc", "b"), ("path", "/y")]),
            "svc/path: 9/day of |1:b|2:/y"
        );
        assert_eq!(one(&[("svc", "b")]), "svc: 8/day of |1:b");
        assert_eq!(one(&[("svc", "a")]), "none", "a branch is no rule");
        assert_eq!(one(&[("svc", "b"), ("path", "/y"), ("more", "z")]), "none");
        assert_eq!(one(&[("path", "/y"), ("svc", "b")]), "none", "order counts");
        assert_eq!(one(&[]), "none");
    }

    #[test]
    fn rules_without_a_limit_let_pass() {
        assert_eq!(one(&[("user", "robot")]), "passes user=robot");
        assert_eq!(one(&[("open", "x")]), "passes open");
    }

    #[test]
    fn key_and_value_are_compared_as_one_joined_text() {
        assert_eq!(one(&[("a_b", "c")]), "a=b_c: 1/day of ");
        assert_eq!(one(&[("www", "x")]), "w*=x: 1/day of |5:www_x");
        assert_eq!(one(&[("p", "q")]), "p_q: 1/day of |=");
        assert_eq!(one(&[("p_q", "=")]), "p_q: 1/day of |1:=");
    }

    #[test]
    fn values_of_a_shared_wildcard_share_a_bucket() {
        assert_eq!(one(&[("files", "files/a")]), "files=files/*: 1/day of ");
        assert_eq!(one(&[("files", "files/b")]), "files=files/*: 1/day of ");
    }

    #[test]
    fn a_rule_replaces_others_wherever_they_stand_in_the_request() {
        let text = "
domain: shop
descriptors:
  - {key: all, rate_limit: {unit: day, requests_per_unit: 1, name: all}}
  - {key: vip, rate_limit: {unlimited: true, replaces: [{name: all}]}}
  - {key: two, limits: [2/day], name: two, replaces: [{name: three}]}
  - {key: three, limits: [3/day], name: three, replaces: [{name: two}]}
";
        let plans = plans(text);
        let (all, vip) = (&[("all", "x")][..], &[("vip", "x")][..]);
        assert_eq!(found(&plans, &[all, vip]), ["none", "passes vip"]);
        assert_eq!(found(&plans, &[vip, all]), ["passes vip", "none"]);
        assert_eq!(found(&plans, &[all]), ["all: 1/day of |1:x"]);
        let mutual = found(&plans, &[&[("two", "x")], &[("three", "x")]]);
        assert_eq!(mutual, ["none", "none"], "two passes: both are put aside");
    }
}

/// What Tollgate adds.
mod ours {
    use tollgate::descriptor::{Descriptor, LimitOverride};

    use super::{Period, Unit, found, plans, query, shown};

    #[test]
    fn the_longest_network_wins_between_exact_values_and_wildcards() {
        let plans = plans(
            "
domain: d
descriptors:
  - {key: ip, value: '10*', limits: [1/day]}
  - {key: ip, cidr: 10.0.0.0/8, limits: [2/day]}
  - {key: ip, cidr: 10.1.0.0/16, limits: [3/day]}
  - {key: ip, cidr: 2001:db8::/32, limits: [4/day]}
  - {key: ip, value: 10.1.1.1, limits: [5/day]}
  - {key: ip, limits: [6/day]}
",
        );
        for (address, answer) in [
            ("10.1.1.1", "ip=10.1.1.1: 5/day of "),
            ("10.1.1.2", "ip=10.1.0.0/16: 3/day of |8:10.1.1.2"),
            ("10.2.1.1", "ip=10.0.0.0/8: 2/day of |8:10.2.1.1"),
            ("::ffff:10.2.1.1", "ip=10.0.0.0/8: 2/day of |8:10.2.1.1"),
            ("100.2.1.1", "ip=10*: 1/day of |9:100.2.1.1"),
            (
                "2001:db8:1:2:3::4",
                "ip=2001:db8::/32: 4/day of |v6:20010db800010002",
            ),
            (
                "2001:db8:1:2::9",
                "ip=2001:db8::/32: 4/day of |v6:20010db800010002",
            ),
            ("2001:dead::1", "ip: 6/day of |v6:2001dead00000000"),
            ("home", "ip: 6/day of |4:home"),
        ] {
            assert_eq!(found(&plans, &[&[("ip", address)]]), [answer], "{address}");
        }
    }

    #[test]
    fn long_values_are_named_by_their_hash() {
        let plans = plans("{domain: d, descriptors: [{key: a, limits: [1/day]}]}");
        let found = found(&plans, &[&[("a", &"x".repeat(1 << 20))]]).remove(0);
        assert!(
            found.starts_with("a: 1/day of |#") && found.len() == 14 + 64,
            "{found}"
        );
    }

    fn keys(rule: &str, unmatched: &str) -> tollgate::plan::Plans {
        // The SHA-256 of `hunter3`.
        let hash = "fb8c2e2b85ca81eb4350199faddd983cb26af3064614e737ea9f479621cfa57a";
        plans(&format!(
            "
domain: d
unmatched: {unmatched}
tiers: {{free: {{limits: [1/second]}}, open: {{limits: []}}, gold: {{limits: [5/second, 9/hour]}}}}
api_keys:
  - {{id: one, tier: gold, sha256: {hash}}}
  - {{id: two, tier: open, sha256: {}}}
descriptors:
  - {{key: api_key, limits_from: tier, {rule}}}
  - {{key: tier, value: gold, descriptors: [{{key: ip, limits: [7/day]}}]}}
  - {{key: tier, descriptors: [{{key: ip, limits: [8/day]}}]}}
",
            "0".repeat(64)
        ))
    }

    #[test]
    fn id_and_secret_name_the_same_bucket() {
        let plans = keys("", "allow");
        let answer = "api_key: 5/second, 9/hour of |3:one";
        assert_eq!(found(&plans, &[&[("api_key", "one")]]), [answer]);
        assert_eq!(found(&plans, &[&[("api_key", "hunter3")]]), [answer]);
        assert_eq!(found(&plans, &[&[("api_key", "two")]]), ["passes api_key"]);
    }

    #[test]
    fn where_only_the_secret_counts_the_id_opens_nothing() {
        let plans = keys("api_key_is: secret", "allow");
        assert_eq!(found(&plans, &[&[("api_key", "one")]]), ["refuses api_key"]);
        let by_secret = found(&plans, &[&[("api_key", "hunter3")]]);
        assert_eq!(by_secret, ["api_key: 5/second, 9/hour of |3:one"]);
    }

    #[test]
    fn an_unknown_key_may_have_a_tier_and_shows_nowhere() {
        let plans = keys("unknown_key: free", "allow");
        let found = found(&plans, &[&[("api_key", "hunter2")]]).remove(0);
        assert!(found.starts_with("api_key: 1/second of |#"), "{found}");
        assert!(!found.contains("hunter2"));
    }

    #[test]
    fn no_secret_shows_in_plans_or_matches() {
        let plans = keys("", "allow");
        let asked = query("d", &[&[("api_key", "hunter3")]]);
        let matches = plans
            .domain("d")
            .unwrap()
            .matches(&asked, plans.stored_keys());
        assert!(!format!("{plans:?} {matches:?}").contains("hunter3"));
        assert!(!format!("{plans:?} {matches:?}").contains("fb8c2e2b"));
    }

    #[test]
    fn every_tier_entry_is_read_as_the_tier_of_the_key() {
        let plans = keys("", "allow");
        let forged = &[("tier", "nobody"), ("ip", "192.0.2.1")][..];
        let alone = found(&plans, &[forged]);
        assert_eq!(alone, ["tier/ip: 8/day of |6:nobody|9:192.0.2.1"]);
        let with_key = found(&plans, &[forged, &[("api_key", "hunter3")], forged]);
        assert_eq!(with_key[0], "tier=gold/ip: 7/day of |9:192.0.2.1");
        assert_eq!(with_key[2], with_key[0]);
        let unknown = found(&plans, &[forged, &[("api_key", "who")]]);
        assert_eq!(unknown, [alone[0].as_str(), "refuses api_key"]);
    }

    #[test]
    fn what_meets_no_rule_is_denied_or_shares_one_bucket_charged_once() {
        let nothing = &[&[("x", "1")][..], &[("y", "2")][..]];
        let met = &[&[("x", "1")][..], &[("api_key", "two")][..]];
        let denied = keys("", "deny");
        assert_eq!(
            found(&denied, nothing),
            ["refuses (unmatched)", "refuses (unmatched)"]
        );
        assert_eq!(found(&denied, met), ["none", "passes api_key"]);
        let limited = keys("", "3/second");
        assert_eq!(
            found(&limited, nothing),
            ["(unmatched): 3/second of ", "none"]
        );
        assert_eq!(found(&keys("", "allow"), nothing), ["none", "none"]);
    }

    #[test]
    fn a_descriptor_that_brings_its_limit_meets_no_rule_and_is_not_unmatched() {
        let plans = keys("", "deny");
        let limit = LimitOverride {
            requests: 1,
            period: Period::of(Unit::Day),
        };
        let mut asked = query("d", &[&[("tier", "gold"), ("ip", "x")], &[("y", "2")]]);
        asked.descriptors[0] = Descriptor {
            limit: Some(limit),
            ..asked.descriptors[0].clone()
        };
        let matches = plans
            .domain("d")
            .unwrap()
            .matches(&asked, plans.stored_keys());
        let all: Vec<_> = matches.iter().map(shown).collect();
        assert_eq!(all, ["none", "none"]);
    }

    #[test]
    fn buckets_have_names_that_stay_when_numbers_and_places_change() {
        let prefixes = |text: &str| -> Vec<String> {
            let plans = plans(text);
            let asked = query("sh/op", &[&[("a", "x/y"), ("ip", "z")]]);
            match &plans
                .domain("sh/op")
                .unwrap()
                .matches(&asked, plans.stored_keys())[0]
            {
                tollgate::plan::Match::Limited { limits, .. } => limits
                    .iter()
                    .map(|limit| limit.key_prefix().to_string())
                    .collect(),
                found => panic!("{found:?}"),
            }
        };
        let before = prefixes(
            "{domain: sh/op, descriptors: [{key: a, value: x/y, descriptors: [{key: ip, limits: [5/minute sliding, 9/hour]}]}]}",
        );
        assert_eq!(
            before,
            ["sh%2Fop/a=x%2Fy/ip#s60", "sh%2Fop/a=x%2Fy/ip#b3600"]
        );
        let after = prefixes(
            "{domain: sh/op, descriptors: [{key: new}, {key: a, value: x/y, descriptors: [{key: ip, limits: [8/hour burst 20, 6/60s sliding]}]}]}",
        );
        assert_eq!(after, [before[1].as_str(), before[0].as_str()]);
    }

    #[test]
    fn labels_and_policies_fit_into_headers() {
        let plans = plans(
            "{domain: d, descriptors: [{key: 'ä\"b', name: n, limits: [5/minute, {limit: 9/hour, name: own}]}, {key: 'ä\"c', limits: [5/minute]}]}",
        );
        let domain = plans.domain("d").unwrap();
        let shown: Vec<_> = domain
            .rules()
            .flat_map(|rule| match &rule.allowance {
                tollgate::plan::Allowance::Limits(limits) => limits.to_vec(),
                other => panic!("{other:?}"),
            })
            .map(|limit| {
                (
                    limit.policy().to_string(),
                    limit.name.as_deref().map(str::to_owned),
                )
            })
            .collect();
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            shown,
            [
                ("\"n:5/minute\";q=5;w=60".to_owned(), name("n")),
                ("\"own\";q=9;w=3600".to_owned(), name("own")),
                ("\"?'c:5/minute\";q=5;w=60".to_owned(), None),
            ]
        );
    }

    #[test]
    fn a_rule_inherits_what_answers_without_the_store() {
        let plans = plans(
            "{domain: d, on_store_error: deny, descriptors: [{key: a, limits: [1/day]}, {key: b, on_store_error: error, descriptors: [{key: c, limits: [1/day]}, {key: e, on_store_error: allow, limits: [1/day]}]}]}",
        );
        let domain = plans.domain("d").unwrap();
        let modes: Vec<_> = domain
            .rules()
            .map(|rule| format!("{:?}", rule.on_store_error))
            .collect();
        assert_eq!(modes, ["Deny", "Error", "Allow"]);
    }
}
