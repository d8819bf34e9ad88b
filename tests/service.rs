//! The built binary, asked by a real gRPC client.

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{
    Process, Tollgate, ask, client, descriptor, http, plans, request, tollgate_command, wait_until,
};
use envoy_types::pb::{
    envoy::{
        service::auth::v3::{
            AttributeContext, CheckRequest, authorization_client::AuthorizationClient,
        },
        r#type::v3::RateLimitUnit,
    },
    google::protobuf,
};
use nix::sys::signal::Signal;
use tollgate::proto::envoy::{
    extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride,
    service::ratelimit::v3::{
        RateLimitResponse,
        rate_limit_response::{Code, rate_limit::Unit},
    },
};
use tonic::Code as GrpcCode;

const SHOP: &str = r#"
domain: shop
descriptors:
  - key: user
    limits: ["3/hour", "100/day sliding"]
  - key: job
    rate_limit: { unit: day, requests_per_unit: 1, name: nightly }
  - key: burst
    limits: ["1/hour burst 5"]
  - key: internal
    rate_limit: { unlimited: true }
  - key: listed
  - key: shade
    shadow_mode: true
    rate_limit: { unit: hour, requests_per_unit: 1 }
  - key: slow
    limits: ["6/10 minutes"]
  - key: blocked
    rate_limit: { unit: second, requests_per_unit: 0 }
"#;

fn header<'a>(response: &'a RateLimitResponse, name: &str) -> Option<&'a str> {
    let found = response
        .response_headers_to_add
        .iter()
        .find(|header| header.key == name);
    found.map(|header| header.value.as_str())
}

fn metadata(response: &RateLimitResponse, field: &str) -> Option<String> {
    let value = response.dynamic_metadata.as_ref()?.fields.get(field)?;
    match value.kind.as_ref()? {
        protobuf::value::Kind::StringValue(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    }
}

#[tokio::test]
async fn every_field_of_an_answer_is_filled() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    for left in [2, 1, 0] {
        let response = ask(&mut client, request("shop", &[&[("user", "ann")]]))
            .await
            .unwrap();
        assert_eq!(response.overall_code(), Code::Ok);
        assert_eq!(response.statuses[0].limit_remaining, left);
        assert_eq!(response.raw_body, b"");
        assert_eq!(header(&response, "retry-after"), None);
        let named = header(&response, "ratelimit").unwrap();
        assert!(
            named.contains("\"user:3/hour\";r=") && named.contains("\"user:100/day sliding\";r="),
            "{named}"
        );
    }
    let refused = ask(&mut client, request("shop", &[&[("user", "ann")]]))
        .await
        .unwrap();
    assert_eq!(refused.overall_code(), Code::OverLimit);
    let status = &refused.statuses[0];
    assert_eq!(
        (status.code(), status.limit_remaining),
        (Code::OverLimit, 0)
    );
    let limit = status.current_limit.as_ref().unwrap();
    assert_eq!((limit.requests_per_unit, limit.unit()), (3, Unit::Hour));
    let reset = status.duration_until_reset.as_ref().unwrap().seconds;
    assert!((1_190..=1_200).contains(&reset), "{reset}");
    assert_eq!(
        header(&refused, "retry-after"),
        Some(reset.to_string().as_str())
    );
    assert_eq!(header(&refused, "content-type"), Some("application/json"));
    assert_eq!(refused.raw_body, br#"{"message":"Too Many Requests"}"#);
    assert_eq!(metadata(&refused, "rule").as_deref(), Some("user"));
    assert_eq!(metadata(&refused, "domain").as_deref(), Some("shop"));
    assert!(metadata(&refused, "limit").is_some());
    assert_eq!(
        header(&refused, "x-ratelimit-limit"),
        None,
        "Envoy writes its own"
    );
    let policy = header(&refused, "ratelimit-policy").unwrap();
    assert!(
        policy.contains(";q=3;w=3600") && policy.contains(";q=100;w=86400"),
        "{policy}"
    );
}

#[tokio::test]
async fn one_status_for_each_descriptor_in_order() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let all = request(
        "shop",
        &[
            &[("internal", "x")],
            &[("nobody", "x")],
            &[("job", "j")],
            &[("listed", "")],
            &[("slow", "s")],
            &[("burst", "b")],
        ],
    );
    let response = ask(&mut client, all).await.unwrap();
    assert_eq!(response.statuses.len(), 6);
    let left: Vec<u32> = response
        .statuses
        .iter()
        .map(|status| status.limit_remaining)
        .collect();
    assert_eq!(left, [u32::MAX, 0, 0, 0, 5, 4]);
    let shown: Vec<bool> = response
        .statuses
        .iter()
        .map(|status| status.current_limit.is_some())
        .collect();
    assert_eq!(shown, [false, false, true, false, true, true]);
    assert_eq!(
        response.statuses[2].current_limit.as_ref().unwrap().name,
        "nightly"
    );
    let slow = response.statuses[4].current_limit.as_ref().unwrap();
    assert_eq!((slow.requests_per_unit, slow.unit()), (6, Unit::Minute));
    assert_eq!(slow.unit_multiplier.as_ref().unwrap().value, 10);
    assert_eq!(response.statuses[1].duration_until_reset, None);
}

