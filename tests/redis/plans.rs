//! Plans put while replicas run, buckets filled by hand, and who did it, in Redis; and that no secret gets there.

use std::{path::Path, process::Command};

use redis::Value as Reply;
use serde_json::{Value, json};
use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;

use crate::{
    common::{Tollgate, ask, plans, request, tollgate_command, wait_until},
    redis_server::RedisServer,
};

const FILE: &str = r#"
domain: shop
tiers: { free: { limits: ["5/day calendar"] } }
descriptors: [{ key: api_key, limits_from: tier }]
"#;

/// The file's plans with another quota.
fn document(quota: u32) -> String {
    FILE.replace("5/day", &format!("{quota}/day"))
}

struct Shop<'a> {
    url: &'a str,
    config: &'a Path,
}

impl Shop<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = tollgate_command();
        command
            .args(args)
            .args(["--output", "json", "--store", self.url]);
        command.arg("--config").arg(self.config);
        command
    }

    fn run(&self, args: &[&str]) -> Value {
        let output = self.command(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn put(&self, quota: u32, folder: &Path) -> Value {
        let draft = folder.join("draft.yaml");
        std::fs::write(&draft, document(quota)).unwrap();
        self.run(&["plans", "put", draft.to_str().unwrap()])
    }

    fn serve(&self) -> Tollgate {
        Tollgate::start(self.config, &["--store", self.url, "--store-timeout", "2s"])
    }
}

/// The daily quota that a replica holds a key to, and whether the request passed.
async fn quota(tollgate: &Tollgate, key: &str) -> (u32, bool) {
    let asked = request("shop", &[&[("api_key", key)]]);
    let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
    let limit = answer.statuses[0].current_limit.as_ref();
    let passed = answer.overall_code() == Code::Ok;
    (limit.map_or(0, |limit| limit.requests_per_unit), passed)
}

#[tokio::test]
async fn what_one_changes_every_replica_has_and_one_that_starts_later() {
    let (server, drafts) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let ((_folder, config), url) = (plans(FILE), server.url());
    let shop = Shop {
        url: &url,
        config: &config,
    };
    let replicas = [shop.serve(), shop.serve()];
    shop.run(&["keys", "create", "--tier", "free", "--id", "ada"]);
    for tollgate in &replicas {
        wait_until("the key", async || quota(tollgate, "ada").await.0 == 5).await;
    }
    // The quota is used up by now or will be soon, and is raised.
    wait_until("the quota's end", async || {
        !quota(&replicas[0], "ada").await.1
    })
    .await;
    assert_eq!(shop.put(1_000_000, drafts.path())["version"], 1);
    for tollgate in &replicas {
        wait_until("the plans", async || {
            quota(tollgate, "ada").await == (1_000_000, true)
        })
        .await;
    }
    assert_eq!(shop.put(7, drafts.path())["version"], 2);
    let late = shop.serve();
    assert_eq!(quota(&late, "ada").await.0, 7, "before the ports open");
    assert_eq!(shop.run(&["plans", "rollback", "1"])["version"], 3);
    for tollgate in replicas.iter().chain([&late]) {
        wait_until("the plans of before", async || {
            quota(tollgate, "ada").await.0 == 1_000_000
        })
        .await;
    }
    shop.run(&["plans", "reset", "shop", "--if-version", "3"]);
    for tollgate in replicas.iter().chain([&late]) {
        wait_until("the file's plans", async || {
            quota(tollgate, "ada").await.0 == 5
        })
        .await;
    }
    let stale = shop
        .command(&["plans", "reset", "--if-version", "3"])
        .output()
        .unwrap();
    assert_eq!(stale.status.code(), Some(1));
}

#[tokio::test]
async fn a_bucket_in_redis_is_filled_for_all_replicas_and_it_is_noted() {
    let server = RedisServer::start();
    let ((_folder, config), url) = (plans(FILE), server.url());
    let shop = Shop {
        url: &url,
        config: &config,
    };
    let replicas = [shop.serve(), shop.serve()];
    shop.run(&["keys", "create", "--tier", "free", "--id", "ada"]);
    for tollgate in &replicas {
        wait_until("the key", async || quota(tollgate, "ada").await.0 == 5).await;
        wait_until("the quota's end", async || !quota(tollgate, "ada").await.1).await;
    }
    let buckets = |args: &[&str]| {
        let named = ["--descriptor", "api_key=ada", "--as", "eve"];
        shop.run(&[&["buckets"], args, &named].concat())[0].clone()
    };
    assert_eq!(buckets(&["show"])["remaining"], 0);
    let granted = buckets(&["grant", "--hits", "2"]);
    assert_eq!(
        (&granted["before"], &granted["remaining"]),
        (&json!(0), &json!(2))
    );
    // A replica may remember for a second that the bucket was empty.
    for tollgate in &replicas {
        wait_until("a request to pass", async || quota(tollgate, "ada").await.1).await;
    }
    assert_eq!(buckets(&["reset"])["remaining"], 5);
    for _ in 0..5 {
        wait_until("a request to pass", async || {
            quota(&replicas[1], "ada").await.1
        })
        .await;
    }
    let entries = shop.run(&["audit"]);
    let told: Vec<_> = entries
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["action"].as_str().unwrap())
        .collect();
    assert_eq!(told, ["buckets.reset", "buckets.grant", "key.create"]);
    assert_eq!(entries[1]["on"], "shop (api_key=ada)");
    assert!(
        entries[1]["by"].as_str().unwrap().starts_with("eve"),
        "{entries}"
    );
    let detail = entries[1]["detail"].as_str().unwrap();
    assert!(detail.starts_with("0 → 2 left of 5/day"), "{detail}");
}

