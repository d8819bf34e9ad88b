//! gRPC over TLS: who is let in, and how new certificates come into use.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use certificates::{Authority, Pair, connect};
use common::{
    Process, Tollgate, ask, plans, ratelimit_command, request, tollgate_command, wait_until,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tollgate::proto::envoy::service::ratelimit::v3::{
    rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

const SHOP: &str = "domain: shop\ndescriptors: [{ key: user, limits: [3/hour] }]";

/// Whether a client of that certificate gets an answer from a server that `authority` has signed.
async fn answers(tollgate: &Tollgate, authority: &Authority, client: Option<&Pair>) -> bool {
    let Ok(channel) = connect(&tollgate.grpc, authority, client).await else {
        return false;
    };
    let mut client = RateLimitServiceClient::new(channel);
    let look = ask(&mut client, request("shop", &[&[("other", "")]])).await;
    look.is_ok_and(|response| response.overall_code() == Code::Ok)
}

struct Served {
    tollgate: Tollgate,
    folder: tempfile::TempDir,
    _plans: tempfile::TempDir,
}

fn flags(folder: &Path) -> Vec<String> {
    let file = |name| folder.join(name).display().to_string();
    vec![
        "--grpc-tls-cert".to_owned(),
        file("tls.crt"),
        "--grpc-tls-key".to_owned(),
        file("tls.key"),
    ]
}

/// Serves with the certificate of `pair`, and these flags more, of which `CA` becomes the file of `authority`.
fn serve(pair: &Pair, authority: &Authority, more: &[&str]) -> Served {
    let folder = tempfile::tempdir().unwrap();
    pair.write(folder.path());
    serve_from(folder, authority, more)
}

fn serve_from(folder: tempfile::TempDir, authority: &Authority, more: &[&str]) -> Served {
    let ca = folder.path().join("ca.crt");
    fs::write(&ca, authority.pem()).unwrap();
    let ca = ca.display().to_string();
    let (_plans, config) = plans(SHOP);
    let mut args = flags(folder.path());
    args.extend(more.iter().map(|flag| flag.replace("CA", &ca)));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Served {
        tollgate: Tollgate::start(&config, &args),
        folder,
        _plans,
    }
}

#[tokio::test]
async fn serves_over_tls_and_not_without() {
    let ca = Authority::new("ca");
    let served = serve(&ca.issue(&["localhost"]), &ca, &[]);
    assert!(answers(&served.tollgate, &ca, None).await);
    assert!(!answers(&served.tollgate, &Authority::new("other"), None).await);
    let plain = tonic::transport::Endpoint::from_shared(format!("http://{}", served.tollgate.grpc));
    let asked = match plain.unwrap().connect().await {
        Ok(channel) => {
            let mut client = RateLimitServiceClient::new(channel);
            ask(&mut client, request("shop", &[&[("other", "")]]))
                .await
                .is_ok()
        }
        Err(_) => false,
    };
    assert!(!asked);
    let expires = served
        .tollgate
        .metric("tollgate_tls_certificate_expiry_timestamp_seconds");
    assert!(expires > 4e9, "{expires}");
}

#[tokio::test]
async fn a_client_authority_lets_only_its_own_in() {
    let ca = Authority::new("ca");
    let served = serve(&ca.issue(&["localhost"]), &ca, &["--grpc-client-ca", "CA"]);
    let tollgate = &served.tollgate;
    assert!(answers(tollgate, &ca, Some(&ca.issue(&["anyone.example"]))).await);
    assert!(!answers(tollgate, &ca, None).await);
    let stranger = Authority::new("other").issue(&["anyone.example"]);
    assert!(!answers(tollgate, &ca, Some(&stranger)).await);
    assert!(!answers(tollgate, &ca, Some(&ca.issue_expired(&["anyone.example"]))).await);
    let refused = "tollgate_tls_handshakes_failed_total{reason=\"refused\"}";
    // The client may hear of it before it is counted.
    wait_until("three refusals", async || tollgate.metric(refused) >= 3.0).await;
}

#[tokio::test]
async fn a_client_name_must_be_exactly_one_of_those_told() {
    let ca = Authority::new("ca");
    let names = "envoy.example,spiffe://mesh/envoy,192.0.2.7,2001:db8::7";
    let served = serve(
        &ca.issue(&["localhost"]),
        &ca,
        &["--grpc-client-ca", "CA", "--grpc-client-san", names],
    );
    for (known, client) in [
        (true, "envoy.example"),
        (true, "ENVOY.example"),
        (true, "spiffe://mesh/envoy"),
        (true, "192.0.2.7"),
        (true, "2001:db8::7"),
        (false, "other.example"),
        (false, "*.example"),
        (false, "spiffe://mesh/other"),
        (false, "192.0.2.8"),
    ] {
        let pair = ca.issue(&[client]);
        assert_eq!(
            answers(&served.tollgate, &ca, Some(&pair)).await,
            known,
            "{client}"
        );
    }
    let second = ca.issue(&["other.example", "envoy.example"]);
    assert!(answers(&served.tollgate, &ca, Some(&second)).await);
    assert!(!answers(&served.tollgate, &ca, Some(&ca.issue(&[]))).await);
}

#[tokio::test]
async fn new_files_are_used_for_new_connections() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let served = serve(
        &old.issue(&["localhost"]),
        &old,
        &["--grpc-client-ca", "CA"],
    );
    let (before, after) = (old.issue(&["a.example"]), new.issue(&["a.example"]));
    let channel = connect(&served.tollgate.grpc, &old, Some(&before))
        .await
        .unwrap();
    let mut open = RateLimitServiceClient::new(channel);
    let look = || request("shop", &[&[("other", "")]]);
    ask(&mut open, look()).await.unwrap();

    // Renamed over, the key first: for a moment the pair does not fit.
    let folder = served.folder.path();
    let next = new.issue(&["localhost"]);
    for (name, text) in [
        ("tls.key", next.key),
        ("tls.crt", next.cert),
        ("ca.crt", new.pem()),
    ] {
        fs::write(folder.join("next"), text).unwrap();
        fs::rename(folder.join("next"), folder.join(name)).unwrap();
    }
    wait_until("the new certificate", async || {
        answers(&served.tollgate, &new, Some(&after)).await
    })
    .await;
    assert!(!answers(&served.tollgate, &new, Some(&before)).await);
    ask(&mut open, look())
        .await
        .expect("an open connection stays");
}

#[tokio::test]
async fn a_mounted_secret_is_swapped() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let folder = tempfile::tempdir().unwrap();
    let version = |name: &str, pair: &Pair| {
        let below = folder.path().join(name);
        fs::create_dir(&below).unwrap();
        pair.write(&below);
    };
    version("..1", &old.issue(&["localhost"]));
    symlink("..1", folder.path().join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(PathBuf::from("..data").join(name), folder.path().join(name)).unwrap();
    }
    let served = serve_from(folder, &old, &[]);
    assert!(answers(&served.tollgate, &old, None).await);

    let folder = served.folder.path();
    let below = folder.join("..2");
    fs::create_dir(&below).unwrap();
    new.issue(&["localhost"]).write(&below);
    symlink("..2", folder.join("..next")).unwrap();
    fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
    wait_until("the new certificate", async || {
        answers(&served.tollgate, &new, None).await
    })
    .await;
}

