//! Files of other services: what they become, what has no counterpart, what will differ.

mod common;

use std::{fs, path::Path};

use proptest::prelude::*;
use tollgate::{
    descriptor::{Descriptor, Entry, Query},
    limit::Limit,
    migrate::{
        envoyproxy::{Counting, differences},
        limitador::{self, Conversion},
    },
    plan::{Match, Plans},
};

/// Compares with the file of that name; `UPDATE=1 cargo test --test migrate` writes it anew.
fn assert_is(text: &str, name: &str) {
    let path = Path::new("tests/migrate").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap(), "{name}");
}

/// The notes on these files, whosoever they are, where nothing is said from outside.
fn notes(files: &[(&str, &str)]) -> Vec<String> {
    let notes = differences(files.iter().copied(), true, Counting::default());
    notes.iter().map(ToString::to_string).collect()
}

/// Whether a file looks as if it was written for envoyproxy/ratelimit, and so gets notes unasked.
fn is_theirs(text: &str) -> bool {
    !differences([("a.yaml", text)], false, Counting::default()).is_empty()
}

/// What is said about a conversion.
fn said(conversion: &Conversion) -> String {
    let mut text = String::new();
    if let Some(error) = &conversion.unmapped {
        text += &format!("{error}\n");
    }
    for note in &conversion.notes {
        text += &format!("note: {note}\n");
    }
    text
}

#[test]
fn limits_with_a_counterpart_become_plans_that_load_without_a_warning() {
    let text = include_str!("migrate/limits.yaml");
    let conversion = limitador::convert("limits.yaml", text);
    assert_eq!((conversion.limits, conversion.mapped), (7, 7));
    assert_eq!(
        said(&conversion),
        "note: limits.yaml:41:3: [6]: no `max_value` blocks, as it does in limitador\n"
    );
    assert_eq!(
        limitador::file_names(&conversion.plans),
        ["tickets.yaml", "default_partners.yaml"]
    );
    for (plan, name) in conversion
        .plans
        .iter()
        .zip(["tickets.plan", "partners.plan"])
    {
        assert_is(&plan.text, name);
        let plans = Plans::from_texts(&[(name, &plan.text)]).unwrap();
        assert_eq!(plans.warnings(), []);
        assert!(plans.domain(&plan.domain).is_some());
    }
}

#[test]
fn what_has_no_counterpart_is_told_with_its_place() {
    let text = include_str!("migrate/without_counterpart.yaml");
    let conversion = limitador::convert("limits.yaml", text);
    assert_eq!((conversion.limits, conversion.mapped), (7, 1));
    assert_is(&said(&conversion), "without_counterpart.txt");
}

#[test]
fn files_that_are_no_limits_files_are_told() {
    for (text, words) in [
        ("", "1:1: has no limits"),
        ("a: [", "is not YAML"),
        (
            "domain: shop",
            "expected a list of limits, as limitador's limits file is, found a map",
        ),
        ("[]\n---\n[]", "2:1: a second document"),
        (
            "[{namespace: a, seconds: 1, max_value: 1, variables: [a]}, {namespace: a, seconds: 1, max_value: 1, variables: [a_b], conditions: [\"a == 'b'\"]}, {namespace: a, seconds: 1, max_value: 1, variables: [a_b]}]",
            "the limits of namespace `a` have no counterpart: duplicate descriptor composite key",
        ),
    ] {
        let conversion = limitador::convert("limits.yaml", text);
        let said = said(&conversion);
        assert!(said.contains(words), "{text}: {said}");
        assert!(conversion.plans.is_empty(), "{text}");
    }
}

/// A limit of the test below: for each of the keys `k0`, `k1`, … none, any value (0) or one value; its figures.
type Sketch = (Vec<Option<u8>>, u32, u32);

fn limits_file(sketches: &[Sketch]) -> String {
    let mut text = String::new();
    for (entries, count, seconds) in sketches {
        let named = || {
            entries
                .iter()
                .enumerate()
                .filter_map(|(key, value)| Some((key, (*value)?)))
        };
        let conditions: Vec<_> = named()
            .filter(|(_, value)| *value > 0)
            .map(|(key, value)| format!("\"descriptors[0].k{key} == '{value}'\""))
            .collect();
        let variables: Vec<_> = named()
            .filter(|(_, value)| *value == 0)
            .map(|(key, _)| format!("\"descriptors[0].k{key}\""))
            .collect();
        text += &format!(
            "- {{ namespace: shop, max_value: {count}, seconds: {seconds}, conditions: [{}], variables: [{}] }}\n",
            conditions.join(", "),
            variables.join(", ")
        );
    }
    text
}

/// The limits that limitador would ask about a descriptor of these keys and values, of each period the lowest.
fn asked(sketches: &[Sketch], values: &[Option<u8>]) -> Vec<(u64, u32)> {
    let mut lowest = std::collections::BTreeMap::new();
    for (entries, count, seconds) in sketches {
        let holds = entries
            .iter()
            .zip(values)
            .all(|(entry, value)| match (entry, value) {
                (None, None) => true,
                (Some(0), Some(_)) => true,
                (Some(wanted), Some(value)) => wanted == value,
                _ => false,
            });
        if holds {
            let lowest = lowest.entry(u64::from(*seconds)).or_insert(*count);
            *lowest = (*lowest).min(*count);
        }
    }
    lowest.into_iter().collect()
}

