//! Limits that delay: who waits, how long, in which order, and who is refused all the same.

use std::time::{Duration, Instant};

use envoy_types::pb::google::protobuf::value::Kind;
use futures::executor::block_on;
use proptest::{collection::vec, prelude::*};
use tollgate::{
    clock::{Clock, Timestamp},
    decision::{Code, Decision},
    explain::explain,
    limiter::Pacing,
    proto::envoy::service::ratelimit::v3::rate_limit_response::Code as PbCode,
};

use crate::{
    common::{Tollgate, ask, plans, request, wait_until},
    shop::{Shop, query, question},
};

/// Codes, and delays in milliseconds.
fn waits(decisions: &[Decision]) -> Vec<(bool, u64)> {
    let waits = decisions.iter();
    waits
        .map(|decision| {
            (
                decision.code == Code::Ok,
                decision.delay().as_millis() as u64,
            )
        })
        .collect()
}

#[test]
fn what_is_beyond_the_burst_waits_in_line_and_the_end_of_the_line_is_refused() {
    let shop = Shop::of("{ limit: 10/second burst 2, delay: up to 300ms }");
    let decisions: Vec<Decision> = (0..7).map(|_| shop.ask(1)).collect();
    let expected = [
        (true, 0),
        (true, 0),
        (true, 100),
        (true, 200),
        (true, 300),
        (false, 0),
        (false, 0),
    ];
    assert_eq!(waits(&decisions), expected);
    // In 100 ms it could wait 300 ms.
    assert_eq!(decisions[6].retry_after, Some(Duration::from_millis(100)));
    assert_eq!(decisions[4].statuses[0].remaining, 0);
    shop.clock.advance(Duration::from_millis(100));
    assert_eq!(waits(&[shop.ask(1)]), [(true, 300)]);
    shop.clock.advance(Duration::from_millis(600));
    assert_eq!(
        waits(&[shop.ask(1), shop.ask(1), shop.ask(1)]),
        [(true, 0), (true, 0), (true, 100)]
    );
}

#[test]
fn more_hits_than_the_burst_never_pass_however_long_they_could_wait() {
    let shop = Shop::of("{ limit: 10/second burst 2, delay: 60s }");
    let decision = shop.ask(3);
    assert_eq!(
        (decision.code, decision.retry_after),
        (Code::OverLimit, None)
    );
}

#[test]
fn a_wait_that_does_not_fit_the_callers_time_is_refused() {
    let shop = Shop::of("{ limit: 1/second, delay: up to 10s }");
    let five = Duration::from_secs(5);
    let decisions: Vec<Decision> = (0..6).map(|_| shop.ask_for(five, 1)).collect();
    let expected = [
        (true, 0),
        (true, 1_000),
        (true, 2_000),
        (true, 3_000),
        (true, 4_000),
        (false, 0),
    ];
    assert_eq!(waits(&decisions), expected);
    assert_eq!(
        waits(&[shop.ask(1)]),
        [(true, 5_000)],
        "another has more time"
    );
}

#[test]
fn the_longest_of_a_requests_waits_holds_and_a_refusal_reserves_nothing() {
    let shop = Shop::of(
        "{ limit: 10/second burst 1, delay: 1s }, { limit: 60/minute burst 2, delay: 2s }, 4/hour sliding",
    );
    let decisions: Vec<Decision> = (0..7).map(|_| shop.ask(1)).collect();
    let expected = [
        (true, 0),
        (true, 100),
        (true, 1_000),
        (true, 2_000),
        // The third limit refuses.
        (false, 0),
        (false, 0),
        (false, 0),
    ];
    assert_eq!(waits(&decisions), expected);
    let left = |decision: &Decision| decision.limits[1].balance.left;
    assert_eq!((left(&decisions[3]), left(&decisions[6])), (-2, -2));
}

#[test]
fn in_shadow_mode_nobody_waits() {
    let text = "domain: shop\ndescriptors: [{ key: ip, shadow_mode: true, limits: [{ limit: 1/second, delay: 1s }] }]";
    let shop = Shop::by(text, Pacing::default());
    for _ in 0..3 {
        assert_eq!(waits(&[shop.ask(1)]), [(true, 0)]);
    }
}

#[test]
fn explain_says_how_long_it_would_wait_and_reserves_nothing() {
    let shop = Shop::of("{ limit: 2/second burst 1, delay: up to 1s }");
    shop.ask(1);
    for _ in 0..2 {
        let deadline = Instant::now() + Duration::from_millis(1);
        let told = block_on(explain(&shop.limiter, &question(), deadline)).expect("an answer");
        assert_eq!((told.code, told.delay_seconds), ("OK", Some(0.5)));
        assert!(told.why.starts_with("passes after 500ms"), "{}", told.why);
        let limit = &told.descriptors[0].limits[0];
        assert_eq!(limit.limit, "2/second burst 1 delay up to 1s");
        assert_eq!((limit.fits, limit.delay_seconds), (true, Some(0.5)));
    }
}

