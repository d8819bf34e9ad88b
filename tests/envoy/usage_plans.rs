//! The lines of docs/usage-plans.md, through a real Envoy as it is shipped, over two replicas that share a Redis.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hyper::Method;
use serde_json::json;

use crate::{
    client::{Answer, Client, another_home},
    common::{home::call_as, wait_for, wait_until},
    stack::Pair,
};

/// The first example for `language` that follows these words on the page.
fn example(words: &str) -> &'static str {
    let (_, rest) = include_str!("../../docs/usage-plans.md")
        .split_once(words)
        .unwrap_or_else(|| panic!("the page no longer says `{words}`"));
    let example = rest.split("```yaml\n").nth(1).expect("an example");
    example.split("```").next().expect("its end")
}

/// An example with other figures, so that a test neither waits nor runs over the end of a period.
fn example_with(words: &str, figures: &[(&str, &str)]) -> String {
    figures
        .iter()
        .fold(example(words).to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from} in {text}");
            text.replace(from, to)
        })
}

async fn secure(client: &mut Client, secret: &'static str) -> Answer {
    client.get("/secure/stats", &[("x-api-key", secret)]).await
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

/// Asks `count` times, one after the other.
async fn times(count: usize, client: &mut Client, secret: &'static str) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(secure(client, secret).await);
    }
    answers
}

/// Both replicas answer by a policy that says so.
async fn policy_becomes(words: &str, client: &mut Client, secret: &'static str) {
    wait_until(words, async || {
        let answers = times(8, client, secret).await;
        let mut policies = answers
            .iter()
            .map(|answer| answer.header("ratelimit-policy"));
        policies.all(|policy| policy.is_some_and(|policy| policy.contains(words)))
    })
    .await;
}

#[tokio::test]
async fn a_key_has_the_limits_of_its_tier_and_moves_to_another_while_all_runs() {
    let plans = example("Which plan does a caller have?");
    let key: &[&str] = &["--tier", "free", "--owner", "Ada", "--id", "ada"];
    let (pair, [ada]) = Pair::start_with_keys(plans, &[], &[key], |_| {}).await;
    let mut client = pair.envoy.client().await;
    let begun = Instant::now();
    let answers = times(8, &mut client, ada).await;
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(
        (1..=1 + begun.elapsed().as_secs() as usize).contains(&passed),
        "{answers:?}"
    );

    let update = |args: &[&str]| pair.home.json(&[&["keys", "update", "ada"], args].concat());
    update(&["--tier", "premium"]);
    policy_becomes("1000000/month", &mut client, ada).await;
    update(&["--limit", "20/second burst 50"]);
    policy_becomes("20/second burst 50", &mut client, ada).await;
    assert_eq!(pair.metric("tollgate_degraded_total"), 0.0);

    // Callers without a key are counted by address.
    let mut anonymous = Client::connect_from(another_home(7), pair.envoy.edge).await;
    anonymous.exhaust("/public/stats", 50).await;
}

#[tokio::test]
async fn what_no_rule_knows_is_refused_where_the_plans_say_so() {
    let plans = example("To refuse what no rule knows");
    let key: &[&str] = &["--tier", "web"];
    let (pair, [ada]) = Pair::start_with_keys(plans, &[], &[key], |_| {}).await;
    let mut client = pair.envoy.client().await;
    assert_eq!(secure(&mut client, ada).await.status, 200);
    let unknown = client.get("/public/stats", &[]).await;
    assert_eq!((unknown.status, unknown.header("retry-after")), (429, None));
}

#[tokio::test]
async fn an_expensive_method_has_a_limit_of_its_own_beside_the_keys() {
    let plans = example_with("An expensive method", &[("5/minute", "5/day")]);
    let actions: serde_yaml::Value =
        serde_yaml::from_str(example("Envoy has to say which it is")).expect("YAML");
    let actions = actions.as_sequence().expect("a list").clone();
    let key: &[&str] = &["--tier", "web"];
    let (pair, [ada]) = Pair::start_with_keys(&plans, &[], &[key], |config| {
        let more = config.secure_actions().as_sequence_mut().expect("a list");
        more.extend(actions);
    })
    .await;
    let mut client = pair.envoy.client().await;
    let headers = [("x-api-key", ada)];
    let mut asked = Vec::new();
    for method in [vec![Method::POST; 6], vec![Method::GET, Method::PUT]].concat() {
        let answer = client.ask(method, "/secure/stats", &headers).await;
        // The stats service knows GET only.
        asked.push(answer.status != 429);
    }
    assert_eq!(asked, [true, true, true, true, true, false, true, true]);
}

