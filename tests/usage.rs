//! Usage from the decision to the report: what counts, what survives, what the command and the admin API say.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use common::{
    Tollgate, ask,
    home::{Home, call_as, finished},
    request, tollgate_command, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tollgate::{
    clock::{ManualClock, SystemClock, Timestamp},
    descriptor::{Descriptor, Entry, Hits, Query},
    home::Place,
    limiter::Limiter,
    plan::{Plans, SharedPlans},
    proto::tollgate::admin::v1::{
        GetUsageRequest, get_usage_request::By, usage_service_client::UsageServiceClient,
    },
    store::{MemoryStore, Store},
    usage::{Fate, Limited, Meter, Recorder, Retention, UsageStore},
};
use tonic::{Code, transport::Channel};

/// `in-the-file` is the key whose secret is `demo-free-key`.
const PLANS: &str = r#"
domain: shop
tiers:
  free: { limits: ["2/day"] }
  premium: { limits: ["100/day"] }
api_keys:
  - { id: in-the-file, tier: free, owner: Ada, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
descriptors:
  - { key: api_key, limits_from: tier }
  - key: ip
    limits: ["1000/day"]
"#;

const SECRET: &str = "demo-free-key";

const TOKEN: &str = "admin-token-of-the-test";

/// A flush that comes only when the service stops, or is asked for its usage.
const NEVER: &str = "1h";

/// A service that meters, and where its admin API is.
fn serve(home: &Home, flush_interval: &str) -> (Tollgate, String) {
    let flags = ["--usage", "--usage-flush-interval", flush_interval];
    home.serve_admin(TOKEN, &flags)
}

/// `tollgate usage ARGS…`: exit status, stdout, stderr.
fn usage(home: &Home, args: &[&str]) -> (i32, String, String) {
    home.run(&[&["usage"], args].concat())
}

/// The sums of everything that is kept.
fn kept_sums(home: &Home) -> Sums {
    sums(&home.json(&["usage", "--from", &days_ago(2)]))
}

/// A day, as the command takes it.
fn days_ago(days: u32) -> String {
    let then = SystemTime::now() - days * Duration::from_secs(86_400);
    humantime::format_rfc3339_seconds(then).to_string()[..10].to_owned()
}

/// Admitted, refused and overage by key and limit, over all periods: midnight may pass during a test.
type Sums = BTreeMap<(String, String), [i64; 3]>;

fn sums(report: &Value) -> Sums {
    let mut sums = Sums::new();
    for row in report["rows"].as_array().unwrap() {
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let counts = sums.entry((text("key"), text("limit"))).or_default();
        for (count, name) in counts.iter_mut().zip(["admitted", "refused", "overage"]) {
            *count += row[name].as_i64().unwrap();
        }
    }
    sums
}

fn of(rows: &[(&str, &str, [i64; 3])]) -> Sums {
    let row = |(key, limit, counts): &(&str, &str, _)| {
        (((*key).to_owned(), (*limit).to_owned()), *counts)
    };
    rows.iter().map(row).collect()
}

async fn ask_often(tollgate: &Tollgate, times: usize, entries: &[(&str, &str)]) {
    let mut client = tollgate.client().await;
    for _ in 0..times {
        ask(&mut client, request("shop", &[entries])).await.unwrap();
    }
}

/// `GET PATH` of the admin API: status and body.
fn get(address: &str, token: Option<&str>, path: &str) -> (u16, Value) {
    call_as(address, token, &format!("GET {path}"), "")
}

#[tokio::test]
async fn what_a_key_has_used_is_told_by_the_command_and_the_admin_api() {
    let home = Home::new(PLANS);
    let (mut tollgate, admin) = serve(&home, NEVER);
    ask_often(&tollgate, 3, &[("api_key", SECRET)]).await;
    ask_often(&tollgate, 2, &[("api_key", "in-the-file")]).await;
    ask_often(&tollgate, 4, &[("api_key", "a-secret-that-nobody-has")]).await;
    ask_often(&tollgate, 1, &[("ip", "192.0.2.1")]).await;
    ask_often(&tollgate, 1, &[("ip", "192.0.2.2")]).await;
    let expected = of(&[
        ("-", "ip:1000/day", [2, 0, 0]),
        ("in-the-file", "api_key:2/day", [2, 3, 0]),
    ]);
    for by in ["hour", "day", "month"] {
        let path = format!("/v1/usage?by={by}&from={}", days_ago(2));
        let (status, report) = get(&admin, Some(TOKEN), &path);
        assert_eq!((status, sums(&report)), (200, expected.clone()), "{report}");
        assert_eq!(report["next"], Value::Null);
    }
    let (_, report) = get(
        &admin,
        Some(TOKEN),
        "/v1/usage?owner=Ada&tier=free&key=in-the-file",
    );
    assert_eq!(report["rows"].as_array().unwrap().len(), 1);
    assert_eq!(report["rows"][0]["owner"], "Ada");
    assert_eq!(report["rows"][0]["domain"], "shop");
    for nobody in ["owner=Eve", "tier=premium", "key=eve", "to=2024-01-01"] {
        let path = format!("/v1/usage?from=2023-12-31&{nobody}");
        let (_, report) = get(&admin, Some(TOKEN), &path);
        assert_eq!(report["rows"], json!([]), "{nobody}");
    }
    let (_, first) = get(&admin, Some(TOKEN), "/v1/usage?limit=1");
    assert_eq!(
        (&first["next"], first["rows"].as_array().unwrap().len()),
        (&json!(1), 1)
    );
    let (_, second) = get(&admin, Some(TOKEN), "/v1/usage?limit=1&after=1");
    assert_eq!(second["next"], Value::Null);
    assert_ne!(first["rows"], second["rows"]);

    let mut client = grpc(&admin).await;
    let answer = client.get_usage(asking(
        TOKEN,
        GetUsageRequest {
            by: By::Month.into(),
            key: "in-the-file".to_owned(),
            ..Default::default()
        },
    ));
    let answer = answer.await.unwrap().into_inner();
    assert_eq!(answer.next_page_token, "");
    let row = &answer.rows[0];
    assert_eq!((row.admitted, row.refused, row.overage), (2, 3, 0));
    assert_eq!(
        (&*row.tier, &*row.owner, &*row.limit),
        ("free", "Ada", "api_key:2/day")
    );

    let page = tollgate.page("/metrics");
    let documented = include_str!("../docs/metrics.md");
    let families = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE tollgate_usage_"));
    let names: Vec<_> = families.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["rows", "rows_max", "other_hits", "flushes"]);
    for name in names {
        assert!(
            documented.contains(&format!("`tollgate_usage_{name}")),
            "{name}"
        );
    }
    assert_eq!(tollgate.metric("tollgate_usage_rows_max"), 131_072.0);
    assert!(
        page.contains(r#"tollgate_usage_flushes_total{result="failure"} 0"#),
        "{page}"
    );

    // What was asked for was kept at once.
    assert_eq!(kept_sums(&home), expected);
    ask_often(&tollgate, 1, &[("api_key", SECRET)]).await;
    tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(tollgate.process.wait(), Some(0));
    let after = of(&[
        ("-", "ip:1000/day", [2, 0, 0]),
        ("in-the-file", "api_key:2/day", [2, 4, 0]),
    ]);
    assert_eq!(kept_sums(&home), after, "a stop keeps everything");
}

async fn grpc(admin: &str) -> UsageServiceClient<Channel> {
    UsageServiceClient::connect(format!("http://{admin}"))
        .await
        .unwrap()
}

fn asking(token: &str, question: GetUsageRequest) -> tonic::Request<GetUsageRequest> {
    let mut request = tonic::Request::new(question);
    let token = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

#[tokio::test]
async fn nobody_sees_usage_without_the_token_and_wrong_questions_are_told() {
    let home = Home::new(PLANS);
    let (_tollgate, admin) = serve(&home, NEVER);
    for token in [None, Some("wrong"), Some(&TOKEN[1..])] {
        assert_eq!(get(&admin, token, "/v1/usage").0, 401);
    }
    let mut client = grpc(&admin).await;
    let refused = client.get_usage(GetUsageRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    for (question, detail) in [
        (
            "from=yesterday",
            "from: `yesterday` is no day: write it like 2026-11-30",
        ),
        (
            "from=2026-02-02&to=2026-01-01",
            "the days end, 2026-01-01, before they begin, 2026-02-02",
        ),
        (
            "from=1990-01-01&to=2026-01-01",
            "13150 days are too many: at most 3660 are reported together by day",
        ),
        (
            "by=hour&from=2026-01-01&to=2026-12-31",
            "365 days are too many: at most 62 are reported together by hour",
        ),
    ] {
        let (status, problem) = get(&admin, Some(TOKEN), &format!("/v1/usage?{question}"));
        assert_eq!((status, &problem["detail"]), (400, &json!(detail)));
    }
    for question in ["by=week", "nothing=1", "limit=-1"] {
        assert_eq!(
            get(&admin, Some(TOKEN), &format!("/v1/usage?{question}")).0,
            400,
            "{question}"
        );
    }
    let wrong = GetUsageRequest {
        page_token: "x".to_owned(),
        ..Default::default()
    };
    let wrong = client.get_usage(asking(TOKEN, wrong)).await;
    assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_crash_loses_no_more_than_what_came_since_the_last_flush() {
    let home = Home::new(PLANS);
    let (mut tollgate, _) = serve(&home, "20ms");
    let limit = "api_key:2/day";
    let kept = |home: &Home| {
        kept_sums(home)
            .get(&("in-the-file".to_owned(), limit.to_owned()))
            .copied()
    };
    ask_often(&tollgate, 7, &[("api_key", SECRET)]).await;
    wait_until("a flush", async || kept(&home) == Some([2, 5, 0])).await;
    ask_often(&tollgate, 3, &[("api_key", SECRET)]).await;
    tollgate.process.kill();
    let [admitted, refused, _] = kept(&home).unwrap();
    assert!(
        admitted == 2 && (5..=8).contains(&refused),
        "{admitted} {refused}"
    );

    // A line that the crash cut.
    for entry in fs::read_dir(home.state().join("usage")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "log") {
            let mut text = fs::read(&path).unwrap();
            text.extend_from_slice(b"0badc0de [[[\"shop\",\"in-the-file\"");
            fs::write(&path, text).unwrap();
        }
    }
    assert_eq!(kept(&home), Some([2, refused, 0]));
    let (mut tollgate, _) = serve(&home, NEVER);
    ask_often(&tollgate, 4, &[("api_key", SECRET)]).await;
    tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(tollgate.process.wait(), Some(0));
    let [admitted, now_refused, _] = kept(&home).unwrap();
    assert_eq!(admitted + now_refused, 2 + refused + 4);
    let by = |by: &str| sums(&home.json(&["usage", "--from", &days_ago(2), "--by", by]));
    assert_eq!(by("month"), kept_sums(&home));
    assert_eq!(by("hour"), kept_sums(&home));
}

#[tokio::test]
async fn no_secret_and_no_hash_of_one_is_in_the_state_directory() {
    let home = Home::new(PLANS);
    let (mut tollgate, admin) = serve(&home, NEVER);
    for secret in [SECRET, "a-secret-that-nobody-has"] {
        ask_often(&tollgate, 3, &[("api_key", secret)]).await;
    }
    let (_, answer) = get(&admin, Some(TOKEN), "/v1/usage");
    let page = tollgate.page("/metrics");
    tollgate.process.signal(Signal::SIGTERM);
    tollgate.process.wait();
    let mut texts = vec![answer.to_string(), page, tollgate.process.log()];
    texts.extend(files_below(home.state()));
    let usage = files_below(&home.state().join("usage"));
    assert!(usage.concat().contains("in-the-file"));
    for text in texts {
        for secret in [SECRET, "9f8cfdb1", "a-secret-that-nobody-has"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => texts.extend(files_below(&path)),
            // The buckets' file is no text, but would show one in it.
            false => texts.push(String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()),
        }
    }
    texts
}

#[tokio::test]
async fn nothing_is_metered_unless_it_is_asked_for_and_has_a_place() {
    let home = Home::new(PLANS);
    let config = home.config.join("plans.yaml");
    let state = home.state().to_str().unwrap();
    let mut tollgate = Tollgate::start(&config, &["--state-dir", state]);
    ask_often(&tollgate, 3, &[("api_key", SECRET)]).await;
    assert!(!tollgate.page("/metrics").contains("usage"));
    tollgate.process.signal(Signal::SIGTERM);
    tollgate.process.wait();
    assert!(!home.state().join("usage").exists());
    let (code, out, _) = usage(&home, &["--from", "2026-01-01", "--to", "2026-01-31"]);
    assert_eq!(
        (code, &*out),
        (0, "no usage from 2026-01-01 to 2026-01-31\n")
    );

    let mut command = tollgate_command();
    command.args([
        "serve",
        "--usage",
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ]);
    let (code, _, err) = finished(command.arg("--config").arg(&config));
    assert_eq!(code, 1);
    assert!(
        err.contains(
            "--usage has no place to keep usage: say --state-dir DIR or --store redis://…"
        ),
        "{err}"
    );
    let mut command = tollgate_command();
    let (code, _, err) = finished(command.arg("usage").arg("--config").arg(&config));
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("no usage is kept here"), "{err}");
}

/// Usage at known moments: two keys on two days, and requests without a key.
async fn written(home: &Home) {
    let clock = Arc::new(ManualClock::default());
    let meter = Arc::new(Meter::new(1_000, clock.clone()));
    let store = UsageStore::open(Place::Folder(home.state().to_owned()), Retention::default());
    let recorder = Recorder::new(meter.clone(), store);
    let plans = Plans::from_texts(&[("plans.yaml", PLANS)]).unwrap();
    let rules: Vec<_> = plans.domain("shop").unwrap().rules().cloned().collect();
    for (hours, key, tier, rule, fate, hits) in [
        (0, "in-the-file", "free", 0, Fate::Admitted, 2),
        (5, "in-the-file", "free", 0, Fate::Refused, 30),
        (5, "bob, \"the\" second", "premium", 0, Fate::Overage, 4),
        (24, "in-the-file", "free", 0, Fate::Admitted, 1),
        (24, "", "", 1, Fate::Admitted, 5),
    ] {
        // 2026-01-31 at midnight.
        clock.set(Timestamp::from_micros(
            (1_769_817_600 + hours * 3_600) * 1_000_000,
        ));
        meter
            .open("shop", key, tier)
            .count(Limited::Unlimited(&rules[rule]), fate, hits);
    }
    recorder.flush().await.unwrap();
}

const JANUARY: [&str; 4] = ["--from", "2026-01-01", "--to", "2026-02-28"];

#[tokio::test]
async fn a_report_is_a_table_for_people() {
    let home = Home::new(PLANS);
    written(&home).await;
    let (code, out, err) = usage(&home, &JANUARY);
    assert_eq!((code, &*err), (0, ""));
    assert_eq!(
        out,
        "\
period      domain  key                owner  tier     limit              admitted  refused  overage
2026-01-31  shop    bob, \"the\" second  -      premium  api_key:unlimited         4        0        4
2026-01-31  shop    in-the-file        Ada    free     api_key:unlimited         2       30        0
2026-02-01  shop    -                  -      -        ip:unlimited              5        0        0
2026-02-01  shop    in-the-file        Ada    free     api_key:unlimited         1        0        0
"
    );
}

#[tokio::test]
async fn a_report_is_csv_for_spreadsheets() {
    let home = Home::new(PLANS);
    written(&home).await;
    let (code, out, _) = usage(
        &home,
        &[&JANUARY[..], &["--by", "hour", "--output", "csv"]].concat(),
    );
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "\
period,domain,key,owner,tier,limit,admitted,refused,overage
2026-01-31T00,shop,in-the-file,Ada,free,api_key:unlimited,2,0,0
2026-01-31T05,shop,\"bob, \"\"the\"\" second\",,premium,api_key:unlimited,4,0,4
2026-01-31T05,shop,in-the-file,Ada,free,api_key:unlimited,0,30,0
2026-02-01T00,shop,,,,ip:unlimited,5,0,0
2026-02-01T00,shop,in-the-file,Ada,free,api_key:unlimited,1,0,0
"
    );
}

#[tokio::test]
async fn a_report_is_json_for_scripts() {
    let home = Home::new(PLANS);
    written(&home).await;
    let args = ["--by", "month", "--key", "in-the-file", "--output", "json"];
    let (code, out, _) = usage(&home, &[&JANUARY[..], &args].concat());
    assert_eq!(code, 0);
    assert_eq!(
        out,
        r#"{
  "from": "2026-01-01",
  "to": "2026-02-28",
  "by": "month",
  "rows": [
    {
      "period": "2026-01",
      "domain": "shop",
      "key": "in-the-file",
      "owner": "Ada",
      "tier": "free",
      "limit": "api_key:unlimited",
      "admitted": 2,
      "refused": 30,
      "overage": 0
    },
    {
      "period": "2026-02",
      "domain": "shop",
      "key": "in-the-file",
      "owner": "Ada",
      "tier": "free",
      "limit": "api_key:unlimited",
      "admitted": 1,
      "refused": 0,
      "overage": 0
    }
  ]
}
"#
    );
    let (code, _, err) = usage(&home, &["--from", "2026-02-02", "--to", "2026-01-01"]);
    assert_eq!(
        (code, &*err),
        (
            1,
            "error: the days end, 2026-01-01, before they begin, 2026-02-02\n"
        )
    );
}

