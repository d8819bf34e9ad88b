//! The life of keys in Redis, as clients of a real Envoy in front of two replicas meet it.

use serde_json::{Value, json};

use crate::{
    client::{Client, Header},
    common::{Tollgate, home::Home, wait_until},
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Upstream},
};

/// Its file's key has the secret `demo-free-key`.
const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["1000/second"] }, premium: { limits: ["2000/second"] } }
api_keys:
  - { id: listed, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
descriptors:
  - { key: api_key, limits_from: tier, unknown_key: deny }
"#;

/// Two replicas on one Redis, and Envoy in front.
struct Site {
    envoy: Envoy,
    client: Client,
    replicas: [Tollgate; 2],
    home: Home,
    redis: RedisServer,
    _upstream: Upstream,
}

impl Site {
    async fn start(plans: &str, change: impl FnOnce(&mut EnvoyConfig)) -> Self {
        Self::start_on(RedisServer::start(), plans, change).await
    }

    async fn start_on(
        redis: RedisServer,
        plans: &str,
        change: impl FnOnce(&mut EnvoyConfig),
    ) -> Self {
        let home = Home::in_redis(plans, &redis.url());
        let replicas = [home.serve(&[]), home.serve(&[])];
        let upstream = Upstream::fast_stats();
        let addresses = [&replicas[0], &replicas[1]].map(|replica| replica.grpc.as_str());
        let mut config = EnvoyConfig::new(&addresses, upstream.address);
        change(&mut config);
        let envoy = Envoy::start(&config).await;
        Self {
            client: envoy.client().await,
            envoy,
            replicas,
            home,
            redis,
            _upstream: upstream,
        }
    }

    /// `tollgate keys ARGS…`
    fn keys(&self, args: &[&str]) -> Value {
        self.home.json(&[&["keys"], args].concat())
    }

    /// The secret of a key that is made, or made anew.
    fn secret(&self, args: &[&str]) -> &'static str {
        let made = self.keys(args);
        let secret = made["secret"].as_str().expect("its secret");
        secret.to_owned().leak()
    }

    /// Waits until requests with that key are answered so, whichever replica Envoy asks.
    async fn answer(&mut self, key: &'static str, path: &str, status: u16) {
        let header: [Header; 1] = [("x-api-key", key)];
        let what = format!("{path} to be answered {status} by all");
        let client = &mut self.client;
        wait_until(&what, async || {
            for _ in 0..12 {
                if client.get(path, &header).await.status != status {
                    return false;
                }
            }
            true
        })
        .await;
    }

    async fn opens(&mut self, key: &'static str) {
        self.answer(key, "/secure/stats", 200).await;
    }

    async fn is_refused(&mut self, key: &'static str) {
        self.answer(key, "/secure/stats", 403).await;
        let refused = self
            .client
            .get("/secure/stats", &[("x-api-key", key)])
            .await;
        assert_eq!(refused.body, r#"{"message":"Forbidden"}"#);
    }

    /// Waits until all hold the key to a limit of so many hits.
    async fn is_held_to(&mut self, key: &'static str, hits: u32) {
        let part = format!(";q={hits};");
        let client = &mut self.client;
        wait_until("the limit of all", async || {
            for _ in 0..12 {
                let answer = client.get("/secure/stats", &[("x-api-key", key)]).await;
                let policy = answer.header("ratelimit-policy").unwrap_or_default();
                if !policy.contains(&part) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    fn checks(&self, result: &str) -> f64 {
        let name = format!("tollgate_key_checks_total{{result=\"{result}\"}}");
        let of = |replica: &Tollgate| replica.metric(&name);
        self.replicas.iter().map(of).sum()
    }
}

#[tokio::test]
async fn whatever_is_done_to_a_key_holds_on_every_replica() {
    let mut site = Site::start(PLANS, |_| {}).await;
    let created = ["create", "--tier", "free", "--id", "ada", "--owner", "Ada"];
    let first = site.secret(&created);
    site.opens(first).await;
    site.keys(&["disable", "ada"]);
    site.is_refused(first).await;
    site.keys(&["enable", "ada"]);
    site.opens(first).await;
    site.keys(&["update", "ada", "--expires", "1s"]);
    site.is_refused(first).await;
    site.keys(&["update", "ada", "--expires", "never"]);
    site.opens(first).await;

    let second = site.secret(&["rotate", "ada"]);
    site.opens(second).await;
    site.opens(first).await;
    let third = site.secret(&["rotate", "ada", "--overlap", "0s"]);
    site.is_refused(second).await;
    site.is_refused(first).await;
    site.opens(third).await;
    let typo: &'static str = format!("{}_", &third[..38]).leak();
    site.is_refused(typo).await;
    assert!(site.checks("mistyped") >= 12.0 && site.checks("expired") > 0.0);

    site.keys(&["update", "ada", "--tier", "premium"]);
    site.is_held_to(third, 2000).await;
    site.keys(&["update", "ada", "--limit", "3000/second"]);
    site.is_held_to(third, 3000).await;
    site.keys(&["update", "ada", "--tier-limits"]);
    site.is_held_to(third, 2000).await;

    let secret: &'static str = "of-api-gateway-0123456789";
    let from_aws = json!({ "items": [{ "id": "gw", "name": "Gus", "value": secret, "enabled": true, "stageKeys": [] }] });
    let file = site.home.draft("keys.json", &from_aws.to_string());
    site.keys(&["import", &file, "--tier", "free"]);
    site.opens(secret).await;

    // Who it was is told by metadata, which no client can write, and no secret is told anywhere.
    let lines = site.envoy.access_log();
    let told = lines
        .iter()
        .rev()
        .find(|line| line["authz"]["api_key_id"] == "ada");
    let told = &told.expect("a line of hers")["authz"];
    assert_eq!(told["owner"], "Ada", "{told}");
    let mut shown = format!("{lines:?}");
    for replica in &site.replicas {
        shown += &format!(
            "{}{}{}",
            replica.process.log(),
            replica.page("/metrics"),
            replica.page("/plans")
        );
    }
    shown += &site.keys(&["list"]).to_string();
    for secret in [first, second, third, secret] {
        assert!(!shown.contains(secret), "{shown}");
    }

    // Without Redis those that are known go on opening, as no lookup needs it.
    site.redis.kill();
    site.opens(third).await;
    site.is_refused(second).await;
    assert_eq!(site.envoy.stat("cluster.stats.ext_authz.error").await, 0);
}

#[tokio::test]
async fn keys_survive_a_restart_of_every_replica_and_a_revoked_one_stays_revoked() {
    let mut site = Site::start(PLANS, |_| {}).await;
    let kept = site.secret(&["create", "--tier", "free", "--id", "kept"]);
    let gone = site.secret(&["create", "--tier", "free", "--id", "gone"]);
    site.opens(gone).await;
    site.keys(&["revoke", "gone"]);
    site.is_refused(gone).await;
    for replica in &mut site.replicas {
        let address = replica.grpc.clone();
        replica.process.kill();
        *replica = site.home.serve(&["--grpc-listen", &address]);
    }
    site.opens(kept).await;
    site.is_refused(gone).await;
    for replica in &site.replicas {
        assert!(replica.metric("tollgate_key_checks_total{result=\"known\"}") > 0.0);
    }
}

#[tokio::test]
async fn a_denied_key_is_refused_whether_a_file_or_the_store_has_it_and_by_plans_put_in_an_incident()
 {
    let plans = format!("{PLANS}deny: {{ api_key: [listed, ada] }}\n");
    let mut site = Site::start(&plans, |config| {
        // The public route asks the rate-limit service alone, for the key as the client sent it.
        let key = "[{ actions: [{ request_headers: { header_name: x-api-key, descriptor_key: api_key } }] }]";
        *config.public_actions() = serde_yaml::from_str(key).expect("YAML");
    })
    .await;
    let [ada, bob] =
        ["ada", "bob"].map(|id| site.secret(&["create", "--tier", "free", "--id", id]));
    site.opens(bob).await;
    site.answer(bob, "/public/stats", 200).await;
    for denied in [ada, "demo-free-key"] {
        site.is_refused(denied).await;
        site.answer(denied, "/public/stats", 429).await;
    }
    assert!(site.checks("denied") >= 24.0);

    // Now bob is the one, and the others are let in again.
    let other = site
        .home
        .draft("incident.yaml", &plans.replace("listed, ada", "bob"));
    site.home.json(&["plans", "put", &other]);
    site.is_refused(bob).await;
    site.answer(bob, "/public/stats", 429).await;
    site.opens(ada).await;
    site.home.json(&["plans", "reset"]);
    site.opens(bob).await;
    site.is_refused(ada).await;
}

/// One round trip: no ext_authz, and the key itself as the descriptor's value.
#[tokio::test]
async fn the_rate_limit_service_alone_finds_the_tier_of_a_key() {
    let plans = PLANS
        .replace("[\"1000/second\"]", "[\"3/day\"]")
        .replace("unknown_key: deny", "unknown_key: deny, api_key_is: secret");
    let mut site = Site::start(&plans, |config| {
        let key = "[{ actions: [{ request_headers: { header_name: x-api-key, descriptor_key: api_key } }] }]";
        *config.public_actions() = serde_yaml::from_str(key).expect("YAML");
    })
    .await;
    let (free, premium) = (
        site.secret(&["create", "--tier", "free", "--id", "ada"]),
        site.secret(&["create", "--tier", "premium", "--id", "bob"]),
    );
    // Known to all, before its three are used.
    site.answer(premium, "/public/stats", 200).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let answer = site
            .client
            .get("/public/stats", &[("x-api-key", free)])
            .await;
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429, 429, 429]);
    // An id is no secret, and who has none that is known has no tier to fall back to.
    for nobodys in ["ada", "bob", "listed", "nobodys-secret-0123456789"] {
        site.answer(nobodys, "/public/stats", 429).await;
    }
    site.answer(premium, "/public/stats", 200).await;
}

#[tokio::test]
async fn replicas_that_start_without_redis_let_in_whom_files_know_and_judge_nobody_else() {
    let mut site = Site::start_on(RedisServer::reserve(), PLANS, |_| {}).await;
    site.opens("demo-free-key").await;
    // It may be a key of the store: that is no 403.
    site.answer("nobodys-secret-0123456789", "/secure/stats", 503)
        .await;
    site.answer("", "/secure/stats", 403).await;
    site.redis.restart();
    site.is_refused("nobodys-secret-0123456789").await;
    let made = site.secret(&["create", "--tier", "free", "--id", "ada"]);
    site.opens(made).await;
}