#[tokio::test]
async fn many_who_put_plans_at_once_lose_none_unnoticed() {
    let (server, drafts) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let ((_folder, config), url) = (plans(FILE), server.url());
    let shop = Shop {
        url: &url,
        config: &config,
    };
    let children: Vec<_> = (1..=4)
        .map(|quota| {
            let draft = drafts.path().join(format!("{quota}.yaml"));
            std::fs::write(&draft, document(quota)).unwrap();
            let mut command = shop.command(&["plans", "put", draft.to_str().unwrap()]);
            command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    let done = children.into_iter().filter_map(|mut child| {
        let status = child.wait().unwrap();
        // Who came second was told, and changed nothing.
        assert!(matches!(status.code(), Some(0 | 1)), "{status}");
        status.success().then_some(())
    });
    let done = done.count();
    assert!(done >= 1);
    let history = shop.run(&["plans", "history", "shop"]);
    assert_eq!(history.as_array().unwrap().len(), done);
}

/// All keys of a Redis with their values, as text.
fn everything(server: &RedisServer) -> String {
    let Reply::Array(keys) = server.send("KEYS *") else {
        panic!("no keys");
    };
    let mut text = String::new();
    for key in keys {
        let Reply::BulkString(key) = key else {
            panic!("{key:?}");
        };
        let key = String::from_utf8_lossy(&key).into_owned();
        let kind: String = redis::cmd("TYPE")
            .arg(&key)
            .query(&mut server.admin())
            .unwrap();
        let (name, rest) = match kind.as_str() {
            "string" => ("GET", &[][..]),
            "hash" => ("HGETALL", &[][..]),
            "stream" => ("XRANGE", &["-", "+"][..]),
            "zset" => ("ZRANGE", &["0", "-1"][..]),
            other => panic!("{key} is a {other}"),
        };
        let mut command = redis::cmd(name);
        let value: Reply = command
            .arg(&key)
            .arg(rest)
            .query(&mut server.admin())
            .unwrap();
        text += &format!("{key}: {value:?}\n");
    }
    text
}

#[tokio::test]
async fn no_secret_is_anywhere_in_redis_whatever_is_done() {
    let (server, drafts) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let ((_folder, config), url) = (plans(FILE), server.url());
    let shop = Shop {
        url: &url,
        config: &config,
    };
    let token = "s3cret-token-of-the-admin";
    let file = drafts.path().join("token");
    std::fs::write(&file, format!("eve {token}")).unwrap();
    let flags = [
        "--store",
        &url,
        "--store-timeout",
        "2s",
        "--admin-token-file",
        file.to_str().unwrap(),
    ];
    let tollgate = Tollgate::start(
        &config,
        &[&flags[..], &["--admin-listen", "127.0.0.1:0"]].concat(),
    );
    let made = shop.run(&["keys", "create", "--tier", "free", "--id", "ada"]);
    let rotated = shop.run(&["keys", "rotate", "ada"]);
    shop.run(&["keys", "update", "ada", "--owner", "Ada"]);
    shop.put(9, drafts.path());
    let secrets = [&made, &rotated].map(|made| made["secret"].as_str().unwrap());
    wait_until("the key", async || {
        quota(&tollgate, secrets[1]).await.0 == 9
    })
    .await;
    for secret in secrets.iter().chain([&"nobodys-secret-0123456789", &token]) {
        quota(&tollgate, secret).await;
        let descriptor = format!("api_key={secret}");
        // Known ones are given to, of unknown ones nothing is known: either way it is noted under a public name.
        let named = ["--descriptor", &descriptor];
        drop(
            shop.command(&[&["buckets", "grant", "--hits", "1"][..], &named].concat())
                .output(),
        );
    }
    let audit = shop.run(&["audit"]).to_string();
    assert!(audit.contains("(api_key=ada)"), "{audit}");
    let text = format!(
        "{}\n{audit}\n{}\n{}\n{}",
        everything(&server),
        tollgate.process.log(),
        tollgate.page("/plans"),
        tollgate.page("/metrics"),
    );
    assert!(
        text.contains("plans:records") && text.contains("key.rotate"),
        "it was looked at: {text}"
    );
    for secret in secrets.iter().chain([&"nobodys-secret-0123456789", &token]) {
        assert!(!text.contains(*secret), "{secret} in {text}");
    }
}
