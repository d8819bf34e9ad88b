//! Reads the limits file: a list of limits, each with its namespace, figures, conditions and variables.

use super::expression::{self, Named};
use crate::{
    limit::{Kind, Limit, Period, Unit},
    plan::{
        fields::Reader,
        mistake::{Path, Place, did_you_mean},
        tree::{Node, parse},
    },
};

/// A limit that has a counterpart.
#[derive(Debug)]
pub struct NamedLimit {
    /// Where it stands.
    pub place: Option<Place>,
    /// The domain it is for.
    pub namespace: String,
    /// Its name, else its id.
    pub name: Option<String>,
    /// What it allows.
    pub limit: Limit,
    /// The descriptor that meets it; not empty, no key twice.
    pub entries: Vec<Entry>,
}

/// What an entry of the descriptor must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value; without it any value, each with a bucket of its own.
    pub value: Option<String>,
}

/// The entry of the descriptor that all requests send for limits that name no entry.
const FOR_ALL: (&str, &str) = ("generic_key", "all");

const OLD_FORM: &str = "names entries in the form of limitador 1.x, without `descriptors[0]`; limitador 2 never applies such a limit to a request of Envoy";

/// Most entries of a limit: a plan file is nested no deeper than this allows.
const MOST_ENTRIES: usize = 40;

const FIELDS: [&str; 7] = [
    "id",
    "namespace",
    "max_value",
    "seconds",
    "name",
    "conditions",
    "variables",
];

/// Whether the entry is the one that all requests send.
pub fn is_for_all(entry: &Entry) -> bool {
    (entry.key.as_str(), entry.value.as_deref()) == (FOR_ALL.0, Some(FOR_ALL.1))
}

impl Reader<'_> {
    /// The limits that have a counterpart, and how many there are in all. What has none is noted as a mistake.
    pub(super) fn limitador_limits(&mut self, text: &str) -> (Vec<NamedLimit>, usize) {
        let top = Path::Top;
        let document = match parse(text) {
            Ok(document) => document,
            Err(error) => {
                self.error(
                    Some(error.place),
                    &top,
                    format!("is not YAML: {}", error.message),
                );
                return (Vec::new(), 0);
            }
        };
        if let Some(place) = document.second {
            self.error(
                Some(place),
                &top,
                "a second document in a file; limitador reads one",
            );
        }
        let Some(node) = document.top.filter(|node| !node.is_null()) else {
            self.error(Some(Place { line: 1, column: 1 }), &top, "has no limits");
            return (Vec::new(), 0);
        };
        let items = self.list(&node, &top, "limits, as limitador's limits file is");
        let limits = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| self.limitador_limit(item, &top.item(index)));
        (limits.collect(), items.len())
    }

    fn limitador_limit(&mut self, node: &Node, path: &Path<'_>) -> Option<NamedLimit> {
        let fields = self.names(node, path, "a limit")?;
        for (name, key, _) in &fields {
            if !FIELDS.contains(name) {
                let hint = did_you_mean(name, FIELDS);
                self.warning(
                    key.place,
                    &path.field(name),
                    format!("limitador does not know this field and ignores it{hint}"),
                );
            }
        }
        let get = |name: &str| {
            let found = fields.iter().find(|(field, ..)| *field == name);
            found
                .map(|(.., value)| *value)
                .filter(|value| !value.is_null())
        };
        let before = self.notes.total();
        let namespace = self.required(get("namespace"), node.place, path, "namespace");
        let seconds = self.required(get("seconds"), node.place, path, "seconds");
        let limit = self.limitador_figures(get("max_value"), seconds.as_ref(), node.place, path);
        let entries = self.entries(get("conditions"), get("variables"), node.place, path);
        let name = ["name", "id"].into_iter().find_map(|field| {
            let node = get(field)?;
            self.shown_name(node, &path.field(field))
        });
        if self.notes.total() > before {
            return None;
        }
        Some(NamedLimit {
            place: node.place,
            namespace: namespace?.0,
            name,
            limit: limit?,
            entries,
        })
    }

    /// The text of a field that limitador asks for, with its place.
    fn required(
        &mut self,
        node: Option<&Node>,
        place: Option<Place>,
        path: &Path<'_>,
        name: &str,
    ) -> Option<(String, Option<Place>)> {
        let text = match node {
            Some(node) => self.text(node, &path.field(name))?,
            None => "",
        };
        if text.is_empty() {
            self.error(place, path, format!("a limit needs `{name}`"));
            return None;
        }
        Some((text.to_owned(), node.map_or(place, |node| node.place)))
    }

    fn limitador_figures(
        &mut self,
        max_value: Option<&Node>,
        seconds: Option<&(String, Option<Place>)>,
        place: Option<Place>,
        path: &Path<'_>,
    ) -> Option<Limit> {
        let count = match max_value {
            Some(node) => {
                let path = path.field("max_value");
                let text = self.text(node, &path)?;
                let count = text.replace('_', "").parse::<u32>().ok();
                if count.is_none() {
                    let message = format!(
                        "`{text}` is not a whole number from 0 to 4294967295, which is all that a limit counts here"
                    );
                    self.error(node.place, &path, message);
                }
                count?
            }
            None => {
                let message = "no `max_value` blocks, as it does in limitador";
                self.warning(place, path, message);
                0
            }
        };
        let (text, place) = seconds?;
        let path = path.field("seconds");
        let Some(period) = text.replace('_', "").parse().ok().and_then(period) else {
            self.error(*place, &path, format!("`{text}` is not a number of seconds that a limit can have here: 1 to 4294967295"));
            return None;
        };
        match Limit::new(count, period, Kind::Bucket { burst: count }) {
            Ok(limit) => Some(limit),
            Err(error) => {
                self.error(*place, &path, error.to_string());
                None
            }
        }
    }

    /// The name, if answers can show it.
    fn shown_name(&mut self, node: &Node, path: &Path<'_>) -> Option<String> {
        let text = self.text(node, path)?;
        let fits = !text.is_empty()
            && text.len() <= 128
            && !text.contains(|c: char| c == '"' || c.is_control());
        if !fits {
            self.warning(
                node.place,
                path,
                "is left out: a name here has 1 to 128 bytes without `\"` and control characters",
            );
        }
        fits.then(|| text.to_owned())
    }

    /// The entries that conditions and variables name, in the order written; the one for all if they name none.
    fn entries(
        &mut self,
        conditions: Option<&Node>,
        variables: Option<&Node>,
        place: Option<Place>,
        path: &Path<'_>,
    ) -> Vec<Entry> {
        let mut entries = Entries::default();
        self.expressions(conditions, &path.field("conditions"), |text| {
            for (named, value) in expression::condition(text)? {
                entries.add(named, Some(value))?;
            }
            Ok(())
        });
        self.expressions(variables, &path.field("variables"), |text| {
            entries.add(expression::variable(text)?, None)
        });
        if entries.old_form {
            self.warning(place, path, OLD_FORM);
        }
        if entries.all.len() > MOST_ENTRIES {
            let message = format!("names more than {MOST_ENTRIES} entries");
            self.error(place, path, message);
        }
        if entries.all.is_empty() {
            let (key, value) = FOR_ALL;
            entries.all.push(Entry {
                key: key.to_owned(),
                value: Some(value.to_owned()),
            });
        }
        entries.all
    }

    /// Hands each expression of a list to `add`, and notes why it has no counterpart.
    fn expressions(
        &mut self,
        list: Option<&Node>,
        path: &Path<'_>,
        mut add: impl FnMut(&str) -> Result<(), String>,
    ) {
        let Some(list) = list else {
            return;
        };
        for (index, node) in self.list(list, path, "expressions").iter().enumerate() {
            let path = path.item(index);
            let Some(text) = self.text(node, &path) else {
                continue;
            };
            if let Err(message) = add(text) {
                self.error(node.place, &path, format!("`{text}`: {message}"));
            }
        }
    }
}

