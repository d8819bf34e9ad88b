//! The tools that read what Envoy writes: its access log, and its own account of its configuration.

use std::{fs, process::Command};

use serde_json::Value;
use tollgate::{
    envoy,
    replay::reader::{Read, Reader},
};

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

/// Routes of every kind. The plans refuse whatever is asked, so 429 says that Envoy has asked.
pub const ROUTES: &str = include_str!("routes.yaml");

/// Paths, and values of the header `x-user`, or none.
pub const REQUESTS: [(&str, &str); 27] = [
    ("/direct", ""),
    ("/redirect", ""),
    ("/of-the-host", ""),
    ("/own", ""),
    ("/own", "ada"),
    ("/both", ""),
    ("/both", "ada"),
    ("/stage", ""),
    ("/ignore", ""),
    ("/off", ""),
    ("/wrapped", ""),
    ("/wrapped", "ada"),
    ("/regex", ""),
    ("/regex", "ada"),
    ("/regex", "ben"),
    ("/skipping", ""),
    ("/skipping/more", "ada"),
    ("/skippings", "ada"),
    ("/writes", ""),
    ("/deletes/", ""),
    ("/query?kind=abc&q=1", ""),
    ("/query?kind=abc", ""),
    ("/query?kind=bcd&q=1", ""),
    ("/metadata", ""),
    ("/no-metadata", ""),
    ("/cASE/one", ""),
    ("/nowhere", ""),
];

/// Asks Envoy everything, and holds what a reader of its log says beside it; answers the paths that were asked about.
async fn asked_alike(change: impl FnOnce(&mut EnvoyConfig)) -> Vec<String> {
    let (_folder, path) = plans("domain: stats-api\nunmatched: deny\n");
    let mut written = serde_yaml::Value::Null;
    let stack = Stack::start(&path, &[], Upstream::recording().0, |config| {
        let manager = config.connection_manager();
        manager["route_config"] = serde_yaml::from_str(ROUTES).expect("YAML");
        let format = &mut manager["access_log"][0]["typed_config"]["log_format"]["json_format"];
        format["user"] = "%REQ(X-USER)%".into();
        format["path"] = "%PATH(WQ:ORIG_OR_PATH)%".into();
        format["nobody"] = "%DYNAMIC_METADATA(nobody)%".into();
        format["authority"] = "%REQ(:AUTHORITY)%".into();
        config.drop_authz();
        change(config);
        written = config.0.clone();
    })
    .await;
    let mut client = stack.envoy.client().await;
    let mut statuses = Vec::new();
    for (path, user) in REQUESTS {
        let user = [("x-user", user)];
        let headers = if user[0].1.is_empty() {
            &user[1..]
        } else {
            &user[..]
        };
        statuses.push(client.get(path, headers).await.status);
    }
    let lines = wait_for("the access log", || {
        let lines = stack.envoy.process.output();
        (lines.lines().count() == REQUESTS.len()).then_some(lines)
    });
    let text = serde_json::to_string(&written).expect("JSON");
    let mut config = envoy::EnvoyConfig::from_text("envoy.json", &text).expect("Envoy took it");
    let manager = Box::new(config.managers.remove(0));
    let reader = Reader::Envoy {
        manager,
        time: None,
    };
    let mut asked = Vec::new();
    for ((line, status), (path, user)) in lines.lines().zip(statuses).zip(REQUESTS) {
        let read = reader.read(line.as_bytes()).expect(line);
        assert_eq!(
            matches!(read, Read::Request(_)),
            status == 429,
            "{path} of `{user}`: {status}, {read:?}"
        );
        if status == 429 {
            asked.push(format!("{path} {user}"));
        }
    }
    asked
}

#[tokio::test]
async fn a_reader_of_the_log_knows_what_envoy_asks_on_every_kind_of_route() {
    let asked = asked_alike(|_| {}).await;
    let of_the_host = ["/of-the-host ", "/both ", "/cASE/one "].map(str::to_owned);
    assert!(
        of_the_host.iter().all(|path| asked.contains(path)),
        "{asked:?}"
    );
}

#[tokio::test]
async fn the_filters_own_descriptors_win_over_the_older_ones() {
    let asked = asked_alike(|config| {
        let text =
            "[{ actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }] }]";
        config.rate_limit()["rate_limits"] = serde_yaml::from_str(text).expect("YAML");
    })
    .await;
    assert!(!asked.contains(&"/of-the-host ".to_owned()), "{asked:?}");
    assert!(asked.contains(&"/wrapped ada".to_owned()), "{asked:?}");
}

#[tokio::test]
async fn a_filter_that_is_off_asks_only_where_a_route_switches_it_on() {
    let asked = asked_alike(|config| {
        let filters = &mut config.connection_manager()["http_filters"];
        filters[0]["disabled"] = true.into();
    })
    .await;
    assert!(!asked.contains(&"/of-the-host ".to_owned()), "{asked:?}");
    assert!(asked.contains(&"/wrapped ada".to_owned()), "{asked:?}");
}
