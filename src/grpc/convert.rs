//! From and to the protobuf messages of the rate-limit service.

use std::{fmt::Write, time::Duration};

use envoy_types::pb::{
    envoy::{config::core::v3::HeaderValue, r#type::v3::RateLimitUnit},
    google::protobuf::{self, ListValue, Struct, Value, value::Kind as ValueKind},
};
use serde_json::{Map as JsonMap, Value as Json};

use super::{beyond, reference};
use crate::{
    decision::{Code, Decision, LimitState, Status},
    descriptor::{Descriptor, Entry, Hits, LimitOverride, Query, QueryError},
    limit::{Kind, Period, Unit},
    plan::MetadataStyle,
    proto::envoy::{
        extensions::common::ratelimit::v3::{
            RateLimitDescriptor, rate_limit_descriptor::RateLimitOverride,
        },
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{
                Code as PbCode, DescriptorStatus, RateLimit, rate_limit::Unit as PbUnit,
            },
        },
    },
};

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RequestError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(
        "descriptors[{index}].limit.unit: {unit} is not a unit: send SECOND, MINUTE, HOUR, DAY, WEEK, MONTH or YEAR"
    )]
    OverrideUnit { index: usize, unit: i32 },
    #[error("descriptors[{index}].limit.unit_multiplier must be above zero")]
    OverrideMultiplier { index: usize },
}

/// Reads a request.
///
/// # Errors
/// [`RequestError`], for everything that a caller must mend.
pub fn query_from_proto(request: RateLimitRequest) -> Result<Query, RequestError> {
    let hits = u64::from(request.hits_addend.max(1));
    let descriptors = request
        .descriptors
        .into_iter()
        .enumerate()
        .map(|(index, descriptor)| descriptor_from_proto(index, descriptor, hits))
        .collect::<Result<_, _>>()?;
    let query = Query {
        domain: request.domain,
        descriptors,
    };
    query.check()?;
    Ok(query)
}

// Source: rls.proto: a descriptor's hits_addend overrides the request's, where 0 means 1; a descriptor's 0 only looks.
fn descriptor_from_proto(
    index: usize,
    descriptor: RateLimitDescriptor,
    request_hits: u64,
) -> Result<Descriptor, RequestError> {
    let hits = descriptor
        .hits_addend
        .map_or(request_hits, |hits| hits.value);
    Ok(Descriptor {
        says_hits: descriptor.hits_addend.is_some(),
        entries: descriptor
            .entries
            .into_iter()
            .map(|entry| Entry {
                key: entry.key,
                value: entry.value,
            })
            .collect(),
        hits: if descriptor.is_negative_hits {
            Hits::Give(hits)
        } else {
            Hits::Take(hits)
        },
        limit: descriptor
            .limit
            .map(|limit| override_from_proto(index, &limit))
            .transpose()?,
    })
}

fn override_from_proto(
    index: usize,
    limit: &RateLimitOverride,
) -> Result<LimitOverride, RequestError> {
    let unit = match (RateLimitUnit::try_from(limit.unit), limit.unit) {
        (Ok(RateLimitUnit::Second), _) => Unit::Second,
        (Ok(RateLimitUnit::Minute), _) => Unit::Minute,
        (Ok(RateLimitUnit::Hour), _) => Unit::Hour,
        (Ok(RateLimitUnit::Day), _) => Unit::Day,
        (Ok(RateLimitUnit::Month), _) => Unit::Month,
        (Ok(RateLimitUnit::Year), _) => Unit::Year,
        // Source: envoyproxy/ratelimit takes a raw 7 as a week; the enum of Envoy 1.40 has no name for it.
        (_, 7) => Unit::Week,
        (_, unit) => return Err(RequestError::OverrideUnit { index, unit }),
    };
    let multiplier = limit
        .unit_multiplier
        .as_ref()
        .map_or(1, |multiplier| multiplier.value);
    if multiplier == 0 {
        return Err(RequestError::OverrideMultiplier { index });
    }
    Ok(LimitOverride {
        requests: limit.requests_per_unit,
        period: Period { unit, multiplier },
    })
}

