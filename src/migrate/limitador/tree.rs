//! The rules that decide as limitador's limits do together, and their text.

use indexmap::IndexMap;

use super::{Ordered, read::Entry};
use crate::limit::Limit;

/// Most that limits may be repeated in rules where they overlap.
const MOST_REPEATED: usize = 1_000_000;

/// A rule to write.
#[derive(Debug)]
pub struct Branch<'l> {
    entry: &'l Entry,
    limits: Vec<(&'l Limit, Option<&'l str>)>,
    below: Vec<Branch<'l>>,
}

/// The rules for `limits`: whichever rule a descriptor meets has the limits of all that hold for it.
///
/// # Errors
/// Limits that overlap so much that the rules would be too many.
pub fn rules(limits: &[Ordered]) -> Result<Vec<Branch<'_>>, String> {
    let mut left = MOST_REPEATED;
    branches(&limits.iter().collect::<Vec<_>>(), 0, &mut left)
        .ok_or_else(|| "they overlap in more ways than a plan file can list".to_owned())
}

/// The level at `depth` for limits that have an entry there.
fn branches<'l>(limits: &[&'l Ordered], depth: usize, left: &mut usize) -> Option<Vec<Branch<'l>>> {
    let mut keys: IndexMap<&str, IndexMap<Option<&str>, Vec<&'l Ordered>>> = IndexMap::new();
    for limit in limits {
        let entry = &limit.entries[depth];
        let values = keys.entry(&entry.key).or_default();
        values
            .entry(entry.value.as_deref())
            .or_default()
            .push(limit);
    }
    let mut level = Vec::new();
    for values in keys.into_values() {
        let any = values.get(&None).cloned().unwrap_or_default();
        for (value, mut members) in values {
            let entry = &members[0].entries[depth];
            if value.is_some() {
                // A descriptor that meets this rule never meets the one for any value.
                members.extend(&any);
            }
            *left = left.checked_sub(members.len())?;
            let (own, deeper): (Vec<_>, Vec<_>) = members
                .into_iter()
                .partition(|limit| limit.entries.len() == depth + 1);
            level.push(Branch {
                entry,
                limits: tightest(&own),
                below: branches(&deeper, depth + 1, left)?,
            });
        }
    }
    Some(level)
}

/// Of limits with one period the lowest, which holds whenever all do.
fn tightest<'l>(limits: &[&'l Ordered]) -> Vec<(&'l Limit, Option<&'l str>)> {
    let mut kept: IndexMap<u64, &'l Ordered> = IndexMap::new();
    for limit in limits {
        let first = kept.entry(limit.limit.period().seconds()).or_insert(limit);
        if limit.limit.count() < first.limit.count() {
            *first = limit;
        }
    }
    kept.into_values()
        .map(|limit| (&limit.limit, limit.name.as_deref()))
        .collect()
}

/// Writes the rules as the field `descriptors`.
pub fn write(rules: &[Branch<'_>], text: &mut String) {
    write_level(rules, "", text);
}

fn write_level(rules: &[Branch<'_>], indent: &str, text: &mut String) {
    if rules.is_empty() {
        return;
    }
    *text += &format!("{indent}descriptors:\n");
    for Branch {
        entry,
        limits,
        below,
    } in rules
    {
        *text += &format!("{indent}  - key: {}\n", quoted(&entry.key));
        let indent = format!("{indent}    ");
        if let Some(value) = &entry.value {
            *text += &format!("{indent}value: {}\n", quoted(value));
        }
        if !limits.is_empty() {
            let limits: Vec<_> = limits
                .iter()
                .map(|(limit, name)| shown(limit, *name))
                .collect();
            *text += &format!("{indent}limits: [{}]\n", limits.join(", "));
        }
        write_level(below, &indent, text);
    }
}

fn shown(limit: &Limit, name: Option<&str>) -> String {
    let limit = quoted(&limit.to_string());
    match name {
        Some(name) => format!("{{ limit: {limit}, name: {} }}", quoted(name)),
        None => limit,
    }
}

/// Text between quotes, as JSON writes it and YAML reads it; what YAML would take for a line break is escaped too.
pub fn quoted(text: &str) -> String {
    let odd = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    let json = serde_json::Value::from(text).to_string();
    let escaped = json.chars().map(|c| match odd(c) {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    });
    escaped.collect()
}
