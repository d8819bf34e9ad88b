//! The built binary, told to count as envoyproxy/ratelimit does.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::{Tollgate, ask, http, plans, request, tollgate_command};
use envoy_types::pb::google::protobuf::UInt64Value;
use tollgate::proto::envoy::service::ratelimit::v3::{RateLimitRequest, rate_limit_response::Code};

const REFERENCE: &str = "
domain: shop
descriptors:
  - { key: month, rate_limit: { unit: month, requests_per_unit: 5 } }
  - { key: week, rate_limit: { unit: week, requests_per_unit: 3 } }
  - { key: year, rate_limit: { unit: year, requests_per_unit: 2 } }
";

const SECONDS: [u64; 3] = [30 * 86_400, 7 * 86_400, 365 * 86_400];

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

fn saying(mut request: RateLimitRequest, hits: &[u64]) -> RateLimitRequest {
    for (descriptor, value) in request.descriptors.iter_mut().zip(hits) {
        descriptor.hits_addend = Some(UInt64Value { value: *value });
    }
    request
}

#[tokio::test]
async fn windows_end_where_the_reference_ends_them_and_each_descriptor_is_charged_on_its_own() {
    let (_folder, config) = plans(REFERENCE);
    let flags = ["--algorithm", "fixed_window", "--charge", "independent"];
    let tollgate = Tollgate::start(&config, &flags);
    let mut client = tollgate.client().await;
    let all: &[&[(&str, &str)]] = &[&[("month", "a")], &[("week", "a")], &[("year", "a")]];
    for (hits, left) in [([1, 1, 3], [4, 2, 0]), ([1, 1, 1], [3, 1, 0])] {
        let (before, asked) = (now(), saying(request("shop", all), &hits));
        let response = ask(&mut client, asked).await.unwrap();
        assert_eq!(response.overall_code(), Code::OverLimit);
        let codes: Vec<_> = response
            .statuses
            .iter()
            .map(|status| status.code())
            .collect();
        assert_eq!(codes, [Code::Ok, Code::Ok, Code::OverLimit]);
        for (index, status) in response.statuses.iter().enumerate() {
            assert_eq!(status.limit_remaining, left[index]);
            let reset = status.duration_until_reset.as_ref().unwrap();
            let ends = |now: u64| SECONDS[index] - now % SECONDS[index];
            let expected = [ends(before), ends(now())];
            assert!(
                expected.contains(&(reset.seconds as u64)),
                "{reset:?} {expected:?}"
            );
            assert_eq!(reset.nanos, 0);
        }
    }
    let question = r#"{"domain":"shop","descriptors":[{"entries":[{"key":"year","value":"a"}]}]}"#;
    let (status, body) = http(&tollgate.http, "POST", "/explain", question);
    assert_eq!(status, 200, "{body}");
    for words in ["\"2/year fixed\"", "charged even if the request is refused"] {
        assert!(body.contains(words), "{body}");
    }
}

#[tokio::test]
async fn only_hits_that_the_descriptor_says_are_overdrawn() {
    let (_folder, config) = plans(&format!("{REFERENCE}overdraw: true\n"));
    let tollgate = Tollgate::start(&config, &[]);
    let mut client = tollgate.client().await;
    let mut by_request = request("shop", &[&[("month", "a")]]);
    by_request.hits_addend = 6;
    let by_descriptor = saying(request("shop", &[&[("month", "a")]]), &[6]);
    let look = saying(request("shop", &[&[("month", "a")]]), &[0]);
    for (asked, expected) in [
        (by_request, Code::OverLimit),
        (look.clone(), Code::Ok),
        (by_descriptor, Code::OverLimit),
        (look, Code::OverLimit),
    ] {
        let response = ask(&mut client, asked).await.unwrap();
        assert_eq!(response.overall_code(), expected);
    }
}

#[test]
fn commands_that_read_plans_count_as_the_service_would() {
    let (_folder, config) = plans(REFERENCE);
    let explain = |variable: Option<&str>| {
        let mut command = tollgate_command();
        command.args(["explain", "--descriptor", "month=a", "--config"]);
        command.arg(&config);
        if let Some(value) = variable {
            command.env("TOLLGATE_ALGORITHM", value);
        }
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    assert!(explain(None).contains("5/month: fits"));
    assert!(explain(Some("fixed_window")).contains("5/month fixed: fits"));
    let wrong = explain(Some("leaky"));
    assert!(
        wrong.contains("leaky") && wrong.contains("token_bucket"),
        "{wrong}"
    );
}

#[test]
fn check_has_no_note_on_what_settings_count_as_the_reference_does() {
    let (_folder, config) = plans(REFERENCE);
    let check = |flags: &[&str]| {
        let mut command = tollgate_command();
        let output = command
            .arg("check")
            .args(flags)
            .arg(&config)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(check(&[]).contains("algorithm: fixed_window"));
    let windows = check(&["--algorithm", "fixed_window"]);
    assert!(!windows.contains("algorithm: fixed_window"), "{windows}");
}
