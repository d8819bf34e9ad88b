//! API keys in Redis: every replica has them, nobody overwrites anybody, no secret gets there.

use std::{sync::Arc, time::Duration};

use redis::Value;
use tokio_util::sync::CancellationToken;
use tollgate::{
    home::{Actor, Entry, Home, HomeError, Place, follow},
    key_store::{KeyAdmin, KeyError, NewKey},
    keys::{Change, Form, KeyTable, form},
    plan::{Plans, SharedPlans},
};

use crate::{
    common::{Tollgate, plans, tollgate_command, wait_until},
    redis_server::RedisServer,
};

const PLANS: &str =
    "domain: shop\ntiers: { free: { limits: [1/hour] }, premium: { limits: [9/hour] } }\n";

/// A replica: its plans, and keys that it follows.
struct Replica {
    plans: Arc<SharedPlans>,
    keys: Arc<KeyAdmin>,
    stop: CancellationToken,
}

impl Replica {
    fn new(server: &RedisServer) -> Self {
        let plans = Plans::from_texts(&[("plans.yaml", PLANS)]).unwrap();
        let plans = Arc::new(SharedPlans::fixed(plans));
        let home = Place::Redis(Box::new(server.url().parse().unwrap()));
        plans.await_stored_keys();
        Self {
            keys: Arc::new(KeyAdmin::new(home.open(), plans.clone())),
            plans,
            stop: CancellationToken::new(),
        }
    }

    fn following(server: &RedisServer) -> Self {
        let replica = Self::new(server);
        follow(
            replica.keys.clone(),
            Duration::from_millis(20),
            replica.stop.clone(),
        );
        replica
    }

