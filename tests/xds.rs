//! Plans from a control plane.

#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "common/control_plane.rs"]
mod control_plane;

use std::net::TcpListener;

use certificates::Authority;
use common::{Process, Tollgate, ask, free_port, http, request, tollgate_command, wait_until};
use control_plane::ControlPlane;
use envoy_types::pb::google::protobuf::{self, Any, value::Kind};
use tokio::{
    io::copy_bidirectional,
    net::{TcpStream, UnixListener},
};
use tollgate::{
    proto::{
        envoy::service::ratelimit::v3::rate_limit_response::Code,
        ratelimit::config::ratelimit::v3::{
            RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitReplace, RateLimitUnit,
        },
    },
    xds::TYPE_URL,
};
use tonic::transport::ServerTlsConfig;

fn command(server: &str, args: &[&str]) -> std::process::Command {
    let mut command = tollgate_command();
    command.args(["serve", "--xds", server, "--drain-delay", "0s"]);
    command.args([
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ]);
    command.args(args);
    command
}

fn start(server: &str, args: &[&str]) -> Tollgate {
    Tollgate::from_process(Process::start(&mut command(server, args)))
}

fn follow(plane: &ControlPlane) -> Tollgate {
    start(&plane.address.to_string(), &[])
}

fn config(name: &str, domain: &str, descriptors: Vec<RateLimitDescriptor>) -> RateLimitConfig {
    RateLimitConfig {
        name: name.to_owned(),
        domain: domain.to_owned(),
        descriptors,
    }
}

