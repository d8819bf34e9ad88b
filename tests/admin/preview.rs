//! What a change of plans would do, told before it is made.

use serde_json::Value;

use super::{FILE, KEYED, put};
use crate::common::{
    home::{Home, finished},
    tollgate_command,
};

#[test]
fn plans_that_are_only_tried_are_not_said_to_be_in_force() {
    let home = Home::new(FILE);
    let (code, out, err) = put(&home, 9, &["--dry-run"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("shop: would be version 1; nothing was changed"),
        "{out}"
    );
    let warned =
        "plans.yaml: would not be in force: these plans of `shop` would stand in its place";
    assert!(
        out.contains(warned) && !out.contains("not in force: the stored"),
        "{out}"
    );
    let (_, out, _) = put(&home, 9, &[]);
    assert!(
        out.contains("not in force: the stored plans of `shop`, version 1"),
        "{out}"
    );
    let (_, out, _) = put(&home, 9, &["--dry-run"]);
    assert!(
        out.starts_with("shop: version 1 says the same already"),
        "{out}"
    );
    assert!(
        out.contains("not in force: the stored plans of `shop`, version 1"),
        "{out}"
    );
}

#[test]
fn a_diff_counts_them_where_a_whole_domain_comes_or_goes() {
    let home = Home::new(KEYED);
    let with_tiers = |domain: &str, tiers: &str| {
        let keyed = "descriptors: [{ key: api_key, limits_from: tier }]";
        let text = format!("domain: {domain}\ntiers: {{ {tiers} }}\n{keyed}\n");
        home.draft(&format!("{domain}.yaml"), &text)
    };
    let cafe = with_tiers("cafe", "free: { limits: [1/hour] }");
    for id in ["a", "b"] {
        home.json(&["keys", "create", "--tier", "free", "--id", id]);
    }
    home.json(&["keys", "create", "--tier", "premium", "--id", "c"]);
    let old = home.config.join("plans.yaml").display().to_string();
    let state = home.state().to_str().unwrap();
    let diff = |more: &[&str]| {
        let mut command = tollgate_command();
        finished(command.args(["plans", "diff", &old, &cafe]).args(more))
    };
    // Keys of a tier that both domains have are known before and after.
    let (code, out, err) = diff(&["--state-dir", state]);
    let told = "shop:
  is gone with its 1 rule and 3 API keys, 3 of them stored: all its requests pass; unknown from then on: 1 API key
cafe:
  is new, with 1 rule and 2 API keys, 2 of them stored
";
    assert_eq!((code, out.as_str(), err.as_str()), (1, told, ""));
    let (_, json, _) = diff(&["--state-dir", state, "--output", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let effects = json["changes"].as_array().unwrap().iter();
    let effects: Vec<_> = effects.map(|change| &change["effect"]).collect();
    assert_eq!(effects, ["mixed", "tighter"], "{json:#}");

    let (code, out, err) = diff(&[]);
    assert!(code == 1 && out.contains("and 0 API keys"), "{out}");
    assert!(
        err.contains("API keys made at run time are not counted"),
        "{err}"
    );
    // So does what is put.
    let (_, out, _) = home.run(&["plans", "put", &cafe, "--dry-run"]);
    assert!(
        out.contains("is new, with 1 rule and 2 API keys, 2 of them stored"),
        "{out}"
    );
}

#[test]
fn a_diff_counts_keys_that_are_in_no_file() {
    let home = Home::new(KEYED);
    for id in ["a", "b"] {
        home.json(&["keys", "create", "--tier", "free", "--id", id]);
    }
    let own = ["--tier", "free", "--id", "c", "--limit", "7/hour"];
    home.json(&[&["keys", "create"][..], &own].concat());
    let raised = KEYED.replace("free: { limits: [1/hour] }", "free: { limits: [2/hour] }");
    let without = KEYED.replace("free: { limits: [1/hour] }, ", "");
    let [raised, without] = [("raised.yaml", raised), ("without.yaml", without)]
        .map(|(name, text)| home.draft(name, &text));
    let old = home.config.join("plans.yaml").display().to_string();
    let state = home.state().to_str().unwrap();
    let diff = |new: &str, more: &[&str]| {
        let mut command = tollgate_command();
        finished(command.args(["plans", "diff", &old, new]).args(more))
    };
    let stored = ["--state-dir", state];
    let (code, out, err) = diff(&raised, &stored);
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(
        out.contains("tier `free`:") && out.contains("(for 2 API keys, 2 of them stored)"),
        "{out}"
    );
    let (_, out, _) = diff(&without, &stored);
    let gone = "tier `free`: is gone (with 3 stored API keys, unknown from then on)";
    assert!(out.contains(gone), "{out}");
    let (_, json, _) = diff(&raised, &[&stored[..], &["--output", "json"]].concat());
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["stored_keys"], 3);

    let (code, out, err) = diff(&raised, &[]);
    assert!(code == 1 && out.contains("(for 0 API keys)"), "{out}");
    assert!(
        err.contains("API keys made at run time are not counted"),
        "{err}"
    );
    let (code, _, err) = diff(&raised, &["--store", "redis://127.0.0.1:1"]);
    assert!(code == 2 && err.contains("127.0.0.1:1"), "{err}");
    // So does what is put.
    let (_, out, _) = home.run(&["plans", "put", &raised]);
    assert!(out.contains("(for 2 API keys, 2 of them stored)"), "{out}");
}
