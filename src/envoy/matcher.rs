//! Envoy's matchers of texts, headers and paths.

use std::fmt;

use regex::Regex;
use serde_json::Value;

use super::action::{Facts, Found, Missing, Source, list, parameters};

/// Matches a text. Source: envoy.type.matcher.v3.StringMatcher.
#[derive(Debug, Clone)]
pub struct StringMatcher {
    how: How,
    ignore_case: bool,
}

#[derive(Debug, Clone)]
enum How {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
    /// One that this program does not know, by its name.
    Other(String),
}

/// Matches a header. Source: HeaderMatcher of route_components.proto.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    /// In lower case.
    pub name: String,
    /// None where its presence is all that counts.
    value: Option<StringMatcher>,
    invert: bool,
    missing_is_empty: bool,
}

/// Which requests a route takes.
#[derive(Debug, Clone)]
pub struct RouteMatcher {
    path: PathMatcher,
    /// What headers must be.
    pub headers: Vec<HeaderMatcher>,
    query: Vec<(String, Option<StringMatcher>)>,
    /// A condition that no log tells of.
    other: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum PathMatcher {
    Prefix(StringMatcher),
    Separated(String),
    Text(StringMatcher),
    Other(String),
}

impl StringMatcher {
    /// Reads a `StringMatcher`, or the fields of the same meaning that older header matchers have.
    pub(super) fn read(value: &Value) -> Self {
        let of = |names: [&str; 2]| names.iter().find_map(|name| text(&value[*name]));
        let regex = ["safe_regex", "safe_regex_match"]
            .iter()
            .find_map(|name| text(&value[*name]["regex"]));
        let how = if let Some(regex) = regex {
            whole(regex)
        } else if let Some(exact) = of(["exact", "exact_match"]) {
            How::Exact(exact.to_owned())
        } else if let Some(prefix) = of(["prefix", "prefix_match"]) {
            How::Prefix(prefix.to_owned())
        } else if let Some(suffix) = of(["suffix", "suffix_match"]) {
            How::Suffix(suffix.to_owned())
        } else if let Some(part) = of(["contains", "contains_match"]) {
            How::Contains(part.to_owned())
        } else {
            let fields = value.as_object().into_iter().flatten();
            let names: Vec<&str> = fields.map(|(name, _)| name.as_str()).collect();
            How::Other(names.join(", "))
        };
        let ignore_case = flag(&value["ignore_case"]);
        Self { how, ignore_case }
    }

    fn of(how: How, ignore_case: bool) -> Self {
        Self { how, ignore_case }
    }

    /// Whether it matches. One that is not known matches nothing.
    pub fn matches(&self, text: &str) -> bool {
        match self.ignore_case {
            true => self.how.lower().matches(&text.to_lowercase()),
            false => self.how.matches(text),
        }
    }
}

impl How {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => text == wanted,
            Self::Prefix(wanted) => text.starts_with(wanted),
            Self::Suffix(wanted) => text.ends_with(wanted),
            Self::Contains(wanted) => text.contains(wanted),
            Self::Regex(regex) => regex.is_match(text),
            Self::Other(_) => false,
        }
    }

    fn lower(&self) -> Self {
        match self {
            Self::Exact(wanted) => Self::Exact(wanted.to_lowercase()),
            Self::Prefix(wanted) => Self::Prefix(wanted.to_lowercase()),
            Self::Suffix(wanted) => Self::Suffix(wanted.to_lowercase()),
            Self::Contains(wanted) => Self::Contains(wanted.to_lowercase()),
            // Source: StringMatcher: ignore_case has no effect on a regex.
            other => other.clone(),
        }
    }
}

/// Source: Envoy matches the whole text.
fn whole(regex: &str) -> How {
    match Regex::new(&format!("^(?:{regex})$")) {
        Ok(regex) => How::Regex(regex),
        Err(_) => How::Other(format!("regex {regex}")),
    }
}

impl HeaderMatcher {
    pub(super) fn list(value: &Value) -> Vec<Self> {
        list(value).iter().map(Self::read).collect()
    }

    fn read(value: &Value) -> Self {
        let string_match = &value["string_match"];
        let fields = value.as_object().into_iter().flatten();
        let plain = [
            "name",
            "present_match",
            "invert_match",
            "treat_missing_header_as_empty",
        ];
        let legacy = fields
            .map(|(name, _)| name)
            .any(|name| !plain.contains(&name.as_str()));
        let wanted = match (string_match.is_null(), legacy) {
            (false, _) => Some(StringMatcher::read(string_match)),
            (true, true) => Some(StringMatcher::read(value)),
            (true, false) => None,
        };
        Self {
            name: text(&value["name"]).unwrap_or_default().to_lowercase(),
            value: wanted,
            invert: flag(&value["invert_match"]) != (value["present_match"] == false),
            missing_is_empty: flag(&value["treat_missing_header_as_empty"]),
        }
    }

