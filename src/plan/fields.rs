//! Reads maps and scalars of a tree strictly: every unknown, doubled or misplaced field is noted, and reading goes on.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{
    mistake::{Mistake, Notes, Path, Place, did_you_mean, first_at},
    scalar::{is_number, truth},
    shapes::Shape,
    tree::{Node, Value},
    words::not_text,
};

/// What is noted while one file is read.
#[derive(Debug)]
pub struct Reader<'n> {
    /// The file's name.
    pub file: Arc<str>,
    /// Where mistakes go.
    pub notes: &'n mut Notes,
    /// Whether the reference reads such files too, so that mistakes carry its words.
    pub reference: bool,
    /// Whether a field may stand twice in a map, as [`LoadOptions::last_wins`](super::LoadOptions::last_wins) says.
    pub last_wins: bool,
}

/// The fields of a map by name, each once.
#[derive(Debug)]
pub struct Fields<'t> {
    /// Where the map begins.
    pub place: Option<Place>,
    all: Vec<(&'t str, &'t Node)>,
}

impl<'t> Fields<'t> {
    /// The field of that name, unless it is absent or empty.
    pub fn get(&self, name: &str) -> Option<&'t Node> {
        self.all
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, node)| *node)
            .filter(|node| !node.is_null())
    }
}