/// What `tollgate usage` and the admin API tell of a key: admitted, refused and overage by limit.
type Used = BTreeMap<String, [i64; 3]>;

fn used(rows: &serde_json::Value) -> Used {
    let rows = rows["rows"].as_array().expect("a list").iter();
    let mut used = Used::new();
    for row in rows {
        assert_eq!(
            (&row["key"], &row["owner"], &row["tier"]),
            (&json!("ada"), &json!("Ada"), &json!("web"))
        );
        let counts = used
            .entry(row["limit"].as_str().expect("text").to_owned())
            .or_default();
        for (count, name) in counts.iter_mut().zip(["admitted", "refused", "overage"]) {
            *count += row[name].as_i64().expect("a number");
        }
    }
    used
}

#[tokio::test]
async fn hard_limits_refuse_soft_ones_are_marked_and_metered_and_shadow_ones_are_counted() {
    let figures = [
        ("10/second burst 100", "6/3 years"),
        ("1000000/month", "3/2 years"),
        ("20000/day calendar", "2/year"),
    ];
    let plans = example_with("Hard or soft?", &figures);
    let key: &[&str] = &["--tier", "web", "--owner", "Ada", "--id", "ada"];
    let args = ["--usage", "--usage-flush-interval", "1h"];
    let (mut pair, [ada]) = Pair::start_with_keys(&plans, &args, &[key], |_| {}).await;
    let mut client = pair.envoy.client().await;
    let answers = times(9, &mut client, ada).await;
    assert_eq!(statuses(&answers), [vec![200; 6], vec![429; 3]].concat());
    for (number, answer) in answers.iter().enumerate() {
        let marked = (3..6).contains(&number);
        let overage = answer.header("x-ratelimit-overage");
        assert_eq!(overage, marked.then_some("\"api_key:3/2 years\""));
    }
    let log = wait_for("the access log", || {
        let log = pair.envoy.access_log();
        (log.len() == answers.len()).then_some(log)
    });
    let told = log.iter().map(|line| &line["ratelimit"]["overage"]);
    assert_eq!(
        told.filter(|overage| !overage.is_null()).count(),
        3,
        "{log:?}"
    );
    let rule = r#"{domain="stats-api",rule="api_key"}"#;
    assert_eq!(
        pair.metric(&format!("tollgate_overage_hits_total{rule}")),
        3.0
    );
    assert_eq!(pair.metric("tollgate_degraded_total"), 0.0);

    let expected = Used::from([
        ("api_key:6/3 years".to_owned(), [6, 3, 0]),
        ("api_key:3/2 years".to_owned(), [6, 0, 3]),
        ("api_key:2/year".to_owned(), [6, 0, 4]),
    ]);
    // Each replica brings its own to Redis when it is asked, or stops, and then not even a crash takes that away.
    for admin in &pair.admin {
        let (status, _) = call_as(admin, Some(Pair::TOKEN), "GET /v1/usage", "");
        assert_eq!(status, 200);
    }
    let (_, told) = call_as(
        &pair.admin[0],
        Some(Pair::TOKEN),
        "GET /v1/usage?by=month&tier=web",
        "",
    );
    assert_eq!(used(&told), expected, "{told}");
    for replica in &mut pair.replicas {
        replica.process.kill();
    }
    for by in ["hour", "day", "month"] {
        let told = pair
            .home
            .json(&["usage", "--by", by, "--key", "ada", "--owner", "Ada"]);
        assert_eq!(used(&told), expected, "{told}");
    }
    let (code, csv, _) = pair
        .home
        .run(&["usage", "--by", "month", "--output", "csv"]);
    assert_eq!(code, 0);
    assert!(
        csv.contains(",stats-api,ada,Ada,web,api_key:3/2 years,6,0,3\n"),
        "{csv}"
    );
}

