//! Who we are: passwords, ACL users, password files that change, and sockets.

use std::{fs, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::sleep;
use tollgate::store::RedisStore;

use crate::{
    ask::{admitted_until_refused, ask, connected, one, patient_at, rule},
    common::{Tollgate, plans, tollgate_command, wait_until},
    faults::{back, down},
    redis_server::RedisServer,
};

/// As docs/redis.md has it.
pub const RIGHTS: &str = "+evalsha +eval +script|load +info +ping +time +mget +set +zadd +zremrangebyscore +zcard +expire";

async fn counts_five(store: &RedisStore) {
    assert_eq!(admitted_until_refused(store, &rule("5/day")).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_in_with_a_password_and_as_an_acl_user() {
    let server = RedisServer::start();
    server.send(&format!(
        "ACL SETUSER limiter on >s3cret:/@ ~tollgate:* {RIGHTS}"
    ));
    server.send("CONFIG SET requirepass other");
    let port = server.port();
    let user = format!("redis://limiter:s3cret%3A%2F%40@127.0.0.1:{port}");
    counts_five(&connected(patient_at(&user)).await).await;
    let default = format!("redis://:other@127.0.0.1:{port}/1");
    counts_five(&connected(patient_at(&default)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_and_the_right_one_needs_no_restart() {
    let server = RedisServer::start();
    let mut admin = server.admin();
    let file = server.folder().join("password");
    fs::write(&file, "first\n").expect("the folder is there");
    let set = |admin: &mut redis::Connection, password: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("requirepass").arg(password);
        command.exec(admin).expect("set");
    };
    set(&mut admin, "first");
    let url = format!(
        "redis://127.0.0.1:{}?password_file={}",
        server.port(),
        file.display()
    );
    let store = connected(patient_at(&url)).await;
    assert!(ask(&store, one(&rule("5/day"), "same", 1)).await.admitted);

    set(&mut admin, "second");
    redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .exec(&mut admin)
        .expect("killed");
    let mut reason = down(&store).await;
    while !reason.contains("refuses user `default` with this password") {
        sleep(Duration::from_millis(5)).await;
        reason = down(&store).await;
    }
    fs::write(&file, "second").expect("the folder is there");
    back(&store).await;
    assert_eq!(admitted_until_refused(&store, &rule("5/day")).await, 4);
}

/// As it is done in production: the new password is in the file before Redis knows no other, and nothing is decided without Redis
/// but while a connection is torn.
#[tokio::test(flavor = "multi_thread")]
async fn an_acl_user_follows_its_file_from_password_to_password() {
    let server = RedisServer::start();
    server.send(&format!(
        "ACL SETUSER limiter on >pass0 ~tollgate:* {RIGHTS}"
    ));
    let file = server.folder().join("password");
    fs::write(&file, "pass0").expect("the folder is there");
    let port = server.port();
    let url = format!(
        "redis://limiter@127.0.0.1:{port}?password_file={}",
        file.display()
    );
    let store = connected(patient_at(&url)).await;
    let limit = rule("100/day");
    for change in 1..4 {
        fs::write(&file, format!("pass{change}\n")).expect("the folder is there");
        server.send(&format!("ACL SETUSER limiter resetpass >pass{change}"));
        // Who is in stays in.
        for _ in 0..10 {
            assert!(!ask(&store, one(&limit, "a", 1)).await.degraded);
        }
        let trips = store.stats().trips.load(Relaxed);
        server.send("CLIENT KILL USER limiter");
        wait_until("the end of the connections", async || {
            store.stats().trips.load(Relaxed) > trips
        })
        .await;
        back(&store).await;
        assert!(!ask(&store, one(&limit, "a", 1)).await.degraded);
    }
    let taken = ask(&store, one(&limit, "a", 0)).await;
    assert_eq!(taken.balances[0].remaining(), 100 - 33);
}

#[tokio::test]
async fn the_flag_names_the_file_too() {
    let server = RedisServer::start();
    let file = server.folder().join("password");
    fs::write(&file, "s3cret").expect("the folder is there");
    let url = server.url();
    server.send("CONFIG SET requirepass s3cret");
    let (_folder, plans) = plans("domain: shop\ndescriptors: [{ key: k, limits: [5/day] }]");
    let file = file.display().to_string();
    let args = ["--store", &url, "--store-password-file", &file];
    let ours = Tollgate::start(&plans, &args);
    assert_eq!(ours.metric("tollgate_store_up"), 1.0);
    let output = tollgate_command()
        .args(["serve", "--store", "memory", "--store-password-file", &file])
        .output()
        .expect("tollgate runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("--store-password-file goes with a Redis in --store"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_that_is_missing_is_named() {
    let server = RedisServer::start();
    let url = format!("{}?password_file=/nowhere/password", server.url());
    let store = RedisStore::connect(patient_at(&url));
    while !down(&store).await.contains("/nowhere/password") {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn speaks_over_a_unix_socket() {
    let server = RedisServer::start_with(|folder| {
        let socket = folder.join("redis.sock").display().to_string();
        vec!["--unixsocket".to_owned(), socket]
    });
    let socket = server.folder().join("redis.sock");
    let url = format!("redis+unix://{}?db=3", socket.display());
    counts_five(&connected(patient_at(&url)).await).await;
}
