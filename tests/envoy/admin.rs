//! Somebody helped or stopped while a real Envoy runs, on two replicas that share a Redis, by the commands of docs/usage-plans.md.

use serde_json::{Value, json};

use crate::{
    client::{Client, all_at_once, another_home},
    common::{home::call_as, wait_until},
    stack::Pair,
};

const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["5/day calendar"] } }
descriptors:
  - { key: api_key, limits_from: tier }
  - key: tier
    value: anonymous
    descriptors: [{ key: ip, limits: [{ limit: 20/second burst 1, penalty: { after: 2, for: 1h } }] }]
"#;

/// A command that the page gives for `need`, as its words.
fn command_for(need: &str) -> Vec<&'static str> {
    let page = include_str!("../../docs/usage-plans.md");
    let row = page
        .lines()
        .find(|line| line.starts_with(&format!("| {need} |")));
    let row = row.unwrap_or_else(|| panic!("the page no longer helps where {need}"));
    let (_, command) = row.split_once("`tollgate ").expect("a command");
    let (command, _) = command.split_once('`').expect("its end");
    command
        .split(' ')
        .map(|word| word.trim_matches('"'))
        .collect()
}

async fn status(client: &mut Client, secret: &'static str) -> u16 {
    let answer = client.get("/secure/stats", &[("x-api-key", secret)]).await;
    answer.status
}