/// The entries of one limit, gathered.
#[derive(Debug, Default)]
struct Entries {
    descriptor: Option<u32>,
    /// Whether an expression names no descriptor.
    old_form: bool,
    all: Vec<Entry>,
}

impl Entries {
    /// Adds what an expression names.
    fn add(&mut self, named: Named, value: Option<String>) -> Result<(), String> {
        let Named { descriptor, key } = named;
        self.old_form |= descriptor.is_none();
        let descriptor = descriptor.unwrap_or_default();
        if *self.descriptor.get_or_insert(descriptor) != descriptor {
            return Err("a rule here sees one descriptor, and the limit is about several; let Envoy send their entries in one".to_owned());
        }
        if key.is_empty() || value.as_deref() == Some("") {
            return Err("a rule here has a key, and one without a value is met by any".to_owned());
        }
        if key.contains('*') || value.as_ref().is_some_and(|value| value.contains('*')) {
            return Err("a `*` stands for any characters here".to_owned());
        }
        let earlier = self.all.iter_mut().find(|entry| entry.key == key);
        match (earlier, value) {
            (None, value) => self.all.push(Entry { key, value }),
            (Some(_), None) => {}
            (Some(entry), Some(value)) => match &entry.value {
                Some(first) if *first != value => {
                    return Err(format!("never holds: an earlier condition wants `{first}`"));
                }
                _ => entry.value = Some(value),
            },
        }
        Ok(())
    }
}

/// So many seconds in the longest unit of a fixed length that divides them.
fn period(seconds: u64) -> Option<Period> {
    let units = [
        Unit::Week,
        Unit::Day,
        Unit::Hour,
        Unit::Minute,
        Unit::Second,
    ];
    let unit = units
        .into_iter()
        .find(|unit| seconds.is_multiple_of(unit.seconds()))?;
    let multiplier = u32::try_from(seconds / unit.seconds()).ok()?;
    Some(Period { unit, multiplier })
}
