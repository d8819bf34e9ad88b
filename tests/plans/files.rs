//! Files that load, files that do not, and what is said about them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tollgate::plan::{LARGEST_FILE, Plans};

/// The YAML files of a folder below `tests/plans/`: name and text.
fn yaml_files(folder: &str) -> Vec<(String, PathBuf, String)> {
    let mut files: Vec<_> = fs::read_dir(Path::new("tests/plans").join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            (name, path, text)
        })
        .collect();
    files.sort();
    files
}

/// `UPDATE=1 cargo test --test plans files` writes the messages anew; read the difference before you keep it.
#[test]
fn every_bad_file_is_told_all_its_mistakes() {
    let files = yaml_files("bad");
    assert!(files.len() >= 25, "{}", files.len());
    for (name, path, text) in files {
        let error = match Plans::from_texts(&[(&name, &text)]) {
            Ok(_) => panic!("{name} loads"),
            Err(error) => error.to_string() + "\n",
        };
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &error).unwrap();
        }
        assert_eq!(error, fs::read_to_string(&expected).unwrap(), "{name}");
    }
}

#[test]
fn every_good_file_loads_without_a_warning() {
    let files = yaml_files("good");
    assert!(!files.is_empty());
    for (name, _, text) in files {
        let plans = Plans::from_texts(&[(&name, &text)]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(plans.warnings(), [], "{name}");
    }
}

#[test]
fn what_the_reference_tolerates_loads_with_a_warning() {
    let text = include_str!("warned.yaml");
    let plans = Plans::from_texts(&[("warned.yaml", text)]).unwrap();
    let warnings: String = plans
        .warnings()
        .iter()
        .map(|warning| format!("{warning}\n"))
        .collect();
    assert_eq!(warnings, include_str!("warned.txt"));
}

#[test]
fn a_delay_or_a_penalty_that_can_do_nothing_is_warned_of() {
    let text = r#"
domain: shop
tiers: { free: { limits: [{ limit: 5/minute, penalty: 60s, mode: soft }] } }
descriptors:
  - { key: a, limits: [{ limit: 5/minute, delay: up to 500ms, penalty: 60s, mode: soft }, 9/hour] }
  - { key: b, mode: soft, limits: [{ limit: 5/minute, penalty: 60s }] }
  - { key: c, mode: soft, limits: [{ limit: 5/minute, delay: up to 500ms, mode: enforce }] }
  - { key: d, mode: shadow, limits: [{ limit: 5/minute, penalty: 60s }] }
  - { key: api_key, limits_from: tier }
"#;
    let plans = Plans::from_texts(&[("shop.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
    let warnings: Vec<String> = plans.warnings().iter().map(ToString::to_string).collect();
    let told = |place: &str, rest: &str| {
        let found = warnings.iter().any(|warning| {
            warning.starts_with(&format!("shop.yaml:{place}: ")) && warning.contains(rest)
        });
        assert!(found, "{place}, {rest}: {warnings:#?}");
    };
    told(
        "5:5: descriptors[0]",
        "its `delay` and `penalty` do nothing",
    );
    told(
        "6:5: descriptors[1]",
        "its `penalty` does nothing until `mode` is `enforce`",
    );
    told("9:5: descriptors[4]", "its `penalty` does nothing");
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
}

#[test]
fn keys_that_are_let_pass_where_no_rule_knows_them_are_warned_of() {
    let lists = "allow: { cidr: [192.0.2.0/24], api_key: [a] }\ndeny: { api_key: [b] }\n";
    let warnings = |rule: &str| {
        let text = format!(
            "domain: shop\n{lists}tiers: {{ free: {{ limits: [] }} }}\ndescriptors: [{rule}]\n"
        );
        let plans = Plans::from_texts(&[("shop.yaml", &text)]).unwrap();
        let warnings = plans.warnings().iter();
        warnings.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings("{ key: api_key, limits: [1/day] }"),
        [
            "shop.yaml:2:41: allow.api_key: lets nobody pass: keys are known by rules with `limits_from: tier`, and this domain has none"
        ]
    );
    let below = "{ key: a, descriptors: [{ key: api_key, limits_from: tier }] }";
    assert!(warnings(below).is_empty());
}

#[test]
fn a_domain_stands_in_one_file() {
    let texts = [("a.yaml", "domain: shop\n"), ("b.yaml", "domain: shop\n")];
    let error = Plans::from_texts(&texts).unwrap_err();
    assert_eq!(
        error.to_string(),
        "b.yaml: domain: duplicate domain 'shop' in config file, first in a.yaml"
    );
}

#[test]
fn a_key_is_of_one_tier_in_all_domains() {
    let file = |domain: &str, tier: &str| {
        format!(
            "domain: {domain}\ntiers: {{a: {{limits: []}}, b: {{limits: []}}}}\napi_keys: [{{id: one, tier: {tier}, sha256: \"{}\"}}]\n",
            "0".repeat(64)
        )
    };
    let load = |tier: &str| {
        Plans::from_texts(&[("a.yaml", &file("a", "a")), ("b.yaml", &file("b", tier))])
    };
    assert!(load("a").is_ok());
    let error = load("b").unwrap_err().to_string();
    assert_eq!(
        error,
        "b.yaml: api_keys: the secret of `one` is that of `one` of tier `a` in domain `a`: one key has one id and one tier in all domains"
    );
}

#[test]
fn no_message_shows_what_stands_where_a_hash_should() {
    let text = include_str!("bad/api_key_with_its_secret.yaml");
    let error = Plans::from_texts(&[("plans.yaml", text)]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("my-very-secret-key"));
}

#[test]
fn a_thousand_mistakes_are_listed_up_to_a_hundred_and_counted() {
    let rules = "- {keyy: a}\n".repeat(1_000);
    let text = format!("domain: shop\ndescriptors:\n{rules}");
    let error = Plans::from_texts(&[("plans.yaml", &text)]).unwrap_err();
    assert_eq!(error.mistakes().len(), 100);
    assert_eq!(
        error.total(),
        2_000,
        "each lacks a key and has an unknown field"
    );
    assert!(error.to_string().ends_with("\nand 1900 more"));
}

#[test]
fn what_is_not_a_plan_file_is_named_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let told = |path: &Path| {
        Plans::load(&vec![path.to_owned()].into(), None)
            .unwrap_err()
            .to_string()
    };

    let large = root.join("large.yaml");
    // Sparse: a file of 100 MB that takes no room.
    fs::File::create(&large)
        .unwrap()
        .set_len(100_000_000)
        .unwrap();
    let expected = format!(
        "{}: has 100000000 bytes; a plan file has at most {LARGEST_FILE}",
        large.display()
    );
    assert_eq!(told(&large), expected);

    let missing = root.join("missing.yaml");
    assert!(told(&missing).starts_with(&format!("{}: No such file", missing.display())));

    let binary = root.join("binary.yaml");
    fs::write(&binary, b"domain: shop\n# \xff").unwrap();
    let expected = format!(
        "{}:2:3: error loading config file: yaml: not UTF-8 text from here on",
        binary.display()
    );
    assert_eq!(told(&binary), expected);

    let empty = root.join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(told(&empty).ends_with("no plan files (*.yaml, *.yml) in this folder"));

    let inner = empty.join("folder.yaml");
    fs::create_dir(&inner).unwrap();
    assert!(told(&empty).ends_with("is a folder, and a plan file was expected"));
}

#[test]
fn a_folder_is_read_in_the_order_of_names_without_dot_entries() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.yml", "a.yaml", ".hidden.yaml", "notes.txt"] {
        fs::write(folder.path().join(name), format!("domain: {name}\n")).unwrap();
    }
    let plans = Plans::load(&vec![folder.path().to_owned()].into(), None).unwrap();
    let names: Vec<_> = plans
        .files()
        .iter()
        .filter_map(|path| path.file_name())
        .collect();
    assert_eq!(names, ["a.yaml", "b.yml"]);
    assert_eq!(plans.domains().count(), 2);
}
