//! API keys that are made and changed while the service runs: the command, the admin API, and what ext_authz says of them.

mod common;

use std::{fs, process::Stdio};

use common::{
    Tollgate, ask,
    home::{Home, call_as, finished},
    request, tollgate_command, wait_until,
};
use envoy_types::pb::{
    envoy::service::auth::v3::{
        AttributeContext, CheckRequest, CheckResponse,
        attribute_context::{HttpRequest, Request},
        authorization_client::AuthorizationClient,
        check_response::HttpResponse,
    },
    google::protobuf::value::Kind,
};
use serde_json::{Value, json};
use tollgate::proto::tollgate::admin::v1::{
    ChangeKeyRequest, CreateKeyRequest, key_service_client::KeyServiceClient,
};
use tonic::{Code, transport::Channel};

const PLANS: &str = r#"
domain: shop
tiers:
  free: { limits: ["1/hour"] }
  premium: { limits: ["100/hour"] }
api_keys:
  - { id: in-the-file, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
descriptors:
  - { key: api_key, limits_from: tier }
"#;

/// `tollgate keys ARGS…`: exit status, stdout, stderr.
fn keys(home: &Home, args: &[&str]) -> (i32, String, String) {
    home.run(&[&["keys"], args].concat())
}

/// The same, which must succeed and answer in JSON.
fn keys_json(home: &Home, args: &[&str]) -> Value {
    home.json(&[&["keys"], args].concat())
}

fn http_request(path: &str, headers: &[(&str, &str)]) -> CheckRequest {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(Request {
                http: Some(HttpRequest {
                    path: path.to_owned(),
                    headers: headers.collect(),
                    ..HttpRequest::default()
                }),
                ..Request::default()
            }),
            ..AttributeContext::default()
        }),
    }
}

async fn authz(tollgate: &Tollgate) -> AuthorizationClient<Channel> {
    let address = format!("http://{}", tollgate.grpc);
    AuthorizationClient::connect(address).await.unwrap()
}

async fn check(tollgate: &Tollgate, secret: &str) -> CheckResponse {
    let request = http_request("/", &[("x-api-key", secret)]);
    authz(tollgate)
        .await
        .check(request)
        .await
        .unwrap()
        .into_inner()
}

