//! One Redis server, and everything that can happen to it and to the wire.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{
    Bounds, Run, durable_redis, has_decided,
    load::{KEYS, is_degraded},
    outage, preload,
    proxy::{Proxy, Wire},
    redis_port,
};
use crate::{
    common::{Tollgate, ask, plans, request, wait_until},
    redis_server::RedisServer,
};

fn redis() -> RedisServer {
    let mut redis = RedisServer::reserve_at(redis_port(), &[]);
    redis.restart();
    redis
}

/// A Redis and a wire to it that obeys us.
async fn wired() -> (RedisServer, Proxy) {
    let redis = RedisServer::start();
    let proxy = Proxy::start(redis_port(), redis.port()).await;
    (redis, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed() {
    let mut redis = durable_redis();
    redis.restart();
    let run = Run::start("killed", "Redis killed and restarted", &redis.url()).await;
    redis.kill();
    run.endure().await;
    redis.restart();
    run.finish(Instant::now(), Bounds::broken(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_at_start() {
    let mut redis = RedisServer::reserve_at(redis_port(), &[]);
    let run = Run::start_cold("absent_at_start", "started before Redis", &redis.url(), 1).await;
    run.endure().await;
    redis.restart();
    run.finish(Instant::now(), Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused() {
    let redis = redis();
    let run = Run::start("paused", "`CLIENT PAUSE`", &redis.url()).await;
    redis.send(&format!("CLIENT PAUSE {}", outage().as_millis()));
    let until = Instant::now() + outage();
    run.feel().await;
    sleep(until.saturating_duration_since(Instant::now())).await;
    run.finish(until, Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped() {
    let redis = redis();
    let run = Run::start("stopped", "Redis stopped (SIGSTOP)", &redis.url()).await;
    redis.signal(Signal::SIGSTOP);
    run.endure().await;
    redis.signal(Signal::SIGCONT);
    run.finish(Instant::now(), Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn black_hole() {
    let (_redis, proxy) = wired().await;
    let run = Run::start(
        "black_hole",
        "the network swallows everything",
        &proxy.url(),
    )
    .await;
    proxy.set(Wire::Silent);
    run.endure().await;
    proxy.set(Wire::Whole);
    run.finish(Instant::now(), Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow() {
    let (_redis, proxy) = wired().await;
    let run = Run::start("slow", "slow: 50 ms more per command", &proxy.url()).await;
    // As much more than the timeout as in production, whatever the timeout is here.
    proxy.set(Wire::Slow(
        Duration::from_millis(50).max(5 * super::timeout()),
    ));
    run.endure().await;
    proxy.set(Wire::Whole);
    run.finish(Instant::now(), Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets() {
    let (_redis, proxy) = wired().await;
    let run = Run::start("resets", "a storm of connection resets", &proxy.url()).await;
    let end = Instant::now() + outage();
    let mut tears = 0;
    while Instant::now() < end {
        proxy.tear();
        tears += 1;
        sleep(Duration::from_millis(20)).await;
    }
    run.feel().await;
    run.finish(Instant::now(), Bounds::broken(tears)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full() {
    let redis = redis();
    let run = Run::start("full", "full (`OOM`)", &redis.url()).await;
    redis.send("CONFIG SET maxmemory 1");
    run.endure().await;
    redis.send("CONFIG SET maxmemory 0");
    run.finish(Instant::now(), Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_flushed() {
    let redis = redis();
    let run = Run::start(
        "scripts_flushed",
        "`SCRIPT FLUSH`, again and again",
        &redis.url(),
    )
    .await;
    let end = Instant::now() + outage();
    while Instant::now() < end {
        redis.send("SCRIPT FLUSH");
        sleep(Duration::from_millis(50)).await;
    }
    run.finish(Instant::now(), Bounds::NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_changed() {
    let redis = redis();
    let mut admin = redis.admin();
    let file = redis.folder().join("password");
    let mut set = |password: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("requirepass").arg(password);
        command.exec(&mut admin).expect("set");
        let mut command = redis::cmd("CLIENT");
        command.arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]);
        command.exec(&mut admin).expect("killed");
    };
    fs::write(&file, "first").expect("the folder is there");
    set("first");
    let url = format!("{}?password_file={}", redis.url(), file.display());
    let title = "password changed, our file a while later";
    let run = Run::start("password_changed", title, &url).await;
    set("second");
    run.endure().await;
    fs::write(&file, "second").expect("the folder is there");
    run.finish(Instant::now(), Bounds::broken(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "plays the load for `scripts/faults --target`"]
async fn nothing() {
    let run = Run::start("nothing", "nothing of ours", "memory").await;
    sleep(outage()).await;
    run.finish(Instant::now(), Bounds::NONE).await;
}

/// A primary behind a proxy, and a replica that has all it has; its clock is so many seconds behind.
async fn replicated(behind: u32) -> (RedisServer, RedisServer, Proxy) {
    let primary = RedisServer::start_primary();
    let port = primary.port().to_string();
    let mut replica = RedisServer::reserve_at(0, &["--replicaof", "127.0.0.1", &port]);
    if behind > 0 {
        let library = preload("clock_behind", replica.folder())
            .display()
            .to_string();
        let behind = behind.to_string();
        replica.set_environment(&[("LD_PRELOAD", &library), ("CLOCK_BEHIND", &behind)]);
    }
    replica.restart();
    replica.wait_until_it_follows();
    primary.wait_until_followed();
    let proxy = Proxy::start(redis_port(), primary.port()).await;
    (primary, replica, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only() {
    let (mut primary, replica, proxy) = replicated(0).await;
    let title = "a read-only replica behind the same address, promoted later";
    let run = Run::start("read_only", title, &proxy.url()).await;
    sleep(outage()).await;
    primary.kill();
    proxy.lead_to(replica.port());
    run.endure().await;
    assert!(replica.info("replication").contains("role:slave"));
    replica.send("REPLICAOF NO ONE");
    run.finish(Instant::now(), Bounds::FAILOVER).await;
    assert!(has_decided(&replica), "it decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_behind() {
    let (mut primary, replica, proxy) = replicated(5).await;
    let seconds = |server: &RedisServer| {
        let (seconds, _): (u64, u64) =
            redis::from_redis_value(server.send("TIME")).expect("a time");
        seconds
    };
    let behind = seconds(&primary) - seconds(&replica);
    assert!((4..=6).contains(&behind), "{behind} s");
    let title = "the new primary's clock is 5 s behind";
    let run = Run::start("clock_behind", title, &proxy.url()).await;
    sleep(outage()).await;
    // Handed over in order, so that nothing is lost and only the clock is another.
    primary.send("CLIENT PAUSE 60000 WRITE");
    let offset = |server: &RedisServer| {
        let info = server.info("replication");
        let line = info
            .lines()
            .find(|line| line.starts_with("master_repl_offset:"));
        line.expect("Redis says").to_owned()
    };
    wait_until("all to be handed on", async || {
        offset(&primary) == offset(&replica)
    })
    .await;
    replica.send("REPLICAOF NO ONE");
    primary.kill();
    proxy.lead_to(replica.port());
    run.feel().await;
    // One take per lane was on its way to the old one.
    run.finish(Instant::now(), Bounds::broken(2)).await;
    assert!(has_decided(&replica), "it decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renamed() {
    let (mut first, second) = (RedisServer::start(), RedisServer::start());
    let folder = tempfile::tempdir().expect("a folder");
    let (library, address) = (
        preload("resolve", folder.path()),
        folder.path().join("address"),
    );
    let lead = |to: &str| fs::write(&address, to).expect("the folder is there");
    lead("127.0.0.1");
    // The same port of another host.
    let other = Proxy::start_at("127.0.0.2", first.port(), second.port()).await;
    let store = format!("redis://redis.test:{}", first.port());
    let environment = [("LD_PRELOAD", &*library), ("RESOLVE_TO", &*address)];
    let ours = vec![super::serve(&store, &environment)];
    let title = "the name leads to another server, the old one killed";
    let run = Run::of("renamed", title, ours).await;
    run.begin().await;
    first.kill();
    run.endure().await;
    lead("127.0.0.2");
    let bounds = Bounds {
        // Full again once.
        over: super::LIMIT * KEYS as u64,
        // The other server has heard of none.
        uncharged: super::QUOTA,
    };
    run.finish(Instant::now(), bounds).await;
    drop(other);
    assert!(has_decided(&second), "it decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_deadline_is_met_though_redis_is_silent_and_has_longer() {
    let (_folder, plans) = plans("domain: shop\ndescriptors: [{ key: k, limits: [1000/day] }]");
    let redis = RedisServer::start();
    let args = ["--store", &redis.url(), "--store-timeout", "60s"];
    let ours = Tollgate::start(&plans, &args);
    let mut client = ours.client().await;
    redis.signal(Signal::SIGSTOP);
    let mut in_time = 0;
    for _ in 0..20 {
        let mut question = tonic::Request::new(request("shop", &[&[("k", "v")]]));
        // The client gives up then; on a busy machine the answer may just have missed it.
        question.set_timeout(Duration::from_millis(100));
        let answer = client.should_rate_limit(question).await;
        in_time += u32::from(answer.is_ok_and(|answer| is_degraded(answer.get_ref())));
    }
    assert!(in_time > 0);
    redis.signal(Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_without_redis_says_so_unless_told_not_to() {
    let limit = "descriptors: [{ key: k, limits: [5/day] }]";
    let (_folder, plans) = plans(&format!(
        "domain: silent\nresponse: {{ degraded: false }}\n{limit}"
    ));
    fs::write(plans.join("loud.yaml"), format!("domain: loud\n{limit}")).expect("writable");
    let nobody = RedisServer::reserve();
    let ours = Tollgate::start(&plans, &["--store", &nobody.url()]);
    let mut client = ours.client().await;
    for (domain, shown) in [("loud", true), ("silent", false)] {
        let answer = ask(&mut client, request(domain, &[&[("k", "v")]])).await;
        let answer = answer.expect("a decision");
        assert_eq!(is_degraded(&answer), shown, "{answer:?}");
        let metadata = answer.dynamic_metadata.expect("metadata");
        assert!(metadata.fields.contains_key("degraded"), "{metadata:?}");
    }
    assert_eq!(ours.metric("tollgate_degraded_total"), 2.0);
}