#[tokio::test]
async fn a_refusal_takes_nothing_anywhere() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let both = || request("shop", &[&[("user", "u")], &[("job", "j")]]);
    assert_eq!(
        ask(&mut client, both()).await.unwrap().overall_code(),
        Code::Ok
    );
    for _ in 0..10 {
        let refused = ask(&mut client, both()).await.unwrap();
        assert_eq!(refused.overall_code(), Code::OverLimit);
        assert_eq!(refused.statuses[0].code(), Code::Ok, "this one has room");
        assert_eq!(refused.statuses[0].limit_remaining, 2);
    }
}

#[tokio::test]
async fn hits_look_take_and_give_back() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let hits = |hits: Option<u64>, negative: bool| {
        let mut asked = request("shop", &[&[("user", "h")]]);
        asked.descriptors[0].hits_addend = hits.map(|value| protobuf::UInt64Value { value });
        asked.descriptors[0].is_negative_hits = negative;
        asked
    };
    let cases = [
        (hits(Some(0), false), Code::Ok, 3),
        (hits(Some(2), false), Code::Ok, 1),
        (hits(Some(2), false), Code::OverLimit, 0),
        (hits(Some(1), true), Code::Ok, 2),
        (hits(None, false), Code::Ok, 1),
        (hits(Some(100), true), Code::Ok, 3),
        (hits(Some(u64::MAX), false), Code::OverLimit, 0),
        (hits(Some(0), false), Code::Ok, 3),
    ];
    for (i, (asked, code, left)) in cases.into_iter().enumerate() {
        let response = ask(&mut client, asked).await.unwrap();
        assert_eq!(
            (
                response.overall_code(),
                response.statuses[0].limit_remaining
            ),
            (code, left),
            "step {i}"
        );
    }
    let mut two = request("shop", &[&[("user", "r")]]);
    two.hits_addend = 2;
    assert_eq!(
        ask(&mut client, two).await.unwrap().statuses[0].limit_remaining,
        1
    );
    let never = ask(&mut client, hits(Some(4), false)).await.unwrap();
    assert_eq!(
        header(&never, "retry-after"),
        None,
        "more than the burst never fits"
    );
    assert_eq!(
        never.statuses[0]
            .duration_until_reset
            .as_ref()
            .unwrap()
            .seconds,
        3_600
    );
}

#[tokio::test]
async fn a_request_may_bring_its_own_limit() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let own = |requests_per_unit: u32, unit: i32, multiplier: Option<u32>| {
        let mut asked = request("shop", &[&[("anything", "x")]]);
        asked.descriptors[0].limit = Some(RateLimitOverride {
            requests_per_unit,
            unit,
            unit_multiplier: multiplier.map(|value| protobuf::UInt32Value { value }),
        });
        asked
    };
    let hour = RateLimitUnit::Hour as i32;
    let response = ask(&mut client, own(2, hour, None)).await.unwrap();
    assert_eq!(response.statuses[0].limit_remaining, 1);
    assert_eq!(
        ask(&mut client, own(5, hour, None)).await.unwrap().statuses[0].limit_remaining,
        0,
        "the tokens stay"
    );
    assert_eq!(
        ask(&mut client, own(5, hour, Some(2)))
            .await
            .unwrap()
            .statuses[0]
            .limit_remaining,
        4
    );
    assert_eq!(
        ask(&mut client, own(5, 7, None)).await.unwrap().statuses[0].limit_remaining,
        4,
        "7 is a week"
    );
    for (asked, words) in [
        (own(1, 0, None), "limit.unit"),
        (own(1, 99, None), "limit.unit"),
        (own(1, hour, Some(0)), "unit_multiplier"),
    ] {
        let error = ask(&mut client, asked).await.unwrap_err();
        assert_eq!(error.code(), GrpcCode::InvalidArgument);
        assert!(error.message().contains(words), "{error}");
    }
    let too_long = ask(&mut client, own(1, hour, Some(u32::MAX)))
        .await
        .unwrap_err();
    assert!(
        too_long
            .message()
            .contains("descriptors[0].limit: a period of"),
        "{too_long}"
    );
}

#[tokio::test]
async fn a_full_memory_store_says_so_once() {
    let (_folder, config) = plans(SHOP);
    let mut tollgate = Tollgate::start(&config, &["--max-buckets", "64"]);
    let mut client = tollgate.client().await;
    for user in 0..200 {
        let user = user.to_string();
        ask(&mut client, request("shop", &[&[("user", &user)]]))
            .await
            .unwrap();
    }
    assert!(tollgate.metric("tollgate_buckets_forgotten_total") > 100.0);
    tollgate.process.line_with("raise --max-buckets");
    let log = tollgate.process.log();
    assert_eq!(log.matches("are forgotten").count(), 1, "{log}");
}

