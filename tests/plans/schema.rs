//! The schema for editors says what the reader reads.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;
use tollgate::plan::{Plans, schema::schema, shapes};

fn parsed() -> Value {
    serde_json::from_str(&schema()).unwrap()
}

fn names(schema: &Value) -> BTreeSet<&str> {
    let properties = schema["properties"].as_object().expect("properties");
    properties.keys().map(String::as_str).collect()
}

/// `UPDATE=1 cargo test --test plans schema` writes it anew.
#[test]
fn the_schema_file_is_made_from_the_types() {
    let path = Path::new("config/plans.schema.json");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, schema()).unwrap();
    }
    assert!(
        fs::read_to_string(path).unwrap() == schema(),
        "config/plans.schema.json is old: UPDATE=1 cargo test --test plans schema"
    );
}

#[test]
fn the_reader_knows_exactly_the_fields_of_the_schema() {
    let schema = parsed();
    let defs = &schema["$defs"];
    let limit = &defs["Limit"]["anyOf"][1];
    for (shape, schema) in [
        (&shapes::PLAN, &schema),
        (&shapes::RULE, &defs["Rule"]),
        (&shapes::DURABLE, &defs["Durable"]),
        (&shapes::RATE_LIMIT, &defs["RateLimit"]),
        (&shapes::REPLACES, &defs["Replaces"]),
        (&shapes::TIER, &defs["Tier"]),
        (&shapes::LIMIT, limit),
        (&shapes::AUTHENTICATION, &defs["Authentication"]),
        (&shapes::UPSTREAM_HEADERS, &defs["UpstreamHeaders"]),
        (&shapes::API_KEY, &defs["ApiKey"]),
        (&shapes::RESPONSE, &defs["Response"]),
        (&shapes::LEASE, &defs["Lease"]),
    ] {
        let known: BTreeSet<_> = shape.fields.iter().copied().collect();
        assert_eq!(known, names(schema), "{}", shape.what);
        assert_eq!(schema["additionalProperties"], false, "{}", shape.what);
    }
}

#[test]
fn every_example_loads_without_a_warning_and_points_to_the_schema() {
    let mut seen = 0;
    for entry in fs::read_dir("config").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# yaml-language-server: $schema=plans.schema.json\n"));
        let plans = Plans::from_texts(&[("plans.yaml", &text)]).unwrap();
        assert_eq!(plans.warnings(), [], "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0, "config/ has examples");
}

#[test]
fn the_example_of_the_docs_loads_without_a_warning() {
    let docs = include_str!("../../docs/plans.md");
    let (_, rest) = docs.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let example = example.replace("0123…64 hexadecimal digits…", &"0".repeat(64));
    let plans =
        Plans::from_texts(&[("plans.md", &example)]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plans.warnings(), []);
}

#[test]
fn every_answer_of_the_usage_plans_page_loads_without_a_warning() {
    let docs = include_str!("../../docs/usage-plans.md");
    let examples = docs.split("```yaml\n").skip(1);
    let examples = examples.map(|example| example.split_once("```").unwrap().0);
    let mut seen = 0;
    // The others are for Envoy.
    for example in examples.filter(|example| example.starts_with("domain: ")) {
        let plans = Plans::from_texts(&[("usage-plans.md", example)])
            .unwrap_or_else(|error| panic!("{error}\n{example}"));
        assert_eq!(plans.warnings(), [], "{example}");
        seen += 1;
    }
    assert_eq!(seen, 8);
}