/// The limits of the rule that the descriptor meets, its entries in the order that the plan file tells Envoy.
fn met(plans: &Plans, text: &str, values: &[Option<u8>]) -> Vec<(u64, u32)> {
    let mut keys: Vec<String> = (0..values.len())
        .filter(|key| values[*key].is_some())
        .map(|key| format!("k{key}"))
        .collect();
    keys.sort();
    let order = text
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .find_map(|line| {
            let order: Vec<String> = line.split(", ").map(str::to_owned).collect();
            let mut sorted = order.clone();
            sorted.sort();
            (sorted == keys).then_some(order)
        });
    let Some(order) = order else {
        return Vec::new();
    };
    let entry = |key: &String| {
        let number: usize = key[1..].parse().unwrap();
        Entry::new(key.as_str(), values[number].unwrap().to_string())
    };
    let descriptor = Descriptor {
        entries: order.iter().map(entry).collect(),
        ..Descriptor::default()
    };
    let query = Query {
        domain: "shop".to_owned(),
        descriptors: vec![descriptor].into_iter().collect(),
    };
    let figures = |limit: &Limit| (limit.period().seconds(), limit.count());
    let domain = plans.domain("shop").unwrap();
    match &domain.matches(&query, plans.stored_keys())[0] {
        Match::None => Vec::new(),
        Match::Limited { limits, .. } => {
            let mut figures: Vec<_> = limits.iter().map(|limit| figures(&limit.limit)).collect();
            figures.sort_unstable();
            figures
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    /// A rule that is met hides all others, so it must have the limits of all.
    #[test]
    fn a_descriptor_meets_every_limit_that_limitador_would_ask(
        sketches in prop::collection::vec(
            (prop::collection::vec(prop::option::of(0..3u8), 3), 1..5u32, 1..4u32),
            1..8,
        )
        .prop_map(|mut all: Vec<Sketch>| {
            for (entries, ..) in &mut all {
                if entries.iter().all(Option::is_none) {
                    entries[0] = Some(0);
                }
            }
            all
        })
    ) {
        let conversion = limitador::convert("limits.yaml", &limits_file(&sketches));
        prop_assert!(conversion.unmapped.is_none(), "{}", said(&conversion));
        let text = &conversion.plans[0].text;
        let plans = Plans::from_texts(&[("plan", text)]).unwrap();
        // Of each key none, or one of the values that rules name, or another.
        for number in 1..64_u8 {
            let values: Vec<_> = (0..3).map(|key| Some(number >> (2 * key) & 3).filter(|value| *value > 0)).collect();
            prop_assert_eq!(met(&plans, text, &values), asked(&sketches, &values), "{:?} of\n{}", values, text);
        }
    }
}

#[test]
fn a_config_of_envoyproxy_is_told_what_differs_by_subject() {
    let text = include_str!("migrate/ratelimit.yaml");
    assert!(is_theirs(text));
    let lines: String = notes(&[("ratelimit.yaml", text)])
        .iter()
        .map(|note| format!("{note}\n"))
        .collect();
    assert_is(&lines, "ratelimit.txt");
}

#[test]
fn many_files_get_as_few_notes_as_one() {
    let text = include_str!("migrate/ratelimit.yaml");
    let one = notes(&[("a.yaml", text)]);
    let two = notes(&[("a.yaml", text), ("b.yaml", text), ("c.yaml", "domain: c")]);
    assert_eq!(one.len(), two.len());
    for (one, two) in one.iter().zip(&two) {
        let (one, two) = (one.split_once(' ').unwrap(), two.split_once(' ').unwrap());
        assert_eq!(one.0, two.0, "the first place");
        assert_ne!(one.1, two.1, "the count");
    }
}

#[test]
fn what_a_config_keeps_is_not_told() {
    let kept = "domain: edge\nalgorithm: fixed_window\ncharge: independent\non_store_error: error\nresponse: { body: '' }\n\
                descriptors:\n- { key: a, rate_limit: { unit: month, requests_per_unit: 1 } }\n- { key: b, rate_limit: { unit: day, requests_per_unit: 1 } }\n";
    assert!(!is_theirs(kept));
    assert_eq!(notes(&[("a.yaml", kept)]), [""; 0]);
    let rule = "- { key: a, algorithm: fixed_window, descriptors: [{ key: b, rate_limit: { unit: day } }, { key: c, algorithm: token_bucket, rate_limit: { unit: day } }] }";
    let found = notes(&[("a.yaml", &format!("domain: edge\ndescriptors:\n{rule}\n"))]);
    assert!(
        found
            .iter()
            .any(|note| note.contains("1 limit: a token bucket")),
        "{found:?}"
    );
    let mixed = "domain: a\ndescriptors:\n- { key: a, rate_limit: { unit: day } }\n- { key: b, limits: [1/second] }\n";
    assert!(!is_theirs(mixed) && !notes(&[("a.yaml", mixed)]).is_empty());
    let native = include_str!("../config/stats-api.yaml");
    assert_eq!(notes(&[("stats-api.yaml", native)]), [""; 0]);
}

/// Exit code, stdout, stderr.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = common::tollgate_command().args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn check_notes_what_differs_where_a_file_has_no_field_of_ours_or_where_told_so() {
    let (code, stdout, stderr) = run(&["check", "--strict", "tests/migrate/ratelimit.yaml"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.starts_with("note: tests/migrate/ratelimit.yaml:4:17: "),
        "{stdout}"
    );
    assert!(
        stdout.ends_with("ok: edge (3 rules, 0 API keys)\n"),
        "{stdout}"
    );
    let folder = tempfile::tempdir().unwrap();
    let mixed = folder.path().join("mixed.yaml");
    fs::write(
        &mixed,
        "domain: a\nunmatched: deny\ndescriptors: [{ key: a, rate_limit: { unit: day } }]\n",
    )
    .unwrap();
    let mixed = mixed.to_str().unwrap();
    assert_eq!(run(&["check", mixed]).1.lines().count(), 1);
    let told = run(&["check", "--from", "envoyproxy", mixed]).1;
    assert!(
        told.starts_with("note: ") && told.contains("algorithm: fixed_window"),
        "{told}"
    );
}

#[test]
fn check_reads_a_folder_as_the_reference_does_where_told_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        "tests/migrate/ratelimit.yaml",
        folder.path().join("limits.conf"),
    )
    .unwrap();
    let path = folder.path().to_str().unwrap();
    let (code, stdout, _) = run(&["check", path]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(stdout.contains("no plan files (*.yaml, *.yml)"), "{stdout}");
    let (code, stdout, _) = run(&["check", "--from", "envoyproxy", path]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("limits.conf:"), "{stdout}");
}

#[test]
fn check_converts_limitadors_files_and_overwrites_nothing() {
    let limits = "tests/migrate/limits.yaml";
    let (code, stdout, stderr) = run(&["check", "--from", "limitador", limits]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stdout.contains("domain: \"tickets\"") && stdout.contains("\n---\n"),
        "{stdout}"
    );
    assert!(
        stderr.contains("7 of 7 limits have a counterpart") && stderr.contains("--write"),
        "{stderr}"
    );
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().to_str().unwrap();
    let convert = ["check", "--from", "limitador", "--write", into, limits];
    let (code, stdout, _) = run(&convert);
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    let (code, stdout, _) = run(&["check", "--strict", into]);
    assert_eq!(code, Some(0), "{stdout}");
    let (code, _, stderr) = run(&convert);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("cannot write") && stderr.contains("tickets.yaml"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&[
        "check",
        "--from",
        "limitador",
        "tests/migrate/without_counterpart.yaml",
    ]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("1 of 7 limits have a counterpart"),
        "{stderr}"
    );
    assert_eq!(
        run(&["check", "--from", "limitador", "nowhere.yaml"]).0,
        Some(2)
    );
    assert_eq!(
        run(&["check", "--from", "envoyproxy", "--write", into, limits]).0,
        Some(2)
    );
}

#[test]
fn what_is_kept_from_outside_is_not_told() {
    let text = include_str!("migrate/ratelimit.yaml");
    let kept = Counting {
        windows: true,
        charges_apart: true,
    };
    let notes = differences([("a.yaml", text)], false, kept);
    assert_eq!(notes.len(), 4, "{notes:?}");
    assert!(notes[0].message.contains("/64"), "{notes:?}");
}

#[test]
fn notes_fail_a_strict_conversion_and_nothing_is_printed_of_nothing() {
    let strict = [
        "check",
        "--strict",
        "--from",
        "limitador",
        "tests/migrate/limits.yaml",
    ];
    assert_eq!(run(&strict).0, Some(1));
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("limits.yaml");
    fs::write(&empty, "[]").unwrap();
    let (code, stdout, _) = run(&["check", "--from", "limitador", empty.to_str().unwrap()]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
}

#[test]
fn odd_characters_come_through() {
    let odd = "a\u{85}b\u{2028}\u{feff}\\ \t\u{7f}é𝄞: #{}";
    let value = serde_json::Value::from(format!("descriptors[0].k == 'v{odd}'"));
    let value = value.to_string().replace("\\\\", "");
    let text = format!("[{{ namespace: n, seconds: 1, max_value: 1, conditions: [{value}] }}]");
    let plan = limitador::convert("limits.yaml", &text).plans.remove(0);
    let plans = Plans::from_texts(&[("plan", &plan.text)]).unwrap();
    let wanted = format!("v{}", odd.replace('\\', ""));
    let rule = plans.domain("n").unwrap().rules().next().unwrap();
    assert_eq!(&*rule.path, format!("k={wanted}"));
}
