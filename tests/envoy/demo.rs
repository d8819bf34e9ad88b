//! `tollgate demo`, as a newcomer runs it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
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

/// A demo whose temporary files are in `temporary`.
fn start(temporary: &Path, more: &[&str]) -> Process {
    let mut command: Command = tollgate_command();
    command.env("TMPDIR", temporary);
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

async fn keys_have_what_their_tier_says(client: &mut Client) {
    for key in [&[][..], &[("x-api-key", "wrong")]] {
        let answer = client.get("/secure/stats", key).await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (403, r#"{"message":"Forbidden"}"#)
        );
    }
    let free = [("x-api-key", "demo-free-key")];
    let first = client.get("/secure/stats", &free).await;
    let second = client.get("/secure/stats", &free).await;
    assert_eq!(
        (first.status, second.status, second.body.as_str()),
        (200, 429, r#"{"message":"Too Many Requests"}"#),
        "{first:?} {second:?}"
    );
}

/// 100 at once and 10 a second: what has passed by the time of a refusal lies between what the times of asking and of answering
/// allow.
async fn premium_has_a_burst_and_a_rate(client: &mut Client) {
    let premium = [("x-api-key", "demo-premium-key")];
    let (first_asked, mut first_answered) = (Instant::now(), None);
    let mut passed = 0;
    loop {
        let asked = Instant::now();
        let answer = client.get("/secure/stats", &premium).await;
        let begin = *first_answered.get_or_insert_with(Instant::now);
        if answer.status == 200 {
            passed += 1;
            continue;
        }
        assert_eq!(answer.status, 429, "{answer:?}");
        let due = |time: Duration| 100.0 + 10.0 * time.as_secs_f64();
        let (least, most) = (due(asked - begin) - 1.0, due(first_asked.elapsed()));
        let passed = f64::from(passed);
        assert!(least < passed && passed <= most, "{least} {passed} {most}");
        // Some of the ten a second were among them, too.
        if passed >= 110.0 {
            return;
        }
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
    let temporary = tempfile::tempdir().expect("a folder");
    let mut demo = start(temporary.path(), more);
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
    keys_have_what_their_tier_says(&mut client).await;
    premium_has_a_burst_and_a_rate(&mut client).await;
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
    let folder = Path::new(folder.expect("it tells where logs are"));
    assert_eq!(folder.parent(), Some(temporary.path()));
    assert!(folder.is_dir(), "{folder:?}");

    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.wait(), Some(0), "{}", demo.log());
    assert_eq!(still_running(&processes), Vec::<String>::new());
    assert!(is_empty(temporary.path()), "{folder:?} was left behind");
}

#[tokio::test]
async fn the_demo_tells_its_story_limits_and_leaves_nothing_behind() {
    story_holds(&[], &["sh", "tollgate", "envoy"]).await;
}

#[tokio::test]
async fn the_demo_with_redis_does_the_same() {
    story_holds(&["--redis"], &["sh", "redis-server", "tollgate", "envoy"]).await;
}

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_processes_and_its_folder_along() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut demo = start(temporary.path(), &[]);
    wait_for("the story", || {
        assert!(demo.is_running(), "the demo ended:\n{}", demo.log());
        Some(()).filter(|()| demo.output().contains("Ctrl-C here"))
    });
    let processes = descendants(demo.pid());
    assert_eq!(processes.len(), 3, "{processes:?}");
    assert!(!is_empty(temporary.path()));
    demo.kill();
    wait_for("all to end", || {
        let ended = still_running(&processes).is_empty();
        (ended && is_empty(temporary.path())).then_some(())
    });
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a folder").next().is_none()
}
