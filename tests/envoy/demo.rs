//! `tollgate demo`, as a newcomer runs it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    client::Client,
    common::{Process, home::call_as, tollgate_command, wait_for},
    stack::shipped,
};

/// The processes that `parent` started, and theirs: pid and command.
fn descendants(parent: u32) -> BTreeMap<u32, String> {
    let processes: Vec<(u32, u32, String)> = fs::read_dir("/proc")
        .expect("Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (head, rest) = stat.rsplit_once(')')?;
            let name = head.split_once('(')?.1.to_owned();
            Some((pid, rest.split(' ').nth(2)?.parse().ok()?, name))
        })
        .collect();
    let mut found: BTreeMap<u32, String> = BTreeMap::new();
    loop {
        let before = found.len();
        for (pid, of, name) in &processes {
            if *of == parent || found.contains_key(of) {
                found.insert(*pid, name.clone());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Those of `processes` that still run (a number that was given to another program is not it).
fn still_running(processes: &BTreeMap<u32, String>) -> Vec<String> {
    let running = processes.iter().filter(|(pid, name)| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // One that has ended and waits for somebody to read its status is state Z.
        stat.contains(&format!("({name}) ")) && !stat.contains(") Z ")
    });
    running
        .map(|(pid, name)| format!("{name} ({pid})"))
        .collect()
}

fn start(more: &[&str]) -> Process {
    let mut command: Command = tollgate_command();
    command.current_dir(shipped("")).arg("demo");
    for flag in [
        "--listen",
        "--stats-listen",
        "--grpc-listen",
        "--http-listen",
        "--admin-listen",
    ] {
        command.args([flag, "0"]);
    }
    // Of a service that this shell looks after, and none of the demo's.
    command.env("TOLLGATE_ADMIN_TOKEN", OTHERS_TOKEN);
    command.env("TOLLGATE_ADMIN_LISTEN", "192.0.2.1:1");
    command.env("TOLLGATE_ADMIN_TLS_CERT", "/nowhere");
    Process::start(command.args(more))
}

const OTHERS_TOKEN: &str = "token-of-another-service";

/// The story's line about the audit log holds: the demo's own token opens the admin API, and no other.
fn audit_is_told(story: &str) {
    let line = story.lines().find(|line| line.contains("/v1/audit"));
    let line = line.expect("the line about the audit log");
    let between = |from: &str, to: &str| {
        let rest = line.split_once(from).expect(line).1;
        rest.split_once(to).expect(line).0
    };
    let file = between("sed 's/.* //' ", ")");
    let own = fs::read_to_string(file).expect("the token");
    let own = own.split_whitespace().last();
    let address = between("http://", "/");
    let (status, page) = call_as(address, own, "GET /v1/audit", "");
    assert_eq!(status, 200, "{page}");
    let actions = page["entries"].as_array().expect("a list").iter();
    let actions: Vec<_> = actions
        .filter_map(|entry| entry["action"].as_str())
        .collect();
    assert_eq!(actions, ["key.revoke", "key.create", "plans.put"]);
    let (status, _) = call_as(address, Some(OTHERS_TOKEN), "GET /v1/audit", "");
    assert_eq!(status, 401);
}

/// The line of the story that has `part` in it, run by a shell where the story was told.
fn run_line(story: &str, part: &str) -> String {
    let line = story.lines().find(|line| line.contains(part));
    let line = line.unwrap_or_else(|| panic!("{part} in {story}"));
    let ran = Command::new("sh")
        // The last word of what it sets, if it sets anything.
        .args(["-c", &format!("{line}; echo \"$KEY\"")])
        .current_dir(shipped(""))
        .output()
        .expect("a shell");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        ran.status.success() && ran.stderr.is_empty(),
        "{line}\n{ran:?}"
    );
    told.lines().last().unwrap_or_default().to_owned()
}

/// Asks until the answer has `status`.
async fn until(status: u16, client: &mut Client, key: &'static str) {
    let begun = Instant::now();
    loop {
        let answer = client.get("/secure/stats", &[("x-api-key", key)]).await;
        if answer.status == status {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn quota_is_raised(story: &str, client: &mut Client) {
    let quota = [("x-api-key", "demo-quota-key")];
    let mut passed = 0;
    let refused = loop {
        let answer = client.get("/secure/stats", &quota).await;
        if answer.status != 200 {
            break answer;
        }
        passed += 1;
        assert!(passed <= 10, "twice its quota, were this midnight");
    };
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(passed >= 5, "{passed}");
    assert_eq!(refused.body, r#"{"message":"Limit Exceeded"}"#);
    run_line(story, "plans put");
    until(200, client, "demo-quota-key").await;
}

async fn key_comes_and_goes(story: &str, client: &mut Client) {
    let key = run_line(story, "keys create").leak();
    assert!(key.starts_with("tg_"), "{key}");
    until(200, client, key).await;
    run_line(story, "keys revoke");
    until(403, client, key).await;
}

/// The story is told, its Envoy limits, and with SIGTERM all of `parts` are gone.
async fn story_holds(more: &[&str], parts: &[&str]) {
    let mut demo = start(more);
    let story = wait_for("the end of the story", || {
        assert!(demo.is_running(), "the demo ended:\n{}", demo.log());
        Some(demo.output()).filter(|story| story.contains("Ctrl-C here stops everything."))
    });
    assert!(
        story.contains("demo-free-key") && story.contains("/secure/stats"),
        "{story}"
    );
    let edge = story
        .strip_prefix("Envoy http://")
        .and_then(|rest| rest.split(' ').next());
    let edge: SocketAddr = edge
        .and_then(|edge| edge.parse().ok())
        .expect("its address");
    let mut client = Client::connect(edge).await;
    let free = [("x-api-key", "demo-free-key")];
    let first = client.get("/secure/stats", &free).await;
    let second = client.get("/secure/stats", &free).await;
    assert_eq!(
        (first.status, second.status),
        (200, 429),
        "{first:?} {second:?}"
    );

    quota_is_raised(&story, &mut client).await;
    key_comes_and_goes(&story, &mut client).await;
    audit_is_told(&story);

    let processes = descendants(demo.pid());
    let names: Vec<&str> = processes.values().map(String::as_str).collect();
    for part in parts {
        assert!(
            names.iter().any(|name| name.starts_with(part)),
            "{part} in {names:?}"
        );
    }
    assert_eq!(names.len(), parts.len(), "{names:?}");
    let folder = story
        .split("logs: ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let folder = folder.expect("it tells where logs are");
    assert!(fs::metadata(folder).is_ok(), "{folder}");

    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.wait(), Some(0), "{}", demo.log());
    assert_eq!(still_running(&processes), Vec::<String>::new());
    assert!(fs::metadata(folder).is_err(), "{folder} was left behind");
}

#[tokio::test]
async fn the_demo_tells_its_story_limits_and_leaves_nothing_behind() {
    story_holds(&[], &["tollgate", "envoy"]).await;
}

#[tokio::test]
async fn the_demo_with_redis_does_the_same() {
    story_holds(&["--redis"], &["redis-server", "tollgate", "envoy"]).await;
}

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_processes_along() {
    let mut demo = start(&[]);
    wait_for("the story", || {
        assert!(demo.is_running(), "the demo ended:\n{}", demo.log());
        Some(()).filter(|()| demo.output().contains("Ctrl-C here"))
    });
    let processes = descendants(demo.pid());
    assert_eq!(processes.len(), 2, "{processes:?}");
    demo.kill();
    wait_for("all to end", || {
        still_running(&processes).is_empty().then_some(())
    });
}