#[tokio::test]
async fn who_is_denied_is_blocked_and_who_is_allowed_has_no_limit_by_key_and_by_address() {
    let figures = [
        ("203.0.113.0/24", "127.0.0.66/32"),
        ("allow: {", "allow: { cidr: [127.0.0.67/32],"),
        ("10/second burst 20", "1/minute"),
        ("100/minute, penalty: 60s", "1/day"),
    ];
    let plans = example_with("Slow down, refuse, or block?", &figures);
    let keys: [&[&str]; 3] = [
        &["--tier", "web", "--id", "stolen"],
        &["--tier", "web", "--id", "status-page"],
        &["--tier", "web", "--id", "ada"],
    ];
    let (pair, [stolen, page, ada]) = Pair::start_with_keys(&plans, &[], &keys, |_| {}).await;
    let mut client = pair.envoy.client().await;
    let blocked = secure(&mut client, stolen).await;
    let forbidden = r#"{"message":"Forbidden"}"#;
    assert_eq!((blocked.status, blocked.body.as_str()), (403, forbidden));
    assert_eq!(statuses(&times(9, &mut client, page).await), [200; 9]);
    assert_eq!(statuses(&times(3, &mut client, ada).await), [200, 429, 429]);

    let mut denied = Client::connect_from(another_home(66), pair.envoy.edge).await;
    let public = denied.get("/public/stats", &[]).await;
    assert_eq!((public.status, public.header("retry-after")), (429, None));
    // Whatever key comes from there.
    assert_eq!(secure(&mut denied, page).await.status, 403);
    assert_eq!(
        pair.metric(r#"tollgate_key_checks_total{result="denied"}"#),
        2.0
    );
    let mut allowed = Client::connect_from(another_home(67), pair.envoy.edge).await;
    assert_eq!(allowed.statuses("/public/stats", 9).await, [200; 9]);
    assert_eq!(client.statuses("/public/stats", 2).await, [200, 429]);
}

#[tokio::test]
async fn answers_say_what_the_plans_tell_them_to() {
    let plans = example_with("Others are said so", &[("10/second burst 20", "10/day")]);
    let plans = plans.replace("1000/day calendar", "9/year");
    let key: &[&str] = &["--tier", "web", "--limit", "2/day"];
    let keys: [&[&str]; 2] = [&["--tier", "web", "--id", "ada"], key];
    let (pair, [ada, slow]) = Pair::start_with_keys(&plans, &[], &keys, |_| {}).await;
    let mut client = pair.envoy.client().await;
    let missing = client.get("/secure/stats", &[]).await;
    let wrong = secure(&mut client, "nobodys").await;
    for (answer, status) in [(&missing, 401), (&wrong, 403)] {
        assert_eq!(answer.status, status);
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
    }
    let answers = times(10, &mut client, ada).await;
    assert_eq!(statuses(&answers), [vec![200; 9], vec![429]].concat());
    let warned = answers
        .iter()
        .map(|answer| answer.header("x-ratelimit-warning").is_some());
    // From 90 % of nine on.
    assert_eq!(
        warned.collect::<Vec<_>>(),
        [vec![false; 8], vec![true, false]].concat()
    );
    let [.., over] = &answers[..] else { panic!() };
    assert_eq!(over.body, r#"{"error":"quota used up"}"#);
    let [.., fast] = &times(3, &mut client, slow).await[..] else {
        panic!()
    };
    assert_eq!(
        (fast.status, fast.body.as_str()),
        (429, r#"{"error":"slow down"}"#)
    );
    let wait = fast
        .header("retry-after")
        .and_then(|wait| wait.parse().ok())
        .map(Duration::from_secs);
    let half_a_day = Duration::from_secs(12 * 3_600);
    assert!(
        wait.is_some_and(|wait| wait <= half_a_day && wait > half_a_day / 2),
        "{fast:?}"
    );
    assert!(fast.header("ratelimit").is_some() && fast.header("ratelimit-policy").is_some());
}