/// Decides queries one after the other; what was metered, by key and limit.
async fn metered(plans: &str, queries: &[Query]) -> Sums {
    let meter = Arc::new(Meter::new(1_000, Arc::new(SystemClock)));
    let plans =
        Plans::from_texts(&[("plans.yaml", plans)]).unwrap_or_else(|error| panic!("{error}"));
    let store = Store::Memory(MemoryStore::new(1_000, Arc::new(ManualClock::default())));
    let limiter = Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store))
        .with_meter(Some(meter.clone()));
    for query in queries {
        let deadline = Instant::now() + Duration::from_secs(60);
        limiter.decide(query, deadline).await.unwrap();
        limiter
            .preview(&limiter.plans().load_full(), query, deadline)
            .await
            .unwrap();
    }
    let mut sums = Sums::new();
    meter.drain(|_, row, counts| {
        let key = if row.key.is_empty() { "-" } else { &row.key };
        let sum = sums.entry((key.to_owned(), row.limit.clone())).or_default();
        for (sum, count) in sum
            .iter_mut()
            .zip([counts.admitted, counts.refused, counts.overage])
        {
            *sum += count;
        }
    });
    sums
}

fn query(hits: Hits, descriptors: &[&[(&str, &str)]]) -> Query {
    let descriptor = |entries: &&[(&str, &str)]| Descriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry::new(*key, *value))
            .collect(),
        hits,
        ..Descriptor::default()
    };
    Query {
        domain: "shop".to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
    }
}

