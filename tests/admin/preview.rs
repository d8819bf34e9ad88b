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
