//! `tollgate simulate`. `simulate/access.log` is what the shipped Envoy wrote; `tests/envoy/tools.rs` replays one of its own day.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
};

use serde_json::json;
use tollgate::{
    clock::Timestamp,
    replay::{
        lines::{Line, Lines},
        moment,
    },
};

use crate::{
    common::plans,
    run::{Ran, file, tollgate, tollgate_reading},
};

const LOG: &str = "simulate/access.log";

/// By the shipped Envoy configuration.
fn simulate(args: &[&str]) -> Ran {
    let fixed = [
        "simulate",
        "--envoy",
        "../../envoy/envoy.yaml",
        "--plans",
        "simulate/new.yaml",
    ];
    tollgate(&[&fixed, args].concat())
}

/// A log on standard input, by templates, against one limit per `user`.
fn by_template(limit: &str, log: &[u8]) -> Ran {
    by_template_and(&[], limit, log)
}

fn by_template_and(flags: &[&str], limit: &str, log: &[u8]) -> Ran {
    let text = format!("domain: shop\ndescriptors: [{{ key: user, limits: [\"{limit}\"] }}]");
    let (_folder, plans) = plans(&text);
    let plans = plans.to_str().expect("UTF-8");
    let template = ["--descriptor", "user=%{user.name}", "--output", "json", "-"];
    let args = [&["simulate", "--plans", plans][..], flags, &template].concat();
    tollgate_reading(&args, log)
}

fn at(seconds: u64, user: &str) -> String {
    format!("{}\n", json!({ "time": seconds, "user": { "name": user } }))
}

#[test]
fn who_would_have_been_refused_is_told_by_rule_and_by_name() {
    simulate(&[LOG]).answers(1, "simulate/table.txt");
    simulate(&["--old", "simulate/old.yaml", LOG]).answers(1, "simulate/compared.txt");
    simulate(&["--output", "csv", LOG]).answers(1, "simulate/refused.csv");
}

#[test]
fn as_json_everything_is_told() {
    let ran = simulate(&["--output", "json", "--old", "simulate/old.yaml", LOG]);
    let json = ran.json();
    let totals =
        ["requests", "refused", "refused_then", "not_asked", "bad"].map(|name| &json[name]);
    assert_eq!(totals, [11, 5, 3, 3, 0], "{json:#}");
    assert_eq!(
        json["old"],
        json!({ "refused": 2, "newly_refused": 3, "newly_admitted": 0 })
    );
    let rules = json["rules"].as_array().expect("a list");
    let sum: u64 = rules
        .iter()
        .flat_map(|rule| rule["decided"].as_array().expect("a list"))
        .map(|by| by["refused"].as_u64().expect("a number"))
        .sum();
    assert_eq!(sum, 5);
}

#[test]
fn plans_that_refuse_nobody_new_exit_0() {
    let same = [
        "--plans",
        "simulate/old.yaml",
        "--old",
        "simulate/old.yaml",
        LOG,
    ];
    let fixed = ["simulate", "--envoy", "../../envoy/envoy.yaml"];
    let ran = tollgate(&[&fixed[..], &same].concat());
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
}

