//! Headers and metadata as envoyproxy/ratelimit writes them, for those who move over from it.
//!
//! Source: its README and its answers, as `tests/conformance` has them.

use envoy_types::pb::{
    envoy::config::core::v3::HeaderValue,
    google::protobuf::{ListValue, Struct, Value, value::Kind},
};

use super::convert::{header, metadata_of_passed, text, value, whole_seconds};
use crate::{
    decision::{Code, Decision, Status},
    plan::LimitHeaders,
    proto::envoy::{
        extensions::common::ratelimit::v3::{
            RateLimitDescriptor, rate_limit_descriptor::RateLimitOverride,
        },
        service::ratelimit::v3::{RateLimitRequest, rate_limit_response::rate_limit::Unit},
    },
};

/// Limit, remaining and reset of one descriptor; none where no rule with a limit matched.
pub fn headers(names: &LimitHeaders, decision: &Decision) -> Option<[HeaderValue; 3]> {
    let status = shown(&decision.statuses)?;
    let (limit, reset) = (status.limit.as_ref()?, status.reset_after?);
    Some([
        header(&names.limit, limit.count.to_string()),
        header(&names.remaining, status.remaining.to_string()),
        header(&names.reset, whole_seconds(reset).to_string()),
    ])
}

/// The last descriptor that refuses by itself; else the first of those with the least remaining.
fn shown(statuses: &[Status]) -> Option<&Status> {
    let limited = || statuses.iter().filter(|status| status.limit.is_some());
    limited()
        .rfind(|status| status.code == Code::OverLimit && !status.quota)
        .or_else(|| limited().min_by_key(|status| status.remaining))
}

/// What was asked, and the `metadata` of the rules that let it pass.
pub fn metadata(asked: &RateLimitRequest, decision: &Decision) -> Struct {
    let descriptors = asked.descriptors.iter().map(descriptor).collect();
    let mut fields = vec![
        ("domain", text(&asked.domain)),
        ("descriptors", list(descriptors)),
    ];
    if asked.hits_addend > 0 {
        fields.push(("hitsAddend", number(f64::from(asked.hits_addend))));
    }
    fields.extend(metadata_of_passed(decision).map(|passed| ("metadata", passed)));
    structure(fields)
}

fn descriptor(asked: &RateLimitDescriptor) -> Value {
    let entries = asked
        .entries
        .iter()
        .map(|entry| text(&format!("{}={}", entry.key, entry.value)));
    let mut fields = vec![("entries", list(entries.collect()))];
    fields.extend(
        asked
            .limit
            .as_ref()
            .map(|limit| ("limit", override_text(limit))),
    );
    let hits = asked.hits_addend.as_ref();
    fields.extend(hits.map(|hits| ("hitsAddend", number(hits.value as f64))));
    value(Kind::StructValue(structure(fields)))
}

/// In protobuf's text form.
fn override_text(limit: &RateLimitOverride) -> Value {
    let unit = match Unit::try_from(limit.unit) {
        Ok(unit) => unit.as_str_name().to_owned(),
        Err(_) => limit.unit.to_string(),
    };
    text(&format!(
        "requests_per_unit:{} unit:{unit}",
        limit.requests_per_unit
    ))
}

fn structure(fields: Vec<(&str, Value)>) -> Struct {
    let named = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Struct {
        fields: named.collect(),
    }
}

fn list(values: Vec<Value>) -> Value {
    value(Kind::ListValue(ListValue { values }))
}

fn number(number: f64) -> Value {
    value(Kind::NumberValue(number))
}
