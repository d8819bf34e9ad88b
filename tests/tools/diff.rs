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

#[test]
fn flags_say_how_is_counted_where_files_do_not() {
    let rules = "descriptors: [{ key: ip, limits: [5/minute] }]";
    let (_plain, plain) = plans(&format!("domain: shop\n{rules}"));
    let told = format!("domain: shop\nalgorithm: fixed_window\ncharge: independent\n{rules}");
    let (_told, told) = plans(&told);
    let [plain, told] = [&plain, &told].map(|path| path.to_str().expect("UTF-8"));
    let ran = tollgate(&["plans", "diff", plain, told]);
    let wanted = "shop:
  algorithm: token_bucket → fixed_window
  charge: all_or_nothing → independent
  rule `ip`: `5/minute` → `5/minute fixed`, as much in the long run; another kind or period, so buckets start anew, full; \
charge: all_or_nothing → independent
";
    assert_eq!((ran.code, ran.out.as_str()), (1, wanted));
    let flags = ["--algorithm", "fixed_window", "--charge", "independent"];
    let ran = tollgate(&[&["plans", "diff", plain, told][..], &flags].concat());
    assert_eq!((ran.code, ran.out.as_str()), (0, "no change for anybody\n"));
}

#[test]
fn tiers_are_told_once_and_each_rule_that_counts_them_otherwise() {
    let with = |rules: &str| {
        plans(&format!(
            "domain: shop\ntiers: {{ free: {{ limits: [5/minute] }} }}\ndescriptors: [{rules}]"
        ))
    };
    let (one, fixed) = (
        "{ key: one, limits_from: tier }",
        "{ key: two, limits_from: tier, algorithm: fixed_window }",
    );
    let (_a, before) = with(&format!("{one}, {fixed}"));
    let (_b, turned) = with(&format!("{fixed}, {one}"));
    let (_c, alike) = with("{ key: one, limits_from: tier }, { key: two, limits_from: tier }");
    let [before, turned, alike] =
        [&before, &turned, &alike].map(|path| path.to_str().expect("UTF-8"));
    let ran = tollgate(&["plans", "diff", before, turned]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "no change for anybody\n"));
    let ran = tollgate(&["plans", "diff", before, alike]);
    let wanted = "shop:\n  rule `two`: algorithm: fixed_window → token_bucket\n";
    assert_eq!((ran.code, ran.out.as_str()), (1, wanted));
}

#[test]
fn authentication_is_told_where_it_holds_said_there_or_not() {
    let old = "domain: cafe\nunmatched: deny\n";
    let own = "domain: shop\nauthentication: { error_style: plain }\n";
    let folder = |shop: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("cafe.yaml", old), ("shop.yaml", shop)] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        folder
    };
    let usual = "domain: shop\nauthentication: { error_style: plain, key_from: ['header:x-api-key', bearer], hide_key: true }\n";
    let other = "domain: shop\nauthentication: { key_from: [bearer] }\n";
    let [own, usual, other] = [own, usual, other].map(folder);
    let [own, usual, other] = [&own, &usual, &other].map(|f| f.path().to_str().expect("UTF-8"));
    let ran = tollgate(&["plans", "diff", own, usual]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "no change for anybody\n"));
    let ran = tollgate(&["plans", "diff", own, other]);
    let told = "  authentication, key_from: the header x-api-key, Authorization: Bearer → Authorization: Bearer
  authentication, error_style: plain → aws
";
    let wanted = format!("cafe:\n{told}shop:\n{told}");
    assert_eq!((ran.code, ran.out.as_str()), (1, wanted.as_str()));
}

