//! Reads an Envoy configuration: a bootstrap file, a file of listeners or routes, or the admin page `/config_dump`.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde_json::{Map, Value};

use super::{
    access_log::AccessLog,
    action::list,
    matcher::text,
    route::{Filter, VirtualHost, hosts},
};

/// Largest file that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// Maps whose keys are names that people chose, or whose contents are theirs.
const NAMES: [&str; 2] = [
    "typed_per_filter_config",
    "typed_extension_protocol_options",
];
const CONTENTS: [&str; 4] = [
    "json_format",
    "typed_json_format",
    "filter_metadata",
    "metadata_values",
];

/// Fields of the admin page `/config_dump` under which stands what is not in force, or stands elsewhere in it again.
const NOT_IN_FORCE: [&str; 4] = [
    "bootstrap",
    "draining_state",
    "warming_state",
    "error_state",
];

/// What is of interest here in an Envoy configuration.
#[derive(Debug, Default)]
pub struct EnvoyConfig {
    /// Its HTTP connection managers, in the order in which they stand there.
    pub managers: Vec<Manager>,
    /// What it takes from elsewhere, so that it is not known here.
    pub elsewhere: Vec<String>,
}

/// An HTTP connection manager.
#[derive(Debug)]
pub struct Manager {
    /// Its listener's name, or else its `stat_prefix`.
    pub name: String,
    /// Its rate limit filters, in order.
    pub filters: Vec<Filter>,
    /// Its virtual hosts, as far as they are known.
    pub hosts: Vec<VirtualHost>,
    /// Its first access log in JSON.
    pub access_log: Option<AccessLog>,
    /// Whether requests that ext_authz refuses never reach a rate limit filter.
    pub authz_first: bool,
}

/// Why a configuration cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum EnvoyError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} is neither JSON nor YAML: {reason}")]
    Parse { path: String, reason: String },
    #[error(
        "{path} has no HTTP connection manager: give an Envoy configuration, or what its admin page /config_dump says"
    )]
    NoManager { path: String },
}

