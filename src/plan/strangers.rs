//! Fields that do not belong where they stand: mistakes, but for those that envoyproxy/ratelimit ignores.

use super::{
    fields::Reader,
    mistake::{Path, did_you_mean},
    shapes::{REFERENCE, SHAPES, Shape},
    tree::{Node, Value},
    words::not_a_map,
};

impl Reader<'_> {
    /// Notes a field of the map at `path` that `shape` does not have: its name, that name's place, and its value.
    pub fn stranger(
        &mut self,
        (name, key, value): (&str, &Node, &Node),
        path: &Path<'_>,
        shape: &Shape,
    ) {
        let path = path.field(name);
        let what = shape.what;
        if shape.reference && REFERENCE.contains(&name) {
            let message = format!("has no meaning in {what} and is ignored");
            self.warning(key.place, &path, message);
            return self.ignored(name, value, &path);
        }
        let hint = did_you_mean(name, shape.fields.iter().copied());
        let hint = match (hint.is_empty(), home_of(name)) {
            (true, Some(home)) => format!(", it belongs to {home}"),
            _ => hint,
        };
        let message = format!("unknown field{hint} (config error, unknown key '{name}')");
        self.error(key.place, &path, message);
    }

    /// Notes what is wrong in an ignored field. Source: envoyproxy/ratelimit looks at the names in all fields but `metadata`.
    fn ignored(&mut self, name: &str, value: &Node, path: &Path<'_>) {
        match &value.value {
            Value::List(items) if name != "metadata" => {
                for (index, item) in items.iter().enumerate() {
                    let path = path.item(index);
                    match item.value {
                        Value::Map(_) => self.ignored(name, item, &path),
                        _ => self.error(item.place, &path, not_a_map(item)),
                    }
                }
            }
            Value::Map(_) if name != "metadata" => {
                for (name, key, value) in self.names(value, path, "a map").unwrap_or_default() {
                    let path = path.field(name);
                    if REFERENCE.contains(&name) {
                        self.ignored(name, value, &path);
                    } else {
                        let message = format!("config error, unknown key '{name}'");
                        self.error(key.place, &path, message);
                    }
                }
            }
            _ => {}
        }
    }
}

fn home_of(name: &str) -> Option<&'static str> {
    let home = SHAPES.iter().find(|shape| shape.fields.contains(&name));
    home.map(|shape| shape.what)
}
