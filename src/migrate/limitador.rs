//! Turns limitador's limits file into plan files.
//!
//! limitador asks every limit about every request; here a descriptor meets one rule. So each set of entries that limits
//! name becomes a descriptor that Envoy must send, and where limits overlap, the rule that is met carries the limits of all.
// Source: the limits file and its CEL expressions: Kuadrant/limitador, docs and examples of 2.x.

mod expression;
mod read;
mod tree;

use std::{collections::HashSet, sync::Arc};

use indexmap::{IndexMap, IndexSet};

use self::read::{Entry, NamedLimit};
use crate::{
    limit::Limit,
    plan::{LoadError, Mistake, Plans, fields::Reader, mistake::Notes},
};

/// What a limits file becomes.
#[derive(Debug)]
pub struct Conversion {
    /// A plan file for each namespace that has a limit with a counterpart, in the order of the file.
    pub plans: Vec<PlanText>,
    /// Limits of the file.
    pub limits: usize,
    /// Limits that are in the plan files.
    pub mapped: usize,
    /// What has no counterpart, each with its place.
    pub unmapped: Option<LoadError>,
    /// What is mapped, and yet worth a look.
    pub notes: Vec<Mistake>,
}

/// A plan file that was made.
#[derive(Debug)]
pub struct PlanText {
    /// Its domain: the namespace.
    pub domain: String,
    /// Its text. Loads without a warning.
    pub text: String,
}

/// Converts the limits file of that name and text.
pub fn convert(file: &str, text: &str) -> Conversion {
    let mut notes = Notes::default();
    let mut reader = Reader {
        file: Arc::from(file),
        notes: &mut notes,
        reference: false,
        last_wins: false,
    };
    let (limits, total) = reader.limitador_limits(text);
    let mut namespaces: IndexMap<&str, Vec<&NamedLimit>> = IndexMap::new();
    for limit in &limits {
        namespaces.entry(&limit.namespace).or_default().push(limit);
    }
    let mut conversion = Conversion {
        plans: Vec::new(),
        limits: total,
        mapped: 0,
        unmapped: None,
        notes: Vec::new(),
    };
    for (domain, limits) in namespaces {
        match plan(file, domain, &limits) {
            Ok(text) => {
                conversion.mapped += limits.len();
                let domain = domain.to_owned();
                conversion.plans.push(PlanText { domain, text });
            }
            Err(message) => reader.notes.error(Mistake {
                file: Arc::clone(&reader.file),
                place: limits.first().and_then(|limit| limit.place),
                path: String::new(),
                message: format!(
                    "the limits of namespace `{domain}` have no counterpart: {message}"
                ),
            }),
        }
    }
    (conversion.unmapped, conversion.notes) = notes.both();
    conversion
}

/// The text of one namespace's plan file.
///
/// # Errors
/// Limits that overlap too much, or names that the plan format cannot tell apart.
fn plan(file: &str, domain: &str, limits: &[&NamedLimit]) -> Result<String, String> {
    let limits = in_one_order(limits);
    let rules = tree::rules(&limits)?;
    let sent: IndexSet<String> = limits.iter().map(|limit| sent(&limit.entries)).collect();
    let mut text = format!(
        "# Made by `tollgate check --from limitador` from {}.\n\
         # A rule holds for a descriptor of exactly its entries, in their order. So let Envoy send, with each request, a\n\
         # descriptor for every line here:\n",
        file.escape_debug()
    );
    for descriptor in sent {
        text += &format!("#   {descriptor}\n");
    }
    text += &format!("domain: {}\n", tree::quoted(domain));
    tree::write(&rules, &mut text);
    match Plans::from_texts(&[("plan", &text)]) {
        Ok(plans) if plans.warnings().is_empty() => Ok(text),
        Ok(plans) => Err(plans.warnings()[0].message.clone()),
        Err(error) => Err(error.mistakes()[0].message.clone()),
    }
}

/// The limits with entries of the same keys brought into the order in which they stand first.
fn in_one_order(limits: &[&NamedLimit]) -> Vec<Ordered> {
    let mut orders: IndexMap<Vec<&str>, Vec<&str>> = IndexMap::new();
    limits
        .iter()
        .map(|limit| {
            let written: Vec<&str> = limit.entries.iter().map(|entry| &*entry.key).collect();
            let mut keys = written.clone();
            keys.sort_unstable();
            let order = orders.entry(keys).or_insert(written);
            let mut entries = limit.entries.clone();
            entries.sort_by_key(|entry| order.iter().position(|key| *key == entry.key));
            Ordered {
                entries,
                limit: limit.limit.clone(),
                name: limit.name.clone(),
            }
        })
        .collect()
}

/// A limit and the descriptor that meets it.
#[derive(Debug)]
struct Ordered {
    entries: Vec<Entry>,
    limit: Limit,
    name: Option<String>,
}

/// A descriptor for people: its keys, and the value of the one that stands for all requests.
fn sent(entries: &[Entry]) -> String {
    let keys = entries.iter().map(|entry| match entry {
        Entry {
            key,
            value: Some(value),
        } if read::is_for_all(entry) => format!("{key}={value}"),
        Entry { key, .. } => key.escape_debug().to_string(),
    });
    keys.collect::<Vec<_>>().join(", ")
}

/// Names of files for these domains, none twice: `NAMESPACE.yaml`, with `_` for what a file's name should not hold.
pub fn file_names(plans: &[PlanText]) -> Vec<String> {
    let mut taken = HashSet::new();
    plans
        .iter()
        .map(|plan| {
            let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let name: String = plan
                .domain
                .chars()
                .map(|c| if fit(c) { c } else { '_' })
                .take(200)
                .collect();
            let name = name.trim_start_matches('.');
            let numbered = (2..).map(|number| format!("{name}-{number}.yaml"));
            let free = [format!("{name}.yaml")]
                .into_iter()
                .chain(numbered)
                .find(|name| taken.insert(name.to_lowercase()));
            free.expect("the numbers do not end")
        })
        .collect()
}
