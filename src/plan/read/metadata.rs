//! Reads `metadata`: free content, which goes into answers as JSON.

use std::{borrow::Cow, collections::HashMap};

use serde_json::{Map, Value as Json};

use crate::plan::{
    fields::{Fields, Reader},
    mistake::{Path, first_at},
    scalar,
    tree::{Node, Value},
    words::not_text,
};

impl Reader<'_> {
    pub(super) fn metadata(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Option<Map<String, Json>> {
        let node = fields.get("metadata")?;
        let path = path.field("metadata");
        if let Value::Map(pairs) = &node.value {
            return Some(self.object(pairs, &path, as_written));
        }
        let (found, words) = (node.kind(), self.words(node, &path));
        let message = format!("error parsing metadata: expected a map, found {found}{words}");
        self.error(node.place, &path, message);
        None
    }

    /// YAML's plain scalars as the values they stand for.
    fn json(&mut self, node: &Node, path: &Path<'_>) -> Json {
        match &node.value {
            _ if node.is_null() => Json::Null,
            Value::Scalar { text, plain: true } => scalar::json(text),
            Value::Scalar { text, .. } => (**text).into(),
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| self.json(item, &path.item(index)))
                .collect(),
            Value::Map(pairs) => self.object(pairs, path, as_meant).into(),
        }
    }

    fn object(
        &mut self,
        pairs: &[(Node, Node)],
        path: &Path<'_>,
        name: fn(&Node) -> Option<Cow<'_, str>>,
    ) -> Map<String, Json> {
        let mut object = Map::new();
        let mut places = HashMap::with_capacity(pairs.len());
        let mut merges = Vec::new();
        for (key, value) in pairs {
            let Some(name) = name(key) else {
                self.error(key.place, path, not_text(key));
                continue;
            };
            let path = path.field(&name);
            if name == "<<" {
                merges.push(value);
                continue;
            }
            if let Some(first) = places.insert(name.clone(), key.place) {
                let message = format!("stands here twice{}", first_at(first));
                match self.last_wins {
                    true => self.warning(key.place, &path, message + ": the last one counts"),
                    false => self.error(key.place, &path, message),
                }
            }
            object.insert(name.to_string(), self.json(value, &path));
        }
        for node in merges {
            self.merge_objects(node, path, &mut object);
        }
        object
    }

    fn merge_objects(&mut self, node: &Node, path: &Path<'_>, object: &mut Map<String, Json>) {
        match &node.value {
            Value::Map(pairs) => {
                for (name, value) in self.object(pairs, path, as_meant) {
                    object.entry(name).or_insert(value);
                }
            }
            Value::List(maps) => maps
                .iter()
                .for_each(|map| self.merge_objects(map, path, object)),
            Value::Scalar { .. } => self.not_to_merge(node, path),
        }
    }
}

/// A name of the outermost map. Source: envoyproxy/ratelimit reads that one into a map of texts, where nothing is empty text.
fn as_written(key: &Node) -> Option<Cow<'_, str>> {
    match &key.value {
        _ if key.is_null() => Some(Cow::Borrowed("")),
        Value::Scalar { text, .. } => Some(Cow::Borrowed(text)),
        Value::List(_) | Value::Map(_) => None,
    }
}

/// A name of an inner map. Source: envoyproxy/ratelimit writes out what it stands for as Go does.
fn as_meant(key: &Node) -> Option<Cow<'_, str>> {
    match &key.value {
        _ if key.is_null() => Some(Cow::Borrowed("<nil>")),
        Value::Scalar { text, plain: true } => Some(match scalar::json(text) {
            Json::Number(number) if number.is_f64() => {
                number.as_f64().unwrap_or_default().to_string().into()
            }
            Json::String(text) => Cow::Owned(text),
            other => other.to_string().into(),
        }),
        Value::Scalar { text, .. } => Some(Cow::Borrowed(text)),
        Value::List(_) | Value::Map(_) => None,
    }
}