/// Writes the answer to a request of `domain`; `asked` is the request, where answers repeat it.
pub fn response_to_proto(
    domain: &str,
    asked: Option<&RateLimitRequest>,
    decision: &Decision,
) -> RateLimitResponse {
    let over = decision.code == Code::OverLimit;
    let response = &decision.response;
    RateLimitResponse {
        overall_code: code_to_proto(decision.code).into(),
        statuses: decision.statuses.iter().map(status_to_proto).collect(),
        response_headers_to_add: headers(decision),
        request_headers_to_add: Vec::new(),
        raw_body: if over {
            body(decision).as_bytes().to_vec()
        } else {
            Vec::new()
        },
        dynamic_metadata: match response.metadata {
            MetadataStyle::Rule => metadata(domain, decision),
            MetadataStyle::Request => asked.map(|asked| reference::metadata(asked, decision)),
            MetadataStyle::None => None,
        },
    }
}

/// The body of a refusal.
fn body(decision: &Decision) -> &str {
    let limit = decision
        .decided_by
        .as_ref()
        .and_then(|by| by.limit.as_ref());
    match limit.map(|limit| limit.limit.kind()) {
        Some(Kind::Calendar) => &decision.response.quota_body,
        _ => &decision.response.body,
    }
}

fn code_to_proto(code: Code) -> PbCode {
    match code {
        Code::Ok => PbCode::Ok,
        Code::OverLimit => PbCode::OverLimit,
    }
}

fn status_to_proto(status: &Status) -> DescriptorStatus {
    DescriptorStatus {
        code: code_to_proto(status.code).into(),
        current_limit: status.limit.as_ref().map(|limit| RateLimit {
            requests_per_unit: limit.count,
            unit: unit_to_proto(limit.period.unit).into(),
            name: limit.name.as_deref().unwrap_or_default().to_owned(),
            unit_multiplier: (limit.period.multiplier > 1).then_some(protobuf::UInt32Value {
                value: limit.period.multiplier,
            }),
        }),
        limit_remaining: status.remaining,
        duration_until_reset: status.reset_after.map(|reset| protobuf::Duration {
            seconds: whole_seconds(reset) as i64,
            nanos: 0,
        }),
    }
}

fn unit_to_proto(unit: Unit) -> PbUnit {
    match unit {
        Unit::Second => PbUnit::Second,
        Unit::Minute => PbUnit::Minute,
        Unit::Hour => PbUnit::Hour,
        Unit::Day => PbUnit::Day,
        Unit::Week => PbUnit::Week,
        Unit::Month => PbUnit::Month,
        Unit::Year => PbUnit::Year,
    }
}

/// Rounded up, at least 1: what a client that waits so long is sure to get.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    seconds.max(1)
}

fn headers(decision: &Decision) -> Vec<HeaderValue> {
    let shown = &decision.response;
    let mut headers = Vec::new();
    if decision.code == Code::OverLimit {
        if let Some(wait) = decision.retry_after.filter(|_| shown.retry_after) {
            headers.push(header("retry-after", whole_seconds(wait).to_string()));
        }
        if !body(decision).is_empty() {
            headers.push(header("content-type", shown.content_type.to_string()));
        }
    } else {
        headers.extend(beyond::headers(decision));
    }
    if shown.ratelimit && !decision.limits.is_empty() {
        headers.push(header("ratelimit", ratelimit(&decision.limits)));
        headers.push(header(
            "ratelimit-policy",
            ratelimit_policy(&decision.limits),
        ));
    }
    if shown.x_ratelimit {
        headers.extend(x_ratelimit(decision));
    }
    if decision.degraded && shown.degraded {
        headers.push(header("x-tollgate-degraded", "true".to_owned()));
    }
    if let Some(names) = &shown.limit_headers {
        headers.extend(reference::headers(names, decision).into_iter().flatten());
    }
    headers
}

pub(super) fn header(key: &str, value: String) -> HeaderValue {
    HeaderValue {
        key: key.to_owned(),
        value,
        raw_value: Vec::new(),
    }
}

/// `"ip:50/minute sliding";r=49;t=60, …`
// Source: draft-ietf-httpapi-ratelimit-headers: r is what remains, t the seconds until it changes for the better.
fn ratelimit(limits: &[LimitState]) -> String {
    let mut text = String::with_capacity(48 * limits.len());
    for LimitState { limit, balance, .. } in limits {
        let comma = if text.is_empty() { "" } else { ", " };
        let remaining = if balance.fits { balance.remaining() } else { 0 };
        let seconds = whole_seconds(balance.reset_after);
        let written = write!(
            text,
            "{comma}\"{}\";r={remaining};t={seconds}",
            limit.label()
        );
        written.expect("a String takes all");
    }
    text
}

