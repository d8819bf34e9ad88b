//! Compiled matching against a plain reading of envoyproxy/ratelimit's rules, on random trees and requests.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};
use tollgate::{
    descriptor::{Descriptor, Entry, Query},
    plan::{LoadOptions, Match, Plans},
    store::BucketKey,
};

/// A rule as the model has it; `name` tells it from all others.
#[derive(Debug, Clone)]
struct Rule {
    key: &'static str,
    value: Option<&'static str>,
    net: Option<&'static str>,
    shared: bool,
    limited: bool,
    below: Vec<Rule>,
}

/// The rule that a descriptor meets, and what tells its buckets apart.
type Found = (String, Vec<String>);

impl Rule {
    fn text(&self) -> String {
        match self.value {
            Some(value) => format!("{}_{value}", self.key),
            None => self.key.to_owned(),
        }
    }

    fn is_pattern(&self) -> bool {
        self.net.is_none() && self.text().contains('*')
    }

    fn json(&self, name: &str) -> Value {
        let mut rule = json!({ "key": self.key, "descriptors": list(&self.below, name) });
        if self.limited {
            rule["rate_limit"] = json!({ "unit": "day", "requests_per_unit": 1, "name": name });
        }
        match (self.net, self.value) {
            (Some(net), _) => rule["cidr"] = net.into(),
            (None, Some(value)) => rule["value"] = value.into(),
            (None, None) => {}
        }
        if self.shared && self.is_pattern() {
            rule["share_threshold"] = true.into();
        }
        rule
    }
}

fn list(rules: &[Rule], name: &str) -> Value {
    rules
        .iter()
        .enumerate()
        .map(|(index, rule)| rule.json(&format!("{name}.{index}")))
        .collect()
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && fits(after, &rest[at..]))
        }),
    }
}

fn holds(net: &str, value: &str) -> Option<u8> {
    let net: IpNet = net.parse().unwrap();
    let address: IpAddr = value.parse().ok()?;
    net.contains(&address.to_canonical())
        .then_some(net.prefix_len())
}

fn choose<'r>(rules: &'r [Rule], key: &str, value: &str) -> Option<(usize, &'r Rule, String)> {
    let joined = format!("{key}_{value}");
    let numbered = || rules.iter().enumerate();
    let counted = |rule: &Rule| match rule.is_pattern() {
        true if rule.shared => String::new(),
        true if rule.key.contains('*') => format!("joined {joined}"),
        true => address(&joined[rule.key.len() + 1..]),
        false => String::new(),
    };
    if let Some((index, rule)) =
        numbered().find(|(_, rule)| rule.net.is_none() && rule.text() == joined)
    {
        let bare = rule.value.is_none() && !rule.is_pattern();
        let counted = if bare {
            "by joined text".to_owned()
        } else {
            counted(rule)
        };
        return Some((index, rule, counted));
    }
    let by_net = numbered()
        .filter(|(_, rule)| rule.key == key)
        .filter_map(|(index, rule)| Some((holds(rule.net?, value)?, index, rule)))
        .max_by_key(|(prefix, ..)| *prefix);
    if let Some((_, index, rule)) = by_net {
        return Some((index, rule, address(value)));
    }
    if let Some((index, rule)) =
        numbered().find(|(_, rule)| rule.is_pattern() && fits(&rule.text(), &joined))
    {
        return Some((index, rule, counted(rule)));
    }
    let (index, rule) = numbered().find(|(_, rule)| rule.net.is_none() && rule.text() == key)?;
    let counted = if rule.is_pattern() {
        counted(rule)
    } else {
        address(value)
    };
    Some((index, rule, counted))
}

fn address(value: &str) -> String {
    match value.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => format!("value {v4}"),
            None => format!("network {:?}", &v6.octets()[..8]),
        },
        _ => format!("value {value}"),
    }
}

fn model(rules: &[Rule], entries: &[(&str, &str)]) -> Option<Found> {
    let mut rules = rules;
    let mut name = "r".to_owned();
    let mut counted = Vec::new();
    let mut last = None;
    for (key, value) in entries {
        let (index, rule, part) = choose(rules, key, value)?;
        name = format!("{name}.{index}");
        counted.push(part);
        rules = &rule.below;
        last = Some(rule);
    }
    last?.limited.then_some((name, counted))
}

const KEYS: &[&str] = &["a", "b", "a_b", "a/b", "k=v", "a*", "ä"];
const VALUES: &[&str] = &[
    "x", "b_c", "x*", "*", "*y", "x*y", "a|1:x", "%2F", "b*", "ö*",
];
const NETS: &[&str] = &["10.0.0.0/8", "10.0.0.0/24", "2001:db8::/32", "0.0.0.0/0"];
const SENT: &[&str] = &[
    "x",
    "xy",
    "b_c",
    "c",
    "",
    "xzy",
    "y",
    "x*",
    "b",
    "a|1:x",
    "%2F",
    "ö1",
    "10.0.0.1",
    "10.1.2.3",
    "::ffff:10.0.0.1",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:0:1::1",
    "v6:20010db800000000",
    "1:x|1:x",
];

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (
        select(KEYS),
        option::of(select(VALUES)),
        option::weighted(0.2, select(NETS)),
        any::<bool>(),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(key, value, net, shared, limited)| Rule {
            key,
            value: value.filter(|_| net.is_none()),
            net,
            shared,
            limited,
            below: Vec::new(),
        });
    let leaves = vec(rule, 1..8).prop_map(unlike);
    leaves.clone().prop_recursive(3, 40, 8, move |below| {
        (leaves.clone(), vec(below, 8)).prop_map(|(mut rules, below)| {
            for (rule, below) in rules.iter_mut().zip(below) {
                rule.below = if rule.shared { below } else { Vec::new() };
            }
            rules
        })
    })
}

