//! Usage of requests through a real Envoy: the secret comes in, the id is metered.

use nix::sys::signal::Signal;

use crate::{
    common::{plans, tollgate_command},
    stack::{Stack, Upstream},
};

/// `ada` is the key whose secret is `demo-free-key`.
const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["3/day"] } }
api_keys:
  - { id: ada, tier: free, owner: Ada, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
descriptors:
  - { key: api_key, limits_from: tier }
"#;

#[tokio::test]
async fn a_free_key_used_eight_times_shows_three_admitted_and_five_refused() {
    let (_folder, config) = plans(PLANS);
    let state = tempfile::tempdir().unwrap();
    let args = ["--usage", "--state-dir", state.path().to_str().unwrap()];
    let mut stack = Stack::start(&config, &args, Upstream::fast_stats(), |_| {}).await;
    let mut client = stack.envoy.client().await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let headers = [("x-api-key", "demo-free-key")];
        statuses.push(client.get("/secure/stats", &headers).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429, 429, 429]);
    // No key, or a wrong one, never comes as far as a limit.
    assert_eq!(client.get("/secure/stats", &[]).await.status, 403);
    let wrong = [("x-api-key", "a-secret-that-nobody-has")];
    assert_eq!(client.get("/secure/stats", &wrong).await.status, 403);
    stack.tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(stack.tollgate.process.wait(), Some(0));

    let mut command = tollgate_command();
    command.args(["usage", "--by", "month", "--key", "ada", "--output", "csv"]);
    command
        .args(["--state-dir", args[2], "--config"])
        .arg(&config);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let row = text.lines().nth(1).unwrap_or_else(|| panic!("{text}"));
    let (_month, row) = row.split_once(',').unwrap();
    assert_eq!(row, "stats-api,ada,Ada,free,api_key:3/day,3,5,0");
}