#[test]
fn a_gzipped_log_is_read_as_it_is() {
    let plain = simulate(&["--output", "json", LOG]);
    let folder = tempfile::tempdir().expect("a folder");
    let packed = folder.path().join("access.log.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(&fs::read(file(LOG)).expect("it is there"))
        .expect("memory");
    let bytes = encoder.finish().expect("memory");
    fs::write(&packed, &bytes).expect("writable");
    let packed = packed.to_str().expect("UTF-8");
    assert_eq!(simulate(&["--output", "json", packed]).out, plain.out);

    fs::write(packed, &bytes[..bytes.len() / 2]).expect("writable");
    let cut = simulate(&[packed]);
    assert_eq!((cut.code, cut.out.as_str()), (2, ""));
    assert!(cut.err.contains("cannot read"), "{}", cut.err);
}

#[test]
fn flags_say_how_is_counted_where_plans_do_not() {
    // Two before a whole minute, two after it; a bucket would hold no more for them.
    let log: String = (1_700_000_038..1_700_000_042)
        .map(|second| at(second, "ada"))
        .collect();
    let refused = |flags: &[&str]| {
        let ran = by_template_and(flags, "2/minute", log.as_bytes());
        ran.json()["refused"].clone()
    };
    assert_eq!(refused(&[]), 2);
    assert_eq!(refused(&["--algorithm", "fixed_window"]), 0);

    // What is refused is charged, so the third second brings no token.
    let log: String = [0, 1, 1, 2]
        .map(|second| at(1_700_000_000 + second, "ada"))
        .concat();
    let refused = |flags: &[&str]| {
        let ran = by_template_and(flags, "1/second", log.as_bytes());
        ran.json()["refused"].clone()
    };
    assert_eq!(refused(&[]), 1);
    assert_eq!(refused(&["--charge", "independent"]), 2);
}

#[test]
fn time_is_the_logs_own() {
    let log: String = (0..10)
        .map(|second| at(1_700_000_000 + second, "ada"))
        .collect();
    let slow = by_template("1/second", log.as_bytes()).json();
    assert_eq!(
        (&slow["requests"], &slow["refused"]),
        (&json!(10), &json!(0))
    );
    let slower = by_template("1/2 seconds", log.as_bytes()).json();
    assert_eq!(slower["refused"], 5, "{slower:#}");
    assert_eq!(slower["refusals"][0]["who"], "user=ada");
    assert_eq!(slower["refusals"][0]["first"], "2023-11-14T22:13:21.000Z");
    assert_eq!(slower["refusals"][0]["last"], "2023-11-14T22:13:29.000Z");
}

#[test]
fn lines_out_of_order_are_put_right_as_far_as_they_are_near() {
    let ordered: Vec<String> = (0..10)
        .map(|second| at(1_700_000_000 + second, "ada"))
        .collect();
    let mut mixed = ordered.clone();
    mixed.swap(2, 7);
    mixed.swap(0, 9);
    let [ordered, mixed] =
        [ordered, mixed].map(|lines| by_template("1/2 seconds", lines.concat().as_bytes()));
    assert_eq!(ordered.out, mixed.out);

    let mut far: String = (0..10_100)
        .map(|second| at(1_700_000_000 + second, "ada"))
        .collect();
    far += &at(1_700_000_000, "ben");
    let json = by_template("1/second", far.as_bytes()).json();
    assert_eq!((&json["late"], &json["refused"]), (&json!(1), &json!(0)));
    assert_eq!(json["first"], "2023-11-14T22:13:20.000Z");
}

#[test]
fn those_refused_are_told_most_refused_first_and_no_more_than_asked_for() {
    let mut log = String::new();
    for user in 1..=30 {
        for _ in 0..=user {
            log += &at(1_700_000_000, &format!("user-{user}"));
        }
    }
    let json = by_template("1/day", log.as_bytes()).json();
    let refusals = json["refusals"].as_array().expect("a list");
    assert_eq!(refusals.len(), 20);
    assert_eq!(
        (&refusals[0]["who"], &refusals[0]["refused"]),
        (&json!("user=user-30"), &json!(30))
    );
    assert_eq!(json["refused"], (1..=30).sum::<u64>());
    assert_eq!(json["refusals_short_by"], 0);
}

#[test]
fn bad_lines_are_counted_and_the_first_are_named() {
    let mut log = at(1_700_000_000, "ada");
    log += "[2026-01-01 12:00:00] starting\n\n[1, 2]\n{\"user\":{\"name\":\"ada\"}}\n{\"time\":\"noon\"}\n";
    log += &at(1_700_000_001, "ada");
    let json = by_template("1/second", log.as_bytes()).json();
    assert_eq!((&json["requests"], &json["bad"]), (&json!(2), &json!(4)));
    let named: Vec<&str> = json["bad_lines"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|line| line.as_str().expect("text"))
        .collect();
    assert!(named[0].starts_with("-:2: no JSON"), "{named:?}");
    assert_eq!(
        named[1..],
        [
            "-:4: no JSON object",
            "-:5: no field of time",
            "-:6: time is \"noon\", which is no moment"
        ]
    );
}

#[test]
fn a_log_that_cannot_be_used_exits_2_and_says_why() {
    for (args, why) in [
        (&["nowhere.log"][..], "cannot read nowhere.log"),
        (&["."], "cannot read ."),
        (
            &["run.rs"],
            "of another format; its first lines:\n  run.rs:1: no JSON",
        ),
        (
            &["--plans", "nowhere", LOG],
            "a folder of them, with --plans",
        ),
        (
            &["--old", "coverage/envoy.yaml", LOG],
            "coverage/envoy.yaml:1",
        ),
        (&["--listener", "side", LOG], "no listener"),
        (&["--time", "when", LOG], "no field of when"),
    ] {
        let ran = simulate(args);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}");
        assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
    }
    let empty = by_template("1/second", b"");
    assert_eq!(empty.code, 2);
    assert!(empty.err.contains("the log is empty"), "{}", empty.err);
}

