//! Limits that penalise: when a penalty begins, how long it runs, what it counts and what it does not.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use tollgate::{
    decision::{Code, Decision},
    explain::explain,
    limiter::Pacing,
};

use crate::{
    common::{Tollgate, ask, plans, request},
    shop::{Shop, question},
};

const LIMIT: &str =
    "{ limit: 1/second, penalty: { after: 3, within: 10s, for: 60s, longest: 200s } }";

fn refused(decision: &Decision) -> (bool, Option<u64>) {
    assert_eq!(decision.code, Code::OverLimit);
    let wait = decision.retry_after.map(|wait| wait.as_secs());
    (decision.is_penalised(), wait)
}

/// Asks until a penalty begins, and says how long it runs.
fn penalise(shop: &Shop) -> Option<u64> {
    assert_eq!(shop.ask(1).code, Code::Ok);
    assert_eq!(refused(&shop.ask(1)), (false, Some(1)));
    assert_eq!(refused(&shop.ask(1)), (false, Some(1)));
    let (penalised, wait) = refused(&shop.ask(1));
    assert!(penalised, "the third refusal says what it has begun");
    wait
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn who_runs_into_a_limit_again_and_again_is_refused_for_a_while_though_tokens_are_there() {
    let shop = Shop::of(LIMIT);
    assert_eq!(penalise(&shop), Some(60));
    shop.clock.advance(seconds(60) - Duration::from_micros(1));
    let decision = shop.ask(1);
    assert_eq!(refused(&decision), (true, Some(0)));
    assert_eq!(decision.retry_after, Some(Duration::from_micros(1)));
    assert_eq!(decision.statuses[0].remaining, 0);
    shop.clock.advance(Duration::from_micros(1));
    assert_eq!(shop.ask(1).code, Code::Ok, "exactly then");
    assert_eq!((shop.pacing.penalties(), shop.pacing.penalised()), (1, 1));
}

#[test]
fn each_further_penalty_is_twice_as_long_up_to_the_longest_until_it_is_forgotten() {
    let shop = Shop::of(LIMIT);
    for length in [60, 120, 200, 200] {
        assert_eq!(penalise(&shop), Some(length));
        shop.clock.advance(seconds(length));
    }
    // As long after the end of the last one as the longest runs.
    shop.clock.advance(seconds(200));
    assert_eq!(penalise(&shop), Some(60));
}

#[test]
fn refusals_count_together_only_within_their_time_and_none_while_a_penalty_runs() {
    let shop = Shop::of(LIMIT);
    for _ in 0..5 {
        assert_eq!(shop.ask(1).code, Code::Ok);
        assert!(!refused(&shop.ask(1)).0);
        assert!(!refused(&shop.ask(1)).0);
        shop.clock.advance(seconds(10));
    }
    assert_eq!(penalise(&shop), Some(60));
    for _ in 0..30 {
        assert!(refused(&shop.ask(1)).0);
        shop.clock.advance(seconds(1));
    }
    shop.clock.advance(seconds(30));
    assert_eq!(shop.ask(1).code, Code::Ok);
    assert_eq!(shop.pacing.penalties(), 1);
}

#[test]
fn a_refund_ends_no_penalty() {
    let shop = Shop::of(LIMIT);
    penalise(&shop);
    shop.give(1);
    assert_eq!(refused(&shop.ask(1)), (true, Some(60)));
}

#[test]
fn only_refusals_by_the_limit_itself_count() {
    let shop = Shop::of("{ limit: 100/second, penalty: { for: 1h, after: 1 } }, 2/minute");
    for _ in 0..2 {
        assert_eq!(shop.ask(1).code, Code::Ok);
    }
    for _ in 0..5 {
        assert!(!refused(&shop.ask(1)).0);
    }
    assert_eq!(shop.pacing.penalties(), 0);
}

#[test]
fn the_short_form_is_for_ten_refusals_within_a_minute() {
    let shop = Shop::of("{ limit: 1/hour sliding, penalty: 90s }");
    assert_eq!(shop.ask(1).code, Code::Ok);
    for _ in 0..9 {
        assert!(!refused(&shop.ask(1)).0);
    }
    // What does not fit for longer than the penalty runs says so.
    let decision = shop.ask(1);
    assert!(decision.is_penalised() && decision.retry_after > Some(seconds(3_000)));
}

#[test]
fn in_shadow_mode_a_penalty_refuses_nobody() {
    let text =
        format!("domain: shop\ndescriptors: [{{ key: ip, shadow_mode: true, limits: [{LIMIT}] }}]");
    let shop = Shop::by(&text, Pacing::default());
    for _ in 0..9 {
        assert_eq!(shop.ask(1).code, Code::Ok);
    }
    assert_eq!((shop.pacing.penalties(), shop.pacing.penalised()), (1, 0));
}

#[test]
fn explain_tells_of_a_penalty_and_counts_nothing() {
    let shop = Shop::of(LIMIT);
    assert_eq!(shop.ask(1).code, Code::Ok);
    let told = || {
        let deadline = Instant::now() + seconds(1);
        block_on(explain(&shop.limiter, &question(), deadline)).expect("an answer")
    };
    for _ in 0..5 {
        assert!(
            told()
                .why
                .starts_with("refused by 1/second penalty 1m after 3 in 10s of ip"),
            "{}",
            told().why
        );
    }
    for _ in 0..3 {
        shop.ask(1);
    }
    let told = told();
    assert_eq!(
        told.why,
        "refused by the penalty of 1/second of ip, which it ran into too often"
    );
    assert_eq!(told.retry_after_seconds, Some(60.0));
    assert!(told.descriptors[0].limits[0].penalised);
}

#[tokio::test]
async fn a_server_counts_penalties_and_says_how_long_they_run() {
    let text = format!("domain: shop\ndescriptors: [{{ key: ip, limits: [{LIMIT}] }}]");
    let (_folder, config) = plans(&text.replace("1/second", "1/hour"));
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    for number in 0..5 {
        let asked = request("shop", &[&[("ip", "a")]]);
        let answer = ask(&mut client, asked).await.unwrap();
        let fields = answer.dynamic_metadata.expect("the rule is named").fields;
        assert_eq!(fields.contains_key("penalised"), number >= 3);
    }
    assert_eq!(tollgate.metric("tollgate_penalties_total"), 1.0);
    assert_eq!(tollgate.metric("tollgate_penalised_total"), 1.0);
}
