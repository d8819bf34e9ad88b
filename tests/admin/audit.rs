//! What the audit log tells of a change.

use std::fs;

use serde_json::Value;

use super::{BEARER, FILE, KEYED, left, put};
use crate::common::home::{Home, call};

/// Action and detail of the newest entries, newest first.
fn noted(home: &Home, most: usize) -> Vec<(String, String)> {
    let most = most.to_string();
    let entries = home.json(&["audit", "--limit", &most]);
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = entries.as_array().unwrap().iter();
    entries
        .map(|e| (text(e, "action"), text(e, "detail")))
        .collect()
}

#[test]
fn the_audit_log_tells_what_a_key_was_and_what_changed_of_it() {
    let home = Home::new(KEYED);
    let made = home.json(&[
        "keys",
        "create",
        "--tier",
        "free",
        "--id",
        "k",
        "--owner",
        "Ada",
        "--label",
        "team=web",
        "--expires",
        "2050-01-31T12:00:00Z",
        "--limit",
        "7/hour",
    ]);
    let change = [
        "--tier",
        "premium",
        "--label",
        "team=",
        "--expires",
        "never",
    ];
    home.json(&[&["keys", "update", "k"][..], &change].concat());
    home.json(&["keys", "update", "k", "--tier-limits", "--owner", "Bob"]);
    let rotated = home.json(&["keys", "rotate", "k", "--overlap", "1h"]);
    let until = rotated["previous_until"].as_str().unwrap();
    home.json(&["keys", "revoke", "k"]);
    let told = [
        ("key.revoke", "tier premium; owner Bob"),
        ("key.rotate", &format!("the old secret opens until {until}")),
        ("key.update", "owner Ada → Bob; limits [7/hour] → none"),
        (
            "key.update",
            "tier free → premium; expires 2050-01-31T12:00:00Z → none; label team web → none",
        ),
        (
            "key.create",
            "tier free; owner Ada; expires 2050-01-31T12:00:00Z; limits [7/hour]; label team web",
        ),
    ];
    let told = told.map(|(action, detail)| (action.to_owned(), detail.to_owned()));
    assert_eq!(noted(&home, 9), told);
    let kept = fs::read_to_string(home.state().join("audit.log")).unwrap();
    for secret in [&made, &rotated].map(|key| key["secret"].as_str().unwrap()) {
        assert!(!kept.contains(secret), "{kept}");
    }
}

#[tokio::test]
async fn the_audit_log_tells_what_plans_changed_and_what_a_bucket_got() {
    let home = Home::new(FILE);
    let (tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    assert_eq!(left(&tollgate, 4).await.1, 1);
    let question =
        r#"{"domain":"shop","descriptors":[{"entries":[{"key":"user","value":"u"}]}],"hits":2}"#;
    for deed in ["grant", "reset"] {
        let (status, _) = call(
            &address,
            &[BEARER],
            &format!("POST /v1/buckets/{deed}"),
            question,
        );
        assert_eq!(status, 200);
    }
    let told = |detail: &(String, String)| detail.1.clone();
    let notes = noted(&home, 2);
    assert_eq!(told(&notes[1]), "granted 2: 1 → 3 left of 5/hour of user");
    assert_eq!(told(&notes[0]), "made full: 3 → 5 left of 5/hour of user");

    assert_eq!(put(&home, 50, &[]).0, 0);
    let detail = told(&noted(&home, 1)[0]);
    assert!(
        detail.starts_with("rule `user`: `5/hour` → `50/hour`"),
        "{detail}"
    );
    let rules = (0..200).map(|n| format!("  - {{ key: user{n}, limits: [5/hour] }}\n"));
    let many = format!("domain: shop\ndescriptors:\n{}", rules.collect::<String>());
    assert_eq!(
        home.run(&["plans", "put", &home.draft("many.yaml", &many)])
            .0,
        0
    );
    let detail = told(&noted(&home, 1)[0]);
    assert!(detail.len() < 1_000, "{detail}");
    let (_, more) = detail.rsplit_once("; and ").expect(&detail);
    let more: usize = more.strip_suffix(" more").unwrap().parse().unwrap();
    assert_eq!(more + detail.matches("rule `").count(), 201, "{detail}");
}
