//! Everything that shows or keeps anything is switched on, secrets come in every way there is, and none of them is anywhere.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use axum::{Router, body::Bytes, routing::post};
use serde_json::{Value, json};

use crate::{
    client::{Client, Header},
    common::{
        Tollgate,
        home::{Home, admin_address, call_as},
        http, wait_for, wait_until,
    },
    redis_server::RedisServer,
    stack::{Envoy, EnvoyConfig, Upstream},
};

/// `listed` has the secret `demo-free-key`. Statistics are asked to show what they can of values.
const PLANS: &str = r#"
domain: stats-api
tiers: { free: { limits: ["1000/second"] } }
api_keys:
  - { id: listed, tier: free, sha256: 9f8cfdb17116bf0e2a44e071454f25594cb9b8737bf331e6a2f0b30550572f29 }
authentication: { key_from: ["header:x-api-key", bearer, "query:api_key"], error_style: problem+json }
response: { metadata: true }
descriptors:
  - { key: api_key, limits_from: tier, unknown_key: deny, detailed_metric: true, value_to_metric: true }
"#;

const TOKEN: &str = "s3cret-token-of-the-admin";
const WRONG_TOKEN: &str = "s3cret-token-of-nobody";
const IMPORTED: &str = "of-another-gateway-0123456789";

/// What comes in by a socket or stream.
type Taken = Arc<Mutex<Vec<u8>>>;

fn take_all(from: impl Read + Send + 'static) -> Taken {
    let taken = Taken::default();
    let sink = taken.clone();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        while let Ok(bytes) = from.fill_buf() {
            let length = bytes.len();
            if length == 0 {
                return;
            }
            sink.lock().unwrap().extend_from_slice(bytes);
            from.consume(length);
        }
    });
    taken
}

fn text(taken: &Taken) -> String {
    String::from_utf8_lossy(&taken.lock().unwrap()).into_owned()
}

/// A StatsD that anybody may connect to, once.
fn statsd() -> (String, Taken) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let taken = Taken::default();
    let sink = taken.clone();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let (connection, sink) = (connection.unwrap(), sink.clone());
            thread::spawn(move || {
                for line in BufReader::new(connection)
                    .split(b'\n')
                    .map_while(Result::ok)
                {
                    sink.lock().unwrap().extend(line);
                }
            });
        }
    });
    (address, taken)
}