#[tokio::test]
async fn shadow_rules_show_and_never_refuse() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    for _ in 0..3 {
        let response = ask(&mut client, request("shop", &[&[("shade", "s")]]))
            .await
            .unwrap();
        assert_eq!(
            (
                response.overall_code(),
                response.statuses[0].limit_remaining
            ),
            (Code::Ok, 0)
        );
    }
    let page = tollgate.page("/metrics");
    assert!(page.contains(r#"code="SHADOW_OVER_LIMIT"} 2"#), "{page}");
}

#[tokio::test]
async fn metadata_of_rules_that_let_pass_is_merged_into_the_answer() {
    let shop = r#"
domain: shop
descriptors:
  - { key: a, metadata: { plan: gold, deep: { x: 1, none: ~ } }, limits: ["1/hour"] }
  - { key: b, metadata: { plan: tin, deep: { x: 2, more: [true, "2"] } }, rate_limit: { unlimited: true } }
  - { key: c, limits: ["9/hour"] }
"#;
    let (folder, config) = plans(shop);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let mut merged = async |names: &[&str]| {
        let entries: Vec<_> = names.iter().map(|name| [(*name, "1")]).collect();
        let descriptors: Vec<&[(&str, &str)]> = entries.iter().map(|entry| &entry[..]).collect();
        let response = ask(&mut client, request("shop", &descriptors))
            .await
            .unwrap();
        metadata(&response, "metadata")
    };
    let both = merged(&["a", "b", "c"]).await.unwrap();
    assert!(
        both.contains("\"gold\"") && !both.contains("\"tin\""),
        "{both}"
    );
    assert!(
        both.contains("NumberValue(1.0)") && !both.contains("NumberValue(2.0)"),
        "{both}"
    );
    assert!(
        both.contains("NullValue") && both.contains("BoolValue(true)"),
        "{both}"
    );
    let second = merged(&["a", "b"]).await.unwrap();
    assert!(
        second.contains("\"tin\"") && !second.contains("\"gold\""),
        "a refuses: {second}"
    );
    assert_eq!(merged(&["c"]).await, None);
    let off = format!("response: {{ metadata: false }}{shop}");
    std::fs::write(folder.path().join("plans.yaml"), off).unwrap();
    wait_until("the switch", async || merged(&["b"]).await.is_none()).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let many = request("shop", &vec![&[("user", "x")][..]; 10_000]);
    let mut entries = request("shop", &[&[]]);
    entries.descriptors[0] = descriptor(&vec![("k", "v"); 101]);
    for (asked, words) in [
        (request("", &[&[("user", "x")]]), "domain must not be empty"),
        (request("shop", &[]), "descriptor list must not be empty"),
        (many, "10000 descriptors are too many"),
        (entries, "descriptors[0] has 101 entries"),
    ] {
        let error = ask(&mut client, asked).await.unwrap_err();
        assert_eq!(error.code(), GrpcCode::InvalidArgument);
        assert!(error.message().contains(words), "{error}");
    }
    let huge = "x".repeat(1 << 20);
    let response = ask(&mut client, request("shop", &[&[("user", &huge)]]))
        .await
        .unwrap();
    assert_eq!(
        response.statuses[0].limit_remaining, 2,
        "a value of 1 MiB is one like any other"
    );
    for odd in [
        request("nobody", &[&[("user", "x")]]),
        request("shop", &[&[]]),
    ] {
        let response = ask(&mut client, odd).await.unwrap();
        assert_eq!(
            (
                response.overall_code(),
                response.statuses[0].current_limit.as_ref()
            ),
            (Code::Ok, None)
        );
    }
    assert_eq!(tollgate.metric("tollgate_unknown_domain_total"), 1.0);
}

#[tokio::test]
async fn invalid_utf8_on_the_wire_is_an_error_and_no_more() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    // domain = two bytes that are no UTF-8.
    let message: &[u8] = &[0x0a, 0x02, 0xff, 0xfe];
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", tollgate.grpc))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
    );
    let answer: Result<tonic::Response<Vec<u8>>, _> = grpc
        .unary(
            tonic::Request::new(message.to_vec()),
            path,
            common::RawCodec,
        )
        .await;
    let error = answer.unwrap_err();
    assert_eq!(error.code(), GrpcCode::InvalidArgument);
    assert!(error.message().contains("invalid string value"), "{error}");
    assert_eq!(tollgate.metric("tollgate_errors_total"), 1.0);
    let mut client = tollgate.client().await;
    assert!(
        ask(&mut client, request("shop", &[&[("user", "x")]]))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_message_of_more_than_4_mib_is_refused_with_its_size() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let huge = "x".repeat(5 << 20);
    let told = "decoded message length too large: found 52";
    let mut limits = tollgate.client().await;
    let error = ask(&mut limits, request("shop", &[&[("user", &huge)]]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), GrpcCode::OutOfRange);
    assert!(error.message().contains(told), "{error}");
    let uri = format!("http://{}", tollgate.grpc);
    let mut authorization = AuthorizationClient::connect(uri).await.unwrap();
    let check = CheckRequest {
        attributes: Some(AttributeContext {
            context_extensions: [("user".to_owned(), huge)].into(),
            ..Default::default()
        }),
    };
    let error = authorization.check(check).await.unwrap_err();
    assert_eq!(error.code(), GrpcCode::OutOfRange);
    assert!(error.message().contains(told), "{error}");
    let counted = "tollgate_errors_total{reason=\"invalid_request\"}";
    assert_eq!(tollgate.metric(counted), 2.0);
}