#[test]
fn what_the_log_does_not_tell_is_named_by_envoys_operator() {
    let text = "
domain: shop
descriptors:
  - { key: user, limits: [1/minute] }
  - { key: remote_address, limits: [5/minute] }
  - { key: masked_remote_address, value: 192.0.2.0/24, limits: [3/minute] }
  - key: destination_cluster
    value: shop
    descriptors: [{ key: q, limits: [1/minute] }]
";
    let (_folder, plans) = plans(text);
    let args = [
        "simulate",
        "--envoy",
        "simulate/envoy.yaml",
        "--plans",
        plans.to_str().expect("UTF-8"),
    ];
    let args = [&args[..], &["--output", "json", "-"]].concat();
    let line = |host: &str, method: &str, path: &str, from: &str| {
        let mut line = String::new();
        let http = json!({ "method": method, "path": path });
        let value = json!({ "start": "1700000000.25", "host": host, "http": http, "from": from });
        writeln!(line, "{value}").expect("memory");
        line
    };
    let user = line("eu.shop.example", "GET", "/users/7", "[2001:db8::1]:44");
    let alone = tollgate_reading(&args, user.as_bytes());
    assert_eq!(alone.code, 2, "{}", alone.out);
    assert!(alone.err.contains("%REQ(X-USER)%"), "{}", alone.err);

    let search = line(
        "EU.shop.example:8443",
        "POST",
        "/find?q=shoes",
        "192.0.2.7:3333",
    );
    let get = line("eu.shop.example", "GET", "/find", "192.0.2.7:3333");
    let other = line("example.org", "POST", "/find", "192.0.2.7:3333");
    let log = [user.as_str(), &search, &search, &get, &other].concat();
    let ran = tollgate_reading(&args, log.as_bytes());
    let json = ran.json();
    assert_eq!(ran.code, 1, "{json:#}");
    let totals = ["requests", "refused", "not_asked"].map(|name| &json[name]);
    assert_eq!(totals, [2, 1, 2], "{json:#}");
    assert_eq!(json["not_judged"], json!({ "%REQ(X-USER)%": 1 }));
    assert_eq!(
        json["refusals"][0]["who"],
        "destination_cluster=shop, q=shoes"
    );
    let asked: Vec<_> = json["rules"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|rule| (rule["rule"].as_str().expect("text"), rule["asked"].as_u64()))
        .collect();
    let each = |rule| (rule, Some(2));
    assert_eq!(
        asked,
        [
            each("remote_address"),
            each("masked_remote_address=192.0.2.0/24"),
            each("destination_cluster=shop/q")
        ]
    );
}

