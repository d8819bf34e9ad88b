//! What the limiter makes of matches, without a server around it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tollgate::{
    clock::{ManualClock, SystemClock, Timestamp},
    decision::{Code, Decision},
    descriptor::{Descriptor, Entry, Hits, LimitOverride, Query},
    limit::{Kind, Period, Unit},
    limiter::Limiter,
    plan::{LoadOptions, Modes, Plans, SharedPlans},
    statistics::{Counter, MOST_HITS, Statistics},
    store::{
        MemoryStore, Store,
        redis::{RedisSettings, RedisStore},
    },
    usage::{Counts, Meter},
};

fn memory() -> Store {
    Store::Memory(MemoryStore::new(1_000, Arc::new(SystemClock)))
}

/// A store that answers nothing: nobody listens there, as the port was taken and left.
fn dead() -> Store {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let url = format!("redis://{}", port.unwrap());
    Store::Redis(RedisStore::connect(RedisSettings::new(
        url.parse().unwrap(),
    )))
}

fn limiter(text: &str, store: Store) -> Limiter {
    limiter_in_modes(text, store, Modes::default())
}

fn limiter_in_modes(text: &str, store: Store, modes: Modes) -> Limiter {
    let options = LoadOptions {
        modes,
        ..LoadOptions::default()
    };
    let plans = Plans::from_texts_by(&[("plans.yaml", text)], &options)
        .unwrap_or_else(|error| panic!("{error}"));
    Limiter::new(Arc::new(SharedPlans::fixed(plans)), Arc::new(store))
}

fn query(descriptors: &[&[(&str, &str)]]) -> Query {
    let descriptor = |entries: &&[(&str, &str)]| Descriptor {
        entries: entries
            .iter()
            .map(|(key, value)| Entry::new(*key, *value))
            .collect(),
        ..Descriptor::default()
    };
    Query {
        domain: "shop".to_owned(),
        descriptors: descriptors.iter().map(descriptor).collect(),
    }
}

async fn decide(limiter: &Limiter, descriptors: &[&[(&str, &str)]]) -> Decision {
    let deadline = Instant::now() + Duration::from_secs(1);
    limiter.decide(&query(descriptors), deadline).await.unwrap()
}

fn codes(decision: &Decision) -> Vec<Code> {
    decision.statuses.iter().map(|status| status.code).collect()
}

/// Counters of the rule at `path`: passed, refused, would have refused.
fn counts(limiter: &Limiter, path: &str) -> [u64; 3] {
    let plans = limiter.plans().load();
    let domain = plans.domain("shop").unwrap();
    let rule = domain.rules().find(|rule| &*rule.path == path).unwrap();
    let counters = &rule.counters;
    [
        &counters.ok,
        &counters.over_limit,
        &counters.shadow_over_limit,
    ]
    .map(|counter| counter.load(Ordering::Relaxed))
}

const KEYS: &str = r#"
domain: shop
on_store_error: error
tiers: { free: { limits: ["5/hour"] } }
descriptors:
  - { key: api_key, limits_from: tier }
  - { key: ip, limits: ["5/hour"] }
"#;

#[tokio::test]
async fn an_unknown_key_is_refused_whatever_the_store_does() {
    for store in [memory(), dead()] {
        let limiter = limiter(KEYS, store);
        let decision = decide(&limiter, &[&[("ip", "a")], &[("api_key", "x")]]).await;
        assert_eq!(decision.code, Code::OverLimit);
        assert_eq!(codes(&decision), [Code::Ok, Code::OverLimit]);
        assert!(!decision.degraded && decision.limits.is_empty());
        assert_eq!(decision.retry_after, None);
        assert_eq!(counts(&limiter, "api_key"), [0, 1, 0]);
        assert_eq!(
            counts(&limiter, "ip"),
            [0, 0, 0],
            "its bucket was not asked"
        );
    }
}