    fn opens(&self, secret: &str) -> Option<String> {
        let plans = self.plans.load();
        let key = plans.check_secret(secret.as_bytes()).known();
        key.map(|key| key.id().to_owned())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn by() -> Actor {
    Actor::new("ada")
}

fn free(id: &str) -> NewKey {
    NewKey {
        id: Some(id.to_owned()),
        tier: "free".to_owned(),
        ..NewKey::default()
    }
}

#[tokio::test]
async fn a_change_reaches_every_replica_and_one_that_starts_later() {
    let server = RedisServer::start();
    let replicas = [Replica::following(&server), Replica::following(&server)];
    let (record, secret) = replicas[0].keys.create(&by(), free("ada")).await.unwrap();
    let secret = secret.expose();
    assert_eq!(form(secret.as_bytes()), Form::Ours);
    for replica in &replicas {
        wait_until("the key", async || {
            replica.opens(secret).as_deref() == Some("ada")
        })
        .await;
    }
    let late = Replica::new(&server);
    assert!(!late.plans.load().keys_are_complete());
    late.keys.refresh().await.unwrap();
    assert!(late.plans.load().keys_are_complete());
    assert_eq!(late.keys.show("ada").await.unwrap(), record);
    replicas[1].keys.revoke(&by(), "ada", None).await.unwrap();
    for replica in &replicas {
        wait_until("the key to be gone", async || {
            replica.opens(secret).is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn of_two_admins_one_wins_and_the_other_is_told() {
    let (server, by) = (RedisServer::start(), by());
    let admins = [Replica::new(&server), Replica::new(&server)];
    let (one, other) = tokio::join!(
        admins[0].keys.create(&by, free("ada")),
        admins[1].keys.create(&by, free("ada"))
    );
    let lost = match (one, other) {
        (Ok(_), Err(lost)) | (Err(lost), Ok(_)) => lost,
        both => panic!("{both:?}"),
    };
    assert!(matches!(lost, KeyError::Exists { .. }), "{lost}");

    // Both have looked at revision 1.
    let (one, other) = tokio::join!(
        admins[0].keys.rotate(&by, "ada", Duration::ZERO, Some(1)),
        admins[1].keys.rotate(&by, "ada", Duration::ZERO, Some(1))
    );
    let (won, lost) = match (one, other) {
        (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
        both => panic!("{both:?}"),
    };
    assert!(
        matches!(
            lost,
            KeyError::Changed {
                seen: 1,
                now: 2,
                ..
            }
        ),
        "{lost}"
    );
    admins[0].keys.refresh().await.unwrap();
    assert_eq!(admins[0].opens(won.1.expose()).as_deref(), Some("ada"));
}

#[tokio::test]
async fn many_admins_at_once_lose_nothing() {
    let server = RedisServer::start();
    let admins: Vec<_> = (0..4).map(|_| Replica::new(&server)).collect();
    let all = admins.iter().enumerate().map(async |(admin, replica)| {
        for n in 0..10 {
            let id = format!("key-{admin}-{n}");
            while let Err(error) = replica.keys.create(&by(), free(&id)).await {
                assert!(matches!(error, KeyError::Busy), "{error}");
            }
        }
    });
    futures::future::join_all(all).await;
    for replica in &admins {
        replica.keys.refresh().await.unwrap();
        assert_eq!(replica.plans.load().stored_keys().len(), 40);
    }
}

#[tokio::test]
async fn an_old_table_is_no_ground_to_write_on() {
    let server = RedisServer::start();
    let replica = Replica::new(&server);
    replica.keys.create(&by(), free("ada")).await.unwrap();
    let place = Place::Redis(Box::new(server.url().parse().unwrap()));
    let mut home: Home<KeyTable> = place.open();
    let empty = Arc::new(KeyTable::default());
    let stale = home
        .append(
            &empty,
            vec![Change::Remove("ada".to_owned())],
            &Entry::new(&by(), "key.revoke", "ada"),
        )
        .await;
    assert!(matches!(stale, Err(HomeError::Stale { .. })), "{stale:?}");
    assert!(
        home.refresh(&empty)
            .await
            .unwrap()
            .unwrap()
            .get("ada")
            .is_some()
    );
}

#[tokio::test]
async fn replicas_follow_a_redis_that_was_emptied_and_ten_thousand_changes() {
    let server = RedisServer::start();
    let (writer, reader) = (Replica::new(&server), Replica::new(&server));
    let keys = |from: usize| {
        let new = |n: usize| {
            (
                free(&format!("key-{n}")),
                format!("secret-from-elsewhere-{n}"),
            )
        };
        (from..from + 6_000).map(new).collect::<Vec<_>>()
    };
    assert_eq!(
        writer
            .keys
            .import(&by(), keys(0))
            .await
            .unwrap()
            .created
            .len(),
        6_000
    );
    reader.keys.refresh().await.unwrap();
    assert_eq!(
        reader.opens("secret-from-elsewhere-5999").as_deref(),
        Some("key-5999")
    );
    // More changes than Redis remembers: the reader has to read everything again.
    assert_eq!(
        writer
            .keys
            .import(&by(), keys(6_000))
            .await
            .unwrap()
            .created
            .len(),
        6_000
    );
    writer.keys.revoke(&by(), "key-0", None).await.unwrap();
    reader.keys.refresh().await.unwrap();
    assert_eq!(reader.plans.load().stored_keys().len(), 11_999);
    assert_eq!(reader.opens("secret-from-elsewhere-0"), None);
    server.send("FLUSHALL");
    reader.keys.refresh().await.unwrap();
    assert!(reader.plans.load().stored_keys().is_empty());
}

#[tokio::test]
async fn without_redis_the_keys_of_before_stay_and_it_is_said() {
    let mut server = RedisServer::start();
    let replica = Replica::new(&server);
    let (_, secret) = replica.keys.create(&by(), free("ada")).await.unwrap();
    server.kill();
    let error = replica.keys.refresh().await.unwrap_err();
    assert!(matches!(error, HomeError::Redis { .. }), "{error}");
    assert!(replica.plans.keys_are_stale());
    assert!(replica.keys.create(&by(), free("bob")).await.is_err());
    assert_eq!(replica.opens(secret.expose()).as_deref(), Some("ada"));
}

#[tokio::test]
async fn what_is_no_record_of_ours_is_refused_whole() {
    let server = RedisServer::start();
    let replica = Replica::new(&server);
    let (_, secret) = replica.keys.create(&by(), free("ada")).await.unwrap();
    server.send("HSET tollgate:{api-keys}:1:records eve {}");
    let fresh = Replica::new(&server);
    let error = fresh.keys.refresh().await.unwrap_err().to_string();
    assert!(
        error.contains("of its API keys, the record `eve` is none"),
        "{error}"
    );
    assert!(!fresh.plans.load().keys_are_complete());
    server.send("HSET tollgate:{api-keys}:1:meta format 2");
    let error = replica.keys.refresh().await.unwrap_err().to_string();
    assert!(
        error.contains("have format 2, and this build reads 1"),
        "{error}"
    );
    assert!(replica.opens(secret.expose()).is_some());
}

#[tokio::test]
async fn no_secret_gets_into_redis() {
    let server = RedisServer::start();
    let replica = Replica::new(&server);
    let mut secrets = Vec::new();
    for id in ["ada", "bob"] {
        secrets.push(replica.keys.create(&by(), free(id)).await.unwrap().1);
        secrets.push(
            replica
                .keys
                .rotate(&by(), id, Duration::from_secs(60), None)
                .await
                .unwrap()
                .1,
        );
    }
    let foreign = "secret-from-elsewhere".to_owned();
    replica
        .keys
        .import(&by(), vec![(free("eve"), foreign.clone())])
        .await
        .unwrap();
    let everything = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?}",
        server.send("KEYS *"),
        server.send("HGETALL tollgate:{api-keys}:1:records"),
        server.send("HGETALL tollgate:{api-keys}:1:meta"),
        server.send("ZRANGE tollgate:{api-keys}:1:changed 0 -1"),
        server.send("XRANGE tollgate:{api-keys}:1:audit - +"),
        replica.keys,
    );
    assert!(everything.contains("ada"), "it was looked at: {everything}");
    for secret in secrets
        .iter()
        .map(|secret| secret.expose())
        .chain([&*foreign])
    {
        assert!(!everything.contains(secret), "{everything}");
    }
    assert!(matches!(server.send("DBSIZE"), Value::Int(4)));
}

#[tokio::test]
async fn the_command_changes_what_running_replicas_know_and_a_restart_forgets_nothing() {
    let server = RedisServer::start();
    let (_folder, config) = plans(PLANS);
    let url = server.url();
    let keys = |args: &[&str]| -> serde_json::Value {
        let mut command = tollgate_command();
        command
            .arg("keys")
            .args(args)
            .args(["--output", "json", "--store", &url]);
        let output = command.arg("--config").arg(&config).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let replicas = [1, 2].map(|_| Tollgate::start(&config, &["--store", &url]));
    let count = |tollgate: &Tollgate| -> u64 {
        let page: serde_json::Value = serde_json::from_str(&tollgate.page("/plans")).unwrap();
        page["stored_api_keys"]["count"].as_u64().unwrap()
    };
    let made = keys(&["create", "--tier", "free", "--id", "ada"]);
    for tollgate in &replicas {
        wait_until("the key", async || count(tollgate) == 1).await;
    }
    let late = Tollgate::start(&config, &["--store", &url]);
    assert_eq!(count(&late), 1, "read before the ports open");
    keys(&["revoke", "ada"]);
    for tollgate in replicas.iter().chain([&late]) {
        wait_until("the key to be gone", async || count(tollgate) == 0).await;
        assert!(
            !tollgate
                .process
                .log()
                .contains(made["secret"].as_str().unwrap())
        );
    }
}