fn per_hour(key: &str, requests_per_unit: u32) -> RateLimitDescriptor {
    RateLimitDescriptor {
        key: key.to_owned(),
        rate_limit: Some(RateLimitPolicy {
            unit: RateLimitUnit::Hour.into(),
            requests_per_unit,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn shop(requests_per_unit: u32) -> Vec<RateLimitConfig> {
    vec![config(
        "shop",
        "shop",
        vec![per_hour("user", requests_per_unit)],
    )]
}

/// How many more a user may, by the answer to a look; none where no rule matches.
async fn left(tollgate: &Tollgate, domain: &str) -> Option<u32> {
    let mut look = request(domain, &[&[("user", "ann")]]);
    look.descriptors[0].hits_addend = Some(protobuf::UInt64Value { value: 0 });
    let answer = ask(&mut tollgate.client().await, look).await.unwrap();
    let status = &answer.statuses[0];
    status
        .current_limit
        .as_ref()
        .map(|_| status.limit_remaining)
}

fn page(tollgate: &Tollgate) -> serde_json::Value {
    serde_json::from_str(&tollgate.page("/plans")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_update_replaces_everything() {
    let plane = ControlPlane::start();
    plane.publish("1", &shop(3));
    let tollgate = follow(&plane);
    plane.accepted("1").await;
    assert_eq!(left(&tollgate, "shop").await, Some(3));

    plane.publish(
        "2",
        &[
            config("a", "a", vec![per_hour("user", 5)]),
            config("b", "b", vec![]),
        ],
    );
    plane.accepted("2").await;
    assert_eq!(left(&tollgate, "shop").await, None);
    assert_eq!(left(&tollgate, "a").await, Some(5));
    let shown = page(&tollgate);
    assert_eq!(shown["control_plane"]["version"], "2");
    assert_eq!(shown["control_plane"]["server"], plane.address.to_string());
    assert_eq!(
        shown["files"],
        serde_json::json!(["resource a", "resource b"])
    );

    plane.publish("3", &[]);
    plane.accepted("3").await;
    assert_eq!(left(&tollgate, "a").await, None);
    assert_eq!(page(&tollgate)["domains"], serde_json::json!([]));
    assert_eq!(
        tollgate.metric("tollgate_xds_updates_total{result=\"accepted\"}"),
        3.0
    );
    assert_eq!(tollgate.metric("tollgate_xds_version{version=\"3\"}"), 1.0);
    assert_eq!(tollgate.metric("tollgate_xds_connected"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_empty_first_update_is_plans_too() {
    let plane = ControlPlane::start();
    plane.publish("1", &[]);
    let tollgate = follow(&plane);
    plane.accepted("1").await;
    assert_eq!(left(&tollgate, "shop").await, None);
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bad_update_changes_nothing_and_says_every_mistake() {
    let plane = ControlPlane::start();
    plane.publish("1", &shop(3));
    let mut tollgate = follow(&plane);
    plane.accepted("1").await;

    let nameless = RateLimitDescriptor::default();
    let mut unitless = per_hour("user", 1);
    unitless.rate_limit.as_mut().unwrap().unit = 0;
    let below = RateLimitDescriptor {
        key: "path".to_owned(),
        descriptors: vec![unitless, per_hour("user", 2)],
        ..Default::default()
    };
    plane.publish(
        "2",
        &[
            config("shop", "shop", vec![nameless]),
            config("two", "two", vec![below]),
        ],
    );
    let (answer, text) = plane.refused("2").await;
    assert_eq!(
        (answer.version_info.as_str(), answer.type_url.as_str()),
        ("1", TYPE_URL)
    );
    for mistake in [
        "resource shop: descriptors[0]: descriptor has empty key",
        "resource two: descriptors[0].descriptors[0].rate_limit.unit: invalid rate limit unit ''",
        "resource two: descriptors[0].descriptors[1]: duplicate descriptor composite key 'two.path.user'",
        "version 1 stays in force",
    ] {
        assert!(text.contains(mistake), "{mistake} in {text}");
    }
    assert_eq!(left(&tollgate, "shop").await, Some(3));
    tollgate
        .process
        .line_with("update of the control plane refused, version 1 stays in force");
    let last = page(&tollgate)["last_error"].to_string();
    assert!(last.contains("descriptor has empty key"), "{last}");
    assert_eq!(
        tollgate.metric("tollgate_xds_updates_total{result=\"rejected\"}"),
        1.0
    );
    assert_eq!(tollgate.metric("tollgate_plans_stale"), 1.0);

    plane.publish("3", &shop(4));
    plane.accepted("3").await;
    assert_eq!(left(&tollgate, "shop").await, Some(4));
    assert_eq!(tollgate.metric("tollgate_plans_stale"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_no_resource_of_ours_is_refused() {
    let plane = ControlPlane::start();
    plane.publish("1", &shop(3));
    let tollgate = follow(&plane);
    plane.accepted("1").await;

    let any = |type_url: &str, value: &[u8]| Any {
        type_url: type_url.to_owned(),
        value: value.to_vec(),
    };
    let twice = [
        config("one", "shop", vec![]),
        config("other", "shop", vec![]),
    ];
    plane.publish("2", &twice);
    let (_, text) = plane.refused("2").await;
    assert!(
        text.contains(
            "resource other: domain: duplicate domain 'shop' in config file, first in resource one"
        ),
        "{text}"
    );
    plane.publish_raw(
        "3",
        TYPE_URL,
        vec![any("type.googleapis.com/other.Type", b"")],
    );
    let (_, text) = plane.refused("3").await;
    assert!(
        text.contains("resource 1: is of type `type.googleapis.com/other.Type`"),
        "{text}"
    );
    plane.publish_raw("4", TYPE_URL, vec![any(TYPE_URL, b"\xff\xff")]);
    let (_, text) = plane.refused("4").await;
    assert!(text.contains("resource 1: is no RateLimitConfig"), "{text}");
    let mut deep = per_hour("user", 1);
    for _ in 0..60 {
        deep = RateLimitDescriptor {
            key: "user".to_owned(),
            descriptors: vec![deep],
            ..Default::default()
        };
    }
    plane.publish("5", &[config("deep", "deep", vec![deep])]);
    let (_, text) = plane.refused("5").await;
    assert!(
        text.contains("resource deep: has descriptors nested deeper than 49"),
        "{text}"
    );
    plane.publish_raw("6", "type.googleapis.com/other.Type", vec![]);
    let (answer, text) = plane.refused("6").await;
    assert_eq!(answer.type_url, "type.googleapis.com/other.Type");
    assert!(
        text.contains("update: is of type `type.googleapis.com/other.Type`"),
        "{text}"
    );
    assert_eq!(left(&tollgate, "shop").await, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn comes_back_with_the_version_in_force_and_no_nonce() {
    let mut plane = ControlPlane::start();
    plane.publish("1", &shop(3));
    let tollgate = follow(&plane);
    plane.accepted("1").await;
    plane.publish("2", &[config("", "", vec![])]);
    plane.refused("2").await;

    plane.vanish();
    wait_until("a notice of the loss", async || {
        let lost = tollgate
            .process
            .log()
            .contains("no stream from the control plane");
        lost && left(&tollgate, "shop").await == Some(3)
    })
    .await;
    plane.back();
    let again = plane
        .request("a second stream", |seen| seen.stream == 2)
        .await
        .request;
    assert_eq!(
        (again.version_info.as_str(), again.response_nonce.as_str()),
        ("1", "")
    );
    assert_eq!(again.error_detail, None);
    plane.publish("3", &shop(4));
    plane.accepted("3").await;
    assert_eq!(left(&tollgate, "shop").await, Some(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn says_who_it_is_and_asks_for_everything() {
    let plane = ControlPlane::start();
    let _tollgate = start(
        &plane.address.to_string(),
        &[
            "--xds-node-id",
            "limiter-7",
            "--xds-node-metadata",
            "zone=north,tier=edge",
            "--xds-header",
            "x-team=blue,x-env=test",
        ],
    );
    let first = plane.request("the first request", |_| true).await;
    let node = first.request.node.unwrap();
    assert_eq!(node.id, "limiter-7");
    let fields = node.metadata.unwrap().fields;
    let text = |name: &str| match &fields[name].kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (text("zone"), text("tier"), fields.len()),
        ("north".into(), "edge".into(), 2)
    );
    assert_eq!(first.headers.get("x-team").unwrap(), "blue");
    assert_eq!(first.headers.get("x-env").unwrap(), "test");
    assert_eq!(first.request.type_url, TYPE_URL);
    assert!(first.request.resource_names.is_empty() && first.request.version_info.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn serves_before_the_control_plane_is_there() {
    let port = free_port();
    let tollgate = start(&format!("localhost:{port}"), &[]);
    let asked = ask(
        &mut tollgate.client().await,
        request("shop", &[&[("user", "ann")]]),
    )
    .await;
    let status = asked.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            tonic::Code::Unavailable,
            "no rate limit configuration loaded"
        )
    );
    assert_eq!(http(&tollgate.http, "GET", "/healthcheck", "").0, 200);
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 503);
    assert_eq!(
        tollgate.metric("tollgate_errors_total{reason=\"no_plans\"}"),
        1.0
    );
    assert_eq!(tollgate.metric("tollgate_xds_connected"), 0.0);

    let plane = ControlPlane::start_with(TcpListener::bind(("127.0.0.1", port)).unwrap(), None);
    plane.publish("1", &shop(3));
    plane.accepted("1").await;
    assert_eq!(left(&tollgate, "shop").await, Some(3));
    assert_eq!(http(&tollgate.http, "GET", "/ready", "").0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn may_open_no_port_before_the_first_plans() {
    let plane = ControlPlane::start();
    let server = plane.address.to_string();
    let mut process = Process::start(&mut command(&server, &["--xds-wait"]));
    plane.publish("1", &[config("", "", vec![])]);
    plane.refused("1").await;
    process.line_with("waiting for the first plans");
    process.line_with("no version is in force yet");
    assert!(!process.log().contains("(gRPC) on "));
    plane.publish("2", &shop(3));
    let tollgate = Tollgate::from_process(process);
    assert_eq!(left(&tollgate, "shop").await, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn finds_a_control_plane_by_its_socket() {
    let plane = ControlPlane::start();
    plane.publish("1", &shop(3));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plane.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = plane.address;
    let passing = tokio::spawn(async move {
        let (mut here, _) = listener.accept().await.unwrap();
        let mut there = TcpStream::connect(address).await.unwrap();
        let _ = copy_bidirectional(&mut here, &mut there).await;
    });
    let tollgate = start(&format!("unix://{}", path.display()), &["--xds-wait"]);
    assert_eq!(left(&tollgate, "shop").await, Some(3));
    passing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn mutual_tls_with_files_read_for_each_connection() {
    let ca = Authority::new("ca");
    let server = ca.issue(&["control.example"]);
    let tls = ServerTlsConfig::new()
        .identity(server.identity())
        .client_ca_root(tonic::transport::Certificate::from_pem(ca.pem()));
    let plane = ControlPlane::start_with(TcpListener::bind("127.0.0.1:0").unwrap(), Some(tls));
    plane.publish("1", &shop(3));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(file("ca.crt"), ca.pem()).unwrap();
    let flags = [
        "--xds-tls",
        "--xds-ca",
        &file("ca.crt"),
        "--xds-cert",
        &file("tls.crt"),
        "--xds-key",
        &file("tls.key"),
    ];

    // The address is no name of the certificate's.
    ca.issue(&["limiter"]).write(folder.path());
    let mut tollgate = start(&plane.address.to_string(), &flags);
    tollgate.process.line_with("not valid for name");
    drop(tollgate);

    let flags = [&flags[..], &["--xds-server-name", "control.example"]].concat();
    Authority::new("other")
        .issue(&["limiter"])
        .write(folder.path());
    let tollgate = start(&plane.address.to_string(), &flags);
    wait_until("a refusal", async || {
        tollgate.process.log().contains("no stream from")
    })
    .await;
    ca.issue(&["limiter"]).write(folder.path());
    plane.accepted("1").await;
    assert_eq!(left(&tollgate, "shop").await, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn resources_say_all_that_the_proto_can() {
    let text = |text: &str| protobuf::Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let metadata = protobuf::Struct {
        fields: [
            ("team".to_owned(), text("true")),
            (
                "cost".to_owned(),
                protobuf::Value {
                    kind: Some(Kind::NumberValue(1.5)),
                },
            ),
        ]
        .into(),
    };
    let week = RateLimitDescriptor {
        value: "*".to_owned(),
        quota_mode: true,
        detailed_metric: true,
        metadata: Some(metadata.clone()),
        rate_limit: Some(RateLimitPolicy {
            unit: RateLimitUnit::Week.into(),
            requests_per_unit: u32::MAX,
            name: "weekly".to_owned(),
            replaces: vec![RateLimitReplace {
                name: "other".to_owned(),
            }],
            ..Default::default()
        }),
        ..per_hour("path", 1)
    };
    let unlimited = RateLimitDescriptor {
        rate_limit: Some(RateLimitPolicy {
            unlimited: true,
            ..Default::default()
        }),
        ..per_hour("internal", 1)
    };
    let shadow = RateLimitDescriptor {
        shadow_mode: true,
        value: "ann".to_owned(),
        descriptors: vec![per_hour("true", 0)],
        ..per_hour("user", 2)
    };
    let plane = ControlPlane::start();
    plane.publish("1", &[config("all", "all", vec![week, unlimited, shadow])]);
    let tollgate = follow(&plane);
    plane.accepted("1").await;
    let shown = page(&tollgate);
    let rules: Vec<_> = shown["domains"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            format!(
                "{} {} {} {}",
                rule["rule"], rule["name"], rule["allows"], rule["mode"]
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            r#""path=*" "weekly" ["4294967295/week"] "quota""#,
            r#""internal" null "unlimited" "enforced""#,
            r#""user=ann" null ["2/hour"] "shadow""#,
            r#""user=ann/true" null ["0/hour"] "enforced""#,
        ]
    );
    let answer = ask(
        &mut tollgate.client().await,
        request("all", &[&[("path", "/x")]]),
    )
    .await
    .unwrap();
    assert_eq!(answer.overall_code(), Code::Ok);
    let answered = answer.dynamic_metadata.unwrap().fields;
    assert_eq!(answered["metadata"].kind, Some(Kind::StructValue(metadata)));
}

#[test]
fn plans_come_from_files_or_from_a_control_plane() {
    let mut process = Process::start(&mut command("localhost:1", &["--config", "config/"]));
    assert_eq!(process.wait(), Some(2));
    common::wait_for("why", || {
        let log = process.log();
        log.contains("from --xds or from --config, not from both")
            .then_some(())
    });
}
