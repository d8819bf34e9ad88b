//! Files as envoyproxy/ratelimit reads them. What its own loader made of each of these texts was seen by running it.

use serde_json::json;
use tollgate::plan::{Allowance, LoadError, LoadOptions, Plans, Rule};

fn load(text: &str, last_wins: bool) -> Result<Plans, LoadError> {
    let options = LoadOptions {
        last_wins,
        ..LoadOptions::default()
    };
    Plans::from_texts_by(&[("f", text)], &options)
}

/// A rule as `KEY: LIMIT NAME METADATA`.
fn shown(rule: &Rule) -> String {
    let limit = match &rule.allowance {
        Allowance::Limits(limits) => limits[0].limit.to_string(),
        other => format!("{other:?}"),
    };
    let name = rule.name.iter().map(|name| format!(" {name}"));
    let metadata = rule.metadata.iter().map(|map| format!(" {}", json!(map)));
    let key = rule.key.strip_prefix("shop.").unwrap_or(&rule.key);
    format!("{key}: {limit}{}", name.chain(metadata).collect::<String>())
}

fn rules(plans: &Plans) -> Vec<String> {
    let domains = plans.domains();
    domains
        .flat_map(|domain| domain.rules().map(|rule| shown(rule)))
        .collect()
}

/// What stands twice, what is said of it as `ratelimit`, and the rules that come of it.
const TWICE: &[(&str, &[&str], &[&str])] = &[
    (
        "
- { key: a, key: b, rate_limit: { unit: hour, requests_per_unit: 3, requests_per_unit: 7 } }",
        &[
            "f:3:13: descriptors[0].key: stands here twice, first at line 3: the last one counts",
            "f:3:69: descriptors[0].rate_limit.requests_per_unit: stands here twice, first at line 3: the last one counts",
        ],
        &["b: 7/hour"],
    ),
    (
        "
- key: a
  value: x
  rate_limit: { unit: hour, requests_per_unit: 3, name: n }
  value:
  rate_limit: { unit: minute }",
        &[
            "f:6:3: descriptors[0].value: stands here twice, first at line 4: the last one counts",
            "f:7:3: descriptors[0].rate_limit: stands here twice, first at line 5: its fields go over those of the first",
        ],
        &["a: 3/minute n"],
    ),
    (
        "
- key: a
  rate_limit: { unit: hour, requests_per_unit: 3 }
  metadata: { x: 1, z: { a: 1 } }
  metadata: { z: { b: 2 } }",
        &[
            "f:6:3: descriptors[0].metadata: stands here twice, first at line 5: its fields go over those of the first",
        ],
        &[r#"a: 3/hour {"x":1,"z":{"b":2}}"#],
    ),
    (
        "
- { key: a, metadata: { x: 1, x: 2 }, rate_limit: { unit: hour, requests_per_unit: 3 } }",
        &[
            "f:3:31: descriptors[0].metadata.x: stands here twice, first at line 3: the last one counts",
        ],
        &[r#"a: 3/hour {"x":2}"#],
    ),
    (
        "
- { key: a, rate_limit: { unit: hour, requests_per_unit: 3 } }
descriptors:
- { key: b, rate_limit: { unit: hour, requests_per_unit: 4 } }",
        &["f:4:1: descriptors: stands here twice, first at line 2: the last one counts"],
        &["b: 4/hour"],
    ),
];

#[test]
fn of_a_field_that_stands_twice_the_last_one_counts() {
    for (text, warnings, expected) in TWICE {
        let text = format!("domain: shop\ndescriptors:{text}\n");
        let plans = load(&text, true).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(rules(&plans), *expected, "{text}");
        let told = plans.warnings().iter().map(ToString::to_string);
        assert_eq!(told.collect::<Vec<_>>(), *warnings, "{text}");

        let error = load(&text, false).unwrap_err().to_string();
        for warning in *warnings {
            let mistake = warning.rsplit_once(": ").expect("what counts").0;
            assert!(error.contains(mistake), "{error}");
        }
    }
}

/// A rule that merges `&base`, and what comes of it as `ratelimit`, and else. None: it does not load.
const MERGED: &[(&str, Option<&str>, Option<&str>)] = &[
    (
        "<<: *base, key: b",
        Some("b: 3/hour n"),
        Some("b: 3/hour n"),
    ),
    // Here what is merged stands behind, and counts.
    (
        "key: b, value: c, <<: { value: d }, <<: *limit",
        Some("b_d: 3/hour n"),
        Some("b_c: 3/hour n"),
    ),
    // A second rate_limit is read into the first.
    (
        "<<: *base, key: b, rate_limit: { requests_per_unit: 5 }",
        Some("b: 5/hour n"),
        None,
    ),
    (
        "<<: [*limit, *base], key: b",
        Some("b: 3/hour n"),
        Some("b: 3/hour n"),
    ),
    (
        "<<: [{ value: c }, { value: d }], <<: *limit, key: b",
        Some("b_c: 3/hour n"),
        Some("b_c: 3/hour n"),
    ),
    ("<<: text, key: b", None, None),
];

#[test]
fn what_is_merged_goes_over_what_stands_before_it() {
    for (rule, as_reference, strictly) in MERGED {
        let text = format!(
            "domain: shop\ndescriptors:\n- &base {{ key: a, <<: &limit {{ rate_limit: {{ unit: hour, requests_per_unit: 3, name: n }} }} }}\n- {{ {rule} }}\n"
        );
        for (last_wins, expected) in [(true, as_reference), (false, strictly)] {
            let second = load(&text, last_wins).map(|plans| rules(&plans)[1].clone());
            assert_eq!(second.as_deref().ok(), *expected, "{rule}: {second:?}");
        }
    }
}

#[test]
fn names_in_metadata_are_whatever_they_are() {
    for (metadata, expected) in [
        (
            "{1: a, 1.5: b, true: c, no: d, 010: e, 2020-01-02: f}",
            json!({"1": "a", "1.5": "b", "true": "c", "no": "d", "010": "e", "2020-01-02": "f"}),
        ),
        ("{~: a}", json!({"": "a"})),
        (
            "{x: {1: a, 2.5: b, yes: c, ~: d, 0x10: e, 010: f, 1_000: g, '2_0': h, 1e4: i, -3: k, text: l}}",
            json!({"x": {"1": "a", "2.5": "b", "true": "c", "<nil>": "d", "16": "e", "8": "f", "1000": "g", "2_0": "h", "10000": "i", "-3": "k", "text": "l"}}),
        ),
        (
            "{a: 1, b: 1.5, c: true, d: ~, e: [1, x, {on: z}], f: 010, g: 0x1F, h: 1_000, i: '1', k: 0b101, l: 0o17, m: -0x10, n: 2020-01-02}",
            json!({"a": 1, "b": 1.5, "c": true, "d": null, "e": [1, "x", {"true": "z"}], "f": 8, "g": 31, "h": 1000, "i": "1", "k": 5, "l": 15, "m": -16, "n": "2020-01-02"}),
        ),
        (
            "{x: &x {a: 1, b: 2}, z: {<<: *x, b: 3}}",
            json!({"x": {"a": 1, "b": 2}, "z": {"a": 1, "b": 3}}),
        ),
    ] {
        let text = format!(
            "domain: shop\ndescriptors: [{{ key: a, metadata: {metadata}, rate_limit: {{ unit: hour }} }}]\n"
        );
        for last_wins in [false, true] {
            let plans = load(&text, last_wins).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(plans.warnings(), []);
            let rule = plans.domain("shop").unwrap().rules().next().unwrap();
            assert_eq!(json!(rule.metadata), expected, "{metadata}");
        }
    }
}