#[tokio::test]
async fn unix_and_tcp_together() {
    let (folder, config) = plans(SHOP);
    let socket = format!("unix:{}/rls.sock", folder.path().display());
    let tollgate = Tollgate::start(
        &config,
        &["--grpc-listen", "127.0.0.1:0", "--grpc-listen", &socket],
    );
    let user = || request("shop", &[&[("user", "x")]]);
    let over_tcp = ask(&mut tollgate.client().await, user()).await.unwrap();
    let over_unix = ask(&mut client(&socket).await, user()).await.unwrap();
    assert_eq!(over_tcp.statuses[0].limit_remaining, 2);
    assert_eq!(over_unix.statuses[0].limit_remaining, 1);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let (folder, config) = plans(SHOP);
    let path = folder.path().join("rls.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = format!("unix:{}", path.display());
    let mut first = Tollgate::start(&config, &["--grpc-listen", &socket]);
    assert!(
        ask(
            &mut client(&socket).await,
            request("shop", &[&[("user", "x")]])
        )
        .await
        .is_ok()
    );
    let (code, stderr) = fails(&config, &["--grpc-listen", &socket]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("in use already") && stderr.contains("--grpc-listen"),
        "{stderr}"
    );
    first.process.signal(Signal::SIGTERM);
    assert_eq!(first.process.wait(), Some(0));
    assert!(!path.exists(), "it is cleaned up");
    std::fs::write(&path, "precious").unwrap();
    let (_, stderr) = fails(&config, &["--grpc-listen", &socket]);
    assert!(stderr.contains("no socket"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Exit code and stderr of a start that must fail.
fn fails(config: &std::path::Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = tollgate_command();
    command
        .args(["serve", "--http-listen", "127.0.0.1:0", "--config"])
        .arg(config)
        .args(args);
    if !args.contains(&"--grpc-listen") {
        command.args(["--grpc-listen", "127.0.0.1:0"]);
    }
    let mut process = Process::start(&mut command);
    let code = process.wait();
    common::wait_for("its last words", || {
        process.log().contains("error").then_some(())
    });
    (code, process.log())
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let (folder, config) = plans(SHOP);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let missing = format!("unix:{}/nowhere/rls.sock", folder.path().display());
    for (args, code, words) in [
        (
            vec!["--grpc-listen", taken.as_str()],
            1,
            vec![
                "cannot listen on",
                taken.as_str(),
                "in use already",
                "--grpc-listen",
            ],
        ),
        (
            vec!["--grpc-listen", missing.as_str()],
            1,
            vec!["cannot listen on", "No such file"],
        ),
        (
            vec!["--grpc-listen", "nonsense"],
            2,
            vec!["is not an address", "unix:PATH"],
        ),
        (
            vec!["--store", "reddis://localhost"],
            2,
            vec!["not a Redis URL", "redis://", "`memory`"],
        ),
        (
            vec!["--store-per-second", "redis://localhost"],
            2,
            vec!["--store-per-second goes with a Redis in --store"],
        ),
        (
            vec![
                "--store",
                "redis://localhost",
                "--store-per-second",
                "memory",
            ],
            2,
            vec!["--store-per-second: `memory` is not a Redis URL"],
        ),
        (vec!["--store-timeout", "soon"], 2, vec!["--store-timeout"]),
        (
            vec!["--store-timeout", "0s"],
            2,
            vec!["--store-timeout", "longer than nothing"],
        ),
        (vec!["--max-buckets", "0"], 2, vec!["--max-buckets"]),
    ] {
        let (found, stderr) = fails(&config, &args);
        assert_eq!(found, Some(code), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "`{word}` in {stderr}");
        }
    }
    let (code, stderr) = fails(&folder.path().join("absent.yaml"), &[]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("absent.yaml: No such file") && stderr.contains("--config"),
        "{stderr}"
    );
}

#[test]
fn the_variable_is_parted_at_colons_and_the_flag_is_not() {
    let (folder, config) = plans(SHOP);
    let odd = folder.path().join("a:b");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("x.yaml"), "domain: x\n").unwrap();
    let told = |flags: &[&std::path::Path], variable: String| {
        let mut command = tollgate_command();
        command.args(["explain", "--domain", "x", "--descriptor", "k=v"]);
        for flag in flags {
            command.arg("--config").arg(flag);
        }
        let output = command.env("TOLLGATE_CONFIG", variable).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let config = config.join("plans.yaml");
    let absent = folder.path().join("absent");
    let unknown = "no plan has the domain `x`";
    let flag = told(&[&odd, &config], absent.display().to_string());
    assert!(flag.starts_with("OK") && !flag.contains(unknown), "{flag}");
    let parted = told(&[], format!("{}:{}", config.display(), config.display()));
    assert!(parted.contains(unknown), "{parted}");
    let broken = told(&[], odd.display().to_string());
    assert!(broken.contains("/a: "), "{broken}");
}

/// What a compose file makes of `${NAME:-}`.
#[test]
fn a_variable_that_holds_nothing_says_nothing() {
    let (_folder, config) = plans(SHOP);
    let help = tollgate_command().args(["serve", "--help"]).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let names = help.split("[env: ").skip(1);
    let names = names.map(|rest| rest.split(['=', ']']).next().unwrap());
    let names: Vec<&str> = names.filter(|name| *name != "TOLLGATE_CONFIG").collect();
    assert!(names.len() > 30, "{names:?}");
    let mut command = tollgate_command();
    command.args(["serve", "--grpc-listen", "127.0.0.1:0"]);
    command.args(["--http-listen", "127.0.0.1:0", "--drain-delay", "0s"]);
    command.arg("--config").arg(&config);
    command.envs(names.iter().map(|name| (*name, "")));
    command.env("TOLLGATE_ADMIN_TOKEN", "");
    let tollgate = Tollgate::from_process(Process::start(&mut command));
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 200);
    let asked = |flags: &[&str]| {
        let mut command = tollgate_command();
        command.args(["explain", "--descriptor", "user=x", "--config"]);
        let command = command.arg(&config).args(flags).env("TOLLGATE_STORE", "");
        command.output().unwrap().status.code()
    };
    assert_eq!(asked(&[]), Some(0));
    // A flag that holds nothing is a mistake.
    assert_eq!(asked(&["--store", ""]), Some(2));
}

#[test]
fn a_password_in_a_wrong_store_url_is_not_repeated() {
    let (_folder, config) = plans(SHOP);
    for url in [
        "redis://ann:hunter2@localhost:6379/x",
        "rediss://ann:hunter2@localhost?cert=hunter2",
        "reddis://ann:hunter2@localhost",
        "ann:hunter2@localhost",
    ] {
        for command in [&["serve"][..], &["explain", "--descriptor", "user=x"]] {
            let mut flag = tollgate_command();
            flag.args(command).args(["--store", url]);
            let mut variable = tollgate_command();
            variable.args(command).env("TOLLGATE_STORE", url);
            for mut asked in [flag, variable] {
                let output = asked.arg("--config").arg(&config).output().unwrap();
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(2), "{told}");
                assert!(
                    told.contains("--store") && told.contains("redis://"),
                    "{told}"
                );
                assert!(!told.contains("hunter2"), "{told}");
            }
        }
    }
}

#[tokio::test]
async fn health_follows_the_drain() {
    let (_folder, config) = plans(SHOP);
    let mut tollgate = Tollgate::start(&config, &["--drain-delay", "1s"]);
    let health = |tollgate: &Tollgate| {
        let status = tollgate_command()
            .args(["healthcheck", "--target", &tollgate.grpc])
            .status()
            .unwrap();
        status.code()
    };
    assert_eq!(health(&tollgate), Some(0));
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 200);
    assert_eq!(
        http(&tollgate.http, "GET", "/healthcheck", ""),
        (200, "OK".to_owned())
    );
    let mut client = tollgate.client().await;
    tollgate.process.signal(Signal::SIGTERM);
    wait_until("NOT_SERVING", async || health(&tollgate) == Some(1)).await;
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 503);
    assert_eq!(http(&tollgate.http, "GET", "/healthcheck", "").0, 500);
    assert!(
        ask(&mut client, request("shop", &[&[("user", "x")]]))
            .await
            .is_ok(),
        "still answered while draining"
    );
    assert_eq!(tollgate.process.wait(), Some(0));
    let gone = tollgate_command()
        .args(["healthcheck", "--target", &tollgate.grpc])
        .output()
        .unwrap();
    let told = String::from_utf8(gone.stderr).unwrap();
    assert_eq!(gone.status.code(), Some(2), "{told}");
    assert!(
        told.contains("does not answer: transport error: tcp connect error: Connection refused"),
        "{told}"
    );
}

