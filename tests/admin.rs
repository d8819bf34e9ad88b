//! What is changed while the service runs beside API keys: plans, buckets, and who did it; by command and by the admin API.

#[path = "admin/audit.rs"]
mod audit;
#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "admin/entrance.rs"]
mod entrance;
#[path = "admin/preview.rs"]
mod preview;

use std::{fs, path::Path};

use certificates::{Authority, Pair, connect};
use common::{
    Tollgate, ask,
    home::{Home, admin_address, call},
    request, tollgate_command, wait_until,
};
use serde_json::{Value, json};
use tollgate::proto::{
    envoy::service::ratelimit::v3::rate_limit_response::Code as PbCode,
    tollgate::admin::v1::{
        self as pb, audit_service_client::AuditServiceClient,
        bucket_service_client::BucketServiceClient, plan_service_client::PlanServiceClient,
    },
};
use tonic::{Code, transport::Channel};

const FILE: &str = "domain: shop\ndescriptors: [{ key: user, limits: [5/hour] }]\n";

/// A document of the same domain, with so many hits an hour.
fn document(hits: u32) -> String {
    format!("domain: shop\ndescriptors:\n  - {{ key: user, limits: [{hits}/hour] }}\n")
}

/// Puts a document: exit status, stdout, stderr.
fn put(home: &Home, hits: u32, more: &[&str]) -> (i32, String, String) {
    let draft = home.draft("draft.yaml", &document(hits));
    home.run(&[&["plans", "put", &draft], more].concat())
}

const BEARER: (&str, &str) = ("authorization", "Bearer s3cret-token-of-ada");

/// Requests per hour that the service has now, and what is left of them.
async fn left(tollgate: &Tollgate, hits: u32) -> (u32, u32) {
    let mut asked = request("shop", &[&[("user", "u")]]);
    asked.hits_addend = hits;
    let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
    let status = &answer.statuses[0];
    let limit = status.current_limit.as_ref().unwrap();
    (limit.requests_per_unit, status.limit_remaining)
}

async fn has(tollgate: &Tollgate, hits: u32) {
    wait_until("the plans", async || left(tollgate, 1).await.0 == hits).await;
}

#[tokio::test]
async fn stored_plans_reach_every_replica_survive_a_restart_and_can_be_taken_back() {
    let home = Home::new(FILE);
    let [one, mut other] = [home.serve(&[]), home.serve(&[])];
    assert_eq!(left(&one, 4).await, (5, 1));
    let (code, out, err) = put(&home, 100, &[]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("shop: version 1 is in force\n"), "{out}");
    assert!(out.contains("5/hour"), "it says what changes: {out}");
    for tollgate in [&one, &other] {
        has(tollgate, 100).await;
    }
    // Tokens stay, as when a file changes.
    assert!(left(&one, 1).await.1 < 5);
    let page: Value = serde_json::from_str(&one.page("/plans")).unwrap();
    assert_eq!(page["stored"], json!([{ "domain": "shop", "version": 1 }]));
    let warning = page["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("not in force: the stored plans of `shop`"),
        "{warning}"
    );

    other.process.kill();
    let other = home.serve(&[]);
    assert_eq!(left(&other, 1).await.0, 100, "before the ports open");
    assert!(
        other
            .process
            .log()
            .contains("stored ones, version 1, in place of its files")
    );

    assert_eq!(put(&home, 200, &[]).0, 0);
    has(&one, 200).await;
    let rolled = home.json(&["plans", "rollback", "1"]);
    assert_eq!(
        (&rolled["version"], &rolled["note"]),
        (&json!(3), &json!("rollback to 1"))
    );
    for tollgate in [&one, &other] {
        has(tollgate, 100).await;
    }
    let (_, text, _) = home.run(&["plans", "get", "shop", "--version", "2"]);
    assert_eq!(text, document(200));
    // The same again is no new version.
    assert!(
        put(&home, 100, &[])
            .1
            .contains("version 3 says the same already")
    );

    assert_eq!(home.json(&["plans", "reset"])["source"], "files");
    for tollgate in [&one, &other] {
        has(tollgate, 5).await;
    }
    let history = home.json(&["plans", "history", "shop"]);
    let versions: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|v| &v["version"])
        .collect();
    assert_eq!(versions, [4, 3, 2, 1]);
    // Back to what was before the reset.
    assert_eq!(home.json(&["plans", "rollback", "3"])["version"], 5);
    has(&one, 100).await;
}