/// Asks until eight answers on end, so those of both replicas, are of this status.
async fn becomes(wanted: u16, client: &mut Client, secret: &'static str) {
    wait_until(&format!("{wanted} for {secret}"), async || {
        for _ in 0..8 {
            if status(client, secret).await != wanted {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test]
async fn a_customer_is_helped_and_an_attacker_is_stopped_by_the_commands_of_the_page() {
    let key: &[&str] = &["--tier", "free", "--id", "ada"];
    let (pair, [ada]) = Pair::start_with_keys(PLANS, &[], &[key], |_| {}).await;
    let mut client = pair.envoy.client().await;
    // With other figures, so that neither a grant nor a limit is met by what passes meanwhile.
    let run = |need: &str| {
        let words = command_for(need).into_iter().map(|word| match word {
            "1000" => "3",
            "50/second" => "5000/day",
            word => word,
        });
        pair.home.json(&words.collect::<Vec<_>>())
    };
    for _ in 0..5 {
        assert_eq!(status(&mut client, ada).await, 200);
    }
    becomes(429, &mut client, ada).await;

    let granted = run("one customer needs more today");
    assert_eq!(
        (&granted[0]["before"], &granted[0]["remaining"]),
        (&json!(0), &json!(3))
    );
    // Three of the same calls pass, and no more.
    let mut passed = 0;
    wait_until("the granted calls to pass", async || {
        passed += u32::from(status(&mut client, ada).await == 200);
        passed == 3
    })
    .await;
    becomes(429, &mut client, ada).await;

    run("… or from now on");
    becomes(200, &mut client, ada).await;

    let rotated = run("a key has leaked");
    becomes(403, &mut client, ada).await;
    let fresh = rotated["secret"].as_str().expect("text").to_owned().leak();
    becomes(200, &mut client, fresh).await;

    // The address of this client is the attacker's.
    let shop = pair.home.draft(
        "shop.yaml",
        &format!("deny: {{ cidr: [127.0.0.1/32] }}{PLANS}"),
    );
    let mut put = command_for("an attack from one network");
    assert_eq!(put.pop(), Some("shop.yaml"));
    pair.home.json(&[&put[..], &[&shop]].concat());
    becomes(403, &mut client, fresh).await;
    let mut other = Client::connect_from(another_home(9), pair.envoy.edge).await;
    becomes(200, &mut other, fresh).await;

    pair.home
        .json(&["plans", "put", &pair.home.draft("open.yaml", PLANS)]);
    becomes(200, &mut client, fresh).await;
    let mut back = command_for("a limit was wrong");
    assert_eq!(back.pop(), Some("N"));
    pair.home.json(&[&back[..], &["1"]].concat());
    becomes(403, &mut client, fresh).await;

    let told = pair.home.json(&command_for("who did that?"));
    let actions: Vec<_> = told
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| &entry["action"])
        .collect();
    assert_eq!(
        actions,
        [
            "plans.rollback",
            "plans.put",
            "plans.put",
            "key.rotate",
            "key.update",
            "buckets.grant",
            "key.create"
        ]
    );
}

#[tokio::test]
async fn an_address_under_a_penalty_is_shown_and_let_go() {
    let pair = Pair::start(PLANS, &[], |_| {}).await;
    all_at_once(pair.envoy.edge, 100, "/public/stats", &[]).await;
    let mut client = pair.envoy.client().await;
    assert_eq!(client.get("/public/stats", &[]).await.status, 429);

    let named = ["--descriptor", "tier=anonymous,ip=127.0.0.1"];
    let buckets = |args: &[&str]| {
        let told = pair.home.json(&[&["buckets"], args, &named].concat());
        assert_eq!(told.as_array().map(Vec::len), Some(1));
        told[0].clone()
    };
    let penalised = |told: &Value| {
        let seconds = told["penalised_seconds"].as_f64().expect("a number");
        assert!(seconds == 0.0 || seconds > 3_000.0, "{told}");
        seconds > 0.0
    };
    assert!(penalised(&buckets(&["show"])));
    // Tokens alone are no help.
    assert!(penalised(&buckets(&["grant", "--hits", "1"])));
    assert_eq!(client.get("/public/stats", &[]).await.status, 429);
    let (code, text, _) = pair.home.run(&[&["buckets", "show"][..], &named].concat());
    assert!(
        code == 0 && text.contains("; refused by its penalty for 3"),
        "{text}"
    );

    let reset = buckets(&["reset"]);
    assert!(!penalised(&reset) && reset["remaining"] == 1, "{reset}");
    wait_until("the address to be let go", async || {
        client.get("/public/stats", &[]).await.status == 200
    })
    .await;
    let entries = pair
        .home
        .json(&["audit", "--on", "stats-api (tier=anonymous, ip=127.0.0.1)"]);
    assert_eq!(
        (&entries[0]["action"], &entries[1]["action"]),
        (&json!("buckets.reset"), &json!("buckets.grant"))
    );

    // The same by the admin API of either replica.
    let question = json!({
        "domain": "stats-api",
        "descriptors": [{ "entries": [{ "key": "tier", "value": "anonymous" }, { "key": "ip", "value": "127.0.0.1" }] }],
    });
    for admin in &pair.admin {
        let (status, told) = call_as(
            admin,
            Some(Pair::TOKEN),
            "POST /v1/buckets/show",
            &question.to_string(),
        );
        assert_eq!(status, 200, "{told}");
        assert!(!penalised(&told["buckets"][0]));
    }
}

#[tokio::test]
async fn a_quota_is_raised_live_and_the_same_call_passes() {
    let key: &[&str] = &["--tier", "free", "--id", "ada"];
    let (pair, [ada]) = Pair::start_with_keys(PLANS, &[], &[key], |_| {}).await;
    let mut client = pair.envoy.client().await;
    for _ in 0..5 {
        assert_eq!(status(&mut client, ada).await, 200);
    }
    assert_eq!(status(&mut client, ada).await, 429, "the sixth");
    let raised = PLANS.replace("5/day", "5000/day");
    let put = |text: &str| {
        pair.home
            .json(&["plans", "put", &pair.home.draft("draft", text)])
    };
    put(&raised);
    becomes(200, &mut client, ada).await;
    // And back: what is used stays used.
    pair.home.json(&["plans", "reset"]);
    becomes(429, &mut client, ada).await;
}

const OF_ADDRESSES: &str = r#"
domain: stats-api
descriptors:
  - { key: tier, value: anonymous, descriptors: [{ key: ip, limits: ["3/day sliding"] }] }
"#;

/// Asks until the answers are so: a change may take a second to reach every replica.
async fn until_passes(client: &mut Client, passes: bool) {
    wait_until("another answer", async || {
        let answer = client.get("/public/stats", &[]).await;
        assert!(matches!(answer.status, 200 | 429), "{}", answer.status);
        (answer.status == 200) == passes
    })
    .await;
}

#[tokio::test]
async fn an_address_is_helped_and_stopped_and_plans_go_back_to_an_earlier_version() {
    let pair = Pair::start(OF_ADDRESSES, &[], |_| {}).await;
    let (here, there) = (another_home(21), another_home(22));
    let mut client = Client::connect_from(here, pair.envoy.edge).await;
    let mut other = Client::connect_from(there, pair.envoy.edge).await;
    for client in [&mut client, &mut other] {
        assert_eq!(
            client.statuses("/public/stats", 4).await,
            [200, 200, 200, 429]
        );
    }
    let named = ["--descriptor", "tier=anonymous,ip=127.0.0.21"];
    let buckets = |args: &[&str]| pair.home.json(&[&["buckets"], args, &named].concat())[0].clone();
    assert_eq!(buckets(&["show"])["remaining"], 0);
    assert_eq!(buckets(&["reset"])["remaining"], 3);
    until_passes(&mut client, true).await;
    assert_eq!(
        other.get("/public/stats", &[]).await.status,
        429,
        "nobody else is helped"
    );
    let left = buckets(&["show"])["remaining"].as_i64().unwrap();
    assert!((0..3).contains(&left), "{left}");
    buckets(&["grant", "--hits", "2"]);

    // Stopped by a document, let in again by the version before it.
    let put = |text: &str| {
        pair.home
            .json(&["plans", "put", &pair.home.draft("draft", text)])
    };
    assert_eq!(
        put(&OF_ADDRESSES.replace("3/day", "1000/day"))["version"],
        1
    );
    until_passes(&mut client, true).await;
    until_passes(&mut other, true).await;
    let denied = format!("{OF_ADDRESSES}deny: {{ cidr: [127.0.0.21/32] }}\n");
    assert_eq!(put(&denied.replace("3/day", "1000/day"))["version"], 2);
    until_passes(&mut client, false).await;
    until_passes(&mut other, true).await;
    let rolled = pair.home.json(&["plans", "rollback", "1"]);
    assert_eq!(rolled["version"], 3);
    until_passes(&mut client, true).await;

    // Who did what, newest first.
    let audit = pair.home.json(&["audit"]);
    let told: Vec<_> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "plans.rollback",
            "plans.put",
            "plans.put",
            "buckets.grant",
            "buckets.reset"
        ]
    );
    assert_eq!(pair.metric("tollgate_degraded_total"), 0.0);
}
