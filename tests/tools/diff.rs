//! `tollgate plans diff`.

use crate::{
    common::plans,
    run::{file, tollgate},
};

#[test]
fn every_kind_of_change_is_told_in_words() {
    tollgate(&["plans", "diff", "diff/old.yaml", "diff/new.yaml"]).answers(1, "diff/changes.txt");
}

#[test]
fn as_json_each_change_says_what_and_how() {
    let ran = tollgate(&[
        "plans",
        "diff",
        "diff/old.yaml",
        "diff/new.yaml",
        "--output",
        "json",
    ]);
    assert_eq!(ran.code, 1);
    let json = ran.json();
    let changes = json["changes"].as_array().expect("a list");
    let find = |subject: &str, name: &str| {
        let found = changes
            .iter()
            .find(|change| change["subject"] == subject && change["name"] == name);
        found.unwrap_or_else(|| panic!("no {subject} {name} in {json:#}"))
    };
    assert_eq!(find("tier", "free")["effect"], "looser");
    assert_eq!(find("tier", "premium")["effect"], "tighter");
    assert_eq!(find("rule", "path=/search*")["effect"], "looser");
    assert_eq!(find("rule", "path=/new")["change"], "added");
    assert_eq!(find("rule", "(unmatched)")["change"], "added");
    assert_eq!(find("api_keys", "ada")["change"], "changed");
    assert!(changes.iter().all(|change| change["domain"] == "shop"));
}

#[test]
fn another_text_of_the_same_plans_changes_nothing() {
    let text = std::fs::read_to_string(file("diff/old.yaml")).expect("it is there");
    let (_folder, same) = plans(&format!("# of another author\n{text}"));
    let same = same.to_str().expect("UTF-8");
    let ran = tollgate(&["plans", "diff", "diff/old.yaml", same]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "no change for anybody\n"));
}

#[test]
fn a_domain_that_comes_or_goes_is_told_whole() {
    let (_folder, other) = plans("domain: cafe\ndescriptors: [{ key: ip, limits: [1/second] }]");
    let other = other.to_str().expect("UTF-8");
    let ran = tollgate(&["plans", "diff", "diff/old.yaml", other]);
    assert_eq!(ran.code, 1);
    let wanted = "cafe:\n  is new, with 1 rule and 0 API keys\n";
    assert!(ran.out.ends_with(wanted), "{}", ran.out);
    assert!(
        ran.out.starts_with("shop:\n  is gone with its "),
        "{}",
        ran.out
    );
}

#[test]
fn what_does_not_load_cannot_be_compared() {
    let (_folder, bad) = plans("domain: shop\ndescriptorz: []");
    for (old, why) in [
        (bad.to_str().expect("UTF-8"), "did you mean `descriptors`?"),
        ("nowhere.yaml", "cannot read plans from nowhere.yaml"),
    ] {
        let ran = tollgate(&["plans", "diff", old, "diff/old.yaml"]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}
