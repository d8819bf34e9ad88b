//! Takes a tree as envoyproxy/ratelimit does: of a field that stands twice in a map the last one counts, and the fields that
//! `<<` merges count as if they stood in its place, so that they go over those before it.
//!
//! Source: gopkg.in/yaml.v2 2.4.0, decode.go, not strict. It reads into what is there already, so that the fields of a second
//! `rate_limit` or `metadata` go over those of the first, one by one.

use std::{
    collections::{HashMap, hash_map::Entry},
    mem,
    rc::Rc,
};

use super::{
    fields::Reader,
    mistake::{Path, Place, first_at},
    tree::{Node, Value},
};

/// Fields whose second value goes over the first field by field.
const FIELD_BY_FIELD: [&str; 2] = ["rate_limit", "metadata"];

impl Reader<'_> {
    /// Leaves in each map every name once, and warns of those that stood there twice. What is in `metadata` is left as it is:
    /// names there follow rules of their own.
    pub fn settle(&mut self, node: &mut Node, path: &Path<'_>) {
        match &mut node.value {
            Value::Scalar { .. } => {}
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.settle(item, &path.item(index));
                }
            }
            Value::Map(pairs) => {
                let mut fields = Settled::default();
                for (key, mut value) in mem::take(pairs) {
                    let (name, place) = (name(&key), key.place);
                    let name = name.as_deref().unwrap_or_default();
                    let path = path.field(name);
                    if name != "metadata" {
                        self.settle(&mut value, &path);
                    }
                    if name == "<<" && merges(&value) {
                        fields.merge(value);
                        continue;
                    }
                    let Some(first) = fields.put(key, value, place) else {
                        continue;
                    };
                    let how = match FIELD_BY_FIELD.contains(&name) {
                        true => "its fields go over those of the first",
                        false => "the last one counts",
                    };
                    let message = format!("stands here twice{}: {how}", first_at(Some(first)));
                    self.warning(place, &path, message);
                }
                *pairs = fields.pairs;
            }
        }
    }
}

/// Whether `<<` can merge it.
fn merges(value: &Node) -> bool {
    let is_map = |node: &Node| matches!(node.value, Value::Map(_));
    is_map(value) || matches!(&value.value, Value::List(maps) if maps.iter().all(is_map))
}

fn name(key: &Node) -> Option<Rc<str>> {
    match &key.value {
        Value::Scalar { text, .. } => Some(Rc::clone(text)),
        Value::List(_) | Value::Map(_) => None,
    }
}

/// The fields of a map so far, each once.
#[derive(Default)]
struct Settled {
    pairs: Vec<(Node, Node)>,
    /// By name, which of `pairs` it is, and where it was written unless it was merged.
    known: HashMap<Rc<str>, (usize, Option<Place>)>,
}

impl Settled {
    /// Puts a field over one of that name; answers where that one was written, if both were.
    fn put(&mut self, key: Node, value: Node, written: Option<Place>) -> Option<Place> {
        let known = name(&key).map(|name| self.known.entry(name));
        let (index, first) = match known {
            Some(Entry::Occupied(known)) => known.into_mut(),
            new => {
                if let Some(Entry::Vacant(new)) = new {
                    new.insert((self.pairs.len(), written));
                }
                self.pairs.push((key, value));
                return None;
            }
        };
        let first = mem::replace(first, written.or(*first));
        let (before, under) = &mut self.pairs[*index];
        let field_by_field = name(before).is_some_and(|name| FIELD_BY_FIELD.contains(&&*name));
        *before = key;
        match (&mut under.value, value) {
            (
                Value::Map(under),
                Node {
                    value: Value::Map(over),
                    ..
                },
            ) if field_by_field => {
                let mut both = Self::default();
                for (key, value) in mem::take(under).into_iter().chain(over) {
                    both.put(key, value, None);
                }
                *under = both.pairs;
            }
            (_, value) => *under = value,
        }
        written.and(first)
    }

    /// Puts the fields of a map over those of their names; of several maps, those of the first over those of the others.
    fn merge(&mut self, maps: Node) {
        match maps.value {
            Value::Map(pairs) => pairs.into_iter().for_each(|(key, value)| {
                self.put(key, value, None);
            }),
            Value::List(maps) => maps.into_iter().rev().for_each(|map| self.merge(map)),
            Value::Scalar { .. } => {}
        }
    }
}