/// A collector of traces.
async fn collector() -> (String, Taken) {
    let taken = Taken::default();
    let sink = taken.clone();
    let take = async move |body: Bytes| sink.lock().unwrap().extend_from_slice(&body);
    let app = Router::new().route("/v1/traces", post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    (url, taken)
}

/// Every command that Redis is sent from now on.
fn monitor(redis: &RedisServer) -> Taken {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    stream.write_all(b"MONITOR\r\n").unwrap();
    let mut ok = [0; 5];
    stream.read_exact(&mut ok).unwrap();
    assert_eq!(&ok, b"+OK\r\n");
    take_all(stream)
}

/// Two replicas with everything on, and what they have sent.
struct Site {
    home: Home,
    replicas: [Tollgate; 2],
    /// Where their admin API is.
    admins: [String; 2],
    _redis: RedisServer,
    /// Every command that Redis got, and so all that is in it; statistics; spans.
    sent: [Taken; 3],
}

impl Site {
    async fn start() -> Self {
        let redis = RedisServer::start();
        let commands = monitor(&redis);
        let home = Home::in_redis(PLANS, &redis.url());
        let ((statsd, statistics), (traces, spans)) = (statsd(), collector().await);
        let tokens = home.draft("token", &format!("eve {TOKEN}\n"));
        let flags = [
            "--log=trace",
            "--debug-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0",
            "--ratelimit-metrics",
            "--statsd",
            &statsd,
            "--traces-endpoint",
            &traces,
            "--usage",
            "--admin-listen=127.0.0.1:0",
            "--admin-token-file",
            &tokens,
        ];
        let mut replicas = [home.serve(&flags), home.serve(&flags)];
        let admins = replicas.each_mut().map(admin_address);
        Self {
            home,
            replicas,
            admins,
            _redis: redis,
            sent: [commands, statistics, spans],
        }
    }

    /// What the admin API of each replica answers, whatever the status.
    fn admin(&self, token: &str, line: &str, body: &str) -> String {
        let answers = self
            .admins
            .iter()
            .map(|address| call_as(address, Some(token), line, body));
        answers
            .map(|(status, body)| format!("{line} {status} {body}\n"))
            .collect()
    }

    /// All pages that anybody may look at, and what they say of a question with `secret` in it.
    fn pages(&mut self, secrets: &[&str]) -> String {
        let mut said = String::new();
        for replica in &mut self.replicas {
            let mut listens = |what: &str| {
                let line = replica.process.line_with(what);
                let address = line.rsplit(' ').next().unwrap();
                address.split('/').next().unwrap().to_owned()
            };
            let (debug, metrics) = (listens("debug pages on "), listens("metrics (HTTP) on "));
            said += &http(&debug, "GET", "/rlconfig", "").1;
            said += &http(&metrics, "GET", "/metrics", "").1;
            said += &replica.page("/metrics");
            said += &replica.page("/plans");
            for secret in secrets {
                let question = question(secret).to_string();
                said += &http(&replica.http, "POST", "/explain", &question).1;
                said += &http(&replica.http, "POST", "/json", &question).1;
            }
        }
        said
    }

    /// What the commands say that only look.
    fn commands(&self) -> String {
        let looks: [&[&str]; 6] = [
            &["keys", "list"],
            &["keys", "show", "ada"],
            &["audit"],
            &["usage"],
            &["plans", "history"],
            &["plans", "get", "stats-api"],
        ];
        let mut said = String::new();
        for look in looks {
            let (code, out, err) = self.home.run(look);
            assert_eq!(code, 0, "{look:?}: {err}");
            said += &(out + &err);
        }
        said
    }
}

/// Asks for the rule of API keys.
fn question(secret: &str) -> Value {
    let entries = json!([{ "key": "api_key", "value": secret }]);
    json!({ "domain": "stats-api", "descriptors": [{ "entries": entries }] })
}

/// A client sends it in every place that Envoy and the plans know.
async fn bring_in(client: &mut Client, secret: &'static str) {
    let bearer: &'static str = format!("Bearer {secret}").leak();
    for (path, header) in [
        ("/secure/a", Some(("x-api-key", secret))),
        ("/secure/a", Some(("authorization", bearer))),
        (&*format!("/secure/a?api_key={secret}"), None),
        // The rate-limit service gets it as the value of an entry.
        ("/public/a", Some(("x-api-key", secret))),
    ] {
        let headers: Vec<Header> = header.into_iter().collect();
        client.get(path, &headers).await;
    }
}

// The collector is asked while this waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_secret_is_in_anything_that_is_kept_shown_or_sent() {
    let mut site = Site::start().await;
    let (upstream, seen) = Upstream::recording();
    let addresses = [&site.replicas[0], &site.replicas[1]].map(|replica| replica.grpc.as_str());
    let mut config = EnvoyConfig::new(&addresses, upstream.address);
    let key =
        "[{ actions: [{ request_headers: { header_name: x-api-key, descriptor_key: api_key } }] }]";
    *config.public_actions() = serde_yaml::from_str(key).unwrap();
    let envoy = Envoy::start(&config).await;
    let mut client = envoy.client().await;

    let made = ["--tier", "free", "--id", "ada", "--owner", "Ada"];
    let made = site.home.json(&[&["keys", "create"][..], &made].concat());
    let rotated = site.home.json(&["keys", "rotate", "ada"]);
    let [old, new] =
        [&made, &rotated].map(|made| &*made["secret"].as_str().unwrap().to_owned().leak());
    let import =
        json!({ "keys": [{ "secret": IMPORTED, "key": { "tier": "free", "id": "gus" } }] });
    let mut said = site.admin(TOKEN, "POST /v1/keys:import", &import.to_string());
    assert!(said.contains(r#""created":["gus"]"#), "{said}");
    wait_until("both to know the keys", async || {
        site.replicas.iter().all(|replica| {
            let page: Value = serde_json::from_str(&replica.page("/plans")).unwrap();
            page["stored_api_keys"]["count"] == 2
        })
    })
    .await;

    let typo: &'static str = format!("{}_", &new[..38]).leak();
    let secrets = [
        old,
        new,
        IMPORTED,
        "demo-free-key",
        typo,
        "nobodys-secret-0123456789",
    ];
    for secret in secrets {
        bring_in(&mut client, secret).await;
        for deed in ["show", "reset"] {
            said += &site.admin(
                TOKEN,
                &format!("POST /v1/buckets/{deed}"),
                &question(secret).to_string(),
            );
        }
    }
    said += &site.admin(WRONG_TOKEN, "GET /v1/keys", "");
    said += &site.admin(TOKEN, "PUT /v1/plans/stats-api", PLANS);
    said += &site.admin(TOKEN, "PATCH /v1/keys/ada", r#"{"owner":"Eve"}"#);
    for page in [
        "keys",
        "keys/ada",
        "plans",
        "plans/stats-api",
        "audit",
        "usage",
    ] {
        said += &site.admin(TOKEN, &format!("GET /v1/{page}"), "");
    }
    said += &site.pages(&secrets);
    said += &site.commands();
    for replica in &mut site.replicas {
        // All that is left is sent now.
        replica.process.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(replica.process.wait(), Some(0));
    }
    let [commands, statistics, spans] = &site.sent;
    wait_for("the last statistics", || {
        text(statistics)
            .contains("api_key_ada.total_hits")
            .then_some(())
    });
    let logs = site
        .replicas
        .each_ref()
        .map(|replica| replica.process.log() + &replica.process.output());
    let reached = format!("{:?}", seen.lock().unwrap());
    for (place, shown, looked_at) in [
        ("the pages", said.as_str(), "buckets.reset"),
        ("a log", &logs.concat(), "TRACE h2::"),
        ("a command to Redis", &text(commands), "EVALSHA"),
        ("a statistic", &text(statistics), "api_key_ada"),
        ("a span", &text(spans), "ShouldRateLimit"),
        ("the access log", &envoy.process.output(), "\"ada\""),
        ("what reaches the upstream", &reached, "test-path"),
    ] {
        assert!(
            shown.contains(looked_at),
            "{place} was not looked at: {shown}"
        );
        for secret in secrets.iter().chain(&[TOKEN, WRONG_TOKEN]) {
            if let Some(at) = shown.find(secret) {
                let around = &shown[shown.floor_char_boundary(at.saturating_sub(300))..at];
                panic!("{place} shows {secret}, after: {around}");
            }
        }
    }
}