#[tokio::test]
async fn a_full_house_refuses_and_who_goes_away_has_spent_the_tokens() {
    let text = "domain: shop\ndescriptors: [{ key: ip, limits: [{ limit: 2/minute burst 1, delay: 60s }] }]";
    let shop = Shop::by(text, Pacing::of_at_most(1));
    let deadline = Instant::now() + Duration::from_secs(600);
    let first = shop
        .limiter
        .decide(&query(1), deadline)
        .await
        .expect("an answer");
    assert_eq!(waits(&[first]), [(true, 0)]);
    let limiter = shop.limiter.clone();
    let waiting = tokio::spawn(async move { limiter.decide(&query(1), deadline).await });
    wait_until("a request to wait", async || shop.pacing.waiting() == 1).await;
    let third = shop
        .limiter
        .decide(&query(1), deadline)
        .await
        .expect("an answer");
    assert_eq!((third.code, shop.pacing.full()), (Code::OverLimit, 1));
    // Its turn comes when two tokens have refilled, as without a house the answer waits for nothing.
    assert_eq!(third.retry_after, Some(Duration::from_secs(60)));
    waiting.abort();
    wait_until("the place to be free", async || shop.pacing.waiting() == 0).await;
    assert_eq!(waits(&[shop.preview(1)]), [(true, 60_000)]);
}

const SHAPES: [(&str, u64, u64, u64, u64); 4] = [
    // limit, burst, count, period in µs, delay in µs
    (
        "{ limit: 10/second burst 5, delay: 500ms }",
        5,
        10,
        1_000_000,
        500_000,
    ),
    (
        "{ limit: 7/second burst 1, delay: 2s }",
        1,
        7,
        1_000_000,
        2_000_000,
    ),
    (
        "{ limit: 1000/second burst 3, delay: 20ms }",
        3,
        1_000,
        1_000_000,
        20_000,
    ),
    (
        "{ limit: 100/minute burst 4, delay: 60s }",
        4,
        100,
        60_000_000,
        60_000_000,
    ),
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// What is let go counts when it is let go: in any interval at most the burst and what refills in it.
    #[test]
    fn releases_are_in_order_and_never_over(
        shape in 0..SHAPES.len(),
        steps in vec((0_u64..4, 1_u64..4), 1..60),
    ) {
        let (limit, burst, count, period, delay) = SHAPES[shape];
        let shop = Shop::of(limit);
        let mut released: Vec<(u64, u64)> = Vec::new();
        for (pause, hits) in steps {
            shop.clock.advance(Duration::from_micros(pause * period / count / 3));
            let now = shop.clock.now();
            let decision = shop.ask(hits);
            if decision.code == Code::Ok {
                prop_assert!(u64::from(decision.delay_us) <= delay);
                let release = now.as_micros() + u64::from(decision.delay_us);
                let last = released.last().map_or(0, |(at, _)| *at);
                prop_assert!(release >= last, "who came later goes first");
                released.push((release, hits));
            } else if let Some(retry) = decision.retry_after {
                let passes_at = |at: Timestamp| {
                    shop.clock.set(at);
                    shop.preview(hits).code == Code::Ok
                };
                let passes = now.after(retry);
                prop_assert!(!passes_at(Timestamp::from_micros(passes.as_micros() - 1)), "it passes sooner than {:?}", retry);
                prop_assert!(passes_at(passes), "it passes later than {:?}", retry);
                shop.clock.set(now);
            } else {
                prop_assert!(hits > burst);
            }
        }
        for (first, (begin, _)) in released.iter().enumerate() {
            let mut sum = 0;
            for (end, hits) in &released[first..] {
                sum += hits;
                // Who waits is let go at a whole microsecond.
                let refilled = (end - begin + 1) * count;
                prop_assert!(sum * period <= burst * period + refilled, "{:?}", released);
            }
        }
    }
}

const SERVED: &str = "
domain: shop
descriptors:
  - { key: fast, limits: [{ limit: 10/second burst 1, delay: up to 5s }] }
  - { key: slow, limits: [{ limit: 2/minute burst 1, delay: 40s }] }
";

#[tokio::test]
async fn a_server_answers_when_the_tokens_are_there() {
    let (_folder, config) = plans(SERVED);
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let asked = || request("shop", &[&[("fast", "a")]]);
    let began = Instant::now();
    let mut delayed_ms = 0.0;
    for _ in 0..6 {
        let answer = ask(&mut client, asked()).await.unwrap();
        assert_eq!(answer.overall_code(), PbCode::Ok);
        let metadata = answer.dynamic_metadata.expect("the rule is named");
        let told = metadata
            .fields
            .get("delayed_ms")
            .and_then(|value| value.kind.clone());
        if let Some(kind) = told {
            let Kind::NumberValue(waited) = kind else {
                panic!("{kind:?}");
            };
            delayed_ms += waited;
        }
    }
    // Five had to wait for a token each, as nothing was there but the first.
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert!(delayed_ms > 0.0);
    assert!(tollgate.metric("tollgate_delay_seconds_count") >= 1.0);
    assert_eq!(tollgate.metric("tollgate_delay_full_total"), 0.0);

    let slow = || request("shop", &[&[("slow", "a")]]);
    assert_eq!(
        ask(&mut client, slow()).await.unwrap().overall_code(),
        PbCode::Ok
    );
    // The next token comes in 30 s, and this caller hangs up in 5.
    let mut impatient = tonic::Request::new(slow());
    impatient.set_timeout(Duration::from_secs(5));
    let answer = client
        .should_rate_limit(impatient)
        .await
        .expect("an answer in time");
    assert_eq!(answer.into_inner().overall_code(), PbCode::OverLimit);
}
