//! `tollgate check --envoy`.

use crate::{common::plans, run::tollgate};

const CONFIG: &str = "coverage/envoy.yaml";
const PLANS: &str = "coverage/plans.yaml";

#[test]
fn every_route_is_told_with_the_limits_that_apply_to_it() {
    tollgate(&["check", "--envoy", CONFIG, PLANS]).answers(0, "coverage/report.txt");
}

#[test]
fn flags_say_how_is_counted_where_plans_do_not() {
    let fixed = ["--algorithm", "fixed_window"];
    let ran = tollgate(&[&["check", "--envoy", CONFIG, PLANS][..], &fixed].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("→ 1/second fixed\n"), "{}", ran.out);
}

#[test]
fn files_of_another_service_are_not_judged_by_envoys_routes() {
    let ran = tollgate(&["check", "--envoy", CONFIG, "--from", "limitador", PLANS]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("cannot be used with"), "{}", ran.err);
}

#[test]
fn under_strict_a_warning_is_a_mistake() {
    let ran = tollgate(&["check", "--strict", "--envoy", CONFIG, PLANS]);
    assert_eq!(ran.code, 1, "{}", ran.out);
}

#[test]
fn the_shipped_files_leave_no_route_unlimited_by_accident() {
    let (config, plans) = ("../../envoy/envoy.yaml", "../../config");
    let ran = tollgate(&[
        "check", "--strict", "--envoy", config, plans, "--output", "json",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.out);
    let json = ran.json();
    let state = |name: &str| {
        let routes = json["routes"].as_array().expect("a list");
        let route = routes.iter().find(|route| route["route"] == name);
        route.expect("it is shipped")["state"].clone()
    };
    assert_eq!(state("public"), "limited");
    // A request gets a descriptor for its key only where ext_authz has found one.
    assert_eq!(state("secure"), "partly");
    assert_eq!(state("unsecure"), "switched_off");
    assert_eq!(state("nothing"), "answered_by_envoy");
    assert_eq!(json["unreached"], serde_json::json!([]));
}

#[test]
fn what_comes_from_a_control_plane_is_said() {
    let ran = tollgate(&[
        "check",
        "--strict",
        "--envoy",
        "coverage/dynamic.yaml",
        PLANS,
    ]);
    // Rules that nobody seems to reach may well be reached by the routes that are not here.
    assert_eq!(ran.code, 0, "{}", ran.out);
    for told in [
        "listeners that a control plane sends",
        "its routes `shop` come from a control plane",
        "the filter limits comes from a control plane",
    ] {
        assert!(ran.out.contains(told), "{}", ran.out);
    }
}

#[test]
fn what_is_no_envoy_configuration_is_said() {
    for (config, why) in [
        ("nowhere.yaml", "cannot read nowhere.yaml"),
        (PLANS, "no HTTP connection manager"),
        ("coverage/report.txt", "is neither JSON nor YAML"),
    ] {
        let ran = tollgate(&["check", "--envoy", config, PLANS]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}

#[test]
fn plans_that_do_not_load_come_first() {
    let ran = tollgate(&["check", "--envoy", CONFIG, "run.rs"]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("run.rs"), "{}", ran.out);
}

#[test]
fn rules_that_never_refuse_limit_nothing() {
    for (rule, limited) in [
        ("limits: [1/second]", true),
        ("limits: [1/second], shadow_mode: true", false),
        ("rate_limit: { unlimited: true }", false),
    ] {
        let text = format!(
            "domain: stats-api\ndescriptors: [{{ key: tier, value: anonymous, descriptors: [{{ key: ip, {rule} }}] }}]"
        );
        let (_folder, plans) = plans(&text);
        let plans = plans.to_str().expect("UTF-8");
        let ran = tollgate(&["check", "--envoy", "../../envoy/envoy.yaml", plans]);
        let warned = ran
            .out
            .contains("no limit applies to stats public (/public/*)");
        assert_eq!(warned, !limited, "{}", ran.out);
    }
}

#[test]
fn a_filter_that_hangs_up_on_those_who_wait_is_warned_of() {
    for (delay, warned) in [("up to 1500ms", true), ("up to 400ms", false)] {
        let text = format!(
            "domain: stats-api\ndescriptors: [{{ key: tier, value: anonymous, descriptors: [{{ key: ip, limits: [{{ limit: 1/second, delay: {delay} }}] }}] }}]"
        );
        let (_folder, plans) = plans(&text);
        let plans = plans.to_str().expect("UTF-8");
        let ran = tollgate(&["check", "--envoy", "../../envoy/envoy.yaml", plans]);
        let warning =
            "limits of domain stats-api delay answers up to 1.5s: what would wait longer than";
        assert_eq!(ran.out.contains(warning), warned, "{}", ran.out);
    }
}