#[test]
fn no_field_that_means_something_changes_unseen() {
    let base = "
domain: shop
algorithm: token_bucket
charge: all_or_nothing
overdraw: false
on_store_error: local
unmatched: allow
tiers: { free: { limits: [1/second] }, gold: { limits: [] } }
api_keys: [{ id: ada, tier: free, owner: Ada, sha256: '00000000000000000000000000000000000000000000000000000000000000aa' }]
authentication: { key_from: ['header:x-key', bearer], error_style: plain, hide_key: true, upstream_headers: { api_key_id: x-id, tier: x-tier, owner: x-owner } }
response: { retry_after: true, ratelimit: true, x_ratelimit: false, degraded: true, metadata: true, body: no, content_type: text/plain }
descriptors:
  - { key: api_key, limits_from: tier, unknown_key: deny, name: keys }
  - { key: api_key_of_old, limits_from: tier, api_key_is: secret }
  - { key: ip, limits: [{ limit: 50/minute, name: fifty }], replaces: [{ name: keys }], shadow_mode: false, quota_mode: false }
  - { key: agent, limits: [9/minute], shadow_mode: true, quota_mode: false }
  - { key: net, cidr: 10.0.0.0/8, rate_limit: { unit: hour, requests_per_unit: 5 } }
  - { key: path, value: /a*, limits: [1/minute], share_threshold: false, metadata: { a: 1 }, on_store_error: local }
";
    for (from, to) in [
        ("domain: shop", "domain: cafe"),
        ("on_store_error: local\nun", "on_store_error: deny\nun"),
        ("algorithm: token_bucket", "algorithm: fixed_window"),
        ("charge: all_or_nothing", "charge: independent"),
        ("charge: all_or_nothing", "charge: stop_when_over"),
        ("overdraw: false", "overdraw: true"),
        ("unmatched: allow", "unmatched: deny"),
        ("unmatched: allow", "unmatched: 5/minute"),
        ("limits: [1/second]", "limits: [1/second, 5/day]"),
        ("gold: ", "golden: "),
        ("tier: free, owner", "tier: gold, owner"),
        ("owner: Ada", "owner: Ben"),
        ("aa'", "ab'"),
        ("id: ada", "id: ben"),
        ("header:x-key", "header:x-token"),
        ("header:x-key", "query:x-key"),
        (", bearer]", "]"),
        ("'header:x-key', bearer", "bearer, 'header:x-key'"),
        ("error_style: plain", "error_style: aws"),
        ("error_style: plain", "error_style: problem+json"),
        ("hide_key: true", "hide_key: false"),
        ("api_key_id: x-id, ", ""),
        ("x-id", "x-key-id"),
        ("x-tier", "x-plan"),
        ("x-owner", "x-for"),
        ("retry_after: true", "retry_after: false"),
        ("ratelimit: true", "ratelimit: false"),
        ("x_ratelimit: false", "x_ratelimit: true"),
        ("degraded: true", "degraded: false"),
        ("metadata: true", "metadata: false"),
        ("body: no", "body: nope"),
        ("text/plain", "text/html"),
        ("unknown_key: deny", "unknown_key: free"),
        ("name: keys", "name: kees"),
        ("replaces: [{ name: keys }], ", ""),
        (", api_key_is: secret", ""),
        ("50/minute", "51/minute"),
        ("50/minute", "50/minute sliding"),
        ("50/minute", "50/minute fixed"),
        ("key: ip, ", "key: ip, algorithm: fixed_window, "),
        ("key: ip, ", "key: ip, charge: independent, "),
        ("key: ip, ", "key: ip, charge: stop_when_over, "),
        ("key: ip, ", "key: ip, overdraw: true, "),
        ("key: ip, ", "key: ip, detailed_metric: true, "),
        ("key: ip, ", "key: ip, value_to_metric: true, "),
        (
            "key: api_key_of_old, ",
            "key: api_key_of_old, algorithm: fixed_window, ",
        ),
        ("50/minute", "100/2 minutes"),
        (", name: fifty", ""),
        ("shadow_mode: false", "shadow_mode: true"),
        ("true, quota_mode: false", "true, quota_mode: true"),
        ("false, quota_mode: false", "false, quota_mode: true"),
        ("10.0.0.0/8", "10.0.0.0/9"),
        ("requests_per_unit: 5", "requests_per_unit: 6"),
        ("unit: hour", "unit: day"),
        ("value: /a*", "value: /b*"),
        ("share_threshold: false", "share_threshold: true"),
        ("metadata: { a: 1 }", "metadata: { a: 2 }"),
        (
            "a: 1 }, on_store_error: local",
            "a: 1 }, on_store_error: error",
        ),
    ] {
        let changed = base.replace(from, to);
        assert_ne!(changed, base, "{from}");
        let ((_old, before), (_new, after)) = (plans(base), plans(&changed));
        let [before, after] = [&before, &after].map(|path| path.to_str().expect("UTF-8"));
        let ran = tollgate(&["plans", "diff", before, after]);
        assert_eq!(ran.code, 1, "{from} → {to}: {}{}", ran.out, ran.err);
    }
}
