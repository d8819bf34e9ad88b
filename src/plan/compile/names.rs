//! What a rule is called: for people, in buckets' names, and in the statistics of envoyproxy/ratelimit.

use super::Place;
use crate::{
    plan::{
        file::RuleFile,
        mistake::Path,
        subject::{Variable, escaped},
    },
    statistics::KeyLevel,
};

/// A rule's element, and its paths for people and for buckets.
pub fn names(file: &RuleFile, place: &Place<'_>) -> (String, String, String) {
    let (key, safe) = (&file.key, escaped(&file.key));
    let (element, safe) = match (&file.cidr, &file.value) {
        (Some(net), _) => (format!("{key}={net}"), format!("{safe}@{net}")),
        (None, Some(value)) => (
            format!("{key}={value}"),
            format!("{safe}={}", escaped(value)),
        ),
        (None, None) => (key.clone(), safe),
    };
    match place.path {
        Path::Top => (element.clone(), element, safe),
        _ => {
            let shown = format!("{}/{element}", place.shown);
            (element, shown, format!("{}/{safe}", place.escaped))
        }
    }
}

/// A rule's level as envoyproxy/ratelimit names it in its statistics.
pub fn key_level(file: &RuleFile) -> KeyLevel {
    let text = match &file.cidr {
        Some(net) => format!("{}_{net}", file.key),
        None => file.joined(),
    };
    KeyLevel {
        text: text.into(),
        open: file.value.is_none() || is_pattern(file),
        value_to_metric: file.value_to_metric == Some(true),
        share_threshold: file.share_threshold == Some(true),
    }
}

pub fn is_pattern(file: &RuleFile) -> bool {
    file.joined().contains('*') && file.cidr.is_none()
}

pub fn variable(file: &RuleFile) -> Variable {
    let pattern = is_pattern(file);
    match (&file.value, file.cidr) {
        _ if pattern && file.share_threshold == Some(true) => Variable::Nothing,
        _ if pattern && file.key.contains('*') => Variable::Joined(0),
        _ if pattern => Variable::Joined(file.key.len() as u32 + 1),
        (Some(_), None) => Variable::Nothing,
        _ => Variable::Value,
    }
}