/// Leaves out rules that the loader would call duplicates.
fn unlike(mut rules: Vec<Rule>) -> Vec<Rule> {
    let mut seen = std::collections::HashSet::new();
    rules.retain(|rule| seen.insert((rule.text(), rule.net)));
    rules
}

fn sent() -> impl Strategy<Value = Vec<Vec<(&'static str, &'static str)>>> {
    vec(vec((select(KEYS), select(SENT)), 1..4), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Same rule as the model; one bucket exactly where the model has one.
    #[test]
    fn compiled_matching_equals_a_plain_reading(rules in rules(), requests in sent()) {
        let text = json!({ "domain": "d", "descriptors": list(&rules, "r") }).to_string();
        let plans = Plans::from_texts(&[("plans.yaml", &text)]).unwrap_or_else(|error| panic!("{error}"));
        let domain = plans.domain("d").unwrap();
        let mut buckets: HashMap<Vec<u8>, Found> = HashMap::new();
        let mut names: HashMap<Found, Vec<u8>> = HashMap::new();
        for entries in &requests {
            let query = Query {
                domain: "d".to_owned(),
                descriptors: vec![Descriptor {
                    entries: entries.iter().map(|(key, value)| Entry::new(*key, *value)).collect(),
                    ..Descriptor::default()
                }],
            };
            let expected = model(&rules, entries);
            match &domain.matches(&query, plans.stored_keys())[0] {
                Match::Limited { rule, limits, subject } => {
                    let found = expected.unwrap_or_else(|| panic!("{entries:?} meets {rule:?}"));
                    prop_assert_eq!(rule.name.as_deref(), Some(&*found.0), "{:?}", entries);
                    let key = BucketKey::new(limits[0].key_prefix(), subject).as_bytes().to_vec();
                    prop_assert_eq!(buckets.entry(key.clone()).or_insert(found.clone()), &found);
                    prop_assert_eq!(names.entry(found).or_insert(key.clone()), &key);
                }
                Match::None | Match::Passes(_) => prop_assert_eq!(expected, None, "{:?}", entries),
                Match::Refuses(rule) => panic!("nothing refuses here, and {rule:?} does"),
            }
        }
    }

    /// What is told of all values of a key holds for each of them.
    #[test]
    fn a_rule_that_is_met_is_within_reach(rules in rules(), requests in sent(), fixed in vec(any::<bool>(), 4)) {
        let text = json!({ "domain": "d", "descriptors": list(&rules, "r") }).to_string();
        let plans = Plans::from_texts(&[("plans.yaml", &text)]).unwrap_or_else(|error| panic!("{error}"));
        let domain = plans.domain("d").unwrap();
        for entries in &requests {
            let query = super::matching::query("d", &[entries]);
            let shape: Vec<_> = entries
                .iter()
                .zip(&fixed)
                .map(|((key, value), fixed)| (*key, fixed.then_some(*value)))
                .collect();
            let reach = domain.reach(&shape);
            match &domain.matches(&query, plans.stored_keys())[0] {
                Match::None => prop_assert!(!reach.always, "{:?}", entries),
                Match::Limited { rule, .. } | Match::Passes(rule) | Match::Refuses(rule) => {
                    let paths: Vec<_> = reach.rules.iter().map(|rule| &rule.path).collect();
                    prop_assert!(paths.contains(&&rule.path), "{:?} in {:?}", rule.path, paths);
                }
            }
        }
    }

    /// Values of any length and content get names of their own; equal ones the same.
    #[test]
    fn no_two_lists_of_values_share_a_bucket(one in vec(".{0,140}", 2), other in vec(".{0,140}", 2)) {
        let text = "{domain: d, descriptors: [{key: a, descriptors: [{key: b, limits: [1/day]}]}]}";
        let plans = Plans::from_texts(&[("plans.yaml", text)]).unwrap();
        let subject = |values: &[String]| {
            let found = super::matching::query("d", &[&[("a", &values[0]), ("b", &values[1])]]);
            match &plans.domain("d").unwrap().matches(&found, plans.stored_keys())[0] {
                Match::Limited { subject, .. } => subject.clone(),
                found => panic!("{found:?}"),
            }
        };
        prop_assert_eq!(subject(&one) == subject(&other), one == other);
        // What a value's name ends with must not read as the next value.
        let joined = [format!("{}|{}:{}", one[0], one[1].len(), one[1]), String::new()];
        prop_assert_ne!(subject(&one), subject(&joined));
    }

    /// Whatever the text, reading ends with plans or with mistakes.
    #[test]
    fn no_text_makes_the_reader_panic(text in "[ \\n:\\-\\[\\]{},&*a<#'\"|>?!%~0-9\\t]{0,200}") {
        let text = format!("domain: d\n{text}");
        for last_wins in [false, true] {
            let options = LoadOptions { last_wins, ..LoadOptions::default() };
            let _ = Plans::from_texts_by(&[("plans.yaml", &text)], &options);
        }
    }

    /// The same for a good file with some characters replaced.
    #[test]
    fn no_typo_makes_the_reader_panic(at in 0usize..2_000, typo in "[ \\n:\\-\\[\\]{},&*a<#'\"|>?!%~\\t\\PC]{0,3}") {
        let good = include_str!("good/ours.yaml");
        let at = (0..=at.min(good.len())).rev().find(|at| good.is_char_boundary(*at)).unwrap();
        let text = format!("{}{typo}{}", &good[..at], good[at..].get(1..).unwrap_or_default());
        let _ = Plans::from_texts(&[("plans.yaml", &text)]);
    }
}