fn ratelimit_policy(limits: &[LimitState]) -> String {
    let mut text = String::with_capacity(48 * limits.len());
    for LimitState { limit, .. } in limits {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(limit.policy());
    }
    text
}

fn x_ratelimit(decision: &Decision) -> Vec<HeaderValue> {
    let by = decision
        .decided_by
        .as_ref()
        .and_then(|by| by.limit.as_ref());
    let state = by.and_then(|by| {
        decision
            .limits
            .iter()
            .find(|state| std::sync::Arc::ptr_eq(&state.limit, by))
    });
    let Some(LimitState { limit, balance, .. }) = state else {
        return Vec::new();
    };
    let remaining = if balance.fits { balance.remaining() } else { 0 };
    vec![
        header("x-ratelimit-limit", limit.limit.count().to_string()),
        header("x-ratelimit-remaining", remaining.to_string()),
        header(
            "x-ratelimit-reset",
            whole_seconds(balance.reset_after).to_string(),
        ),
    ]
}

/// Names the rule that decided, for access logs, and carries the `metadata` of rules that let pass. A refusal names its domain
/// and limit too; most answers are none, and Envoy copies each field several times.
fn metadata(domain: &str, decision: &Decision) -> Option<Struct> {
    let passed = metadata_of_passed(decision);
    let overage = match decision.code {
        Code::Ok => beyond::metadata(decision),
        Code::OverLimit => None,
    };
    if decision.decided_by.is_none() && passed.is_none() && overage.is_none() {
        return None;
    }
    let mut fields = Vec::new();
    if let Some(by) = &decision.decided_by {
        fields.extend(by.rule.as_ref().map(|rule| ("rule", text(&rule.path))));
        if decision.code == Code::OverLimit {
            fields.push(("domain", text(domain)));
            fields.extend(
                by.limit
                    .as_ref()
                    .map(|limit| ("limit", text(limit.label()))),
            );
        }
    }
    if decision.degraded {
        fields.push(("degraded", value(ValueKind::BoolValue(true))));
    }
    if decision.not_replicated {
        fields.push(("not_replicated", value(ValueKind::BoolValue(true))));
    }
    if decision.is_penalised() {
        fields.push(("penalised", value(ValueKind::BoolValue(true))));
    }
    if decision.delay_us > 0 {
        let delayed_ms = f64::from(decision.delay_us) / 1_000.0;
        fields.push(("delayed_ms", value(ValueKind::NumberValue(delayed_ms))));
    }
    fields.extend(overage.map(|names| ("overage", names)));
    fields.extend(passed.map(|passed| ("metadata", passed)));
    Some(Struct {
        fields: fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    })
}

// Source: envoyproxy/ratelimit: the first rule wins, and maps in maps are merged.
pub(super) fn metadata_of_passed(decision: &Decision) -> Option<Value> {
    let mut all = decision
        .passed_with_metadata
        .iter()
        .filter_map(|rule| rule.metadata.as_deref());
    let mut merged = all.next()?.clone();
    all.for_each(|more| merge(&mut merged, more));
    Some(json_to_proto(&merged.into()))
}

fn merge(into: &mut JsonMap<String, Json>, from: &JsonMap<String, Json>) {
    for (name, value) in from {
        match (into.get_mut(name), value) {
            (Some(Json::Object(into)), Json::Object(from)) => merge(into, from),
            (Some(_), _) => {}
            (None, value) => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

fn json_to_proto(json: &Json) -> Value {
    value(match json {
        Json::Null => ValueKind::NullValue(0),
        Json::Bool(truth) => ValueKind::BoolValue(*truth),
        Json::Number(number) => ValueKind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => ValueKind::StringValue(text.clone()),
        Json::Array(items) => ValueKind::ListValue(ListValue {
            values: items.iter().map(json_to_proto).collect(),
        }),
        Json::Object(fields) => ValueKind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), json_to_proto(value)))
                .collect(),
        }),
    })
}

pub(super) fn text(text: &str) -> Value {
    value(ValueKind::StringValue(text.to_owned()))
}

pub(super) fn value(kind: ValueKind) -> Value {
    Value { kind: Some(kind) }
}
