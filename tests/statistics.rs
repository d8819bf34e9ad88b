//! The statistics of envoyproxy/ratelimit: under which keys a decision counts, and who gets to see the counts.

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::TcpListener,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tollgate::{
    clock::SystemClock,
    descriptor::{Descriptor, Entry, Hits, LimitOverride, Query},
    limit::{Period, Unit},
    limiter::Limiter,
    plan::{Plans, SharedPlans},
    statistics::{Counter, Statistics},
    store::{MemoryStore, Store},
};

use common::{Tollgate, ask, http, plans, request, wait_for, wait_until};

struct Counted {
    limiter: Limiter,
    statistics: Arc<Statistics>,
}

impl Counted {
    fn by(text: &str) -> Self {
        let plans =
            Plans::from_texts(&[("plans.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let statistics = Arc::new(Statistics::new(0.8));
        let store = Store::Memory(MemoryStore::new(1_000, Arc::new(SystemClock)));
        let limiter = Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store))
            .with_statistics(Some(statistics.clone()));
        Self {
            limiter,
            statistics,
        }
    }

    async fn ask(&self, domain: &str, descriptors: Vec<Descriptor>) {
        let query = Query {
            domain: domain.to_owned(),
            descriptors,
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        self.limiter.decide(&query, deadline).await.unwrap();
    }

    /// Every counter that has moved.
    fn moved(&self) -> BTreeMap<String, u64> {
        let all = self.statistics.all();
        let each = all.iter().flat_map(|(key, counts)| {
            Counter::ALL.map(|counter| {
                let name = format!("{}.{}", key.text(), counter.name());
                (name, counts.get(counter))
            })
        });
        each.filter(|(_, value)| *value > 0).collect()
    }
}

fn descriptor(entries: &[(&str, &str)], hits: u64) -> Descriptor {
    let entries = entries.iter();
    Descriptor {
        entries: entries
            .map(|(key, value)| Entry::new(*key, *value))
            .collect(),
        hits: Hits::Take(hits),
        says_hits: false,
        limit: None,
    }
}

fn counts<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

const KEYS: &str = r#"
domain: shop
tiers: { free: { limits: ["60/hour"] } }
api_keys: [{ id: ada, tier: free, sha256: "SHA" }]
descriptors:
  - { key: user, rate_limit: &limit { unit: hour, requests_per_unit: 60 } }
  - { key: user, value: vip, rate_limit: *limit }
  - { key: tenant, detailed_metric: true, rate_limit: *limit }
  - { key: w, value: "v*", rate_limit: *limit }
  - { key: wv, value: "v*", value_to_metric: true, rate_limit: *limit }
  - { key: net, cidr: 10.0.0.0/8, rate_limit: *limit }
  - key: route
    value_to_metric: true
    descriptors:
      - key: verb
        value_to_metric: true
        descriptors: [{ key: subject, rate_limit: *limit }]
  - key: deep
    descriptors:
      - { key: leaf, detailed_metric: true, rate_limit: *limit }
      - { key: plain, rate_limit: *limit }
  - key: api
    value: "a*"
    share_threshold: true
    value_to_metric: true
    descriptors:
      - { key: method, rate_limit: *limit }
      - { key: endpoint, detailed_metric: true, rate_limit: *limit }
  - { key: key, limits_from: tier, detailed_metric: true, unknown_key: free }
"#;

/// SHA-256 of `secret`.
const SHA: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

#[tokio::test]
async fn keys_are_those_of_the_reference() {
    for (entries, key) in [
        (&[("user", "ada")][..], "user"),
        (&[("user", "vip")], "user_vip"),
        (&[("tenant", "a:b|c")], "tenant_a_b_c"),
        (&[("tenant", "10.1.2.3")], "tenant_10_1_2_3"),
        (&[("tenant", "")], "tenant_"),
        (&[("w", "v7")], "w_v*"),
        (&[("wv", "v7")], "wv_v7"),
        (&[("net", "10.1.2.3")], "net_10_0_0_0/8"),
        (
            &[("route", "draw"), ("verb", "GET"), ("subject", "s")],
            "route_draw.verb_GET.subject",
        ),
        (
            &[("route", ""), ("verb", "GET"), ("subject", "s")],
            "route.verb_GET.subject",
        ),
        (&[("deep", "d"), ("leaf", "l")], "deep_d.leaf_l"),
        (&[("deep", "d"), ("plain", "l")], "deep.plain"),
        (&[("api", "a1"), ("method", "GET")], "api_a*.method"),
        (&[("api", "a1"), ("endpoint", "e")], "api_a*.endpoint_e"),
        (&[("api", "a1"), ("endpoint", "")], "api_a*.endpoint"),
        (&[("key", "secret")], "key_ada"),
        (&[("key", "ada")], "key_ada"),
        (&[("key", "not-a-key")], "key_unknown"),
    ] {
        let counted = Counted::by(&KEYS.replace("SHA", SHA));
        counted.ask("shop", vec![descriptor(entries, 1)]).await;
        assert_eq!(
            counted.moved(),
            counts([
                (&format!("shop.{key}.total_hits"), 1),
                (&format!("shop.{key}.within_limit"), 1),
            ]),
            "{entries:?}"
        );
    }
}

#[tokio::test]
async fn a_limit_of_the_request_counts_under_the_values_but_never_shows_a_secret() {
    let counted = Counted::by(&KEYS.replace("SHA", SHA));
    let limit = Some(LimitOverride {
        requests: 1,
        period: Period::of(Unit::Day),
    });
    for (user, key) in [("vip", "secret"), ("", "what")] {
        let mut descriptor = descriptor(&[("user", user), ("key", key)], 1);
        descriptor.limit = limit;
        counted.ask("shop", vec![descriptor]).await;
    }
    assert_eq!(
        counted.moved(),
        counts([
            ("shop.user.key_unknown.near_limit", 1),
            ("shop.user.key_unknown.total_hits", 1),
            ("shop.user.key_unknown.within_limit", 1),
            ("shop.user_vip.key_ada.near_limit", 1),
            ("shop.user_vip.key_ada.total_hits", 1),
            ("shop.user_vip.key_ada.within_limit", 1),
        ])
    );
}

#[tokio::test]
async fn hits_are_split_between_near_and_over() {
    let limited = "domain: shop
descriptors: [{ key: cap20, rate_limit: { unit: day, requests_per_unit: 20 } }]";
    let counted = Counted::by(limited);
    for hits in [19, 3, 0] {
        let asked = descriptor(&[("cap20", "a")], hits);
        counted.ask("shop", vec![asked]).await;
    }
    assert_eq!(
        counted.moved(),
        counts([
            ("shop.cap20.near_limit", 3 + 1),
            ("shop.cap20.over_limit", 2),
            ("shop.cap20.total_hits", 19 + 3),
            ("shop.cap20.within_limit", 19),
        ])
    );
}

const MODES: &str = "
domain: shop
descriptors:
  - { key: one, rate_limit: { unit: day, requests_per_unit: 1 } }
  - { key: ten, rate_limit: { unit: day, requests_per_unit: 10 } }
  - { key: shade, shadow_mode: true, rate_limit: { unit: day, requests_per_unit: 1 } }
  - { key: free, rate_limit: { unlimited: true } }
  - { key: listed }
unmatched: deny
";

#[tokio::test]
async fn the_rule_that_refuses_is_over_and_the_others_are_within() {
    let counted = Counted::by(MODES);
    let both = [[("one", "a")], [("ten", "a")]];
    counted
        .ask("shop", both.map(|entry| descriptor(&entry, 2)).into())
        .await;
    assert_eq!(
        counted.moved(),
        counts([
            ("shop.one.near_limit", 1),
            ("shop.one.over_limit", 1),
            ("shop.one.total_hits", 2),
            ("shop.ten.total_hits", 2),
            ("shop.ten.within_limit", 2),
        ])
    );
}

#[tokio::test]
async fn a_shadow_rule_counts_what_it_would_have_refused() {
    let counted = Counted::by(MODES);
    for _ in 0..3 {
        let asked = descriptor(&[("shade", "a")], 1);
        counted.ask("shop", vec![asked]).await;
    }
    let moved = counted.moved();
    assert_eq!(moved["shop.shade.shadow_mode"], 2);
    assert_eq!(moved["shop.shade.over_limit"], 2);
    assert_eq!(moved["shop.shade.within_limit"], 1);
}

#[tokio::test]
async fn what_has_no_limit_counts_nothing_and_what_is_denied_is_over() {
    let counted = Counted::by(MODES);
    for key in ["free", "listed"] {
        let asked = descriptor(&[(key, "a")], 1);
        counted.ask("shop", vec![asked]).await;
    }
    assert_eq!(counted.moved(), counts([]));
    let asked = descriptor(&[("stranger", "a")], 1);
    counted.ask("shop", vec![asked]).await;
    assert_eq!(
        counted.moved(),
        counts([
            ("shop.unmatched.over_limit", 1),
            ("shop.unmatched.total_hits", 1),
        ])
    );
}

#[tokio::test]
async fn descriptors_of_unknown_domains_are_counted() {
    let counted = Counted::by(MODES);
    let asked = vec![descriptor(&[("one", "a")], 1); 2];
    counted.ask("no:such", asked).await;
    assert_eq!(
        counted.statistics.unknown_domains(),
        [("no_such".into(), 2)]
    );
}

#[tokio::test]
async fn counters_outlive_a_reload() {
    let (folder, path) = plans(MODES);
    let shared = Arc::new(SharedPlans::open(vec![path]).unwrap());
    let statistics = Arc::new(Statistics::new(0.8));
    let store = Store::Memory(MemoryStore::new(1_000, Arc::new(SystemClock)));
    let limiter =
        Limiter::new(shared.clone(), Arc::new(store)).with_statistics(Some(statistics.clone()));
    let counted = Counted {
        limiter,
        statistics,
    };
    let asked = descriptor(&[("ten", "a")], 1);
    counted.ask("shop", vec![asked.clone()]).await;
    let changed = MODES.replace("requests_per_unit: 10 ", "requests_per_unit: 11 ");
    std::fs::write(folder.path().join("plans.yaml"), changed).unwrap();
    assert!(shared.reload().unwrap());
    counted.ask("shop", vec![asked]).await;
    assert_eq!(counted.moved()["shop.ten.total_hits"], 2);
}

const SCRAPED: &str = "
domain: shop.eu
descriptors:
  - { key: one, rate_limit: { unit: day, requests_per_unit: 1 } }
  - key: host
    value: a.example
    descriptors:
      - key: path
        descriptors:
          - { key: left, rate_limit: { unit: day, requests_per_unit: 5 } }
          - { key: right, rate_limit: { unit: day, requests_per_unit: 5 } }
";

#[tokio::test]
async fn prometheus_finds_the_names_of_the_reference_beside_our_own() {
    let (_folder, config) = plans(SCRAPED);
    let args = ["--ratelimit-metrics", "--metrics-listen", "127.0.0.1:0"];
    let mut tollgate = Tollgate::start(&config, &[&args[..], &["--metrics-path", "/m"]].concat());
    let line = tollgate.process.line_with("  metrics (HTTP) on ");
    let address = line.rsplit(' ').next().unwrap().strip_suffix("/m").unwrap();
    let mut client = tollgate.client().await;
    for descriptor in [
        &[("one", "a")][..],
        &[("one", "a")],
        &[("host", "a.example"), ("path", "/"), ("left", "x")],
        &[("host", "a.example"), ("path", "/"), ("right", "x")],
    ] {
        let asked = request("shop.eu", &[descriptor]);
        ask(&mut client, asked).await.unwrap();
    }
    ask(&mut client, request("no such", &[&[("a", "b")]]))
        .await
        .unwrap();
    ask(&mut client, request("", &[])).await.unwrap_err();
    let (status, page) = http(address, "GET", "/m", "");
    assert_eq!(status, 200);
    for line in [
        "# TYPE ratelimit_service_rate_limit_over_limit counter",
        r#"ratelimit_service_rate_limit_over_limit{domain="shop.eu",key1="one"} 1"#,
        r#"ratelimit_service_rate_limit_total_hits{domain="shop.eu",key1="one"} 2"#,
        // Rules below the second level count together.
        r#"ratelimit_service_rate_limit_within_limit{domain="shop.eu",key1="host_a.example",key2="path"} 2"#,
        "ratelimit_service_config_load_success 1",
        r#"ratelimit_service_should_rate_limit_error{err_type="service_error"} 1"#,
        r#"ratelimit_service_total_requests{grpc_method="ShouldRateLimit"} 6"#,
        "ratelimit_service_rate_limit_no_such_domain_not_found 1",
        "# TYPE ratelimit_service_response_time_seconds histogram",
        r#"ratelimit_service_response_time_seconds_count{grpc_method="ShouldRateLimit"} 5"#,
        "# TYPE tollgate_decisions_total counter",
        r#"tollgate_decisions_total{code="OVER_LIMIT"} 1"#,
        "# TYPE tollgate_build_info gauge",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in {page}");
    }
    assert!(!page.contains("# EOF"), "{page}");
    let documented = include_str!("../docs/metrics.md").replace("DOMAIN", "no_such");
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for name in families.filter_map(|line| line.split(' ').next()) {
        let of_rule = name.strip_prefix("ratelimit_service_rate_limit_");
        let shown = documented.contains(&format!("`{}`", of_rule.unwrap_or(name)));
        assert!(
            shown || documented.contains(&format!("`{name}`")),
            "docs/metrics.md has no {name}"
        );
    }
    assert!(
        tollgate.page("/metrics").contains("ratelimit_service_rate"),
        "the usual page has them too"
    );
    assert_eq!(http(address, "GET", "/plans", "").0, 404);
}

#[tokio::test]
async fn nothing_is_shown_under_the_names_of_the_reference_unless_asked_for() {
    let (_folder, config) = plans(SCRAPED);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let asked = request("shop.eu", &[&[("one", "a")]]);
    ask(&mut client, asked).await.unwrap();
    let page = tollgate.page("/metrics");
    assert!(!page.contains("ratelimit_service"), "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
}

/// A StatsD server on a port of its own. Lines of all connections come as one stream.
struct Statsd {
    address: String,
    lines: Receiver<String>,
    counts: BTreeMap<String, u64>,
}

impl Statsd {
    fn listen(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || {
                    let lines = BufReader::new(connection).lines().map_while(Result::ok);
                    lines
                        .take_while(|line| sender.send(line.clone()).is_ok())
                        .for_each(drop);
                });
            }
        });
        Self {
            address,
            lines,
            counts: BTreeMap::new(),
        }
    }

    /// Waits until the lines add up to so much.
    fn wait_for(&mut self, name: &str, value: u64) {
        wait_for(name, || {
            for line in self.lines.try_iter() {
                let (name, rest) = line.split_once(':').expect("name:value|kind");
                let (value, kind) = rest.split_once('|').expect("name:value|kind");
                if kind.starts_with("c|#zone:a") {
                    let value: u64 = value.parse().expect("a whole number");
                    *self.counts.entry(name.to_owned()).or_default() += value;
                } else {
                    assert!(kind.starts_with("ms"), "{line}");
                }
            }
            (self.counts.get(name) == Some(&value)).then_some(())
        });
    }
}

