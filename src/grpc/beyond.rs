//! What answers to requests that pass say of limits that are nearly used up, and of soft ones that are exceeded.

use envoy_types::pb::{
    envoy::config::core::v3::HeaderValue,
    google::protobuf::{ListValue, Value, value::Kind},
};

use super::convert::{header, text, value};
use crate::{
    decision::{Decision, LimitState},
    plan::Mode,
};

/// `"api_key:5/day calendar";used=4;q=5` for each limit that warns, and the names of the soft limits that the request is beyond.
pub fn headers(decision: &Decision) -> impl Iterator<Item = HeaderValue> {
    let shown = &decision.response;
    let warnings = decision.limits.iter().filter_map(warning);
    let beyond = soft_over(decision).map(|state| format!("\"{}\"", state.limit.label()));
    let warning = list(&shown.warning_header, warnings);
    warning
        .into_iter()
        .chain(list(&shown.overage_header, beyond))
}

fn warning(state: &LimitState) -> Option<String> {
    let used = state.warns()?;
    let told = state.mode != Mode::Shadow && !state.is_soft_over();
    let (label, count) = (state.limit.label(), state.limit.limit.capacity());
    told.then(|| format!("\"{label}\";used={used};q={count}"))
}

/// A header of these items, unless it has no name or there are none.
fn list(name: &str, items: impl Iterator<Item = String>) -> Option<HeaderValue> {
    if name.is_empty() {
        return None;
    }
    let joined = items.reduce(|all, item| all + ", " + &item)?;
    Some(header(name, joined))
}

/// The names of the soft limits that a request which passes is beyond, if there are any.
pub fn metadata(decision: &Decision) -> Option<Value> {
    let names = soft_over(decision).map(|state| text(state.limit.label()));
    let values: Vec<Value> = names.collect();
    (!values.is_empty()).then(|| value(Kind::ListValue(ListValue { values })))
}

fn soft_over(decision: &Decision) -> impl Iterator<Item = &LimitState> {
    decision.limits.iter().filter(|state| state.is_soft_over())
}