impl EnvoyConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`EnvoyError`]: it cannot be read, is no YAML or JSON, or is about something else.
    pub fn read(path: &Path) -> Result<Self, EnvoyError> {
        let name = path.display().to_string();
        let text = read_text(path).map_err(|source| EnvoyError::Read {
            path: name.clone(),
            source,
        })?;
        Self::from_text(&name, &text)
    }

    /// Reads a text as if it were the file `path`.
    ///
    /// # Errors
    /// As [`EnvoyConfig::read`].
    pub fn from_text(path: &str, text: &str) -> Result<Self, EnvoyError> {
        let parsed: Result<Value, String> = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| error.to_string()),
            false => serde_yaml::from_str(text).map_err(|error| error.to_string()),
        };
        let mut config = parsed.map_err(|reason| EnvoyError::Parse {
            path: path.to_owned(),
            reason,
        })?;
        normalize(&mut config, false);
        let mut found = Self::default();
        let tables = tables(&config);
        found.walk(&config, "", &tables);
        match found.managers.is_empty() {
            true => Err(EnvoyError::NoManager {
                path: path.to_owned(),
            }),
            false => Ok(found),
        }
    }

    /// Finds the managers wherever they stand, so that every kind of file is read alike.
    fn walk(&mut self, value: &Value, listener: &str, tables: &[&Value]) {
        let Value::Object(fields) = value else {
            for item in list(value) {
                self.walk(item, listener, tables);
            }
            return;
        };
        if is_a(value, ".HttpConnectionManager") {
            let manager = self.manager(value, listener, tables);
            self.managers.push(manager);
            return;
        }
        for field in ["lds_config", "ads_config"] {
            if fields.contains_key(field) {
                let what = "listeners that a control plane sends are not in this file";
                self.note(what.to_owned());
            }
        }
        let listens =
            fields.contains_key("filter_chains") || fields.contains_key("default_filter_chain");
        let own = text(&value["name"]).filter(|_| listens);
        for (name, field) in fields {
            if !NOT_IN_FORCE.contains(&name.as_str()) {
                self.walk(field, own.unwrap_or(listener), tables);
            }
        }
    }

    fn note(&mut self, what: String) {
        if !self.elsewhere.contains(&what) {
            self.elsewhere.push(what);
        }
    }

    fn manager(&mut self, value: &Value, listener: &str, tables: &[&Value]) -> Manager {
        let prefix = text(&value["stat_prefix"]).unwrap_or_default();
        let name = if listener.is_empty() {
            prefix
        } else {
            listener
        };
        let chain = list(&value["http_filters"]);
        for filter in chain
            .iter()
            .filter(|filter| !filter["config_discovery"].is_null())
        {
            let filter = text(&filter["name"]).unwrap_or_default();
            self.note(format!(
                "{name}: the filter {filter} comes from a control plane"
            ));
        }
        let filters: Vec<Filter> = chain.iter().filter_map(Filter::read).collect();
        let hosts = match self.table(value, name, tables) {
            Some(table) => hosts(table, &filters),
            None => Vec::new(),
        };
        let first = chain.iter().map(|filter| &filter["typed_config"]);
        let first = first
            .into_iter()
            .find(|config| is_a(config, ".ExtAuthz") || is_a(config, ".ratelimit.v3.RateLimit"));
        let logs = list(&value["access_log"]).iter();
        Manager {
            name: name.to_owned(),
            filters,
            hosts,
            access_log: logs
                .filter_map(|log| AccessLog::read(&log["typed_config"]))
                .next(),
            authz_first: first.is_some_and(|config| is_a(config, ".ExtAuthz")),
        }
    }

    /// The route table of a manager, its own or the one of that name in the same file.
    fn table<'v>(
        &mut self,
        manager: &'v Value,
        name: &str,
        tables: &[&'v Value],
    ) -> Option<&'v Value> {
        let own = &manager["route_config"];
        if !own.is_null() {
            if !own["vhds"].is_null() {
                self.note(format!(
                    "{name}: virtual hosts that come by VHDS are not in this file"
                ));
            }
            return Some(own);
        }
        let wanted = &manager["rds"]["route_config_name"];
        let found = tables.iter().find(|table| table["name"] == *wanted);
        if found.is_none() {
            let routes = text(wanted).map_or("scoped routes".to_owned(), |name| {
                format!("routes `{name}`")
            });
            self.note(format!(
                "{name}: its {routes} come from a control plane; `curl HOST:ADMIN_PORT/config_dump` has them, and is read here too"
            ));
        }
        found.copied()
    }
}

fn is_a(value: &Value, kind: &str) -> bool {
    text(&value["@type"]).is_some_and(|name| name.ends_with(kind))
}

/// Every route table, wherever it stands.
fn tables(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(fields) if fields.contains_key("virtual_hosts") => vec![value],
        Value::Object(fields) => fields.values().flat_map(tables).collect(),
        Value::Array(items) => items.iter().flat_map(tables).collect(),
        _ => Vec::new(),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_string(&mut text)?;
    match text.len() as u64 > LARGEST {
        true => Err(io::Error::other(format!(
            "it has more than {LARGEST} bytes"
        ))),
        false => Ok(text),
    }
}

/// Writes `fieldName` as `field_name`, as protobuf's JSON may have either, and what a `TypedStruct` holds in its place.
fn normalize(value: &mut Value, names: bool) {
    match value {
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    let name = if names { name } else { snake(&name) };
                    if !CONTENTS.contains(&name.as_str()) {
                        normalize(&mut value, NAMES.contains(&name.as_str()));
                    }
                    (name, value)
                })
                .collect::<Map<_, _>>();
            if let Some(held) = held(value) {
                *value = held;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| normalize(item, false)),
        _ => {}
    }
}

/// Source: xds.type.v3.TypedStruct: a message of type `type_url` whose fields stand in `value`.
fn held(value: &mut Value) -> Option<Value> {
    if !is_a(value, ".TypedStruct") {
        return None;
    }
    let kind = value["type_url"].take();
    let mut held = value["value"].take();
    held.as_object_mut()?.insert("@type".to_owned(), kind);
    Some(held)
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