/// A field of the answer's metadata; none if the request was refused.
fn metadata(answer: &CheckResponse, field: &str) -> Option<String> {
    match answer
        .dynamic_metadata
        .as_ref()?
        .fields
        .get(field)?
        .kind
        .as_ref()?
    {
        Kind::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

async fn opens(tollgate: &Tollgate, secret: &str) -> bool {
    metadata(&check(tollgate, secret).await, "api_key_id").is_some()
}

fn denial(answer: CheckResponse) -> (i32, Vec<(String, String)>, String) {
    let Some(HttpResponse::DeniedResponse(denied)) = answer.http_response else {
        panic!("not refused: {answer:?}");
    };
    let headers = denied.headers.into_iter().map(|option| {
        let header = option.header.unwrap();
        (header.key, header.value)
    });
    (denied.status.unwrap().code, headers.collect(), denied.body)
}

#[tokio::test]
async fn a_key_made_while_the_service_runs_opens_until_it_is_revoked() {
    let home = Home::new(PLANS);
    let [one, other] = [home.serve(&[]), home.serve(&[])];
    let made = keys_json(
        &home,
        &[
            "create", "--tier", "premium", "--owner", "Ada", "--label", "team=x",
        ],
    );
    let (id, secret) = (
        made["id"].as_str().unwrap(),
        made["secret"].as_str().unwrap(),
    );
    assert_eq!(made["tier"], "premium");
    for tollgate in [&one, &other] {
        wait_until("the key to open", async || opens(tollgate, secret).await).await;
        let answer = check(tollgate, secret).await;
        assert_eq!(metadata(&answer, "api_key_id").as_deref(), Some(id));
        assert_eq!(metadata(&answer, "tier").as_deref(), Some("premium"));
        assert_eq!(metadata(&answer, "owner").as_deref(), Some("Ada"));
        // The rate-limit service maps the id, and the secret, to the tier by itself.
        for key in [id, secret] {
            let answer = ask(
                &mut tollgate.client().await,
                request("shop", &[&[("api_key", key)]]),
            )
            .await;
            let shown = answer.unwrap().statuses[0].current_limit.clone().unwrap();
            assert_eq!(shown.requests_per_unit, 100);
        }
    }
    assert_eq!(keys_json(&home, &["disable", id])["state"], "disabled");
    for tollgate in [&one, &other] {
        wait_until("the key to be off", async || !opens(tollgate, secret).await).await;
    }
    keys_json(&home, &["enable", id]);
    wait_until("the key to be on", async || opens(&one, secret).await).await;
    keys_json(&home, &["revoke", id]);
    for tollgate in [&one, &other] {
        wait_until("the key to be gone", async || {
            !opens(tollgate, secret).await
        })
        .await;
    }
    assert_eq!(keys(&home, &["show", id]).0, 1);
}

#[tokio::test]
async fn keys_survive_a_restart() {
    let home = Home::new(PLANS);
    let made = keys_json(&home, &["create", "--tier", "free"]);
    let secret = made["secret"].as_str().unwrap();
    let mut first = home.serve(&[]);
    assert!(opens(&first, secret).await, "known before the ports open");
    first.process.kill();
    assert!(opens(&home.serve(&[]), secret).await);
}

#[tokio::test]
async fn a_rotated_key_has_two_secrets_for_the_overlap() {
    let home = Home::new(PLANS);
    let tollgate = home.serve(&[]);
    let made = keys_json(&home, &["create", "--tier", "free", "--id", "ada"]);
    let old = made["secret"].as_str().unwrap();
    let rotated = keys_json(&home, &["rotate", "ada", "--overlap", "1h"]);
    let new = rotated["secret"].as_str().unwrap();
    assert_ne!(old, new);
    wait_until("the new secret to open", async || {
        opens(&tollgate, new).await
    })
    .await;
    assert!(opens(&tollgate, old).await);
    assert!(rotated["previous_until"].is_string());
    keys_json(&home, &["rotate", "ada", "--overlap", "0s"]);
    wait_until("the rotated secret to be gone", async || {
        !opens(&tollgate, new).await
    })
    .await;
    assert!(!opens(&tollgate, old).await);
}

#[tokio::test]
async fn a_key_with_limits_of_its_own_has_those_and_no_others() {
    let home = Home::new(PLANS);
    let tollgate = home.serve(&[]);
    let made = keys_json(
        &home,
        &[
            "create",
            "--tier",
            "free",
            "--limit",
            "3/hour",
            "--limit",
            "9/day sliding",
        ],
    );
    let id = made["id"].as_str().unwrap();
    wait_until("the key", async || {
        opens(&tollgate, made["secret"].as_str().unwrap()).await
    })
    .await;
    let mut client = tollgate.client().await;
    let mut codes = Vec::new();
    for _ in 0..4 {
        let answer = ask(&mut client, request("shop", &[&[("api_key", id)]]))
            .await
            .unwrap();
        codes.push(answer.overall_code);
    }
    assert_eq!(codes, [1, 1, 1, 2]);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let home = Home::new(PLANS);
    keys_json(&home, &["create", "--tier", "free", "--id", "ada"]);
    for (args, code, message) in [
        (
            &["create", "--tier", "gold"][..],
            1,
            "no plan has the tier `gold`; the tiers are `free`, `premium`",
        ),
        (
            &["create", "--tier", "free", "--id", "in-the-file"],
            1,
            "the plan files have an API key `in-the-file`, and theirs win",
        ),
        (
            &["create", "--tier", "free", "--id", "ada"],
            1,
            "there is an API key `ada` already",
        ),
        (
            &["create", "--tier", "free", "--id", "demo-free-key"],
            1,
            "an id that is itself the secret of a key",
        ),
        (
            &["create", "--tier", "free", "--id", "a\nb"],
            1,
            "an id must have 1 to 128 bytes",
        ),
        (
            &[
                "create", "--tier", "free", "--limit", "1/hour", "--limit", "2/hour",
            ],
            1,
            "would share a bucket",
        ),
        (&["disable", "nobody"], 1, "there is no API key `nobody`"),
        (
            &["disable", "ada", "--revision", "7"],
            1,
            "API key `ada` was changed by somebody else: it has revision 1, not 7",
        ),
        (
            &["create", "--tier", "free", "--expires", "yesterday"],
            2,
            "`yesterday` is no time",
        ),
        (
            &["create", "--tier", "free", "--expires", "2020-01-01"],
            1,
            "a key that ended at 2020-01-01T00:00:00Z would open nothing",
        ),
        (
            &["rotate", "ada", "--overlap", "soon"],
            2,
            "`soon` is no length of time: write 24h, or 0s for none",
        ),
        (
            &["update", "ada"],
            2,
            "required arguments were not provided",
        ),
    ] {
        let (got, out, err) = keys(&home, args);
        assert_eq!(got, code, "{args:?}: {out}{err}");
        assert!(err.contains(message), "{args:?}: {err}");
    }
    let mut elsewhere = tollgate_command();
    elsewhere
        .args(["keys", "list", "--state-dir", "/nowhere/at/all", "--config"])
        .arg(&home.config);
    let (code, _, err) = finished(&mut elsewhere);
    let told = "note: /nowhere/at/all is not there, so nothing is kept in it yet\n";
    assert_eq!((code, err.as_str()), (0, told));
    let mut homeless = tollgate_command();
    homeless
        .args(["keys", "list", "--config"])
        .arg(&home.config);
    let (code, _, err) = finished(&mut homeless);
    assert_eq!(code, 2);
    assert!(
        err.contains("start with --state-dir DIR or --store redis://"),
        "{err}"
    );
}

/// In Redis: `tests/redis/keys.rs` and `plans.rs`.
#[test]
fn many_admins_at_once_lose_nothing_in_a_state_directory() {
    let home = Home::new(PLANS);
    keys_json(&home, &["create", "--tier", "free", "--id", "ada"]);
    let at_once = |args: &dyn Fn(usize) -> Vec<String>| {
        let start = |number| {
            let args = args(number);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut command = home.command(&[&["keys"], &args[..]].concat());
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let children: Vec<_> = (0..12).map(start).collect();
        let ended = children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap());
        ended
            .map(|output| {
                (
                    output.status.code().unwrap(),
                    String::from_utf8(output.stderr).unwrap(),
                )
            })
            .collect::<Vec<_>>()
    };
    let words = |text: String| text.split(' ').map(str::to_owned).collect();
    let made = at_once(&|number| words(format!("create --tier free --id k{number}")));
    assert!(made.iter().all(|(code, _)| *code == 0), "{made:?}");
    assert_eq!(keys_json(&home, &["list"]).as_array().unwrap().len(), 13);

    // All have looked at revision 1: one wins, and the others are told.
    let rotated = at_once(&|_| words("rotate ada --revision 1".to_owned()));
    let (won, lost): (Vec<_>, Vec<_>) = rotated.into_iter().partition(|(code, _)| *code == 0);
    assert_eq!(won.len(), 1, "{lost:?}");
    for (code, err) in lost {
        let told = "was changed by somebody else: it has revision 2, not 1";
        assert!(code == 1 && err.contains(told), "{err}");
    }
    // Each change has its entry, and what was not done has none.
    assert_eq!(home.json(&["audit"]).as_array().unwrap().len(), 14);
}

#[test]
fn a_list_shows_what_it_is_asked_for() {
    let home = Home::new(PLANS);
    for (id, tier, owner) in [
        ("a", "free", "Ada"),
        ("b", "premium", "Ada"),
        ("c", "free", "Bob"),
    ] {
        keys_json(
            &home,
            &["create", "--tier", tier, "--owner", owner, "--id", id],
        );
    }
    let ids = |args: &[&str]| -> Vec<String> {
        let listed = keys_json(&home, &[&["list"], args].concat());
        let keys = listed.as_array().unwrap().iter();
        keys.map(|key| key["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&[]), ["a", "b", "c"]);
    assert_eq!(ids(&["--tier", "free"]), ["a", "c"]);
    assert_eq!(ids(&["--owner", "Ada"]), ["a", "b"]);
    let (code, out, _) = keys(&home, &["list"]);
    assert_eq!(code, 0);
    assert_eq!(out.lines().count(), 4, "{out}");
}

#[tokio::test]
async fn keys_of_api_gateway_are_taken_over_with_their_secrets() {
    let home = Home::new(PLANS);
    let file = home.state().join("keys.json");
    let values = ["aws-secret-0123456789", "short", "aws-secret-0123456789"];
    let items = values.iter().enumerate().map(|(index, value)| {
        json!({ "id": format!("aws{index}"), "value": value, "name": "Ada", "enabled": true, "stageKeys": [] })
    });
    let without = json!({ "id": "aws3", "name": "Bob", "enabled": true });
    let items: Vec<_> = items.chain([without]).collect();
    fs::write(&file, json!({ "items": items }).to_string()).unwrap();
    let (code, out, err) = keys(
        &home,
        &["import", file.to_str().unwrap(), "--tier", "premium"],
    );
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("imported: 1"), "{out}{err}");
    assert!(
        out.contains("not imported: aws1: the secret of `aws1` has 5 bytes"),
        "{out}{err}"
    );
    assert!(
        out.contains("the secret of `aws2` is that of the API key `aws0`"),
        "{out}{err}"
    );
    assert!(
        out.contains("not imported: aws3: it has no value"),
        "{out}{err}"
    );
    assert!(
        !values.iter().any(|value| out.contains(value)),
        "{out}{err}"
    );
    let answer = check(&home.serve(&[]), values[0]).await;
    assert_eq!(metadata(&answer, "api_key_id").as_deref(), Some("aws0"));
    assert_eq!(metadata(&answer, "owner").as_deref(), Some("Ada"));

    let plan =
        json!({ "id": "p", "name": "basic", "throttle": { "rateLimit": 10.0, "burstLimit": 20 } });
    let weekly =
        json!({ "name": "weekly", "quota": { "limit": 9, "offset": 3, "period": "WEEK" } });
    fs::write(&file, json!({ "items": [weekly, plan] }).to_string()).unwrap();
    let (code, out, err) = keys(&home, &["import", file.to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(
        out.contains(r#""weekly": { limits: [{"limit":"9/week calendar","offset":"2d"}] }"#),
        "{out}"
    );
    assert!(
        err.contains("note: usage plan `weekly`: `quota.offset` 3 is taken for the day on which a week starts"),
        "{err}"
    );
    assert!(
        out.trim_end()
            .ends_with(r#""basic": { limits: ["10/second burst 20"] }"#),
        "{out}"
    );
}

#[tokio::test]
async fn refusals_look_as_the_plans_ask() {
    let styled = |style: &str| {
        format!(
            "{PLANS}authentication: {{ error_style: {style}, key_from: [\"header:x-key\", \"query:key\"] }}\n"
        )
    };
    let mistyped = "tg_000000000000000000000000000000000000";
    for (style, name, secret, status, content_type, body) in [
        (
            "aws",
            "x-key",
            None,
            403,
            "application/json",
            r#"{"message":"Forbidden"}"#,
        ),
        (
            "aws",
            "x-key",
            Some("wrong"),
            403,
            "application/json",
            r#"{"message":"Forbidden"}"#,
        ),
        (
            "problem+json",
            "x-key",
            None,
            401,
            "application/problem+json",
            r#"{"detail":"An API key is needed: send it as the header x-key or the query parameter key.","status":401,"title":"Unauthorized","type":"about:blank"}"#,
        ),
        (
            "problem+json",
            "x-key",
            Some("wrong"),
            403,
            "application/problem+json",
            r#"{"detail":"The API key is not valid.","status":403,"title":"Forbidden","type":"about:blank"}"#,
        ),
        // A place that the plans do not name is none.
        (
            "plain",
            "x-api-key",
            Some("demo-free-key"),
            401,
            "text/plain; charset=utf-8",
            "An API key is needed: send it as the header x-key or the query parameter key.\n",
        ),
        (
            "plain",
            "x-key",
            Some(mistyped),
            403,
            "text/plain; charset=utf-8",
            "The API key is mistyped: its checksum does not fit.\n",
        ),
    ] {
        let home = Home::new(&styled(style));
        let tollgate = home.serve(&[]);
        let headers: Vec<_> = secret.iter().map(|secret| (name, *secret)).collect();
        let answer = authz(&tollgate)
            .await
            .check(http_request("/", &headers))
            .await;
        let (code, headers, text) = denial(answer.unwrap().into_inner());
        assert_eq!((code, text.as_str()), (status, body), "{style}");
        assert_eq!(
            headers[0],
            ("content-type".to_owned(), content_type.to_owned())
        );
        let challenge = headers.iter().find(|(name, _)| name == "www-authenticate");
        assert_eq!(challenge.is_some(), status == 401);
    }
}

#[tokio::test]
async fn a_key_on_the_deny_list_is_refused_in_the_style_of_the_plans() {
    for (style, content_type, body) in [
        ("aws", "application/json", r#"{"message":"Forbidden"}"#),
        (
            "problem+json",
            "application/problem+json",
            r#"{"detail":"This client is not let in.","status":403,"title":"Forbidden","type":"about:blank"}"#,
        ),
        (
            "plain",
            "text/plain; charset=utf-8",
            "This client is not let in.\n",
        ),
    ] {
        let lists = format!(
            "authentication: {{ error_style: {style} }}\ndeny: {{ api_key: [ada, in-the-file] }}\n"
        );
        let home = Home::new(&format!("{PLANS}{lists}"));
        let made = |id: &str| {
            keys_json(&home, &["create", "--tier", "free", "--id", id])["secret"].clone()
        };
        let [denied, other] = [made("ada"), made("bob")];
        let tollgate = home.serve(&[]);
        assert!(opens(&tollgate, other.as_str().unwrap()).await);
        for secret in [denied.as_str().unwrap(), "demo-free-key"] {
            let (code, headers, text) = denial(check(&tollgate, secret).await);
            assert_eq!((code, text.as_str()), (403, body));
            assert_eq!(
                headers,
                [("content-type".to_owned(), content_type.to_owned())]
            );
        }
        let checks = "tollgate_key_checks_total{result=\"denied\"}";
        assert_eq!(tollgate.metric(checks), 2.0);
        // The rate-limit service says the same to who asks it directly.
        let asked = request("shop", &[&[("api_key", "ada")]]);
        let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
        assert_eq!(answer.overall_code, 2);
    }
}

#[tokio::test]
async fn huge_and_odd_requests_are_refused_and_harm_nobody() {
    let home = Home::new(PLANS);
    let tollgate = home.serve(&[]);
    let huge = "k".repeat(1 << 20);
    assert_eq!(denial(check(&tollgate, &huge).await).0, 403);
    let names: Vec<String> = (0..10_000).map(|n| format!("x-{n}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
    let mut client = authz(&tollgate).await;
    let answer = client.check(http_request("/", &headers)).await.unwrap();
    assert_eq!(denial(answer.into_inner()).0, 403);
    let answer = client.check(CheckRequest::default()).await.unwrap();
    assert_eq!(denial(answer.into_inner()).0, 403);
    let too_large = http_request("/", &[("x-api-key", &"k".repeat(5 << 20))]);
    assert!(client.check(too_large).await.is_err());
    assert!(opens(&tollgate, "demo-free-key").await, "it goes on");
}

#[tokio::test]
async fn a_route_that_names_a_domain_is_opened_by_that_domains_keys_only() {
    let home = Home::new(PLANS);
    let other = PLANS.replace("shop", "other").replace("free", "basic");
    let other = other
        .replace("9f8cfdb1", "00000000")
        .replace("in-the-file", "elsewhere");
    fs::write(home.config.join("other.yaml"), other).unwrap();
    let tollgate = home.serve(&[]);
    for (domain, open) in [("shop", true), ("other", false)] {
        let mut request = http_request("/", &[("x-api-key", "demo-free-key")]);
        let attributes = request.attributes.as_mut().unwrap();
        attributes
            .context_extensions
            .insert("domain".to_owned(), domain.to_owned());
        let answer = authz(&tollgate)
            .await
            .check(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(metadata(&answer, "api_key_id").is_some(), open, "{domain}");
    }
}

const TOKEN: &str = "admin-token-of-the-test";

/// A service whose admin API is on, and where.
fn with_admin(home: &Home) -> (Tollgate, String) {
    home.serve_admin(&format!("{TOKEN}\n"), &[])
}

/// One question to the HTTP twin: status and body.
fn call(address: &str, token: Option<&str>, method: &str, path: &str, body: &str) -> (u16, Value) {
    call_as(address, token, &format!("{method} {path}"), body)
}

#[tokio::test]
async fn the_admin_api_does_nothing_for_who_has_not_its_token() {
    let home = Home::new(PLANS);
    let without = home.serve(&["--admin-listen", "127.0.0.1:0"]);
    assert!(
        !without.process.log().contains("admin API"),
        "no token, no listener"
    );
    keys_json(&home, &["create", "--tier", "free", "--id", "ada"]);
    let (_tollgate, address) = with_admin(&home);
    for token in [None, Some("wrong"), Some(""), Some(&TOKEN[1..])] {
        for (method, path) in [
            ("GET", "/v1/keys"),
            ("POST", "/v1/keys"),
            ("GET", "/v1/keys/ada"),
            ("DELETE", "/v1/keys/ada"),
            ("POST", "/v1/keys/ada/disable"),
            ("POST", "/v1/keys/ada/enable"),
            ("POST", "/v1/keys/ada/rotate"),
            ("POST", "/v1/keys:import"),
            ("GET", "/nowhere"),
        ] {
            let (status, body) = call(&address, token, method, path, r#"{"tier":"free"}"#);
            assert_eq!(
                (status, &body["status"]),
                (401, &json!(401)),
                "{method} {path}"
            );
        }
    }
    let mut client = KeyServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let refused = client
        .create_key(CreateKeyRequest {
            tier: "free".to_owned(),
            ..Default::default()
        })
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(keys_json(&home, &["list"]).as_array().unwrap().len(), 1);
    assert_eq!(keys_json(&home, &["show", "ada"])["revision"], 1);
}

#[tokio::test]
async fn the_admin_api_does_what_the_command_does() {
    let home = Home::new(PLANS);
    let (tollgate, address) = with_admin(&home);
    let call =
        |method: &str, path: &str, body: &str| call(&address, Some(TOKEN), method, path, body);
    let (status, made) = call(
        "POST",
        "/v1/keys",
        r#"{"tier":"free","id":"ada","owner":"Ada","labels":{"team":"web"},"expires_at":"90d"}"#,
    );
    assert_eq!(status, 201, "{made}");
    let secret = made["secret"].as_str().unwrap();
    assert!(opens(&tollgate, secret).await, "at once where it was made");
    assert_eq!(
        call("POST", "/v1/keys", r#"{"tier":"free","id":"ada"}"#).0,
        409
    );
    assert_eq!(call("POST", "/v1/keys", r#"{"tier":"gold"}"#).0, 400);
    let ended = r#"{"tier":"free","expires_at":"2020-01-01"}"#;
    assert_eq!(call("POST", "/v1/keys", ended).0, 400);
    let soon = call("POST", "/v1/keys/ada/rotate", r#"{"overlap":"soon"}"#);
    assert_eq!(
        (soon.0, &soon.1["detail"]),
        (
            400,
            &json!("overlap: `soon` is no length of time: write 24h, or 0s for none")
        )
    );
    assert_eq!(call("POST", "/v1/keys", r#"{"teir":"free"}"#).0, 400);
    assert_eq!(call("POST", "/v1/keys", &"x".repeat(1 << 20)).0, 413);
    assert_eq!(call("GET", "/v1/keys/nobody", "").0, 404);
    for (body, told) in [
        (r#"["free"]"#, "expected a key, as {\"tier\":\"free\"}"),
        ("5", "expected a key, as {\"tier\":\"free\"}"),
    ] {
        let (status, refused) = call("POST", "/v1/keys", body);
        assert!(
            status == 400 && refused["detail"].as_str().unwrap().contains(told),
            "{refused}"
        );
    }
    for (body, told) in [
        (
            r#"{"tier":null}"#,
            "tier: a key always has one; leave it out to keep it",
        ),
        (
            r#"{"expires_at":"soon"}"#,
            "`soon` is no time: write 90d, or 2027-01-31T12:00:00Z",
        ),
    ] {
        let (status, refused) = call("PATCH", "/v1/keys/ada", body);
        assert_eq!((status, &refused["detail"]), (400, &json!(told)));
    }
    let listed = |label: &str| call("GET", &format!("/v1/keys?label={label}"), "");
    assert_eq!(listed("team=web").1["keys"][0]["id"], "ada");
    assert_eq!(listed("team=app").1["keys"], json!([]));
    assert_eq!(listed("team").0, 400);
    let (_, listed) = call("GET", "/v1/keys?owner=Ada", "");
    assert_eq!(listed["keys"][0]["id"], "ada");
    assert!(!listed.to_string().contains(secret));

    assert_eq!(
        call("POST", "/v1/keys/ada/disable", "").1["state"],
        "disabled"
    );
    assert!(!opens(&tollgate, secret).await);
    // Who looked at revision 1 is told that it is another now.
    assert_eq!(
        call("POST", "/v1/keys/ada/enable", r#"{"revision":1}"#).0,
        409
    );
    assert_eq!(
        call("POST", "/v1/keys/ada/enable", r#"{"revision":2}"#).1["state"],
        "enabled"
    );
    let (_, rotated) = call("POST", "/v1/keys/ada/rotate", r#"{"overlap":"0s"}"#);
    assert!(!opens(&tollgate, secret).await);
    assert!(opens(&tollgate, rotated["secret"].as_str().unwrap()).await);
    assert_eq!(call("DELETE", "/v1/keys/ada?revision=1", "").0, 409);
    assert_eq!(call("DELETE", "/v1/keys/ada", "").0, 204);
    assert!(!opens(&tollgate, rotated["secret"].as_str().unwrap()).await);
    let imported =
        r#"{"keys":[{"secret":"from-elsewhere-0123","key":{"tier":"free","id":"eve"}}]}"#;
    assert_eq!(
        call("POST", "/v1/keys:import", imported).1["created"],
        json!(["eve"])
    );
    assert!(opens(&tollgate, "from-elsewhere-0123").await);

    let channel = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client =
        KeyServiceClient::with_interceptor(channel, |mut request: tonic::Request<()>| {
            let value = format!("Bearer {TOKEN}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
            Ok(request)
        });
    let made = client
        .create_key(CreateKeyRequest {
            tier: "premium".to_owned(),
            id: "bob".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert!(opens(&tollgate, &made.secret).await);
    let change = |revision| ChangeKeyRequest {
        id: "bob".to_owned(),
        revision,
    };
    let disabled = client.disable_key(change(1)).await.unwrap().into_inner();
    assert_eq!((disabled.enabled, disabled.revision), (false, 2));
    assert_eq!(
        client.enable_key(change(1)).await.unwrap_err().code(),
        Code::Aborted
    );
    client.revoke_key(change(0)).await.unwrap();
    assert_eq!(
        client.revoke_key(change(0)).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_a_page_or_the_state_directory() {
    let home = Home::new(PLANS);
    let (tollgate, address) = with_admin(&home);
    let (_, made) = call(
        &address,
        Some(TOKEN),
        "POST",
        "/v1/keys",
        r#"{"tier":"free","id":"ada"}"#,
    );
    let (_, rotated) = call(&address, Some(TOKEN), "POST", "/v1/keys/ada/rotate", "");
    let imported =
        r#"{"keys":[{"secret":"from-elsewhere-0123","key":{"tier":"free","id":"eve"}}]}"#;
    call(&address, Some(TOKEN), "POST", "/v1/keys:import", imported);
    call(
        &address,
        Some(TOKEN),
        "PATCH",
        "/v1/keys/ada",
        r#"{"owner":"Ada"}"#,
    );
    let (status, body) = call(&address, Some(TOKEN), "PUT", "/v1/plans/shop", PLANS);
    assert_eq!(status, 200, "{body}");
    let secrets = [
        made["secret"].as_str().unwrap(),
        rotated["secret"].as_str().unwrap(),
        "from-elsewhere-0123",
        "demo-free-key",
        TOKEN,
    ];
    let mut client = tollgate.client().await;
    for secret in secrets {
        opens(&tollgate, secret).await;
        ask(&mut client, request("shop", &[&[("api_key", secret)]]))
            .await
            .unwrap();
    }
    let asked = |secret: &str| {
        let entries = json!([{ "key": "api_key", "value": secret }]);
        json!({ "domain": "shop", "descriptors": [{ "entries": entries }] }).to_string()
    };
    let question = asked(secrets[0]);
    for secret in secrets {
        for deed in ["show", "reset"] {
            let path = format!("/v1/buckets/{deed}");
            let (_, body) = call(&address, Some(TOKEN), "POST", &path, &asked(secret));
            assert!(!body.to_string().contains(secret), "{body}");
        }
    }
    let (_, audit) = call(&address, Some(TOKEN), "GET", "/v1/audit", "");
    for action in ["key.rotate", "key.update", "plans.put", "buckets.reset"] {
        assert!(audit.to_string().contains(action), "{action}: {audit}");
    }
    let mut places = vec![
        ("the log", tollgate.process.log()),
        ("stdout", tollgate.process.output()),
        ("/metrics", tollgate.page("/metrics")),
        ("/plans", tollgate.page("/plans")),
        (
            "/explain",
            common::http(&tollgate.http, "POST", "/explain", &question).1,
        ),
        ("the audit log", audit.to_string()),
        ("the list", keys(&home, &["list", "--output", "json"]).1),
        ("a key", keys(&home, &["show", "ada"]).1),
    ];
    for entry in fs::read_dir(home.state()).unwrap() {
        let path = entry.unwrap().path();
        places.push(("the state directory", fs::read_to_string(path).unwrap()));
    }
    for (place, text) in places {
        for secret in secrets {
            assert!(!text.contains(secret), "{place} shows a secret: {text}");
        }
    }
}