#[tokio::test]
async fn an_open_stream_does_not_hold_up_the_end() {
    let (_folder, config) = plans(SHOP);
    let mut tollgate = Tollgate::start(&config, &[]);
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", tollgate.grpc)).unwrap();
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
    let watched = tonic_health::pb::HealthCheckRequest {
        service: "ratelimit".to_owned(),
    };
    let mut stream = health.watch(watched).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let _idle = std::net::TcpStream::connect(&tollgate.grpc).unwrap();
    tollgate.process.signal(Signal::SIGTERM);
    assert_eq!(tollgate.process.wait(), Some(0));
}

#[tokio::test]
async fn a_changed_file_is_in_force_within_a_second_and_a_bad_one_is_not() {
    let (folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let user = || request("shop", &[&[("user", "r")]]);
    ask(&mut client, user()).await.unwrap();
    let file = folder.path().join("plans.yaml");
    std::fs::write(&file, SHOP.replace("3/hour", "9/hour")).unwrap();
    let limit = |response: RateLimitResponse| {
        response.statuses[0]
            .current_limit
            .as_ref()
            .unwrap()
            .requests_per_unit
    };
    let look = || {
        let mut look = user();
        look.descriptors[0].hits_addend = Some(protobuf::UInt64Value { value: 0 });
        look
    };
    let asked = client.clone();
    wait_until("the new limit", || {
        let mut client = asked.clone();
        async move { limit(ask(&mut client, look()).await.unwrap()) == 9 }
    })
    .await;
    let kept = ask(&mut client, look()).await.unwrap();
    assert_eq!(
        kept.statuses[0].limit_remaining, 2,
        "a raised limit keeps the bucket's tokens"
    );
    std::fs::write(&file, SHOP.replace("limits:", "limitz:")).unwrap();
    wait_until("the error on /plans", async || {
        tollgate.page("/plans").contains("limitz")
    })
    .await;
    assert_eq!(
        limit(ask(&mut client, look()).await.unwrap()),
        9,
        "the last good plans stay"
    );
    assert_eq!(tollgate.metric("tollgate_plans_stale"), 1.0);
    wait_until("the error in the log", async || {
        tollgate.process.log().contains("did you mean `limits`")
    })
    .await;
    std::fs::write(&file, SHOP).unwrap();
    wait_until("the end of the error", async || {
        tollgate.metric("tollgate_plans_stale") == 0.0
    })
    .await;
}

/// As `tollgate serve` reads `config/` where it stands. The slow poll comes too late for this test.
#[tokio::test]
async fn a_relative_path_is_watched_and_warned_of_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config/plans.yaml");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, format!("{SHOP}  - {{ key: user, value: a*, limits: [\"1/hour\"] }}\n  - {{ key: user, value: ab*, limits: [\"1/hour\"] }}\n")).unwrap();
    let mut command = tollgate_command();
    command.current_dir(folder.path()).args([
        "serve",
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ]);
    let tollgate = Tollgate::from_process(Process::start(&mut command));
    assert!(tollgate.process.log().contains("never reached"));
    std::fs::write(&file, SHOP).unwrap();
    let reloaded = wait_until("the reload", async || {
        tollgate.metric("tollgate_plan_reloads_total{result=\"success\"}") == 1.0
    });
    tokio::time::timeout(Duration::from_secs(10), reloaded)
        .await
        .expect("noticed long before the poll");
}

#[test]
fn a_signal_during_the_start_is_heeded() {
    let (_folder, config) = plans(SHOP);
    let start = || {
        // Takes connections and says nothing, so that the start waits for it.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let store = format!("redis://{}", silent.local_addr().unwrap());
        let mut command = tollgate_command();
        command
            .args(["serve", "--grpc-listen", "127.0.0.1:0"])
            .args(["--http-listen", "127.0.0.1:0", "--drain-delay", "0s"])
            .args(["--store", &store, "--config"])
            .arg(&config);
        let process = Process::start(&mut command);
        let connection = silent.accept().unwrap();
        (process, silent, connection)
    };
    let (mut process, _silent, _connection) = start();
    process.signal(Signal::SIGHUP);
    process.line_with("SIGHUP: the plan files are those in force");
    process.line_with("try:");

    let (mut process, _silent, _connection) = start();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait(), Some(0));
    assert!(!process.log().contains("try:"), "{}", process.log());
}

