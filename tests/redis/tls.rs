//! Redis over TLS: a private authority, client certificates, host names.

use std::{fs, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::time::sleep;
use tollgate::store::{
    RedisStore,
    redis::{Shards, checks::Needs},
};

use crate::{
    ask::{admitted_until_refused, connected, one, patient_at, rule},
    cluster,
    common::wait_until,
    faults::{back, down},
    redis_server::{RedisServer, free_port},
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    // With the name of its certificates, OpenSSL would take them for their own authorities.
    params
        .distinguished_name
        .push(DnType::CommonName, "the authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("a certificate")
}

/// Writes NAME.pem and NAME.key for `host`.
fn issue(authority: &Authority, folder: &Path, name: &str, host: &str) {
    let params = CertificateParams::new([host.to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    fs::write(folder.join(format!("{name}.pem")), certificate.pem()).expect("written");
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("written");
}

/// A server that asks for client certificates, whose own is for `host`, and its TLS port.
fn start(authority: &Authority, host: &str) -> (RedisServer, u16) {
    start_with(authority, host, &[])
}

fn start_with(authority: &Authority, host: &str, more: &[&str]) -> (RedisServer, u16) {
    let port = free_port();
    let server = RedisServer::start_with(|folder| {
        fs::write(folder.join("ca.pem"), authority.pem()).expect("written");
        issue(authority, folder, "server", host);
        issue(authority, folder, "client", "limiter");
        let file = |name: &str| folder.join(name).display().to_string();
        let mut arguments = vec![
            "--tls-port".to_owned(),
            port.to_string(),
            "--tls-cert-file".to_owned(),
            file("server.pem"),
            "--tls-key-file".to_owned(),
            file("server.key"),
            "--tls-ca-cert-file".to_owned(),
            file("ca.pem"),
        ];
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        arguments
    });
    (server, port)
}

/// `rediss://` with the files of the server's folder, and more.
fn url(server: &RedisServer, port: u16, more: &str) -> String {
    let folder = server.folder().display();
    format!(
        "rediss://127.0.0.1:{port}?ca={folder}/ca.pem&cert={folder}/client.pem&key={folder}/client.key{more}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn trusts_a_private_authority_and_shows_its_certificate() {
    let (server, port) = start(&authority(), "127.0.0.1");
    let store = connected(patient_at(&url(&server, port, ""))).await;
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_is_refused_unless_told_otherwise() {
    let (server, port) = start(&authority(), "redis.example");
    let strict = RedisStore::connect(patient_at(&url(&server, port, "")));
    while !down(&strict).await.contains("certificate") {
        sleep(Duration::from_millis(5)).await;
    }
    let told = url(&server, port, "&skip_hostname_verification=true");
    let store = connected(patient_at(&told)).await;
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 5);
    assert!(strict.is_down().is_some());
}

/// What a person gets wrong, and what says so: to the command that looks, and in the log of the service.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_address_is_said() {
    let (server, port) = start(&authority(), "127.0.0.1");
    server.send("CONFIG SET requirepass right");
    let (plain, folder) = (server.port(), server.folder().display());
    let ca = format!("ca={folder}/ca.pem");
    let nobody = free_port();
    let with_key = |cert: &str, key: &str| {
        format!("rediss://:right@127.0.0.1:{port}?{ca}&cert={folder}/{cert}&key={folder}/{key}")
    };
    for (url, expected) in [
        (
            format!("redis://127.0.0.1:{plain}"),
            "Authentication required".to_owned(),
        ),
        (
            format!("redis://:wrong@127.0.0.1:{plain}"),
            "Redis refuses user `default` with this password".to_owned(),
        ),
        (
            format!("redis://me:right@127.0.0.1:{plain}"),
            "Redis refuses user `me` with this password".to_owned(),
        ),
        (
            format!("redis://:right@127.0.0.1:{plain}/99"),
            "DB index is out of range".to_owned(),
        ),
        (
            format!("redis://127.0.0.1:{plain}?password_file={folder}/none"),
            format!("cannot read the password file {folder}/none: No such file"),
        ),
        (
            format!("rediss://:right@127.0.0.1:{plain}"),
            "is TLS spoken on that port?".to_owned(),
        ),
        (
            format!("redis://:right@127.0.0.1:{port}"),
            "if TLS is spoken on that port, the URL begins with rediss".to_owned(),
        ),
        (
            format!("rediss://:right@127.0.0.1:{port}?ca={folder}/client.key"),
            format!("{folder}/client.key holds no certificate of an authority"),
        ),
        (
            with_key("client.pem", "server.key"),
            format!(
                "the certificate in {folder}/client.pem and the private key in {folder}/server.key do not go together"
            ),
        ),
        (
            with_key("none.pem", "client.key"),
            format!("cannot read the certificate in {folder}/none.pem"),
        ),
        (
            format!("redis+sentinel://127.0.0.1:{nobody}/main"),
            format!("sentinel 127.0.0.1:{nobody}: Connection refused"),
        ),
        (
            format!("redis+sentinel://127.0.0.1:{plain}/main?sentinel_password=right"),
            format!("sentinel 127.0.0.1:{plain}: ResponseError: unknown command 'SENTINEL'"),
        ),
        (
            format!("redis+cluster://127.0.0.1:{nobody}"),
            format!("127.0.0.1:{nobody}: Connection refused"),
        ),
        (
            format!("redis+cluster://:right@127.0.0.1:{plain}"),
            "cluster support disabled".to_owned(),
        ),
    ] {
        let settings = patient_at(&url);
        let looked = settings.url.examine(Needs::default()).await;
        let looked = looked.expect_err(&url).to_string();
        assert!(looked.contains(&expected), "{url}: {looked}");
        let store = Shards::connect(settings);
        wait_until(&expected, async || {
            store
                .is_down()
                .is_some_and(|reason| reason.contains(&expected))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_not_trusted_until_the_file_holds_it() {
    let right = authority();
    let (server, port) = start(&right, "127.0.0.1");
    let file = server.folder().join("ca.pem");
    fs::write(&file, authority().pem()).expect("written");
    let told = url(&server, port, "&skip_hostname_verification=true");
    let stores = [url(&server, port, ""), told].map(|url| RedisStore::connect(patient_at(&url)));
    for store in &stores {
        while !down(store).await.contains("certificate") {
            sleep(Duration::from_millis(5)).await;
        }
    }
    fs::write(&file, right.pem()).expect("written");
    for store in &stores {
        back(store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_are_spoken_to_over_tls_like_the_primary_that_they_name() {
    let (primary, port) = start(&authority(), "127.0.0.1");
    let mut sentinel = RedisServer::start_sentinel("main", &primary, 1);
    let sentinel_port = free_port();
    let file = |name: &str| primary.folder().join(name).display().to_string();
    sentinel.add_arguments(&[
        "--tls-port",
        &sentinel_port.to_string(),
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
    ]);
    sentinel.restart();
    sentinel.send("SENTINEL REMOVE main");
    sentinel.send(&format!("SENTINEL MONITOR main 127.0.0.1 {port} 1"));
    let url = url(&primary, sentinel_port, "").replace("rediss:", "rediss+sentinel:");
    let store = connected(patient_at(&url.replace('?', "/main?"))).await;
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_spoken_to_over_tls_on_the_ports_it_names() {
    let bus = free_port().to_string();
    // Redis names its TLS ports only so.
    let more = [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--tls-cluster",
        "yes",
    ];
    let (server, port) = start_with(&authority(), "127.0.0.1", &more);
    server.send("CLUSTER ADDSLOTSRANGE 0 16383");
    let url = url(&server, port, "").replace("rediss:", "rediss+cluster:");
    let store = cluster::connected(patient_at(&url)).await;
    assert!(
        cluster::ask(&store, one(&rule("5/day"), "a", 2))
            .await
            .admitted
    );
    assert_eq!(cluster::left(&store, &rule("5/day"), "a").await, 3);
}
