//! The tools that read what Envoy writes: its access log, and its own account of its configuration.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{
    common::{Tollgate, plans, tollgate_command, wait_for},
    stack::{Envoy, EnvoyConfig, Stack, Upstream, shipped},
};

/// Plans of the demo with other limits; none of them refills while a test runs.
fn demo_plans(free: &str, address: &str) -> String {
    let text = fs::read_to_string(shipped("config/stats-api.yaml")).expect("it is shipped");
    let text = text.replace("1/second", free);
    text.replace(
        "\"50/minute sliding\", \"500/hour sliding\"",
        &format!("\"{address}\""),
    )
}

fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("the binary is built");
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8(output.stdout).expect("text");
    let code = output.status.code().expect("no signal");
    assert!(code < 2, "{errors}");
    (code, text)
}

/// `tollgate simulate` of a log, by the shipped Envoy configuration.
fn simulate(log: &str, plans: &str, more: &[&str]) -> (i32, Value) {
    let (_folder, plans) = self::plans(plans);
    let mut command = tollgate_command();
    command.arg("simulate").arg("--envoy");
    command
        .arg(shipped("envoy/envoy.yaml"))
        .arg("--plans")
        .arg(plans);
    command.args(["--output", "json"]).args(more).arg(log);
    let (code, text) = run(&mut command);
    (code, serde_json::from_str(&text).expect("JSON"))
}

#[tokio::test]
async fn a_replay_of_envoys_log_decides_as_the_service_did() {
    let as_it_was = demo_plans("3/hour", "4/hour");
    let (_folder, path) = plans(&as_it_was);
    let stack = Stack::start(&path, &[], Upstream::fast_stats(), |_| {}).await;
    let mut client = stack.envoy.client().await;
    let mut refused = 0;
    for (path, key) in [
        ("/secure/stats", "demo-free-key"),
        ("/secure/stats?live=1", "demo-free-key"),
        ("/secure/stats", "demo-free-key"),
        ("/secure/stats", "demo-free-key"),
        ("/secure/stats", "demo-premium-key"),
        ("/secure/stats", "nobodys-key"),
        ("/public/stats", ""),
        ("/public/stats", ""),
        ("/public/stats", ""),
        ("/public/stats", ""),
        ("/public/stats", ""),
        ("/public/stats", ""),
        ("/unsecure/stats", ""),
        ("/nothing", ""),
    ] {
        let key = [("x-api-key", key)];
        let headers = if key[0].1.is_empty() {
            &key[1..]
        } else {
            &key[..]
        };
        refused += u64::from(client.get(path, headers).await.status == 429);
    }
    assert_eq!(refused, 3);
    let lines = wait_for("the access log", || {
        let lines = stack.envoy.process.output();
        (lines.lines().count() == 14).then_some(lines)
    });
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    fs::write(&log, lines).expect("writable");
    let log = log.to_str().expect("UTF-8");

    let (code, same) = simulate(log, &as_it_was, &[]);
    assert_eq!((code, &same["refused"]), (1, &refused.into()), "{same:#}");
    assert_eq!(same["refused_then"], refused);
    assert_eq!(
        (&same["requests"], &same["not_asked"]),
        (&11.into(), &3.into())
    );
    assert_eq!((&same["bad"], &same["lines"]), (&0.into(), &14.into()));
    let whos: Vec<&str> = same["refusals"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|who| who["who"].as_str().expect("text"))
        .collect();
    assert_eq!(whos, ["tier=anonymous, ip=127.0.0.1", "api_key=demo-free"]);

    let (code, looser) = simulate(log, &demo_plans("9/hour", "9/hour"), &[]);
    assert_eq!((code, &looser["refused"]), (0, &0.into()), "{looser:#}");
    let old = path.to_str().expect("UTF-8");
    let (code, tighter) = simulate(log, &demo_plans("9/hour", "2/hour"), &["--old", old]);
    assert_eq!(code, 1);
    // The free key's third and fourth request meet the address now; of the public ones two more do.
    let versus = serde_json::json!({ "refused": 3, "newly_refused": 3, "newly_admitted": 0 });
    assert_eq!(tighter["old"], versus, "{tighter:#}");
}

#[tokio::test]
async fn what_envoy_says_of_its_configuration_is_read_like_the_file() {
    let tollgate = Tollgate::start(&shipped("config"), &[]);
    let upstream = Upstream::fast_stats();
    let config = EnvoyConfig::new(&[&tollgate.grpc], upstream.address);
    let envoy = Envoy::start(&config).await;
    let dump = envoy.page("/config_dump").await.body;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("dump.json");
    fs::write(&file, dump).expect("writable");
    let check = |config| {
        let mut command = tollgate_command();
        command.args(["check", "--output", "json", "--envoy"]);
        let (_, text) = run(command.arg(config).arg(shipped("config")));
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let (running, written) = (check(file), check(shipped("envoy/envoy.yaml")));
    assert_eq!(written["routes"].as_array().map(Vec::len), Some(4));
    assert_eq!(running["routes"], written["routes"]);
    assert_eq!(running["warnings"], written["warnings"]);
    assert_eq!(running["elsewhere"], written["elsewhere"]);
}
