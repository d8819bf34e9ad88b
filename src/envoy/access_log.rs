//! What an access log in JSON tells of a request.
//!
//! Source: Envoy's access-log formatter: which operator tells what of a request.

use std::borrow::Cow;

use serde_json::Value;

use super::action::{Facts, Found, Missing, Source};

/// The fields of a log line that come from one operator each.
#[derive(Debug, Clone)]
pub struct AccessLog {
    fields: Vec<Field>,
}

#[derive(Debug, Clone)]
struct Field {
    /// Where it stands in a line.
    path: Vec<String>,
    /// `REQ`
    operator: String,
    /// `X-API-KEY`
    argument: String,
}

/// A line of a log.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// How it is written.
    pub log: &'a AccessLog,
    /// The line.
    pub value: &'a Value,
    /// The cluster of the request's route, once that is known.
    pub cluster: Option<&'a str>,
}

impl AccessLog {
    /// Reads the configuration of an access logger, if it writes JSON.
    pub(super) fn read(logger: &Value) -> Option<Self> {
        let format = &logger["log_format"]["json_format"];
        let older = [&logger["json_format"], &logger["typed_json_format"]];
        let format = [format]
            .into_iter()
            .chain(older)
            .find(|format| format.is_object())?;
        let mut fields = Vec::new();
        collect(format, &mut Vec::new(), &mut fields);
        Some(Self { fields })
    }

    /// The value of the first field that is written by one of `operators`.
    pub fn field<'v>(&self, line: &'v Value, operators: &[&str]) -> Option<&'v Value> {
        let field = self.find(|field| operators.contains(&field.operator.as_str()))?;
        Some(at(line, &field.path))
    }

    fn find(&self, is: impl Fn(&Field) -> bool) -> Option<&Field> {
        self.fields.iter().find(|field| is(field))
    }
}

/// Collects the fields whose whole text is one operator.
fn collect(format: &Value, path: &mut Vec<String>, into: &mut Vec<Field>) {
    for (name, value) in format.as_object().into_iter().flatten() {
        path.push(name.clone());
        if let Some((operator, argument)) = value.as_str().and_then(operator) {
            into.push(Field {
                path: path.clone(),
                operator: operator.to_owned(),
                argument: argument.to_owned(),
            });
        }
        collect(value, path, into);
        path.pop();
    }
}

/// `%REQ(X-API-KEY):20%` as its name and argument, if the text is one operator and nothing else.
fn operator(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('%')?.strip_suffix('%')?;
    let named = |name: &str| {
        name.bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    let (name, argument) = match inner.split_once('(') {
        None => (inner.split(':').next()?, ""),
        Some((name, rest)) => (name, rest.rsplit_once(')')?.0),
    };
    (named(name) && !argument.contains(')')).then_some((name, argument))
}

fn at<'v>(line: &'v Value, path: &[String]) -> &'v Value {
    path.iter().fold(line, |value, name| &value[name.as_str()])
}

impl Facts for Line<'_> {
    fn find(&self, source: &Source) -> Found<'_> {
        match source {
            Source::Text(text) => Found::Value(text.clone().into()),
            Source::Header(name) if name == ":path" => self.path(),
            Source::Header(name) => self.header(name),
            Source::Query(name) => self.query(name),
            Source::Address => self.address(),
            Source::Metadata(filter, path) => self.metadata(filter, path),
            Source::Cluster => match self.cluster {
                Some(cluster) => Found::Value(cluster.into()),
                None => self.plain(&["UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW"]),
            },
            Source::Network(..) => Found::Unknown(Missing("a network".to_owned())),
            Source::Other(what) => Found::Unknown(Missing(format!("`{what}`, which no log tells"))),
        }
    }
}