#[tokio::test]
async fn a_domain_that_no_file_has_can_be_stored_and_files_go_on_changing() {
    let home = Home::new(FILE);
    let tollgate = home.serve(&[]);
    let draft = home.draft(
        "draft.yaml",
        "domain: other\ndescriptors: [{ key: user, limits: [7/hour] }]\n",
    );
    assert_eq!(home.run(&["plans", "put", &draft]).0, 0);
    let asked = || async {
        let asked = request("other", &[&[("user", "u")]]);
        let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
        let limit = answer.statuses[0].current_limit.as_ref();
        limit.map(|limit| limit.requests_per_unit)
    };
    wait_until("the domain", async || asked().await == Some(7)).await;
    fs::write(home.config.join("plans.yaml"), document(6)).unwrap();
    has(&tollgate, 6).await;
    assert_eq!(asked().await, Some(7));
}

#[tokio::test]
async fn plans_with_mistakes_change_nothing_and_every_mistake_has_its_place() {
    let home = Home::new(FILE);
    let (tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    let wrong = "domain: shop\ndescriptors:\n  - { key: user, limitz: [5/hour] }\n  - { key: a, limits: [5/fortnight] }\n";
    let draft = home.draft("draft.yaml", wrong);
    let (code, out, err) = home.run(&["plans", "put", &draft]);
    assert_eq!((code, out.as_str()), (1, ""));
    let first =
        format!("{draft}:3:18: descriptors[0].limitz: unknown field, did you mean `limits`?");
    assert!(err.contains(&first), "{err}");
    assert!(err.contains(&format!("{draft}:4:")), "{err}");
    // What only shows beside the other plans is named by place, too.
    let clash =
        "domain: shop\ndescriptors: [{ key: a, limits: [1/hour] }, { key: a, limits: [2/hour] }]\n";
    let (code, _, err) = home.run(&["plans", "put", &home.draft("draft.yaml", clash)]);
    assert!(code == 1 && err.starts_with(&draft), "{err}");

    let (status, problem) = call(&address, &[BEARER], "PUT /v1/plans/shop", wrong);
    assert_eq!(status, 400);
    let mistake = &problem["mistakes"][0];
    assert_eq!(
        (&mistake["line"], &mistake["column"]),
        (&json!(3), &json!(18))
    );
    assert_eq!(mistake["path"], "descriptors[0].limitz");
    for (line, body, status) in [
        ("PUT /v1/plans/other", document(1), 400),
        (
            "PUT /v1/plans/shop",
            "domain: shop\ndomain: shop\n".to_owned(),
            400,
        ),
        (
            "PUT /v1/plans/shop",
            format!("#{}", "x".repeat(2 << 20)),
            413,
        ),
        ("PUT /v1/plans/shop", "\u{0}".to_owned(), 400),
        ("GET /v1/plans/shop", String::new(), 404),
        ("DELETE /v1/plans/shop", String::new(), 404),
        (
            "POST /v1/plans/shop/rollback",
            r#"{"version":1}"#.to_owned(),
            404,
        ),
    ] {
        let (got, body) = call(&address, &[BEARER], line, &body);
        assert_eq!(got, status, "{line}: {body}");
    }
    let (status, dry) = call(
        &address,
        &[BEARER],
        "PUT /v1/plans/shop?dry_run=true",
        &document(9),
    );
    assert_eq!((status, &dry["version"]), (200, &json!(1)), "{dry}");
    assert_eq!(home.json(&["plans", "history"]), json!([]));
    assert_eq!(left(&tollgate, 1).await.0, 5);
}

#[tokio::test]
async fn of_two_admins_one_wins_and_the_other_is_told() {
    let home = Home::new(FILE);
    let (_tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    assert_eq!(put(&home, 10, &["--if-version", "0"]).0, 0);
    let (code, _, err) = put(&home, 11, &["--if-version", "0"]);
    assert_eq!(code, 1);
    assert!(err.contains("they have version 1, not 0"), "{err}");
    let put = |header, hits| {
        call(
            &address,
            &[BEARER, header],
            "PUT /v1/plans/shop",
            &document(hits),
        )
    };
    assert_eq!(put(("if-none-match", "*"), 12).0, 412);
    assert_eq!(put(("if-match", "\"7\""), 12).0, 412);
    assert_eq!(put(("if-match", "x"), 12).0, 400);
    assert_eq!(put(("if-match", "\"1\""), 12).1["version"], 2);
    assert_eq!(
        home.json(&["plans", "history", "shop"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn plans_of_another_format_are_refused_and_stay_where_they_are() {
    let home = Home::new(FILE);
    assert_eq!(put(&home, 10, &[]).0, 0);
    let path = home.state().join("plan-documents.log");
    let text = fs::read_to_string(&path).unwrap();
    let (header, rest) = text.split_once('\n').unwrap();
    let header = header[9..].replace("\"format\":1", "\"format\":2");
    let sum = crc32fast::hash(header.as_bytes());
    let newer = format!("{sum:08x} {header}\n{rest}");
    assert_ne!(newer, text);
    fs::write(&path, &newer).unwrap();
    let mut command = tollgate_command();
    command.arg("serve").arg("--config").arg(&home.config);
    let served = command
        .arg("--state-dir")
        .arg(home.state())
        .output()
        .unwrap();
    let said = String::from_utf8(served.stderr).unwrap();
    assert_eq!(served.status.code(), Some(1), "{said}");
    assert!(
        said.contains("it has format 2, and this build reads 1"),
        "{said}"
    );
    assert_eq!(put(&home, 11, &[]).0, 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

#[tokio::test]
async fn history_is_bounded() {
    let home = Home::new(FILE);
    let (tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    for hits in 1..=40 {
        let (status, body) = call(&address, &[BEARER], "PUT /v1/plans/shop", &document(hits));
        assert_eq!(status, 200, "{body}");
    }
    let (_, body) = call(&address, &[BEARER], "GET /v1/plans/shop/history", "");
    let versions: Vec<_> = body["versions"].as_array().unwrap().iter().collect();
    assert_eq!(versions.len(), 32);
    assert_eq!(
        (&versions[0]["version"], &versions[31]["version"]),
        (&json!(40), &json!(9))
    );
    assert_eq!(
        call(&address, &[BEARER], "GET /v1/plans/shop?version=8", "").0,
        404
    );
    assert_eq!(left(&tollgate, 1).await.0, 40);
}

fn with_token(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let value = "Bearer s3cret-token-of-ada".parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

#[tokio::test]
async fn grpc_does_what_http_does_and_the_audit_log_tells_who() {
    let home = Home::new(FILE);
    let (tollgate, address) =
        home.serve_admin("ada s3cret-token-of-ada\nbob s3cret-token-of-bob\n", &[]);
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut plans = PlanServiceClient::with_interceptor(channel.clone(), with_token);
    let put = |text: String, if_version| pb::PutPlanRequest {
        text,
        if_version,
        dry_run: false,
    };
    let answer = plans
        .put_plan(put(document(50), Some(0)))
        .await
        .unwrap()
        .into_inner();
    assert!(
        answer.changed && answer.changes[0].contains("50/hour"),
        "{answer:?}"
    );
    assert_eq!(left(&tollgate, 1).await.0, 50, "at once where it was put");
    let stale = plans
        .put_plan(put(document(51), Some(0)))
        .await
        .unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    let wrong = plans
        .put_plan(put("domain: shop\nx: 1\n".to_owned(), None))
        .await
        .unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(
        wrong.message().contains("document:2:1: x: unknown field"),
        "{wrong}"
    );
    let domain = || "shop".to_owned();
    let got = plans
        .get_plan(pb::GetPlanRequest {
            domain: domain(),
            version: 0,
        })
        .await
        .unwrap();
    assert_eq!(got.into_inner().text, document(50));
    plans
        .reset_plan(pb::ResetPlanRequest {
            domain: domain(),
            if_version: Some(1),
        })
        .await
        .unwrap();
    let back = pb::RollbackPlanRequest {
        domain: domain(),
        version: 1,
        if_version: None,
    };
    assert_eq!(
        plans
            .rollback_plan(back)
            .await
            .unwrap()
            .into_inner()
            .plan
            .unwrap()
            .version,
        3
    );
    let all = plans
        .list_plans(pb::ListPlansRequest {})
        .await
        .unwrap()
        .into_inner()
        .plans;
    assert!(
        all.len() == 1 && all[0].stored && all[0].by == "ada",
        "{all:?}"
    );

    let bob = ("authorization", "Bearer s3cret-token-of-bob");
    let question =
        r#"{"domain":"shop","descriptors":[{"entries":[{"key":"user","value":"u"}]}],"hits":3}"#;
    assert_eq!(
        call(&address, &[bob], "POST /v1/buckets/grant", question).0,
        200
    );
    assert_eq!(home.run(&["plans", "reset", "--as", "eve"]).0, 0);

    let mut audit = AuditServiceClient::with_interceptor(channel, with_token);
    let page = audit
        .list_audit(pb::ListAuditRequest::default())
        .await
        .unwrap()
        .into_inner();
    let told: Vec<_> = page
        .entries
        .iter()
        .map(|entry| {
            (
                entry.by.split('@').next().unwrap(),
                entry.action.as_str(),
                entry.before,
                entry.after,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("eve", "plans.reset", 3, 4),
            ("bob", "buckets.grant", 0, 0),
            ("ada", "plans.rollback", 2, 3),
            ("ada", "plans.reset", 1, 2),
            ("ada", "plans.put", 0, 1),
        ]
    );
    assert_eq!(page.entries[1].on, "shop (user=u)");
    let (status, found) = call(&address, &[bob], "GET /v1/audit?on=shop&limit=2", "");
    assert_eq!(
        (status, found["entries"].as_array().unwrap().len()),
        (200, 2)
    );
    let next = found["next"].as_str().unwrap();
    let (_, rest) = call(
        &address,
        &[bob],
        &format!("GET /v1/audit?on=shop&before={next}"),
        "",
    );
    assert_eq!(
        (rest["entries"].as_array().unwrap().len(), &rest["next"]),
        (2, &Value::Null)
    );
    assert_eq!(
        home.json(&["audit", "--on", "shop"])
            .as_array()
            .unwrap()
            .len(),
        4
    );
    let (_, table, _) = home.run(&["audit", "--limit", "1"]);
    assert!(
        table.lines().count() == 2 && table.contains("3 → 4"),
        "{table}"
    );
    assert!(
        tollgate
            .process
            .log()
            .contains("changed by an administrator")
    );
}

#[tokio::test]
async fn buckets_in_a_service_are_shown_filled_and_given_to_by_its_admin_api() {
    let home = Home::new(FILE);
    let (tollgate, address) = home.serve_admin("s3cret-token-of-ada", &[]);
    assert_eq!(left(&tollgate, 5).await.1, 0);
    let token = home.token_file();
    let url = format!("http://{address}");
    let flags = ["--admin", &url, "--admin-token-file", &token];
    let buckets = |args: &[&str]| {
        let descriptor = ["--descriptor", "user=u"];
        home.json(&[&["buckets"], args, &descriptor, &flags].concat())[0].clone()
    };
    let shown = buckets(&["show"]);
    assert_eq!(
        (&shown["remaining"], &shown["capacity"]),
        (&json!(0), &json!(5))
    );
    assert_eq!(
        (&shown["rule"], &shown["limit"]),
        (&json!("user"), &json!("5/hour"))
    );
    let granted = buckets(&["grant", "--hits", "2"]);
    assert_eq!(
        (&granted["before"], &granted["remaining"]),
        (&json!(0), &json!(2))
    );
    assert_eq!(left(&tollgate, 2).await.1, 0);
    assert_eq!(buckets(&["reset"])["remaining"], 5);
    assert_eq!(
        buckets(&["grant", "--hits", "1000000"])["remaining"],
        5,
        "never over"
    );
    let (_, text, _) =
        home.run(&[&["buckets", "show", "--descriptor", "user=u"][..], &flags].concat());
    assert_eq!(text, "(user=u) → user: 5/hour: 5 of 5 left; full\n");

    let wrong = |args: &[&str]| home.run(&[&["buckets"], args, &flags].concat());
    let (code, _, err) = wrong(&["show", "--descriptor", "nothing=x"]);
    assert!(
        code == 1 && err.contains("no limit counts these descriptors"),
        "{err}"
    );
    assert_eq!(
        wrong(&["show", "--domain", "nowhere", "--descriptor", "user=u"]).0,
        1
    );
    assert_eq!(
        wrong(&["grant", "--hits", "0", "--descriptor", "user=u"]).0,
        2
    );
    let (code, _, err) = home.run(&["buckets", "show", "--descriptor", "user=u", "--admin", &url]);
    assert!(code == 1 && err.contains("needs its token"), "{err}");
    let question = r#"{"domain":"shop","descriptors":[{"entries":[{"key":"user","value":"u"}]}]}"#;
    assert_eq!(
        call(&address, &[BEARER], "POST /v1/buckets/grant", question).0,
        400
    );
    assert_eq!(
        call(&address, &[BEARER], "POST /v1/buckets/show", "{").0,
        400
    );
    assert_eq!(
        call(&address, &[], "POST /v1/buckets/reset", question).0,
        401
    );

    let channel = Channel::from_shared(url.clone())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = BucketServiceClient::new(channel);
    let refused = client.reset_buckets(pb::BucketsRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn who_is_under_a_penalty_is_let_go_by_a_reset_and_begins_anew() {
    let limit = "{ limit: 1/hour, penalty: { after: 2, for: 2h } }";
    let text = format!("domain: shop\ndescriptors: [{{ key: user, limits: [{limit}] }}]\n");
    let home = Home::new(&text);
    let (tollgate, address) = home.serve_admin("s3cret-token-of-ada", &[]);
    let (token, url) = (home.token_file(), format!("http://{address}"));
    let flags = ["--admin", &url, "--admin-token-file", &token];
    let buckets = |deed: &str| {
        let args = ["buckets", deed, "--descriptor", "user=u"];
        let told = home.json(&[&args[..], &flags].concat())[0].clone();
        let seconds = told["penalised_seconds"].as_f64().unwrap();
        assert!(seconds == 0.0 || seconds > 7_000.0, "{told}");
        seconds > 0.0
    };
    let passes = async || {
        let asked = request("shop", &[&[("user", "u")]]);
        let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
        answer.overall_code() == PbCode::Ok
    };
    for _ in 0..2 {
        assert_eq!((passes().await, passes().await), (true, false));
        // One strike, which is forgotten, too.
        assert!(!buckets("show"));
        assert!(!buckets("reset"));
    }
    assert_eq!(
        [passes().await, passes().await, passes().await],
        [true, false, false]
    );
    assert!(buckets("show"));
    assert!(!buckets("reset"));
    assert!(passes().await);
}

const KEYED: &str = r#"
domain: shop
tiers: { free: { limits: [1/hour] }, premium: { limits: [100/hour] } }
descriptors: [{ key: api_key, limits_from: tier }]
"#;

#[tokio::test]
async fn a_key_is_changed_without_a_new_secret_and_explained() {
    let home = Home::new(KEYED);
    let (tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    let made = home.json(&[
        "keys", "create", "--tier", "free", "--id", "k", "--label", "a=1",
    ]);
    let secret = made["secret"].as_str().unwrap();
    let limit = || async {
        let asked = request("shop", &[&[("api_key", secret)]]);
        let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
        let limit = answer.statuses[0].current_limit.as_ref();
        limit.map(|limit| limit.requests_per_unit)
    };
    wait_until("the key", async || limit().await == Some(1)).await;
    let changed = home.json(&[
        "keys",
        "update",
        "k",
        "--tier",
        "premium",
        "--owner",
        "Ada",
        "--label",
        "a=",
        "--label",
        "b=2",
        "--expires",
        "90d",
    ]);
    assert_eq!(changed["tier"], "premium");
    assert_eq!(
        (&changed["owner"], &changed["labels"]),
        (&json!("Ada"), &json!({ "b": "2" }))
    );
    assert!(changed["expires_at"].is_string());
    wait_until("the tier", async || limit().await == Some(100)).await;
    let patch = |body: &str| call(&address, &[BEARER], "PATCH /v1/keys/k", body);
    let (status, patched) =
        patch(r#"{"limits":["7/hour"],"owner":null,"expires_at":null,"labels":{"b":null}}"#);
    assert_eq!(status, 200, "{patched}");
    assert_eq!(
        (&patched["owner"], &patched["expires_at"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&patched["labels"], &patched["limits"]),
        (&json!({}), &json!(["7/hour"]))
    );
    assert_eq!(limit().await, Some(7), "at once where it was changed");
    assert_eq!(patch(r#"{"tier":"gold"}"#).0, 400);
    assert_eq!(patch(r#"{"tier":"free","revision":1}"#).0, 409);
    assert_eq!(patch(r#"{"id":"other"}"#).0, 400);
    assert_eq!(
        home.json(&["keys", "update", "k", "--tier-limits"])["limits"],
        json!([])
    );
    let (code, _, err) = home.run(&["keys", "update", "k", "--tier", "gold"]);
    assert!(
        code == 1 && err.contains("no plan has the tier `gold`"),
        "{err}"
    );
    let (code, out, err) = home.run(&["explain", "--descriptor", "api_key=k"]);
    assert!(code == 0 && out.contains("100/hour: fits"), "{out}{err}");
    // A tier that only a stored plan has is one.
    let draft = home.draft(
        "draft.yaml",
        &KEYED.replace("free:", "gold: { limits: [9/hour] }, free:"),
    );
    assert_eq!(home.run(&["plans", "put", &draft]).0, 0);
    assert_eq!(
        home.json(&["keys", "update", "k", "--tier", "gold"])["tier"],
        "gold"
    );
}

fn admin_tls(folder: &Path, ca: Option<&Authority>, pair: &Pair) -> Vec<String> {
    pair.write(folder);
    let file = |name: &str| folder.join(name).display().to_string();
    let mut flags = vec!["--admin-listen".to_owned(), "127.0.0.1:0".to_owned()];
    flags.extend(["--admin-tls-cert".to_owned(), file("tls.crt")]);
    flags.extend(["--admin-tls-key".to_owned(), file("tls.key")]);
    if let Some(ca) = ca {
        fs::write(folder.join("ca.crt"), ca.pem()).unwrap();
        flags.extend(["--admin-client-ca".to_owned(), file("ca.crt")]);
    }
    flags
}

/// What an admin API says to a client of that certificate and token.
async fn lists(
    address: &str,
    ca: &Authority,
    client: Option<&Pair>,
    token: Option<&str>,
) -> Result<(), Option<Code>> {
    let channel = connect(address, ca, client).await.map_err(|_| None)?;
    let mut request = tonic::Request::new(pb::ListPlansRequest {});
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let listed = PlanServiceClient::new(channel).list_plans(request).await;
    listed.map(drop).map_err(|status| Some(status.code()))
}

#[tokio::test]
async fn a_client_certificate_opens_the_admin_api_and_a_wrong_one_does_not() {
    let home = Home::new(FILE);
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let (server, client) = (ca.issue(&["localhost"]), ca.issue(&["ada.example"]));
    let folder = tempfile::tempdir().unwrap();
    let flags = admin_tls(folder.path(), Some(&ca), &server);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();

    let mut only_certificates = home.serve(&flags);
    let address = admin_address(&mut only_certificates);
    assert_eq!(lists(&address, &ca, Some(&client), None).await, Ok(()));
    for wrong in [
        None,
        Some(&other.issue(&["ada.example"])),
        Some(&ca.issue_expired(&["ada.example"])),
    ] {
        let refused = lists(&address, &ca, wrong, None).await.unwrap_err();
        assert_ne!(
            refused,
            Some(Code::Unauthenticated),
            "the handshake refuses"
        );
    }
    assert_eq!(
        lists(&address, &ca, Some(&client), Some("guess")).await,
        Err(Some(Code::Unauthenticated))
    );

    let (_both, address) = home.serve_admin("ada s3cret-token-of-ada", &flags[2..]);
    assert_eq!(lists(&address, &ca, Some(&client), None).await, Ok(()));
    assert_eq!(
        lists(&address, &ca, None, Some("s3cret-token-of-ada")).await,
        Ok(())
    );
    assert_eq!(
        lists(&address, &ca, None, None).await,
        Err(Some(Code::Unauthenticated))
    );
    let stranger = other.issue(&["ada.example"]);
    assert!(
        lists(&address, &ca, Some(&stranger), Some("s3cret-token-of-ada"))
            .await
            .is_err()
    );

    // The certificate's name is who did it, and the command may show one.
    let own = tempfile::tempdir().unwrap();
    client.write(own.path());
    let file = |name: &str| own.path().join(name).display().to_string();
    let url = format!("https://localhost:{}", address.rsplit(':').next().unwrap());
    let (code, out, err) = home.run(&[
        "buckets",
        "reset",
        "--descriptor",
        "user=u",
        "--admin",
        &url,
        "--admin-ca",
        &folder.path().join("ca.crt").display().to_string(),
        "--admin-cert",
        &file("tls.crt"),
        "--admin-key",
        &file("tls.key"),
    ]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(home.json(&["audit"])[0]["by"], "ada.example");
}

#[test]
fn without_a_token_and_an_authority_of_clients_there_is_no_listener() {
    let home = Home::new(FILE);
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("ca");
    let flags = admin_tls(folder.path(), None, &ca.issue(&["localhost"]));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let tollgate = home.serve(&flags);
    assert!(!tollgate.process.log().contains("admin API"));
}
