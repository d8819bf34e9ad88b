//! Plans put while replicas run, buckets filled by hand, and who did it, in Redis; and that no secret gets there.

use redis::Value as Reply;
use serde_json::{Value, json};
use tollgate::proto::envoy::service::ratelimit::v3::rate_limit_response::Code;

use crate::{
    cluster::Nodes,
    common::{
        Tollgate, ask,
        home::{Home, call},
        request, wait_until,
    },
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

fn put(home: &Home, quota: u32) -> Value {
    let draft = home.draft("draft.yaml", &document(quota));
    home.json(&["plans", "put", &draft])
}

/// The daily quota that a replica holds a key to, and whether the request passed.
async fn quota(tollgate: &Tollgate, key: &str) -> (u32, bool) {
    let asked = request("shop", &[&[("api_key", key)]]);
    let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
    let limit = answer.statuses[0].current_limit.as_ref();
    let passed = answer.overall_code() == Code::Ok;
    (limit.map_or(0, |limit| limit.requests_per_unit), passed)
}

/// Waits until all of them hold ada to that quota.
async fn hold_to(replicas: impl IntoIterator<Item = &Tollgate>, wanted: u32) {
    for tollgate in replicas {
        wait_until("the quota", async || {
            quota(tollgate, "ada").await.0 == wanted
        })
        .await;
    }
}

/// A Redis, and replicas with a key that is refused by each of them until its quota is raised or given back.
async fn with_ada() -> (RedisServer, Home, [Tollgate; 2]) {
    let server = RedisServer::start();
    let shop = Home::in_redis(FILE, &server.url());
    let replicas = [shop.serve(&[]), shop.serve(&[])];
    shop.json(&["keys", "create", "--tier", "free", "--id", "ada"]);
    hold_to(&replicas, 5).await;
    for tollgate in &replicas {
        wait_until("the quota's end", async || !quota(tollgate, "ada").await.1).await;
    }
    (server, shop, replicas)
}

#[tokio::test]
async fn what_one_changes_every_replica_has_and_one_that_starts_later() {
    let (_server, shop, replicas) = with_ada().await;
    assert_eq!(put(&shop, 1_000_000)["version"], 1);
    for tollgate in &replicas {
        wait_until("the plans", async || {
            quota(tollgate, "ada").await == (1_000_000, true)
        })
        .await;
    }
    assert_eq!(put(&shop, 7)["version"], 2);
    let late = shop.serve(&[]);
    assert_eq!(quota(&late, "ada").await.0, 7, "before the ports open");
    assert_eq!(shop.json(&["plans", "rollback", "1"])["version"], 3);
    hold_to(replicas.iter().chain([&late]), 1_000_000).await;
    shop.json(&["plans", "reset", "shop", "--if-version", "3"]);
    hold_to(replicas.iter().chain([&late]), 5).await;
    let stale = shop
        .command(&["plans", "reset", "--if-version", "3"])
        .output()
        .unwrap();
    assert_eq!(stale.status.code(), Some(1));
}

#[tokio::test]
async fn a_bucket_in_redis_is_filled_for_all_replicas_and_it_is_noted() {
    let (_server, shop, replicas) = with_ada().await;
    let buckets = |args: &[&str]| {
        let named = ["--descriptor", "api_key=ada", "--as", "eve"];
        shop.json(&[&["buckets"], args, &named].concat())[0].clone()
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
    let entries = shop.json(&["audit"]);
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
    assert!(
        detail.starts_with("granted 2: 0 → 2 left of 5/day"),
        "{detail}"
    );
}

#[tokio::test]
async fn in_a_cluster_the_buckets_of_several_nodes_are_filled() {
    let nodes = Nodes::start(0).await;
    let url = format!("redis+cluster://127.0.0.1:{}", nodes.servers[0].port());
    let text = "domain: shop\ndescriptors: [{ key: user, limits: [3/day] }]\n";
    let shop = Home::in_redis(text, &url);
    let tollgate = shop.serve(&[]);
    let users = ["a", "b", "c", "d", "e"];
    let passes = async |user: &str| {
        let asked = request("shop", &[&[("user", user)]]);
        let answer = ask(&mut tollgate.client().await, asked).await.unwrap();
        answer.overall_code() == Code::Ok
    };
    for user in users {
        wait_until("the bucket's end", async || !passes(user).await).await;
    }
    let descriptors: Vec<String> = users.iter().map(|user| format!("user={user}")).collect();
    let mut args = vec!["buckets", "reset"];
    for descriptor in &descriptors {
        args.extend(["--descriptor", descriptor]);
    }
    let done = shop.json(&args);
    let left: Vec<_> = done
        .as_array()
        .unwrap()
        .iter()
        .map(|bucket| &bucket["remaining"])
        .collect();
    assert_eq!(left, [3; 5]);
    for user in users {
        wait_until("a request to pass", async || passes(user).await).await;
    }
}

#[tokio::test]
async fn many_who_put_plans_at_once_lose_none_unnoticed() {
    let server = RedisServer::start();
    let shop = Home::in_redis(FILE, &server.url());
    let children: Vec<_> = (1..=4)
        .map(|quota| {
            let draft = shop.draft(&format!("{quota}.yaml"), &document(quota));
            let mut command = shop.command(&["plans", "put", &draft]);
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
    let history = shop.json(&["plans", "history", "shop"]);
    assert_eq!(history.as_array().unwrap().len(), done);
}

#[tokio::test]
async fn of_two_admins_at_two_replicas_one_wins_and_the_other_is_told() {
    let server = RedisServer::start();
    let shop = Home::in_redis(FILE, &server.url());
    let token = "s3cret-token-of-the-admin";
    let replicas = [(); 2].map(|()| shop.serve_admin(&format!("eve {token}"), &[]));
    shop.json(&["keys", "create", "--tier", "free", "--id", "ada"]);
    let authorization = format!("Bearer {token}");
    let both = |line: &str, headers: &[(&str, &str)], bodies: [String; 2]| {
        let headers = [&[("authorization", authorization.as_str())], headers].concat();
        let together = std::sync::Barrier::new(2);
        let mut answers = std::thread::scope(|scope| {
            let ask = |(replica, body): (&(Tollgate, String), String)| {
                let (address, together, headers) = (replica.1.clone(), &together, &headers);
                scope.spawn(move || {
                    together.wait();
                    call(&address, headers, line, &body)
                })
            };
            let asked: Vec<_> = replicas.iter().zip(bodies).map(ask).collect();
            asked
                .into_iter()
                .map(|one| one.join().unwrap())
                .collect::<Vec<_>>()
        });
        answers.sort_by_key(|(status, _)| *status);
        answers
    };
    for round in 1..=5 {
        // Both have seen the version before.
        let seen = match round {
            1 => ("if-none-match", "*".to_owned()),
            _ => ("if-match", format!("\"{}\"", round - 1)),
        };
        let bodies = [2 * round, 2 * round + 1].map(document);
        let answers = both("PUT /v1/plans/shop", &[(seen.0, &seen.1)], bodies);
        let [(won, put), (lost, told)] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!((*won, &put["version"]), (200, &json!(round)), "{answers:?}");
        // Who was told while the other wrote may have been told to try again.
        assert!(matches!(lost, 409 | 412), "{answers:?}");
        assert!(
            told["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty())
        );

        let body = || json!({ "revision": round, "owner": format!("o{round}") }).to_string();
        let answers = both("PATCH /v1/keys/ada", &[], [body(), body()]);
        assert_eq!((answers[0].0, answers[1].0), (200, 409), "{answers:?}");
        let told = answers[1].1["detail"].as_str().unwrap();
        assert!(told.contains("changed by somebody else"), "{told}");
    }
    let history = shop.json(&["plans", "history", "shop"]);
    assert_eq!(history.as_array().unwrap().len(), 5);
    assert_eq!(shop.json(&["keys", "show", "ada"])["revision"], 6);
}

#[tokio::test]
async fn documents_of_another_format_are_refused_and_replicas_keep_what_they_have() {
    let (server, shop, replicas) = with_ada().await;
    put(&shop, 9);
    hold_to(&replicas, 9).await;
    server.send("HSET tollgate:{api-keys}:1:plans:meta format 2");
    let told = "have format 2, and this build reads 1";
    for replica in &replicas {
        wait_until("it to be said", async || {
            replica.process.log().contains(told)
        })
        .await;
    }
    let refused = |args: &[&str]| {
        let (code, out, err) = shop.run(args);
        assert!(
            code == 2 && err.contains(told),
            "{args:?} {code}: {out}{err}"
        );
    };
    let draft = shop.draft("draft.yaml", &document(11));
    refused(&["plans", "put", &draft]);
    refused(&["plans", "history"]);
    refused(&["plans", "reset", "shop"]);
    for replica in &replicas {
        assert_eq!(quota(replica, "ada").await.0, 9);
    }
    // Nothing was lost: who can read them has them.
    server.send("HSET tollgate:{api-keys}:1:plans:meta format 1");
    assert_eq!(shop.json(&["plans", "history", "shop"])[0]["version"], 1);
    put(&shop, 12);
    hold_to(&replicas, 12).await;
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
    let server = RedisServer::start();
    let shop = Home::in_redis(FILE, &server.url());
    let token = "s3cret-token-of-the-admin";
    let (tollgate, _) = shop.serve_admin(&format!("eve {token}"), &[]);
    let made = shop.json(&["keys", "create", "--tier", "free", "--id", "ada"]);
    let rotated = shop.json(&["keys", "rotate", "ada"]);
    shop.json(&["keys", "update", "ada", "--owner", "Ada"]);
    put(&shop, 9);
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
    let audit = shop.json(&["audit"]).to_string();
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
