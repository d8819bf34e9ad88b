//! What the admin API turns away, and how; and the tokens that open it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::fd::AsRawFd as _,
};

use prost_reflect::DescriptorPool;
use serde_json::Value;
use tollgate::proto::DESCRIPTORS;

use super::{BEARER, FILE, KEYED};
use crate::common::{
    home::{Home, admin_address, call, exchange, finished},
    tollgate_command,
};

#[tokio::test]
async fn whatever_the_admin_api_refuses_it_refuses_with_a_problem_document() {
    let home = Home::new(KEYED);
    let (_tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    for (line, body, status, why) in [
        ("GET /nowhere", "", 404, "has no `GET /nowhere`"),
        ("POST /v1/nothing", "{}", 404, "/v1/keys"),
        ("PUT /v1/keys", "{}", 405, "the header `allow` names"),
        ("DELETE /v1/audit", "", 405, "the header `allow` names"),
        ("POST /v1/keys", "{", 400, "EOF"),
        (
            "POST /v1/keys",
            r#"{"tear":"free"}"#,
            400,
            "unknown field `tear`",
        ),
        ("GET /v1/keys?nosuch=1", "", 400, "nosuch"),
        ("GET /v1/keys/%FF", "", 400, "`GET /v1/keys/%FF`: "),
        ("POST /v1/keys", &"x".repeat(1 << 17), 413, "limit exceeded"),
        ("POST /v1/keys/k/rotate", &"x".repeat(1 << 17), 413, "limit"),
        ("POST /v1/buckets/show", &"x".repeat(4 << 20), 413, "limit"),
        ("PUT /v1/plans/shop", &"x".repeat(2 << 20), 413, "limit"),
    ] {
        let (head, body) = exchange(&address, &[BEARER], line, body);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{line}: {head}"
        );
        let head = head.to_lowercase();
        assert!(
            head.contains("content-type: application/problem+json"),
            "{line}: {head}"
        );
        assert_eq!(head.contains("allow: get"), status == 405, "{line}: {head}");
        let problem: Value = serde_json::from_str(&body).expect(&body);
        assert_eq!(problem["status"], status, "{line}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(why), "{line}: {detail}");
    }
    let grpc = [BEARER, ("content-type", "application/grpc")];
    let (head, _) = exchange(&address, &grpc, "POST /tollgate.admin.v9.KeyService/X", "");
    assert!(head.contains("grpc-status: 12"), "{head}");
}

#[tokio::test]
async fn no_page_and_no_method_does_or_tells_anything_without_the_token() {
    let home = Home::new(KEYED);
    let (_tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    home.json(&["keys", "create", "--tier", "free", "--id", "k"]);
    let state = || {
        let looks = [
            &["keys", "show", "k"][..],
            &["plans", "history"],
            &["audit"],
        ];
        looks.map(|look| home.json(look))
    };
    let before = state();
    let pages = [
        "GET /v1/keys",
        "POST /v1/keys",
        "GET /v1/keys/k",
        "PATCH /v1/keys/k",
        "DELETE /v1/keys/k",
        "POST /v1/keys/k/disable",
        "POST /v1/keys/k/enable",
        "POST /v1/keys/k/rotate",
        "POST /v1/keys:import",
        "GET /v1/plans",
        "GET /v1/plans/shop",
        "PUT /v1/plans/shop",
        "DELETE /v1/plans/shop",
        "GET /v1/plans/shop/history",
        "POST /v1/plans/shop/rollback",
        "POST /v1/buckets/show",
        "POST /v1/buckets/reset",
        "POST /v1/buckets/grant",
        "GET /v1/audit",
        "GET /v1/usage",
    ];
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let methods: Vec<String> = pool
        .services()
        .filter(|service| service.full_name().starts_with("tollgate.admin."))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| {
            format!(
                "POST /{}/{}",
                method.parent_service().full_name(),
                method.name()
            )
        })
        .collect();
    assert_eq!(methods.len(), 20);
    let wrong: [&[(&str, &str)]; 5] = [
        &[],
        &[("authorization", "Bearer s3cret-token-of-ad")],
        &[("authorization", "Basic s3cret-token-of-ada")],
        // The name is no part of the token, and the first header counts.
        &[("authorization", "Bearer ada s3cret-token-of-ada")],
        &[("authorization", "Bearer x"), BEARER],
    ];
    for headers in wrong {
        for line in pages {
            let (status, body) = call(&address, headers, line, r#"{"tier":"free"}"#);
            assert_eq!(status, 401, "{line} {headers:?}");
            let told = "the admin API needs its token: authorization: Bearer TOKEN";
            assert_eq!(body["detail"], told);
        }
        let grpc = [headers, &[("content-type", "application/grpc")]].concat();
        for line in &methods {
            // An empty message.
            let (head, body) = exchange(&address, &grpc, line, "\0\0\0\0\0");
            assert!(
                head.contains("grpc-status: 16"),
                "{line} {headers:?}: {head}"
            );
            assert_eq!(body, "");
        }
    }
    assert_eq!(state(), before);
}

#[test]
fn the_admin_api_is_nowhere_but_on_a_listener_of_its_own() {
    let home = Home::new(KEYED);
    let (tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    assert_eq!(call(&address, &[BEARER], "GET /v1/keys", "").0, 200);
    assert_eq!(call(&tollgate.http, &[BEARER], "GET /v1/keys", "").0, 404);
    assert_eq!(call(&address, &[BEARER], "GET /metrics", "").0, 404);
    let mut command = tollgate_command();
    let (_, help, _) = finished(command.args(["serve", "--help"]));
    let flag = help.split("--admin-listen").nth(1).unwrap();
    let default = "[env: TOLLGATE_ADMIN_LISTEN=] [default: 127.0.0.1:8082]";
    let words: Vec<_> = flag.split_whitespace().collect();
    assert!(words.join(" ").contains(default), "{flag}");
}

#[test]
fn tokens_that_come_over_a_network_as_they_are_are_warned_of() {
    let home = Home::new(FILE);
    let token = home.draft("token", "ada s3cret-token-of-ada\n");
    for (listen, warned) in [("0.0.0.0:0", true), ("127.0.0.1:0", false)] {
        let tollgate = home.serve(&["--admin-listen", listen, "--admin-token-file", &token]);
        let log = tollgate.process.log();
        assert_eq!(
            log.contains("its tokens can be read on the way"),
            warned,
            "{log}"
        );
    }
}

#[test]
fn huge_heads_and_odd_bytes_are_turned_away_and_it_goes_on() {
    let home = Home::new(KEYED);
    let (_tollgate, address) = home.serve_admin("ada s3cret-token-of-ada", &[]);
    let huge = format!("Bearer {}", "k".repeat(1 << 20));
    let names: Vec<String> = (0..5_000).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
    let line = format!("GET /v1/keys/{}", "k".repeat(1 << 20));
    for (headers, line) in [
        (&[("authorization", huge.as_str())][..], "GET /v1/keys"),
        (&many, "GET /v1/keys"),
        (&[BEARER], &line),
    ] {
        let mut stream = TcpStream::connect(&address).unwrap();
        let headers = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"));
        let headers: String = headers.collect();
        // It may hang up before it has read all of it.
        let _ = write!(stream, "{line} HTTP/1.1\r\nhost: admin\r\n{headers}\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(b"\0\x01\x02\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let nested = "[".repeat(60_000);
    let (status, _) = call(&address, &[BEARER], "POST /v1/buckets/show", &nested);
    assert_eq!(status, 400);
    let (status, _) = call(&address, &[BEARER], "PUT /v1/plans/shop", &nested);
    assert_eq!(status, 400);
    assert_eq!(call(&address, &[BEARER], "GET /v1/keys", "").0, 200);
}

#[test]
fn tokens_that_could_be_guessed_or_do_not_end_open_nothing() {
    let home = Home::new(FILE);
    let (short, long) = (
        home.draft("short", "hunter2\n"),
        home.draft("long", &"x".repeat(1 << 17)),
    );
    for (file, why) in [
        (short.as_str(), "make one with `openssl rand -hex 32`"),
        (&long, "has more than 65536 bytes"),
        ("/dev/zero", "has more than 65536 bytes"),
    ] {
        let (code, out, err) = home.run(&["serve", "--admin-token-file", file]);
        assert!(code != 0 && err.contains(why), "{file}: {out}{err}");
        assert!(!err.contains("hunter2"), "{err}");
    }
    let (code, _, err) = home.run(&[
        "buckets",
        "show",
        "--descriptor",
        "user=u",
        "--admin",
        "http://127.0.0.1:1",
        "--admin-token-file",
        "/dev/zero",
    ]);
    assert!(code == 2, "{err}");
}

#[test]
fn a_token_may_come_from_a_pipe() {
    let home = Home::new(FILE);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"ada s3cret-token-of-ada\n").unwrap();
    drop(writer);
    // As a shell hands on `<(pass tollgate)`.
    let path = format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd());
    let flags = ["--admin-token-file", &path, "--admin-listen", "127.0.0.1:0"];
    let mut tollgate = home.serve(&flags);
    let address = admin_address(&mut tollgate);
    assert_eq!(call(&address, &[BEARER], "GET /v1/plans", "").0, 200);
}