#[tokio::test]
async fn a_hangup_always_says_what_came_of_it() {
    let (folder, config) = plans(SHOP);
    let mut tollgate = Tollgate::start(&config, &[]);
    tollgate.process.signal(Signal::SIGHUP);
    tollgate.process.line_with("those in force");
    std::fs::write(folder.path().join("plans.yaml"), "domain: 7: 8").unwrap();
    wait_until("the error on /plans", async || {
        tollgate.metric("tollgate_plans_stale") == 1.0
    })
    .await;
    tollgate.process.signal(Signal::SIGHUP);
    let line = tollgate
        .process
        .line_with("SIGHUP: the plan files do not load");
    assert!(
        !line.contains('\u{1b}'),
        "a log in a pipe has no colours: {line:?}"
    );
}

#[tokio::test]
async fn explain_tells_why_and_takes_nothing() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    for _ in 0..3 {
        ask(&mut client, request("shop", &[&[("user", "e")]]))
            .await
            .unwrap();
    }
    let question = r#"{"domain":"shop","descriptors":[{"entries":[{"key":"user","value":"e"}]}]}"#;
    for _ in 0..2 {
        let (status, body) = http(&tollgate.http, "POST", "/explain", question);
        assert_eq!(status, 200, "{body}");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["code"], "OVER_LIMIT");
        assert_eq!(answer["descriptors"][0]["rule"], "user");
        assert_eq!(answer["descriptors"][0]["limits"][0]["remaining"], 0);
        assert_eq!(answer["descriptors"][0]["limits"][1]["remaining"], 97);
        assert!(answer["retry_after_seconds"].as_f64().unwrap() > 1_000.0);
    }
    let (status, body) = http(
        &tollgate.http,
        "POST",
        "/explain",
        r#"{"domain":"shop","descriptorz":[]}"#,
    );
    assert!(
        (400..500).contains(&status) && body.contains("descriptorz"),
        "{status} {body}"
    );
}

