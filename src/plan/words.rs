//! What envoyproxy/ratelimit says of values of the wrong type. Our messages end with it, for whoever knows its words or greps logs
//! for them.
//!
//! Source: its src/config/config_impl.go, and gopkg.in/yaml.v2 2.4.0, decode.go. It says all but the first in one go: what is here for
//! one value stands there in a list.

use super::{
    fields::Reader,
    mistake::Path,
    scalar::{integer, is_number, truth},
    tree::{Node, Value},
};

impl Reader<'_> {
    /// Its words about `node`, which is none of what belongs at `path`, in parentheses; nothing where it has no such field.
    pub fn words(&self, node: &Node, path: &Path<'_>) -> String {
        match go_type(path).filter(|_| self.reference) {
            Some(wanted) => format!(" ({})", unreadable(node, wanted)),
            None => String::new(),
        }
    }
}

/// About a list that holds `item` among its maps.
pub fn not_a_map(item: &Node) -> String {
    let shown = match &item.value {
        _ if item.is_null() => "<nil>",
        Value::Scalar { text, .. } => text,
        Value::List(_) | Value::Map(_) => item.kind(),
    };
    format!("config error, yaml file contains list of type other than map: {shown}")
}

/// About a map's name that is no text.
pub fn not_text(key: &Node) -> String {
    let shown = match &key.value {
        _ if key.is_null() => "<nil>",
        Value::Scalar { text, .. } => match truth(text) {
            Some(true) => "true",
            Some(false) => "false",
            None => text,
        },
        Value::List(_) | Value::Map(_) => {
            let kind = key.kind();
            return format!("error loading config file: yaml: invalid map key: {kind}");
        }
    };
    format!("config error, key is not of type string: {shown}")
}

fn unreadable(node: &Node, wanted: &str) -> String {
    let (tag, text) = match &node.value {
        Value::List(items) => {
            let other = |item: &&Node| !matches!(item.value, Value::Map(_));
            // It looks into every list but those of `metadata` and the top.
            match items.iter().find(other) {
                Some(item) if !wanted.starts_with("map") => return not_a_map(item),
                _ => ("seq", ""),
            }
        }
        Value::Map(_) => ("map", ""),
        Value::Scalar { text, plain: true } if truth(text).is_some() => ("bool", &**text),
        Value::Scalar { text, plain: true } if integer(text).is_some() => ("int", &**text),
        Value::Scalar { text, plain: true } if is_number(text) => {
            return "error checking config".to_owned();
        }
        Value::Scalar { text, .. } => ("str", &**text),
    };
    let line = node.place.map_or(0, |place| place.line);
    let shown = match (tag, text.char_indices().nth(7)) {
        ("seq" | "map", _) => String::new(),
        (_, Some((seven, _))) if text.len() > 10 => format!(" `{}...`", &text[..seven]),
        _ => format!(" `{text}`"),
    };
    format!(
        "error loading config file: yaml: unmarshal errors: line {line}: cannot unmarshal !!{tag}{shown} into {wanted}"
    )
}

/// The type that it reads the field at `path` into.
fn go_type(path: &Path<'_>) -> Option<&'static str> {
    let Path::Field(_, name) = path else {
        return matches!(path, Path::Top).then_some("map[interface {}]interface {}");
    };
    Some(match *name {
        "domain" | "key" | "value" | "unit" | "name" => "string",
        "requests_per_unit" => "uint32",
        "unlimited" | "shadow_mode" | "quota_mode" | "detailed_metric" | "value_to_metric"
        | "share_threshold" => "bool",
        "descriptors" => "[]config.YamlDescriptor",
        "rate_limit" => "config.YamlRateLimit",
        "replaces" => "[]config.yamlReplaces",
        "metadata" => "map[string]interface {}",
        _ => return None,
    })
}