#[tokio::test]
async fn each_limit_of_a_key_has_its_own_count_and_only_the_one_that_refuses_says_so() {
    let plans = r#"
domain: shop
tiers:
  free: { limits: ["5/day", { limit: "100/month", name: quota }] }
api_keys:
  - { id: ada, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
descriptors:
  - { key: api_key, limits_from: tier }
  - key: tier
    value: free
    descriptors:
      - { key: ip, limits: ["3/day"] }
"#;
    let (key, ip) = (
        [("api_key", SECRET)],
        [("tier", "free"), ("ip", "192.0.2.1")],
    );
    let mut queries = vec![query(Hits::Take(1), &[&key, &ip]); 7];
    queries.push(query(Hits::Take(0), &[&key]));
    queries.push(query(Hits::Take(2), &[&key]));
    queries.push(query(Hits::Take(2), &[&key]));
    queries.push(query(Hits::Give(1), &[&key]));
    let expected = of(&[
        ("ada", "api_key:5/day", [4, 2, 0]),
        ("ada", "quota", [4, 0, 0]),
        ("ada", "tier=free/ip:3/day", [3, 4, 0]),
    ]);
    assert_eq!(metered(plans, &queries).await, expected);
}

#[tokio::test]
async fn what_is_beyond_a_limit_that_does_not_refuse_is_overage() {
    let plans = r#"
domain: shop
tiers: { free: { limits: ["2/day"] }, partner: { limits: [] } }
api_keys:
  - { id: ada, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
  - { id: open, tier: partner, sha256: 0000000000000000000000000000000000000000000000000000000000000000 }
descriptors:
  - { key: api_key, limits_from: tier, shadow_mode: true }
  - key: path
    rate_limit: { unit: day, requests_per_unit: 3 }
  - { key: blocked, rate_limit: { unit: day, requests_per_unit: 0 } }
"#;
    let (key, path) = ([("api_key", "ada")], [("path", "/")]);
    let mut queries = vec![query(Hits::Take(1), &[&key, &path]); 5];
    queries.push(query(Hits::Take(7), &[&[("api_key", "open")]]));
    queries.push(query(
        Hits::Take(1),
        &[&[("api_key", "open")], &[("blocked", "x")]],
    ));
    queries.push(query(Hits::Take(1), &[&[("api_key", "nobody")]]));
    let sums = metered(plans, &queries).await;
    assert_eq!(
        sums[&("ada".to_owned(), "api_key:2/day".to_owned())],
        [3, 0, 1]
    );
    assert_eq!(
        sums[&("ada".to_owned(), "path:3/day".to_owned())],
        [3, 2, 0]
    );
    assert_eq!(
        sums[&("open".to_owned(), "api_key:unlimited".to_owned())],
        [7, 0, 0]
    );
    let blocked: Vec<_> = sums
        .iter()
        .filter(|((_, limit), _)| limit.starts_with("blocked"))
        .collect();
    assert_eq!(blocked.len(), 1, "{sums:?}");
    assert_eq!(*blocked[0].1, [0, 1, 0]);
    assert_eq!(sums.len(), 4, "{sums:?}");
}

#[test]
fn plans_of_several_files_are_read_as_the_service_reads_them() {
    let home = Home::new("domain: shop\ndescriptors: [{ key: a, limits: [1/day] }]\n");
    fs::write(
        home.config.join("more.yaml"),
        "domain: shop\ndescriptors: [{ key: b, limits: [1/day] }]\n",
    )
    .unwrap();
    let (code, _, err) = usage(&home, &[]);
    assert!(
        code == 2 && err.contains("duplicate domain 'shop'"),
        "{err}"
    );
    let (code, out, err) = usage(&home, &["--merge-domains", "--charge", "independent"]);
    assert_eq!(code, 0, "{out}{err}");
}
