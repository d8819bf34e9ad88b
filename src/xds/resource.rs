//! A resource as the tree that the text of a plan file would be parsed to.

use std::{path::PathBuf, sync::Arc};

use envoy_types::pb::google::protobuf::{self, Any, value::Kind};
use prost::Message as _;

use super::TYPE_URL;
use crate::{
    plan::{
        Content, Mistake, Notes, Source,
        tree::{Node, Value},
    },
    proto::ratelimit::config::ratelimit::v3::{
        RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitUnit,
    },
};

/// Deepest rules, as in a file.
const DEEPEST: usize = 49;

/// The resources of an update of that type. Notes whatever is none of ours.
pub fn sources(type_url: &str, resources: Vec<Any>, notes: &mut Notes) -> Vec<Source> {
    let mut sources = Vec::with_capacity(resources.len());
    if type_url != TYPE_URL {
        notes.error(mistake("update".to_owned(), foreign(type_url)));
    }
    for (index, resource) in resources.into_iter().enumerate() {
        match source(&resource, index) {
            Ok(source) => sources.push(source),
            Err((name, message)) => notes.error(mistake(name, message)),
        }
    }
    sources
}

fn mistake(name: String, message: String) -> Mistake {
    Mistake {
        file: Arc::from(name),
        place: None,
        path: String::new(),
        message,
    }
}

fn foreign(type_url: &str) -> String {
    format!("is of type `{type_url}`; only `{TYPE_URL}` was asked for")
}

/// A resource, or its name and what is wrong with it as a whole.
fn source(resource: &Any, index: usize) -> Result<Source, (String, String)> {
    let unnamed = || format!("resource {}", index + 1);
    if resource.type_url != TYPE_URL {
        return Err((unnamed(), foreign(&resource.type_url)));
    }
    let config = RateLimitConfig::decode(&*resource.value)
        .map_err(|error| (unnamed(), format!("is no RateLimitConfig: {error}")))?;
    let name = match config.name.as_str() {
        "" => unnamed(),
        name => format!("resource {name}"),
    };
    if depth(&config.descriptors) > DEEPEST {
        let message = format!("has descriptors nested deeper than {DEEPEST} levels");
        return Err((name, message));
    }
    Ok(Source {
        path: PathBuf::from(name),
        content: Content::Resource {
            tree: tree(config),
            encoded: resource.value.clone(),
        },
    })
}

fn depth(descriptors: &[RateLimitDescriptor]) -> usize {
    let below = descriptors.iter().map(|rule| 1 + depth(&rule.descriptors));
    below.max().unwrap_or(0)
}

fn tree(config: RateLimitConfig) -> Node {
    map([
        ("domain", Some(text(config.domain))),
        ("descriptors", rules(config.descriptors)),
    ])
}

fn rules(descriptors: Vec<RateLimitDescriptor>) -> Option<Node> {
    let rules: Vec<_> = descriptors.into_iter().map(rule).collect();
    (!rules.is_empty()).then(|| node(Value::List(rules)))
}

/// Protobuf cannot tell false and empty from absent, and neither does a file mean different things by them.
fn rule(rule: RateLimitDescriptor) -> Node {
    map([
        ("key", Some(text(rule.key))),
        ("value", said(rule.value)),
        ("rate_limit", rule.rate_limit.map(rate_limit)),
        ("descriptors", rules(rule.descriptors)),
        ("shadow_mode", flag(rule.shadow_mode)),
        ("quota_mode", flag(rule.quota_mode)),
        ("detailed_metric", flag(rule.detailed_metric)),
        ("metadata", rule.metadata.map(structure)),
    ])
}

fn rate_limit(policy: RateLimitPolicy) -> Node {
    let unit = match RateLimitUnit::try_from(policy.unit) {
        Ok(RateLimitUnit::Unknown) => None,
        Ok(unit) => Some(text(unit.as_str_name().to_lowercase())),
        Err(_) => Some(text(policy.unit.to_string())),
    };
    let replaces: Vec<_> = policy
        .replaces
        .into_iter()
        .map(|replaced| map([("name", Some(text(replaced.name)))]))
        .collect();
    map([
        ("unit", unit),
        (
            "requests_per_unit",
            Some(plain(policy.requests_per_unit.to_string())),
        ),
        ("unlimited", flag(policy.unlimited)),
        ("name", said(policy.name)),
        (
            "replaces",
            (!replaces.is_empty()).then(|| node(Value::List(replaces))),
        ),
    ])
}

fn structure(fields: protobuf::Struct) -> Node {
    let mut fields: Vec<_> = fields.fields.into_iter().collect();
    // A hash map's order is another each time, and metadata should not seem changed.
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    let fields = fields
        .into_iter()
        .map(|(name, value)| (text(name), free(value)))
        .collect();
    node(Value::Map(fields))
}

fn free(value: protobuf::Value) -> Node {
    match value.kind {
        None | Some(Kind::NullValue(_)) => plain("null".to_owned()),
        Some(Kind::BoolValue(truth)) => plain(truth.to_string()),
        Some(Kind::NumberValue(number)) => plain(format!("{number:?}")),
        Some(Kind::StringValue(string)) => text(string),
        Some(Kind::StructValue(fields)) => structure(fields),
        Some(Kind::ListValue(list)) => {
            node(Value::List(list.values.into_iter().map(free).collect()))
        }
    }
}

fn map<const N: usize>(fields: [(&str, Option<Node>); N]) -> Node {
    let fields = fields
        .into_iter()
        .filter_map(|(name, value)| Some((text(name.to_owned()), value?)))
        .collect();
    node(Value::Map(fields))
}

fn flag(set: bool) -> Option<Node> {
    set.then(|| plain("true".to_owned()))
}

fn said(string: String) -> Option<Node> {
    (!string.is_empty()).then(|| text(string))
}

/// Text, whatever it looks like.
fn text(string: String) -> Node {
    scalar(string, false)
}

/// A number, a truth value or nothing.
fn plain(string: String) -> Node {
    scalar(string, true)
}

fn scalar(string: String, plain: bool) -> Node {
    node(Value::Scalar {
        text: string.into(),
        plain,
    })
}

fn node(value: Value) -> Node {
    Node { place: None, value }
}