#[tokio::test]
async fn statsd_gets_what_has_been_counted_since_it_was_told_last() {
    let mut statsd = Statsd::listen("127.0.0.1:0");
    let (_folder, config) = plans(SCRAPED);
    let args = [
        ["--statsd", &statsd.address],
        ["--statsd-interval", "10ms"],
        ["--statsd-tags", "zone:a"],
    ];
    let tollgate = Tollgate::start(&config, &args.concat());
    let mut client = tollgate.client().await;
    let asked = || request("shop.eu", &[&[("one", "a")]]);
    for (hits, over) in [(1, None), (2, Some(1)), (3, Some(2))] {
        ask(&mut client, asked()).await.unwrap();
        statsd.wait_for("ratelimit.service.rate_limit.shop.eu.one.total_hits", hits);
        if let Some(over) = over {
            statsd.wait_for("ratelimit.service.rate_limit.shop.eu.one.over_limit", over);
        }
    }
    statsd.wait_for("ratelimit.service.rate_limit.shop.eu.one.within_limit", 1);
    statsd.wait_for("ratelimit.service.config_load_success", 1);
    statsd.wait_for("ratelimit_server.ShouldRateLimit.total_requests", 3);
}

#[tokio::test]
async fn a_statsd_that_comes_late_has_missed_nothing_and_the_log_says_so_once() {
    let late = common::free_port();
    let address = format!("127.0.0.1:{late}");
    let (_folder, config) = plans(SCRAPED);
    let args = [
        ["--statsd", &address],
        ["--statsd-interval", "10ms"],
        ["--statsd-tags", "zone:a"],
    ];
    let mut tollgate = Tollgate::start(&config, &args.concat());
    tollgate.process.line_with("StatsD takes no reports");
    let mut client = tollgate.client().await;
    for _ in 0..3 {
        let asked = request("shop.eu", &[&[("one", "a")]]);
        ask(&mut client, asked).await.unwrap();
    }
    let mut statsd = Statsd::listen(&address);
    statsd.wait_for("ratelimit.service.rate_limit.shop.eu.one.total_hits", 3);
    tollgate.process.line_with("StatsD takes reports again");
    let complaints = tollgate.process.log();
    assert_eq!(complaints.matches("StatsD takes no reports").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_counts_are_reported_when_the_service_stops() {
    let mut statsd = Statsd::listen("127.0.0.1:0");
    let (_folder, config) = plans(SCRAPED);
    let args = [
        ["--statsd", &statsd.address],
        ["--statsd-interval", "1h"],
        ["--statsd-tags", "zone:a"],
    ];
    let mut tollgate = Tollgate::start(&config, &args.concat());
    statsd.wait_for("ratelimit.service.config_load_success", 1);
    let mut client = tollgate.client().await;
    let asked = request("shop.eu", &[&[("one", "a")]]);
    ask(&mut client, asked).await.unwrap();
    drop(client);
    tollgate.process.signal(nix::sys::signal::Signal::SIGTERM);
    statsd.wait_for("ratelimit.service.rate_limit.shop.eu.one.total_hits", 1);
    assert_eq!(tollgate.process.wait(), Some(0));
}

#[tokio::test]
async fn udp_gets_datagrams_of_lines() {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = format!("udp://{}", socket.local_addr().unwrap());
    let (_folder, config) = plans(SCRAPED);
    let _tollgate = Tollgate::start(
        &config,
        &["--statsd", &address, "--statsd-interval", "10ms"],
    );
    wait_until("a datagram", async || {
        let mut datagram = [0; 2_000];
        let length = socket.recv(&mut datagram).await.unwrap();
        datagram[..length] == *b"ratelimit.service.config_load_success:1|c\n"
    })
    .await;
}