#[tokio::test]
async fn in_shadow_mode_an_unknown_key_passes_is_counted_and_hides_no_rule() {
    let text = KEYS.replace(
        "limits_from: tier }",
        "limits_from: tier, shadow_mode: true, descriptors: [{ key: path, limits: [1/hour] }] }",
    );
    let limiter = limiter(&text, memory());
    let alone = decide(&limiter, &[&[("api_key", "x")]]).await;
    assert_eq!(alone.code, Code::Ok);
    assert_eq!(counts(&limiter, "api_key"), [0, 0, 1]);
    let below: &[&[(&str, &str)]] = &[&[("api_key", "x"), ("path", "/")]];
    assert_eq!(decide(&limiter, below).await.code, Code::Ok);
    assert_eq!(decide(&limiter, below).await.code, Code::OverLimit);
}

#[tokio::test]
async fn what_meets_no_rule_may_be_refused_and_asks_no_store() {
    let limiter = limiter(&format!("{KEYS}unmatched: deny\n"), dead());
    let decision = decide(&limiter, &[&[("who", "a")], &[("where", "b")]]).await;
    assert_eq!(decision.code, Code::OverLimit);
    assert_eq!(codes(&decision), [Code::OverLimit, Code::OverLimit]);
    let by = decision.decided_by.unwrap();
    assert_eq!(&*by.rule.unwrap().path, "(unmatched)");
}

#[tokio::test]
async fn a_forged_tier_opens_no_bucket_of_its_own_where_the_request_brings_a_limit() {
    let text = format!(
        "{KEYS}api_keys: [{{ id: ann, tier: free, sha256: {:064x} }}]\n",
        1
    );
    let limiter = limiter(&text, memory());
    let mut passed = 0;
    for tier in ["free", "premium", "zzz"] {
        let mut query = query(&[&[("api_key", "ann")], &[("tier", tier)]]);
        query.descriptors[1].limit = Some(LimitOverride {
            requests: 1,
            period: Period::of(Unit::Hour),
        });
        let deadline = Instant::now() + Duration::from_secs(1);
        let decision = limiter.decide(&query, deadline).await.unwrap();
        passed += usize::from(decision.code == Code::Ok);
    }
    assert_eq!(passed, 1);
}

/// Limits of an hour, at half past one.
struct Counted {
    limiter: Limiter,
    clock: Arc<ManualClock>,
}

/// A descriptor of one entry: its key, its value, and its own hits if it says any.
type Asked<'a> = (&'a str, &'a str, Option<Hits>);

