//! A machine whose clock jumps while the service runs: keys, plans, the audit log, usage and buckets.

mod common;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{
    Process, Tollgate, ask,
    home::{Home, admin_address, call_as, finished},
    request, wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const PLANS: &str = r#"
domain: shop
tiers: { free: { limits: [5/day calendar] } }
descriptors:
  - { key: api_key, limits_from: tier }
  - { key: user, limits: [2/hour] }
"#;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const TOKEN: &str = "s3cret-token-of-the-admin";

/// A home whose service and commands share a clock that jumps.
struct Shifted {
    home: Home,
    folder: TempDir,
    library: PathBuf,
    /// Seconds until noon, or since: no day ends while a test runs.
    to_noon: i64,
}

impl Shifted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("clock_shift.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg("tests/common/clock_shift.c")
            .status();
        // Rust itself links by it.
        assert!(
            built.is_ok_and(|status| status.success()),
            "`cc` does not run"
        );
        Self {
            home: Home::new(PLANS),
            folder,
            library,
            to_noon: DAY / 2 - since_1970().as_secs() as i64 % DAY,
        }
    }

    /// From now on the clock shows so many seconds after noon of today.
    fn jump(&self, seconds: i64) {
        let new = self.folder.path().join("new");
        fs::write(&new, (self.to_noon + seconds).to_string()).unwrap();
        fs::rename(new, self.folder.path().join("shift")).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(args);
        command.env("LD_PRELOAD", &self.library);
        command.env("CLOCK_SHIFT", self.folder.path().join("shift"));
        command
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = finished(&mut self.command(&[args, &["--output", "json"]].concat()));
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn serve(&self) -> (Tollgate, String) {
        let token = self.home.draft("token", &format!("eve {TOKEN}\n"));
        let mut command = self.command(&["serve", "--usage", "--usage-flush-interval", "50ms"]);
        for listen in ["--grpc-listen", "--http-listen", "--admin-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        command.args(["--drain-delay", "0s", "--admin-token-file", &token]);
        let mut tollgate = Tollgate::from_process(Process::start(&mut command));
        let admin = admin_address(&mut tollgate);
        (tollgate, admin)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Whether it passes.
async fn passes(tollgate: &Tollgate, key: &str, value: &str) -> bool {
    let asked = request("shop", &[&[(key, value)]]);
    let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
    answer.overall_code == 1
}

/// Of ten requests, those that pass.
async fn of_ten(tollgate: &Tollgate, key: &str, value: &str) -> u32 {
    let mut passed = 0;
    for _ in 0..10 {
        passed += u32::from(passes(tollgate, key, value).await);
    }
    passed
}

/// The state of a key as the service shows it.
fn state(admin: &str) -> Value {
    let (status, key) = call_as(admin, Some(TOKEN), "GET /v1/keys/ada", "");
    assert_eq!(status, 200, "{key}");
    key["state"].clone()
}

#[tokio::test]
async fn keys_plans_and_the_audit_log_go_on_in_order_whatever_the_clock_shows() {
    let clock = Shifted::new();
    clock.jump(0);
    let (tollgate, admin) = clock.serve();
    let made = clock.json(&[
        "keys",
        "create",
        "--tier",
        "free",
        "--id",
        "ada",
        "--expires",
        "1h",
    ]);
    let first = made["secret"].as_str().unwrap();
    let knows = async |secret: &str, known: bool| {
        let question = json!({ "domain": "shop", "descriptors": [{ "entries": [{ "key": "api_key", "value": secret }] }] });
        wait_until("the key", async || {
            let (_, answer) = call_as(
                &admin,
                Some(TOKEN),
                "POST /v1/buckets/show",
                &question.to_string(),
            );
            (answer["buckets"][0].is_object()) == known
        })
        .await;
    };
    knows(first, true).await;
    clock.jump(2 * HOUR);
    assert_eq!(state(&admin), "expired");
    knows(first, false).await;
    clock.jump(-DAY);
    assert_eq!(state(&admin), "enabled");
    knows(first, true).await;

    // What is done then is done to what is newest, not to what has the latest time.
    let rotated = clock.json(&["keys", "rotate", "ada", "--overlap", "1h"]);
    assert_eq!(rotated["revision"], 2);
    let second = rotated["secret"].as_str().unwrap();
    knows(second, true).await;
    knows(first, true).await;
    clock.jump(-DAY + 2 * HOUR);
    knows(first, false).await;
    knows(second, true).await;
    clock.jump(400 * DAY);
    let updated = clock.json(&["keys", "update", "ada", "--expires", "never"]);
    assert_eq!(
        (&updated["revision"], &updated["state"]),
        (&json!(3), &json!("enabled"))
    );
    clock.jump(-400 * DAY);
    for hits in [6, 7] {
        let draft = clock.home.draft(
            "draft.yaml",
            &PLANS.replace("5/day", &format!("{hits}/day")),
        );
        clock.json(&["plans", "put", &draft]);
        clock.jump(-800 * DAY);
    }
    clock.jump(0);
    assert_eq!(clock.json(&["plans", "rollback", "1"])["version"], 3);
    let history = clock.json(&["plans", "history", "shop"]);
    let versions: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["version"])
        .collect();
    assert_eq!(versions, [3, 2, 1]);
    let audit = clock.json(&["audit"]);
    let actions: Vec<_> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["action"])
        .collect();
    let newest_first = [
        "plans.rollback",
        "plans.put",
        "plans.put",
        "key.update",
        "key.rotate",
        "key.create",
    ];
    assert_eq!(actions, newest_first);
    drop(tollgate);

    // And it is all there after a restart at yet another time.
    clock.jump(-3 * DAY);
    let (_tollgate, admin) = clock.serve();
    assert_eq!(state(&admin), "enabled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_quota_is_given_once_a_day_and_a_clock_put_back_gives_nothing_twice() {
    let clock = Shifted::new();
    clock.jump(0);
    let (mut tollgate, admin) = clock.serve();
    clock.json(&["keys", "create", "--tier", "free", "--id", "ada"]);
    wait_until("the key", async || {
        passes(&tollgate, "api_key", "ada").await
    })
    .await;
    assert_eq!(of_ten(&tollgate, "api_key", "ada").await, 4);
    clock.jump(2 * DAY);
    assert_eq!(of_ten(&tollgate, "api_key", "ada").await, 5);
    clock.jump(0);
    assert_eq!(
        of_ten(&tollgate, "api_key", "ada").await,
        0,
        "of a day that it has seen the end of"
    );
    clock.jump(4 * DAY);
    assert_eq!(of_ten(&tollgate, "api_key", "ada").await, 5);

    // A clock that was wrong by years leaves buckets that stand still, also after a restart. Without their file they
    // begin anew.
    clock.jump(0);
    assert_eq!(of_ten(&tollgate, "user", "u").await, 2);
    clock.jump(3650 * DAY);
    assert_eq!(of_ten(&tollgate, "user", "u").await, 2);
    clock.jump(HOUR);
    let bucket = json!({ "domain": "shop", "descriptors": [{ "entries": [{ "key": "user", "value": "u" }] }] });
    let reset = "POST /v1/buckets/reset";
    assert!(!passes(&tollgate, "user", "u").await, "it stands still");
    let (status, filled) = call_as(&admin, Some(TOKEN), reset, &bucket.to_string());
    assert_eq!(
        (status, &filled["buckets"][0]["remaining"]),
        (200, &json!(2)),
        "{filled}"
    );
    assert_eq!(
        of_ten(&tollgate, "user", "u").await,
        2,
        "who is helped by hand passes"
    );
    tollgate.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(tollgate.process.wait(), Some(0));
    let (mut again, _) = clock.serve();
    clock.jump(2 * HOUR);
    assert!(!passes(&again, "user", "u").await);
    again.process.kill();
    fs::remove_file(clock.home.state().join("buckets.snapshot")).unwrap();
    let (anew, _) = clock.serve();
    assert_eq!(of_ten(&anew, "user", "u").await, 2);
}