    /// Whether all match; no for certain wins over what is not known.
    ///
    /// # Errors
    /// What is not known of the request.
    pub fn all_match(matchers: &[Self], facts: &impl Facts) -> Result<bool, Missing> {
        let mut unknown = None;
        for matcher in matchers {
            match matcher.matches(facts) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(missing) => unknown = Some(missing),
            }
        }
        unknown.map_or(Ok(true), Err)
    }

    fn matches(&self, facts: &impl Facts) -> Result<bool, Missing> {
        let value = match facts.find(&Source::Header(self.name.clone())) {
            Found::Unknown(missing) => return Err(missing),
            Found::Value(value) => Some(value),
            Found::Absent if self.missing_is_empty => Some("".into()),
            Found::Absent => None,
        };
        let holds = match (&self.value, value) {
            (None, value) => value.is_some(),
            (
                Some(StringMatcher {
                    how: How::Other(what),
                    ..
                }),
                _,
            ) => {
                return Err(Missing(format!(
                    "the matcher {what} of header {}",
                    self.name
                )));
            }
            // Source: HeaderMatcher: a missing header fails a value's matcher, inverted or not.
            (Some(_), None) => return Ok(false),
            (Some(wanted), Some(value)) => wanted.matches(&value),
        };
        Ok(holds != self.invert)
    }
}

impl RouteMatcher {
    pub(super) fn read(value: &Value) -> Self {
        let ignore_case = value["case_sensitive"] == false;
        let of = |how| StringMatcher::of(how, ignore_case);
        let path = if let Some(prefix) = text(&value["prefix"]) {
            PathMatcher::Prefix(of(How::Prefix(prefix.to_owned())))
        } else if let Some(path) = text(&value["path"]) {
            PathMatcher::Text(of(How::Exact(path.to_owned())))
        } else if let Some(prefix) = text(&value["path_separated_prefix"]) {
            PathMatcher::Separated(prefix.to_owned())
        } else if let Some(regex) = text(&value["safe_regex"]["regex"]) {
            PathMatcher::Text(StringMatcher::of(whole(regex), false))
        } else if !value["connect_matcher"].is_null() {
            PathMatcher::Other("CONNECT".to_owned())
        } else {
            PathMatcher::Other("a path by its own matcher".to_owned())
        };
        let others = [
            ("runtime_fraction", "a random part of the requests"),
            ("tls_context", "the client's certificate"),
            ("dynamic_metadata", "metadata"),
            ("grpc", "gRPC"),
        ];
        let mut others = others.iter().filter(|(field, _)| !value[*field].is_null());
        Self {
            path,
            headers: HeaderMatcher::list(&value["headers"]),
            query: parameters(&value["query_parameters"]),
            other: others.next().map(|(_, what)| *what),
        }
    }

    /// Whether it takes a request.
    ///
    /// # Errors
    /// What is not known of the request.
    pub fn matches(&self, facts: &impl Facts) -> Result<bool, Missing> {
        let path = match facts.find(&Source::Header(":path".to_owned())) {
            Found::Unknown(missing) => return Err(missing),
            Found::Absent => return Ok(false),
            Found::Value(path) => path,
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        if !self.path.matches(path)? || !HeaderMatcher::all_match(&self.headers, facts)? {
            return Ok(false);
        }
        let query = super::action::Condition::Query(self.query.clone(), true);
        match self.other {
            _ if !query.holds(facts)? => Ok(false),
            Some(other) => Err(Missing(other.to_owned())),
            None => Ok(true),
        }
    }
}

impl PathMatcher {
    fn matches(&self, path: &str) -> Result<bool, Missing> {
        match self {
            Self::Prefix(wanted) | Self::Text(wanted) => Ok(wanted.matches(path)),
            Self::Separated(prefix) => Ok(path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))),
            Self::Other(what) => Err(Missing(what.clone())),
        }
    }
}

/// A text; none where something else or nothing stands.
pub(super) fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// A truth value; false where there is none.
pub(super) fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_default()
}

/// A number, or a text that is one, as JSON has 64-bit numbers of protobuf.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value.as_str() {
        Some(text) => text.parse().ok(),
        None => value.as_u64(),
    }
}

impl fmt::Display for StringMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::Exact(text) => f.write_str(text),
            How::Prefix(text) => write!(f, "{text}*"),
            How::Suffix(text) => write!(f, "*{text}"),
            How::Contains(text) => write!(f, "*{text}*"),
            How::Regex(regex) => {
                let text = regex.as_str();
                let inner = text
                    .strip_prefix("^(?:")
                    .and_then(|text| text.strip_suffix(")$"));
                write!(f, "~{}", inner.unwrap_or(text))
            }
            How::Other(what) => write!(f, "<{what}>"),
        }
    }
}

impl fmt::Display for HeaderMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.value, self.invert) {
            (None, false) => write!(f, "{} present", self.name),
            (None, true) => write!(f, "{} absent", self.name),
            (Some(value), false) => write!(f, "{}={value}", self.name),
            (Some(value), true) => write!(f, "{} not {value}", self.name),
        }
    }
}

impl fmt::Display for RouteMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            PathMatcher::Prefix(path) | PathMatcher::Text(path) => write!(f, "{path}")?,
            PathMatcher::Separated(path) => write!(f, "{path}[/*]")?,
            PathMatcher::Other(what) => write!(f, "<{what}>")?,
        }
        let headers = self
            .headers
            .iter()
            .filter(|header| header.name != ":method");
        for header in headers {
            write!(f, " if {header}")?;
        }
        for (name, wanted) in &self.query {
            match wanted {
                Some(wanted) => write!(f, " if ?{name}={wanted}")?,
                None => write!(f, " if ?{name}")?,
            }
        }
        match self.other {
            Some(other) => write!(f, " if {other}"),
            None => Ok(()),
        }
    }
}