#[tokio::test]
async fn a_bad_swap_keeps_the_certificate_in_use() {
    let ca = Authority::new("ca");
    let mut served = serve(&ca.issue(&["localhost"]), &ca, &[]);
    let folder = served.folder.path().to_owned();
    let fresh = || ca.issue(&["localhost"]);
    let swaps: [(Pair, &str); 3] = [
        (ca.issue_expired(&["localhost"]), "expired at 2001-01-01"),
        (
            Pair {
                cert: fresh().cert,
                key: fresh().key,
            },
            "do not go together",
        ),
        (
            Pair {
                cert: fresh().cert[..300].to_owned(),
                key: fresh().key,
            },
            "holds no certificate",
        ),
    ];
    for (pair, mistake) in swaps {
        pair.write(&folder);
        let line = served.tollgate.process.line_with(mistake);
        assert!(
            line.contains("the one of before stays in use") && line.contains("tls.crt"),
            "{line}"
        );
        assert!(answers(&served.tollgate, &ca, None).await);
    }
    let failures = "tollgate_tls_reloads_total{result=\"failure\"}";
    assert!(served.tollgate.metric(failures) >= 3.0);
    fs::remove_file(folder.join("tls.key")).unwrap();
    served
        .tollgate
        .process
        .line_with("cannot read the private key");
    let next = Authority::new("next");
    next.issue(&["localhost"]).write(&folder);
    wait_until("a good pair", async || {
        answers(&served.tollgate, &next, None).await
    })
    .await;
}

#[tokio::test]
async fn a_client_that_says_nothing_delays_no_other() {
    let ca = Authority::new("ca");
    let served = serve(&ca.issue(&["localhost"]), &ca, &[]);
    let silent: Vec<_> = (0..50)
        .map(|_| TcpStream::connect(&served.tollgate.grpc).unwrap())
        .collect();
    assert!(answers(&served.tollgate, &ca, None).await);
    let mut first = &silent[0];
    first.set_read_timeout(Some(common::PATIENCE)).unwrap();
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0, "cut after a while");
}

