//! Descriptors by template: `tier=%{authz.tier|anonymous},ip=%{client}`.

use std::str::FromStr;

use serde_json::Value;

use crate::descriptor::Entry;

/// How a descriptor is made of a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    entries: Vec<(String, Vec<Part>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A field of the line, and what stands for it where the line has none.
    Field(String, Option<String>),
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entry = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), parts(value)?)),
            _ => Err(format!(
                "`{pair}` is not KEY=VALUE, where VALUE may have fields as %{{NAME}}"
            )),
        };
        let entries = outside_braces(text).into_iter().map(entry);
        Ok(Self {
            entries: entries.collect::<Result<_, _>>()?,
        })
    }
}

impl Template {
    /// The entries of a line's descriptor; none if a field is not there, as Envoy drops such a descriptor.
    pub fn entries(&self, line: &Value) -> Option<Vec<Entry>> {
        let entries = self.entries.iter().map(|(key, parts)| {
            let texts: Option<String> = parts.iter().map(|part| part.text(line)).collect();
            Some(Entry::new(key.clone(), texts?))
        });
        entries.collect()
    }
}

impl Part {
    fn text(&self, line: &Value) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Field(path, default) => {
                let value = match field(line, path) {
                    Value::String(text) if text != "-" && !text.is_empty() => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    Value::Bool(is) => Some(is.to_string()),
                    _ => None,
                };
                value.or_else(|| default.clone())
            }
        }
    }
}

/// A field by its name, or by the names on the way to it with dots between; null if it is not there.
pub fn field<'v>(line: &'v Value, path: &str) -> &'v Value {
    match (line.get(path), path.split_once('.')) {
        (Some(value), _) => value,
        (None, Some((first, rest))) => field(&line[first], rest),
        (None, None) => &Value::Null,
    }
}

/// Splits at commas that stand in no braces.
fn outside_braces(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn parts(mut text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    while let Some((before, rest)) = text.split_once("%{") {
        let (inner, after) = rest
            .split_once('}')
            .ok_or_else(|| format!("`%{{{rest}` has no `}}`"))?;
        let (name, default) = match inner.split_once('|') {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (inner, None),
        };
        if name.is_empty() {
            return Err("`%{}` names no field".to_owned());
        }
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(Part::Field(name.to_owned(), default));
        text = after;
    }
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
    Ok(parts)
}