impl Line<'_> {
    /// The path as the client sent it: a log is written after the route has rewritten it.
    fn path(&self) -> Found<'_> {
        let wanted = "%PATH(WQ:ORIG_OR_PATH)%";
        let original = |field: &&Field| match field.operator.as_str() {
            // Source: without a word for it, the original one or else the current one.
            "PATH" => !field.argument.ends_with(":PATH") && !field.argument.ends_with(":ORIG"),
            "REQ" => field
                .argument
                .eq_ignore_ascii_case("X-ENVOY-ORIGINAL-PATH?:PATH"),
            _ => false,
        };
        let rewritten = |field: &&Field| {
            field.operator == "PATH" && field.argument.ends_with(":PATH")
                || field.operator == "REQ" && field.argument.eq_ignore_ascii_case(":PATH")
        };
        let fields = || self.log.fields.iter();
        match fields().find(original).or_else(|| fields().find(rewritten)) {
            Some(field) => self.value_of(field),
            None => Found::Unknown(Missing(wanted.to_owned())),
        }
    }

    fn header(&self, name: &str) -> Found<'_> {
        let is =
            |field: &Field| field.operator == "REQ" && field.argument.eq_ignore_ascii_case(name);
        match self.log.find(is) {
            Some(field) => self.value_of(field),
            None => unknown(format!("%REQ({})%", name.to_uppercase())),
        }
    }

    fn query(&self, name: &str) -> Found<'_> {
        let own = |field: &Field| field.operator == "QUERY_PARAM" && field.argument == name;
        if let Some(field) = self.log.find(own) {
            return self.value_of(field);
        }
        let with_query = |field: &Field| match field.operator.as_str() {
            "PATH" => !field.argument.starts_with("NQ"),
            "REQ" => field.argument.to_uppercase().ends_with(":PATH"),
            _ => false,
        };
        let Some(field) = self.log.find(with_query) else {
            return unknown(format!("%QUERY_PARAM({name})%"));
        };
        let Found::Value(path) = self.value_of(field) else {
            return Found::Absent;
        };
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        match pairs.find(|(known, _)| *known == name) {
            Some((_, value)) => Found::Value(value.to_owned().into()),
            None => Found::Absent,
        }
    }

    fn address(&self) -> Found<'_> {
        let found = self.plain(&["DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"]);
        if !matches!(found, Found::Unknown(_)) {
            return found;
        }
        match self.plain(&["DOWNSTREAM_REMOTE_ADDRESS"]) {
            Found::Value(address) => {
                let bare = address.rsplit_once(':').map_or(&*address, |(bare, _)| bare);
                Found::Value(bare.trim_matches(['[', ']']).to_owned().into())
            }
            Found::Absent => Found::Absent,
            Found::Unknown(_) => found,
        }
    }

    fn metadata(&self, filter: &str, path: &[String]) -> Found<'_> {
        let own = |field: &&Field| {
            let mut parts = field.argument.split(':');
            field.operator == "DYNAMIC_METADATA" && parts.next() == Some(filter) && {
                let mut wanted = path.iter();
                parts.all(|part| wanted.next().is_some_and(|name| name == part))
            }
        };
        let Some(field) = self.log.fields.iter().find(own) else {
            return unknown(format!("%DYNAMIC_METADATA({filter})%"));
        };
        let deeper = field.argument.split(':').count() - 1;
        shown(at(at(self.value, &field.path), &path[deeper..]))
    }

    /// The value of an operator without arguments; the first of `operators` that is logged.
    fn plain(&self, operators: &[&str]) -> Found<'_> {
        match self.log.field(self.value, operators) {
            Some(value) => shown(value),
            None => unknown(format!("%{}%", operators[0])),
        }
    }

    fn value_of(&self, field: &Field) -> Found<'_> {
        shown(at(self.value, &field.path))
    }
}

fn unknown(operator: String) -> Found<'static> {
    Found::Unknown(Missing(operator))
}

/// A logged value. Source: what a request has not is null in JSON, and `-` in texts.
fn shown(value: &Value) -> Found<'_> {
    match value {
        Value::String(text) if text == "-" => Found::Absent,
        Value::String(text) => Found::Value(Cow::Borrowed(text)),
        Value::Number(number) => Found::Value(number.to_string().into()),
        Value::Bool(is) => Found::Value(is.to_string().into()),
        _ => Found::Absent,
    }
}