/// What it says when it does not start with these certificate files.
fn refused(arrange: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (_plans, config) = plans(SHOP);
    Authority::new("ca")
        .issue(&["localhost"])
        .write(folder.path());
    arrange(folder.path());
    let mut command = tollgate_command();
    command.arg("serve").arg("--config").arg(config);
    command.args([
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ]);
    command.args(flags(folder.path()));
    let mut process = Process::start(&mut command);
    assert_eq!(process.wait(), Some(1));
    common::wait_for("what it says", || {
        let log = process.log();
        log.contains("error:").then_some(log)
    })
}

#[test]
fn starting_with_bad_files_says_which_and_why() {
    let line = refused(|folder| fs::remove_file(folder.join("tls.key")).unwrap());
    assert!(line.contains("tls.key: No such file"), "{line}");
    let line = refused(|folder| fs::write(folder.join("tls.crt"), "hello").unwrap());
    assert!(line.contains("tls.crt holds no certificate"), "{line}");
    let line = refused(|folder| {
        let other = Authority::new("other").issue(&["localhost"]);
        fs::write(folder.join("tls.key"), other.key).unwrap();
    });
    assert!(line.contains("do not go together"), "{line}");
    let line = refused(|folder| {
        Authority::new("ca")
            .issue_expired(&["localhost"])
            .write(folder);
    });
    assert!(line.contains("tls.crt expired at 2001-01-01"), "{line}");
}

/// Started by the variables of envoyproxy/ratelimit, with TLS from the files of that folder.
fn ratelimit(folder: &Path, more: &[(&str, &str)]) -> Process {
    let file = |name| folder.join(name).display().to_string();
    let mut command = ratelimit_command();
    command.envs([
        ("GRPC_SERVER_USE_TLS", "true"),
        ("GRPC_SERVER_TLS_CERT", &file("tls.crt")),
        ("GRPC_SERVER_TLS_KEY", &file("tls.key")),
    ]);
    Process::start(command.envs(more.iter().copied()))
}

/// Whether a client gets as far as an answer: there are no plans, so it is an error.
async fn reaches(connected: Result<Channel, tonic::transport::Error>) -> bool {
    let Ok(channel) = connected else {
        return false;
    };
    let mut client = RateLimitServiceClient::new(channel);
    let answer = ask(&mut client, request("shop", &[&[("other", "")]])).await;
    answer.is_err_and(|status| status.message() == "no rate limit configuration loaded")
}

#[tokio::test]
async fn as_ratelimit_an_expired_certificate_is_used_until_a_better_one_comes() {
    let ca = Authority::new("ca");
    let folder = tempfile::tempdir().unwrap();
    ca.issue_expired(&["localhost"]).write(folder.path());
    let mut tollgate = Tollgate::from_process(ratelimit(folder.path(), &[]));
    let line = tollgate.process.line_with("expired at 2001-01-01");
    assert!(line.contains("clients will refuse it"), "{line}");
    assert!(!reaches(connect(&tollgate.grpc, &ca, None).await).await);
    ca.issue(&["localhost"]).write(folder.path());
    wait_until("the better one", async || {
        reaches(connect(&tollgate.grpc, &ca, None).await).await
    })
    .await;
    fs::remove_file(folder.path().join("tls.key")).unwrap();
    let mut process = ratelimit(folder.path(), &[]);
    assert_eq!(process.wait(), Some(1));
    process.line_with_after_end("cannot read the private key");
}

#[tokio::test]
async fn as_ratelimit_tls_is_spoken_on_a_unix_socket_too() {
    let ca = Authority::new("ca");
    let folder = tempfile::tempdir().unwrap();
    ca.issue(&["localhost"]).write(folder.path());
    let socket = folder.path().join("grpc.sock");
    let uds = socket.display().to_string();
    let tollgate = Tollgate::from_process(ratelimit(folder.path(), &[("GRPC_UDS", &uds)]));
    let over = async |endpoint: Endpoint| {
        let socket = socket.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        reaches(endpoint.connect_with_connector(connector).await).await
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca.pem()))
        .domain_name("localhost");
    let secret = Endpoint::from_static("https://localhost").tls_config(tls);
    assert!(over(secret.unwrap()).await);
    assert!(!over(Endpoint::from_static("http://localhost")).await);
    drop(tollgate);
}