impl Counted {
    fn new(text: &str, modes: Modes) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
            1_800_001_800_000_000,
        )));
        let store = Store::Memory(MemoryStore::new(1_000, clock.clone()));
        let limiter = limiter_in_modes(text, store, modes);
        Self { limiter, clock }
    }

    async fn ask(&self, asked: &[Asked<'_>]) -> Decision {
        let descriptors = asked.iter().map(|(key, value, hits)| Descriptor {
            entries: vec![Entry::new(*key, *value)],
            hits: hits.unwrap_or_default(),
            says_hits: hits.is_some(),
            limit: None,
        });
        let query = Query {
            domain: "shop".to_owned(),
            descriptors: descriptors.collect(),
        };
        let deadline = Instant::now() + Duration::from_secs(1);
        self.limiter.decide(&query, deadline).await.unwrap()
    }

    /// The code, then code and remaining of each status.
    async fn told(&self, asked: &[Asked<'_>]) -> (Code, Vec<(Code, u32)>) {
        let decision = self.ask(asked).await;
        let statuses = decision.statuses.iter();
        let statuses = statuses.map(|status| (status.code, status.remaining));
        (decision.code, statuses.collect())
    }
}

fn took(hits: u64) -> Option<Hits> {
    Some(Hits::Take(hits))
}

const PARITY: &str = "
domain: shop
algorithm: fixed_window
charge: independent
descriptors:
  - { key: wide, rate_limit: { unit: hour, requests_per_unit: 20 } }
  - { key: narrow, rate_limit: { unit: hour, requests_per_unit: 2 } }
";

#[tokio::test]
async fn independent_descriptors_are_charged_whatever_becomes_of_the_others() {
    let counted = Counted::new(PARITY, Modes::default());
    let both: [Asked<'_>; 2] = [("wide", "a", None), ("narrow", "a", took(3))];
    for left in [19, 18] {
        let expected = vec![(Code::Ok, left), (Code::OverLimit, 0)];
        assert_eq!(counted.told(&both).await, (Code::OverLimit, expected));
    }
    let look = counted.ask(&[("narrow", "a", took(0))]).await;
    assert_eq!(look.code, Code::OverLimit, "overdrawn by what was refused");
    assert_eq!(look.limits[0].balance.left, 2 - 6);
    let half_an_hour = Duration::from_secs(1_800);
    assert_eq!(look.statuses[0].reset_after, Some(half_an_hour));
    assert_eq!(look.retry_after, Some(half_an_hour));
    counted.clock.advance(half_an_hour);
    let look = counted.told(&[("narrow", "a", took(0))]).await;
    assert_eq!(look, (Code::Ok, vec![(Code::Ok, 2)]));
}

#[tokio::test]
async fn one_independent_descriptor_twice_is_judged_in_order() {
    let counted = Counted::new(PARITY, Modes::default());
    let twice: [Asked<'_>; 2] = [("wide", "a", None), ("wide", "a", None)];
    let expected = vec![(Code::Ok, 19), (Code::Ok, 18)];
    assert_eq!(counted.told(&twice).await, (Code::Ok, expected));
    let twice: [Asked<'_>; 2] = [("narrow", "a", took(2)), ("narrow", "a", None)];
    let expected = vec![(Code::Ok, 0), (Code::OverLimit, 0)];
    assert_eq!(counted.told(&twice).await, (Code::OverLimit, expected));
}

#[tokio::test]
async fn limits_that_a_request_brings_count_as_the_domain_says_and_apart_by_their_period() {
    let counted = Counted::new(PARITY, Modes::default());
    for (unit, requests, left) in [(Unit::Minute, 10, 9), (Unit::Day, 42, 41)] {
        let mut query = query(&[&[("ghost", "k")]]);
        let period = Period::of(unit);
        query.descriptors[0].limit = Some(LimitOverride { requests, period });
        let deadline = Instant::now() + Duration::from_secs(1);
        let decision = counted.limiter.decide(&query, deadline).await.unwrap();
        assert_eq!(decision.statuses[0].remaining, left);
        assert_eq!(decision.limits[0].limit.limit.kind(), Kind::FixedWindow);
    }
}

#[tokio::test]
async fn what_stops_when_over_charges_only_what_is_over() {
    let text = PARITY.replace("independent", "stop_when_over");
    let counted = Counted::new(&text, Modes::default());
    let both: [Asked<'_>; 2] = [("wide", "a", None), ("narrow", "a", None)];
    for (wide, narrow) in [(19, 1), (18, 0)] {
        let expected = vec![(Code::Ok, wide), (Code::Ok, narrow)];
        assert_eq!(counted.told(&both).await, (Code::Ok, expected));
    }
    for left in [-1, -2, -3] {
        let decision = counted.ask(&both).await;
        assert_eq!(codes(&decision), [Code::Ok, Code::OverLimit]);
        assert_eq!(decision.statuses[0].remaining, 18);
        assert_eq!(decision.limits[1].balance.left, left);
    }
}

/// No Redis of the reference could count so many: it answers with an error and counts nothing.
#[tokio::test]
async fn hits_beyond_63_bits_do_not_shut_a_fixed_window() {
    let bucket = PARITY.replace("algorithm: fixed_window\n", "");
    let overdrawn = PARITY.replace("charge: independent", "overdraw: true");
    let stopping = PARITY.replace("independent", "stop_when_over");
    for (text, left) in [
        (PARITY, 19),
        (&stopping, 19),
        (&overdrawn, 19),
        // A token bucket's debt has a bound: one burst.
        (&bucket, -20),
    ] {
        let counted = Counted::new(text, Modes::default());
        counted.ask(&[("wide", "a", None)]).await;
        for hits in [u64::MAX, 1 << 63] {
            let refused = counted.told(&[("wide", "a", took(hits))]).await;
            assert_eq!(refused, (Code::OverLimit, vec![(Code::OverLimit, 0)]));
        }
        let look = counted.ask(&[("wide", "a", took(0))]).await;
        assert_eq!(look.limits[0].balance.left, left, "{text}");
        // What it can count is charged like any refusal, without end.
        counted.ask(&[("wide", "a", took(i64::MAX as u64))]).await;
        let look = counted.ask(&[("wide", "a", took(0))]).await;
        let fixed = look.limits[0].limit.limit.kind() == Kind::FixedWindow;
        assert_eq!(look.limits[0].balance.left < -20, fixed, "{text}");
    }
}

#[tokio::test]
async fn a_refusal_keeps_all_or_nothing_from_being_charged_and_not_what_is_independent() {
    let text = "
domain: shop
descriptors:
  - { key: shared, limits: [5/hour] }
  - { key: mine, charge: independent, limits: [5/hour] }
";
    let counted = Counted::new(text, Modes::default());
    let refused_by_mine: [Asked<'_>; 2] = [("shared", "a", None), ("mine", "a", took(6))];
    let expected = vec![(Code::Ok, 5), (Code::OverLimit, 0)];
    assert_eq!(
        counted.told(&refused_by_mine).await,
        (Code::OverLimit, expected)
    );
    let refused_by_shared: [Asked<'_>; 2] = [("shared", "a", took(6)), ("mine", "b", None)];
    let expected = vec![(Code::OverLimit, 0), (Code::Ok, 4)];
    assert_eq!(
        counted.told(&refused_by_shared).await,
        (Code::OverLimit, expected)
    );
}

#[tokio::test]
async fn a_cost_known_afterwards_is_owed_and_a_look_shows_it() {
    let text = "
domain: shop
overdraw: true
descriptors:
  - { key: cost, rate_limit: { unit: hour, requests_per_unit: 21 } }
  - { key: other, rate_limit: { unit: hour, requests_per_unit: 5 } }
";
    let counted = Counted::new(text, Modes::default());
    for left in [21, 11, 1] {
        let look = counted.told(&[("cost", "a", took(0))]).await;
        assert_eq!(look, (Code::Ok, vec![(Code::Ok, left)]));
        counted
            .ask(&[("cost", "a", took(10)), ("other", "a", None)])
            .await;
    }
    let look = counted
        .ask(&[("cost", "a", took(0)), ("other", "a", took(0))])
        .await;
    assert_eq!(codes(&look), [Code::OverLimit, Code::Ok]);
    assert_eq!(look.limits[0].balance.left, 21 - 30);
    assert_eq!(
        look.statuses[1].remaining, 3,
        "the refused cost took none of it"
    );
    // What the descriptor does not say itself stays free when refused; and debt ends at one burst.
    counted.ask(&[("cost", "a", None)]).await;
    counted.ask(&[("cost", "a", took(u64::MAX))]).await;
    let look = counted.ask(&[("cost", "a", took(0))]).await;
    assert_eq!(look.limits[0].balance.left, -21);
    assert_eq!(look.retry_after, Some(Duration::from_secs(3_600)));
}

#[tokio::test]
async fn a_refund_in_a_refused_request_is_not_applied() {
    for (charge, left) in [("all_or_nothing", 10), ("independent", 15)] {
        let text = PARITY.replace("independent", charge);
        let counted = Counted::new(&text, Modes::default());
        counted.ask(&[("wide", "a", took(10))]).await;
        let refund = ("wide", "a", Some(Hits::Give(5)));
        let refused = counted.told(&[refund, ("narrow", "a", took(3))]).await;
        let expected = vec![(Code::Ok, left), (Code::OverLimit, 0)];
        assert_eq!(refused, (Code::OverLimit, expected), "{charge}");
        let refund = ("wide", "a", Some(Hits::Give(100)));
        assert_eq!(
            counted.told(&[refund]).await,
            (Code::Ok, vec![(Code::Ok, 20)])
        );
    }
}

const MODES: &str = "
domain: shop
charge: independent
descriptors:
  - { key: plain, rate_limit: { unit: hour, requests_per_unit: 2 } }
  - { key: other, rate_limit: { unit: hour, requests_per_unit: 5 } }
  - { key: free, rate_limit: { unlimited: true } }
  - { key: listed, value: a }
  - { key: quota, quota_mode: true, rate_limit: { unit: hour, requests_per_unit: 2 } }
  - { key: shadow, shadow_mode: true, rate_limit: { unit: hour, requests_per_unit: 2 } }
  - { key: shadow_quota, shadow_mode: true, quota_mode: true, rate_limit: { unit: hour, requests_per_unit: 2 } }
";

const SHADOW: Modes = Modes {
    shadow: true,
    quota: false,
};
const QUOTA: Modes = Modes {
    shadow: false,
    quota: true,
};

#[tokio::test]
async fn in_shadow_mode_every_request_passes_and_statuses_tell_what_would_have_been() {
    for charge in ["independent", "all_or_nothing"] {
        let text = MODES.replace("independent", charge);
        let counted = Counted::new(&text, SHADOW);
        let asked: [Asked<'_>; 3] = [
            ("plain", "a", took(3)),
            ("other", "a", None),
            ("no", "", None),
        ];
        let decision = counted.ask(&asked).await;
        assert_eq!((decision.code, decision.shadowed), (Code::Ok, true));
        assert_eq!(codes(&decision), [Code::OverLimit, Code::Ok, Code::Ok]);
        assert_eq!(
            decision.statuses[1].remaining, 4,
            "it passed, so it is charged"
        );
        assert_eq!(counts(&counted.limiter, "plain"), [0, 1, 0]);
        let decision = counted.ask(&[("other", "a", None)]).await;
        assert_eq!((decision.code, decision.shadowed), (Code::Ok, false));
    }
}

#[tokio::test]
async fn quota_rules_refuse_only_when_all_of_them_are_over() {
    let over: Asked<'_> = ("plain", "a", took(3));
    let cases: [(Modes, &[Asked<'_>], Code); 13] = [
        (QUOTA, &[over, ("other", "a", took(6))], Code::OverLimit),
        (QUOTA, &[over, ("other", "a", took(1))], Code::Ok),
        (QUOTA, &[over, ("free", "a", None)], Code::OverLimit),
        (QUOTA, &[over, ("nothing", "a", None)], Code::Ok),
        (QUOTA, &[over, ("listed", "a", None)], Code::Ok),
        (QUOTA, &[over, ("shadow", "a", took(3))], Code::Ok),
        (
            Modes::default(),
            &[over, ("nothing", "a", None)],
            Code::OverLimit,
        ),
        (
            Modes::default(),
            &[("quota", "a", took(3)), ("quota", "b", None)],
            Code::Ok,
        ),
        (
            Modes::default(),
            &[("quota", "a", took(3)), ("quota", "b", took(3))],
            Code::OverLimit,
        ),
        (
            Modes::default(),
            &[("quota", "a", took(3)), ("other", "a", None)],
            Code::OverLimit,
        ),
        (
            Modes::default(),
            &[("quota", "a", took(3)), ("shadow", "a", None)],
            Code::OverLimit,
        ),
        (
            Modes::default(),
            &[("quota", "a", took(3)), ("shadow_quota", "a", took(3))],
            Code::Ok,
        ),
        (
            Modes::default(),
            &[over, ("quota", "a", None)],
            Code::OverLimit,
        ),
    ];
    for (modes, asked, expected) in cases {
        let decision = Counted::new(MODES, modes).ask(asked).await;
        assert_eq!(decision.code, expected, "{modes:?} {asked:?}");
        let first_is_over = decision.statuses[0].code;
        assert_eq!(first_is_over, Code::OverLimit, "{modes:?} {asked:?}");
    }
}

const SOFT: &str = "
domain: shop
descriptors:
  - key: user
    limits: [3/day calendar, { limit: 1/hour, mode: soft, name: hourly }]
  - key: team
    mode: soft
    limits: [1/day calendar, { limit: 3/hour, mode: enforce }]
  - { key: guest, mode: soft, rate_limit: { unit: hour, requests_per_unit: 1 } }
  - { key: trial, mode: shadow, limits: [1/hour] }
  - { key: quota, quota_mode: true, limits: [1/hour] }
";

fn overage(limiter: &Limiter, path: &str) -> u64 {
    let plans = limiter.plans().load();
    let domain = plans.domain("shop").unwrap();
    let rule = domain.rules().find(|rule| &*rule.path == path).unwrap();
    rule.counters.overage.get()
}

#[tokio::test]
async fn a_soft_limit_lets_pass_and_the_others_decide() {
    let limiter = limiter(SOFT, memory());
    for (left, over) in [(2, false), (1, true), (0, true)] {
        let decision = decide(&limiter, &[&[("user", "a")]]).await;
        assert_eq!(decision.code, Code::Ok);
        assert_eq!(
            decision.statuses[0].remaining, left,
            "the status shows the limit that refuses"
        );
        assert_eq!(decision.limits[1].is_soft_over(), over);
        let by = decision.decided_by.unwrap().limit.unwrap();
        assert_eq!(by.limit.kind(), Kind::Calendar);
    }
    let refused = decide(&limiter, &[&[("user", "a")]]).await;
    assert_eq!(refused.code, Code::OverLimit);
    let day = refused.limits[0].balance.retry_after;
    assert_eq!(refused.retry_after, day, "nobody waits for a soft limit");
    assert_eq!(
        overage(&limiter, "user"),
        2,
        "what was refused went beyond nothing"
    );
    assert_eq!(counts(&limiter, "user"), [3, 1, 0]);
}

/// Two requests bring all that a number holds, twice that would begin anew.
#[tokio::test]
async fn hits_without_end_count_alike_in_every_counter_and_none_begins_anew() {
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(0)));
    let meter = Arc::new(Meter::new(100, clock.clone()));
    let statistics = Arc::new(Statistics::new(0.8));
    let limiter = limiter(SOFT, Store::Memory(MemoryStore::new(100, clock.clone())));
    let limiter = limiter
        .with_meter(Some(meter.clone()))
        .with_statistics(Some(statistics.clone()));
    let counted = Counted { limiter, clock };
    for hits in [u64::MAX, u64::MAX, 1] {
        let decision = counted.ask(&[("guest", "a", took(hits))]).await;
        assert_eq!(decision.code, Code::Ok);
    }
    let expected = 2 * MOST_HITS;
    assert_eq!(overage(&counted.limiter, "guest"), expected);
    let mut metered = Counts::default();
    meter.drain(|_, _, counts| metered.add(counts));
    // The one hit fits.
    assert_eq!(metered.admitted as u64, expected + 1);
    assert_eq!(metered.overage as u64, expected);
    let all = statistics.all();
    let rule = all.iter().find(|(key, _)| key.text() == "shop.guest");
    let total = rule.expect("its statistics").1.get(Counter::TotalHits);
    assert_eq!(total, expected + 1);
}

#[tokio::test]
async fn a_rule_says_the_mode_of_limits_that_say_none() {
    let limiter = limiter(SOFT, memory());
    for expected in [Code::Ok, Code::Ok, Code::Ok, Code::OverLimit] {
        assert_eq!(decide(&limiter, &[&[("team", "a")]]).await.code, expected);
    }
    assert_eq!(overage(&limiter, "team"), 2);
    for _ in 0..3 {
        let decision = decide(&limiter, &[&[("guest", "a")], &[("trial", "a")]]).await;
        assert_eq!(codes(&decision), [Code::Ok, Code::Ok]);
        assert!(decision.decided_by.is_none(), "{:?}", decision.decided_by);
    }
    assert_eq!(overage(&limiter, "guest"), 2);
    assert_eq!(counts(&limiter, "guest"), [3, 0, 0]);
    assert_eq!(overage(&limiter, "trial"), 0);
    assert_eq!(counts(&limiter, "trial"), [1, 0, 2]);
}

#[tokio::test]
async fn beside_a_soft_rule_a_quota_rule_still_refuses() {
    let limiter = limiter(SOFT, memory());
    let both: &[&[(&str, &str)]] = &[&[("quota", "a")], &[("guest", "a")]];
    assert_eq!(decide(&limiter, both).await.code, Code::Ok);
    let refused = decide(&limiter, both).await;
    assert_eq!(refused.code, Code::OverLimit);
    assert_eq!(codes(&refused), [Code::OverLimit, Code::Ok]);
}

#[tokio::test]
async fn a_quota_warns_when_four_fifths_of_it_are_used() {
    let text = "
domain: shop
response: { warn_at: 50% }
descriptors:
  - key: user
    limits: [10/day calendar, { limit: 4/hour burst 8, warn_at: 100% }, { limit: 10/week calendar, warn_at: never }]
";
    let limiter = limiter(text, memory());
    for used in 1..=8_u64 {
        let decision = decide(&limiter, &[&[("user", "a")]]).await;
        let warns: Vec<_> = decision.limits.iter().map(|state| state.warns()).collect();
        assert_eq!(
            warns,
            [
                (used >= 5).then_some(used),
                (used >= 8).then_some(used),
                None
            ]
        );
    }
}

const LISTED: &str = r#"
domain: shop
tiers: { free: { limits: ["1/hour"] } }
api_keys:
  - { id: good, tier: free, sha256: "0000000000000000000000000000000000000000000000000000000000000001" }
  - { id: bad, tier: free, sha256: "0000000000000000000000000000000000000000000000000000000000000002" }
deny: { cidr: [10.1.0.0/16, "2001:db8::/32"], api_key: [bad] }
allow: { cidr: [10.0.0.0/8], api_key: [good] }
descriptors:
  - { key: api_key, limits_from: tier }
  - { key: secret, limits_from: tier, api_key_is: secret }
  - { key: ip, limits: ["1/hour"] }
  - { key: ip, cidr: 192.0.2.0/24, limits: ["1/hour"] }
  - { key: remote_address, limits: ["1/hour"] }
  - { key: path, limits: ["1/hour"] }
"#;

#[tokio::test]
async fn lists_decide_before_limits_and_deny_wins() {
    let limiter = limiter(LISTED, memory());
    let denied: [&[&[(&str, &str)]]; 5] = [
        &[&[("ip", "10.1.2.3")]],
        &[&[("path", "/"), ("remote_address", "::ffff:10.1.2.3")]],
        &[&[("path", "/")], &[("ip", "2001:db8::1")]],
        &[&[("api_key", "bad")], &[("ip", "10.2.3.4")]],
        &[&[("secret", "bad")]],
    ];
    for asked in denied {
        let decision = decide(&limiter, asked).await;
        assert_eq!(decision.code, Code::OverLimit, "{asked:?}");
        let by = decision.decided_by.unwrap().rule.unwrap();
        assert_eq!(&*by.path, "(deny list)");
        assert!(decision.limits.is_empty() && decision.retry_after.is_none());
    }
    assert_eq!(counts(&limiter, "(deny list)"), [0, 7, 0]);
    let allowed: [&[&[(&str, &str)]]; 3] = [
        &[&[("ip", "10.2.3.4")]],
        &[
            &[("path", "/"), ("remote_address", "10.2.3.4")],
            &[("path", "/")],
        ],
        &[&[("path", "/")], &[("api_key", "good")]],
    ];
    for asked in allowed {
        for _ in 0..3 {
            let decision = decide(&limiter, asked).await;
            assert_eq!(decision.code, Code::Ok, "{asked:?}");
            assert!(decision.limits.is_empty());
        }
    }
    let limited: [&[&[(&str, &str)]]; 3] = [
        &[&[("ip", "192.0.2.1")]],
        // No entry of a rule with a network, and no address.
        &[&[("path", "10.1.2.3")]],
        // The id is public, and opens nothing here.
        &[&[("secret", "good")]],
    ];
    for asked in limited {
        decide(&limiter, asked).await;
        assert_eq!(
            decide(&limiter, asked).await.code,
            Code::OverLimit,
            "{asked:?}"
        );
    }
}

#[tokio::test]
async fn a_listed_client_brings_no_limit_of_its_own() {
    let limiter = limiter(LISTED, memory());
    let mut query = query(&[&[("ip", "10.2.3.4")]]);
    query.descriptors[0].limit = Some(LimitOverride {
        requests: 1,
        period: Period::of(Unit::Hour),
    });
    for _ in 0..2 {
        let deadline = Instant::now() + Duration::from_secs(1);
        let decision = limiter.decide(&query, deadline).await.unwrap();
        assert_eq!(decision.code, Code::Ok);
    }
}