#[tokio::test]
async fn explain_shows_no_secret_and_refuses_what_the_service_refuses() {
    let (_folder, config) = plans(KEYS);
    let dead = format!("redis://127.0.0.1:{}", common::free_port());
    let tollgate = Tollgate::start(&config, &["--store", &dead]);
    let explain = |domain: &str, entries: &str| {
        let question = format!(r#"{{"domain":"{domain}","descriptors":[{entries}]}}"#);
        http(&tollgate.http, "POST", "/explain", &question)
    };
    let entry = |key: &str| format!(r#"{{"entries":[{{"key":"{key}","value":"my-secret"}}]}}"#);
    for domain in ["shop", "shpo"] {
        let (status, body) = explain(domain, &entry("token"));
        assert_eq!(status, 200, "{body}");
        assert!(
            body.contains("token=…") && !body.contains("my-secret"),
            "{body}"
        );
    }
    let (status, body) = explain("shop", &entry("strict"));
    assert_eq!(status, 503, "the store is away: {body}");
    assert_eq!(explain("", &entry("strict")).0, 400);
    assert_eq!(explain("shop", "").0, 400);
    let (status, body) = explain("shop", &vec![r#"{"entries":[]}"#; 1_001].join(","));
    assert!(status == 400 && body.contains("at most 1000"), "{body}");
}

const KEYS: &str = r#"
domain: shop
tiers: { free: { limits: ["1/second"] }, premium: { limits: [] } }
api_keys:
  - { id: zoe, tier: free, sha256: "0000000000000000000000000000000000000000000000000000000000000002" }
  - { id: ann, tier: free, sha256: "0000000000000000000000000000000000000000000000000000000000000001" }
descriptors:
  - { key: token, limits_from: tier }
  - { key: strict, on_store_error: error, limits: ["1/second"] }
"#;

#[tokio::test]
async fn the_plans_page_names_tiers_and_has_an_order() {
    let (folder, config) = plans(KEYS);
    for domain in ["a", "z", "m"] {
        let file = folder.path().join(format!("{domain}.yaml"));
        std::fs::write(file, format!("domain: {domain}\n")).unwrap();
    }
    let tollgate = Tollgate::start(&config, &[]);
    let page: serde_json::Value = serde_json::from_str(&tollgate.page("/plans")).unwrap();
    let domains = page["domains"].as_array().unwrap();
    let names: Vec<_> = domains.iter().map(|domain| &domain["domain"]).collect();
    assert_eq!(names, ["a", "m", "shop", "z"]);
    let tiers = serde_json::json!({ "free": ["1/second"], "premium": [] });
    assert_eq!(domains[2]["rules"][0]["allows"], tiers);
    assert_eq!(domains[2]["api_keys"][0]["id"], "ann");
    let version = page["version"].as_str().unwrap();
    assert!(u64::from_str_radix(version, 16).is_ok() && version.len() == 16);
}

/// A counter that goes back reads as a restart, so a rule keeps its series whichever rule moves first.
#[tokio::test]
async fn the_first_thousand_rules_have_series_of_their_own() {
    let rules: String = (0..1_001)
        .map(|rule| format!("  - {{ key: k, value: v{rule}, limits: [\"9/hour\"] }}\n"))
        .collect();
    let (_folder, config) = plans(&format!("domain: shop\ndescriptors:\n{rules}"));
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    for value in ["v1000", "v999", "v0"] {
        ask(&mut client, request("shop", &[&[("k", value)]]))
            .await
            .unwrap();
    }
    let page = tollgate.page("/metrics");
    for name in ["other", "k=v999", "k=v0"] {
        assert!(
            page.contains(&format!("rule=\"{name}\",code=\"OK\"}} 1")),
            "{name}"
        );
    }
    assert!(!page.contains("v1000"));
}

#[test]
fn check_and_explain_need_no_server() {
    let (folder, config) = plans(SHOP);
    let run = |args: &[&str]| {
        let output = tollgate_command().args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let config = config.to_str().unwrap();
    let (code, stdout, stderr) = run(&["check", config]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("shop (8 rules"), "{stdout}");
    let bad = folder.path().join("bad.yaml");
    std::fs::write(
        &bad,
        "domain: x\ndescriptors:\n  - key: a\n    limitz: [\"1/second\"]\n",
    )
    .unwrap();
    let (code, stdout, stderr) = run(&["check", bad.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (Some(1), ""));
    assert!(
        stdout.contains("bad.yaml:4:5: descriptors[0].limitz: unknown field"),
        "{stdout}"
    );
    assert_eq!(run(&["check", "nowhere.yaml"]).0, Some(2));
    std::fs::remove_file(bad).unwrap();
    let (code, stdout, _) = run(&["explain", "--config", config, "--descriptor", "user=x"]);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(stdout.contains("3/hour: fits, 3 left"), "{stdout}");
    let four = [
        "explain",
        "--config",
        config,
        "--descriptor",
        "user=x",
        "--hits",
        "4",
    ];
    let (code, stdout, _) = run(&four);
    assert_eq!(code, Some(1), "{stdout}");
    for words in [
        "would not pass, however long it waited",
        "3/hour: never fits, 3 left",
        "100/day sliding: fits, 100 left",
    ] {
        assert!(stdout.contains(words), "{stdout}");
    }
    let (code, stdout, _) = run(&["explain", "--config", config, "--descriptor", "blocked=x"]);
    assert_eq!(code, Some(1), "{stdout}");
    assert_eq!(
        run(&["explain", "--config", config, "--descriptor", "blocked"]).0,
        Some(2)
    );
}

#[tokio::test]
async fn a_reader_that_goes_changes_no_answer() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let config = config.to_str().unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    for (args, code) in [
        (vec!["check", config], 0),
        (vec!["check", "nowhere.yaml"], 2),
        (
            vec!["explain", "--config", config, "--descriptor", "user=x"],
            0,
        ),
        (
            vec!["explain", "--config", config, "--descriptor", "blocked=x"],
            1,
        ),
        (vec!["healthcheck", "--target", &tollgate.grpc], 0),
    ] {
        let status = tollgate_command()
            .args(&args)
            .stdout(closed())
            .stderr(closed())
            .status();
        assert_eq!(status.unwrap().code(), Some(code), "{args:?}");
    }
}

#[test]
fn the_readme_and_the_help_agree_on_flags_and_commands() {
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let help = |args: &[&str]| {
        let output = tollgate_command().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let code = |cell: &str| -> Vec<String> {
        let parts = cell.split('`').skip(1).step_by(2);
        parts.map(str::to_owned).collect()
    };
    let mut flags = Vec::new();
    let serve = help(&["serve", "--help"]);
    for row in readme.lines().filter(|line| line.starts_with("| `--")) {
        let row = row.replace("\\|", "/");
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [named, variables, defaults] = cells[..] else {
            panic!("{row}")
        };
        for flag in code(named).iter().filter(|text| text.starts_with("--")) {
            let flag = flag.split(' ').next().unwrap();
            let known = [format!("{flag} <"), format!("{flag}\n")];
            assert!(known.iter().any(|known| serve.contains(known)), "{flag}");
            flags.push(flag.to_owned());
        }
        for variable in code(variables).iter().filter(|text| text.len() > 1) {
            assert!(serve.contains(&format!("[env: {variable}")), "{variable}");
        }
        for default in code(defaults) {
            assert!(
                serve.contains(&format!("[default: {default}]")),
                "{default}"
            );
        }
    }
    let words = serve.split_whitespace();
    let offered = words.filter(|word| word.starts_with("--") && *word != "--help");
    let offered: Vec<&str> = offered.collect();
    assert_eq!(flags, offered);

    let commands = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `tollgate "));
    let mut named = BTreeSet::new();
    for line in commands {
        let command: String = line.chars().take_while(char::is_ascii_lowercase).collect();
        let usage = help(&[&command, "--help"]);
        let example = line.split('`').next().unwrap();
        for flag in example
            .split([' ', '[', ']'])
            .filter(|word| word.starts_with("--"))
        {
            assert!(usage.contains(flag), "{flag} of {command}");
        }
        named.insert(command);
    }
    let all = help(&["--help"]);
    let (_, all) = all.split_once("Commands:\n").expect("a list of commands");
    let all = all.lines().take_while(|line| !line.is_empty());
    let all = all.filter_map(|line| line.split_whitespace().next());
    let offered: BTreeSet<String> = all
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    assert_eq!(named, offered);
}

#[tokio::test]
async fn reflection_and_health_list_the_service() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", tollgate.grpc)).unwrap();
    let mut reflection = ServerReflectionClient::new(endpoint.connect().await.unwrap());
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter([list]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
        panic!("{answer:?}")
    };
    assert!(
        listed
            .service
            .iter()
            .any(|service| service.name == "envoy.service.ratelimit.v3.RateLimitService")
    );
}

#[tokio::test]
async fn a_short_deadline_does_not_trouble_the_memory_store() {
    let (_folder, config) = plans(SHOP);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let mut asked = tonic::Request::new(request("shop", &[&[("user", "x")]]));
    asked.set_timeout(Duration::from_secs(5));
    assert!(client.should_rate_limit(asked).await.is_ok());
}

const QUOTA: &str = r#"
domain: shop
descriptors:
  - key: user
    limits: ["5/day calendar", "100/hour"]
  - key: guest
    limits: [{ limit: 1/day calendar, mode: soft, name: daily }]
"#;

#[tokio::test]
async fn a_quota_warns_and_is_refused_in_words_of_its_own() {
    let (_folder, config) = plans(QUOTA);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let user = || request("shop", &[&[("user", "ann")]]);
    for used in 1..=5 {
        let response = ask(&mut client, user()).await.unwrap();
        let warning = (used >= 4).then(|| format!("\"user:5/day calendar\";used={used};q=5"));
        assert_eq!(header(&response, "x-ratelimit-warning"), warning.as_deref());
    }
    let refused = ask(&mut client, user()).await.unwrap();
    assert_eq!(refused.raw_body, br#"{"message":"Limit Exceeded"}"#);
    assert_eq!(header(&refused, "content-type"), Some("application/json"));
    assert_eq!(header(&refused, "x-ratelimit-warning"), None);
}

#[tokio::test]
async fn what_passes_beyond_a_soft_limit_is_marked_and_counted() {
    let (_folder, config) = plans(QUOTA);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let guest = || request("shop", &[&[("guest", "ann")]]);
    let within = ask(&mut client, guest()).await.unwrap();
    assert_eq!(header(&within, "x-ratelimit-overage"), None);
    assert_eq!(metadata(&within, "overage"), None);
    for beyond in 1..=2 {
        let response = ask(&mut client, guest()).await.unwrap();
        assert_eq!(response.overall_code(), Code::Ok);
        assert_eq!(header(&response, "x-ratelimit-overage"), Some("\"daily\""));
        assert!(metadata(&response, "overage").unwrap().contains("daily"));
        let counted = tollgate.metric(r#"tollgate_overage_hits_total{domain="shop",rule="guest"}"#);
        assert_eq!(counted, f64::from(beyond));
    }
}