#[test]
fn templates_say_what_a_line_asks() {
    let templates = [
        "--descriptor",
        "api_key=%{authz.api_key_id}",
        "--descriptor",
        "tier=%{authz.tier|anonymous},ip=%{client}",
    ];
    let args = [
        "simulate",
        "--plans",
        "simulate/new.yaml",
        "--output",
        "json",
    ];
    let ran = tollgate(&[&args[..], &templates, &[LOG]].concat());
    let json = ran.json();
    // Templates know no routes, so those without a limit are asked about as well.
    assert_eq!(json["requests"], 14, "{}{}", ran.out, ran.err);
    for (template, why) in [
        ("ip", "is not KEY=VALUE"),
        ("ip=%{", "has no `}`"),
        ("ip=%{}", "names no field"),
    ] {
        let ran = tollgate(&[&args[..], &["--descriptor", template, LOG]].concat());
        assert_eq!(ran.code, 2);
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}

#[test]
fn no_secret_of_a_log_is_told() {
    let log: String = ["demo-free-key", "somebodys-secret"]
        .iter()
        .flat_map(|secret| (0..9).map(move |_| at(1_700_000_000, secret)))
        .collect();
    let args = [
        "simulate",
        "--plans",
        "simulate/new.yaml",
        "--descriptor",
        "api_key=%{user.name}",
        "-",
    ];
    for output in ["table", "json", "csv"] {
        let ran = tollgate_reading(&[&args[..], &["--output", output]].concat(), log.as_bytes());
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(ran.out.contains("api_key=demo-free"), "{}", ran.out);
        assert!(ran.out.contains("(unknown key #"), "{}", ran.out);
        for secret in ["demo-free-key", "somebodys"] {
            assert!(
                !ran.out.contains(secret) && !ran.err.contains(secret),
                "{}",
                ran.out
            );
        }
    }
}

#[test]
fn a_line_of_a_gigabyte_is_passed_over_and_not_held() {
    let log = io::repeat(b'x').take(1 << 30).chain(&b"\n{}"[..]);
    let mut lines = Lines::new(log).expect("memory");
    assert_eq!(lines.read().expect("memory"), Some(Line::TooLong));
    assert_eq!(lines.read().expect("memory"), Some(Line::Text(b"{}")));
    assert_eq!(lines.read().expect("memory"), None);
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most = most.and_then(|most| most.trim().strip_suffix(" kB"));
    let most: u64 = most.and_then(|most| most.parse().ok()).expect("a size");
    assert!(most < 512 << 10, "{most} KiB");
}

#[test]
fn moments_are_read_as_logs_write_them() {
    let at = |micros| Some(Timestamp::from_micros(micros));
    for (text, micros) in [
        (json!("2023-11-14T22:13:20Z"), 1_700_000_000_000_000),
        (json!("2023-11-14T22:13:20.250Z"), 1_700_000_000_250_000),
        (json!("2023-11-15T00:13:20.25+02:00"), 1_700_000_000_250_000),
        (json!("2023-11-14T16:43:20-0530"), 1_700_000_000_000_000),
        (json!("1700000000.25"), 1_700_000_000_250_000),
        (json!(1_700_000_000), 1_700_000_000_000_000),
        (json!(1_700_000_000_250_u64), 1_700_000_000_250_000),
        (json!(1_700_000_000_250_000_u64), 1_700_000_000_250_000),
    ] {
        assert_eq!(moment::read(&text), at(micros), "{text}");
    }
    for text in [
        "",
        "-",
        "noon",
        "2023-11-14",
        "2023-11-14T22:13:20+0200000",
        "-5",
        "NaN",
        "1969-01-01T00:00:00Z",
        "\u{661}2023-11-14T22:13:20+é1:00",
    ] {
        assert_eq!(moment::read(&json!(text)), None, "{text}");
    }
}