impl Reader<'_> {
    /// Notes a mistake.
    pub fn error(&mut self, place: Option<Place>, path: &Path<'_>, message: impl Into<String>) {
        let mistake = self.mistake(place, path, message.into());
        self.notes.error(mistake);
    }

    /// Notes something tolerated.
    pub fn warning(&mut self, place: Option<Place>, path: &Path<'_>, message: impl Into<String>) {
        let mistake = self.mistake(place, path, message.into());
        self.notes.warning(mistake);
    }

    fn mistake(&self, place: Option<Place>, path: &Path<'_>, message: String) -> Mistake {
        Mistake {
            file: Arc::clone(&self.file),
            place,
            path: path.to_string(),
            message,
        }
    }

    /// Reads a map of `shape`, noting fields that do not belong to it.
    pub fn fields<'t>(
        &mut self,
        node: &'t Node,
        path: &Path<'_>,
        shape: &Shape,
    ) -> Option<Fields<'t>> {
        let all = self.names(node, path, shape.what)?;
        let mut kept = Vec::with_capacity(all.len());
        for (name, key, value) in all {
            if shape.fields.contains(&name) {
                kept.push((name, value));
            } else {
                self.stranger((name, key, value), path, shape);
            }
        }
        Some(Fields {
            place: node.place,
            all: kept,
        })
    }

    /// Reads a map of whatever names, each once. Merge keys (`<<`) are followed, since YAML libraries of the reference do.
    pub fn names<'t>(
        &mut self,
        node: &'t Node,
        path: &Path<'_>,
        what: &str,
    ) -> Option<Vec<(&'t str, &'t Node, &'t Node)>> {
        let Value::Map(pairs) = &node.value else {
            let (found, words) = (node.kind(), self.words(node, path));
            let message = format!("expected {what}, a map, found {found}{words}");
            self.error(node.place, path, message);
            return None;
        };
        let mut all: Vec<(&'t str, &'t Node, &'t Node)> = Vec::with_capacity(pairs.len());
        // Most maps have a handful of fields, where a look at each is cheaper than hashing.
        let mut hashed: Option<HashMap<&str, Option<Place>>> =
            (pairs.len() > 16).then(HashMap::new);
        let mut merges = Vec::new();
        for (key, value) in pairs {
            let Some(name) = self.name(key, path) else {
                continue;
            };
            if name == "<<" {
                merges.push(value);
                continue;
            }
            let first = match &mut hashed {
                Some(hashed) => hashed.insert(name, key.place),
                None => all
                    .iter()
                    .find(|(earlier, ..)| *earlier == name)
                    .map(|(_, key, _)| key.place),
            };
            if let Some(place) = first {
                let message = format!("stands here twice{}", first_at(place));
                self.error(key.place, &path.field(name), message);
            } else {
                all.push((name, key, value));
            }
        }
        for merged in merges {
            self.merge(merged, path, &mut all);
        }
        Some(all)
    }

    fn merge<'t>(
        &mut self,
        node: &'t Node,
        path: &Path<'_>,
        all: &mut Vec<(&'t str, &'t Node, &'t Node)>,
    ) {
        match &node.value {
            Value::Map(_) => {
                for field in self
                    .names(node, path, "what `<<` merges")
                    .unwrap_or_default()
                {
                    if !all.iter().any(|(name, ..)| *name == field.0) {
                        all.push(field);
                    }
                }
            }
            Value::List(items) => items.iter().for_each(|item| self.merge(item, path, all)),
            Value::Scalar { .. } => self.not_to_merge(node, path),
        }
    }

    /// Notes that `<<` merges what is no map.
    pub fn not_to_merge(&mut self, node: &Node, path: &Path<'_>) {
        let message = "expected a map to merge, or a list of them (error loading config file: yaml: map merge requires map or sequence of maps as the value)";
        self.error(node.place, &path.field("<<"), message);
    }

    fn name<'t>(&mut self, key: &'t Node, path: &Path<'_>) -> Option<&'t str> {
        match &key.value {
            Value::Scalar { text, plain } => {
                let other = *plain && (key.is_null() || truth(text).is_some() || is_number(text));
                if !other {
                    return Some(text);
                }
            }
            Value::List(_) | Value::Map(_) => {}
        }
        self.error(key.place, path, not_text(key));
        None
    }

    /// A list's items.
    pub fn list<'t>(&mut self, node: &'t Node, path: &Path<'_>, of: &str) -> &'t [Node] {
        match &node.value {
            Value::List(items) => items,
            _ => {
                let (found, words) = (node.kind(), self.words(node, path));
                let message = format!("expected a list of {of}, found {found}{words}");
                self.error(node.place, path, message);
                &[]
            }
        }
    }

    /// A scalar's text, exactly as written.
    pub fn text<'t>(&mut self, node: &'t Node, path: &Path<'_>) -> Option<&'t str> {
        match &node.value {
            Value::Scalar { text, .. } => Some(text),
            Value::List(_) | Value::Map(_) => {
                let (found, words) = (node.kind(), self.words(node, path));
                let message = format!("expected text, found {found}{words}");
                self.error(node.place, path, message);
                None
            }
        }
    }

    /// The text of the field `name`, or none.
    pub fn text_of<'t>(
        &mut self,
        fields: &Fields<'t>,
        path: &Path<'_>,
        name: &str,
    ) -> Option<&'t str> {
        let node = fields.get(name)?;
        self.text(node, &path.field(name))
    }

    /// A name of ours: not empty, and fit to stand in headers, keys and logs.
    pub fn proper_name<'t>(&mut self, node: &'t Node, path: &Path<'_>) -> Option<&'t str> {
        let text = self.text(node, path)?;
        let message = if text.is_empty() {
            "must not be empty"
        } else if text.len() > 128 {
            "must not be longer than 128 bytes"
        } else if text.contains(|c: char| c == '"' || c.is_control()) {
            "must not contain `\"` or control characters"
        } else {
            return Some(text);
        };
        self.error(node.place, path, message);
        None
    }

    /// The truth value of the field `name`; false if absent.
    pub fn flag(&mut self, fields: &Fields<'_>, path: &Path<'_>, name: &str) -> Option<bool> {
        let node = fields.get(name)?;
        let value = match &node.value {
            Value::Scalar { text, plain: true } => truth(text),
            _ => None,
        };
        if value.is_none() {
            let path = path.field(name);
            let found = match &node.value {
                Value::Scalar { text, .. } => format!("`{text}`"),
                _ => node.kind().to_owned(),
            };
            let words = self.words(node, &path);
            let message = format!("expected true or false, found {found}{words}");
            self.error(node.place, &path, message);
        }
        value
    }

    /// One of `choices`, by name.
    pub fn choice<T: Copy>(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
        name: &str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let node = fields.get(name)?;
        let path = path.field(name);
        let text = self.text(node, &path)?;
        let found = choices.iter().find(|(choice, _)| *choice == text);
        if found.is_none() {
            let names = || choices.iter().map(|(choice, _)| *choice);
            let hint = did_you_mean(text, names());
            let message = format!(
                "unknown `{text}`{hint}; use {}",
                OneOf(&names().collect::<Vec<_>>())
            );
            self.error(node.place, &path, message);
        }
        found.map(|(_, value)| *value)
    }
}

/// Writes `a, b or c`, each in backquotes.
pub struct OneOf<'a>(pub &'a [&'a str]);

impl fmt::Display for OneOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let before = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}`{name}`")?;
        }
        Ok(())
    }
}
