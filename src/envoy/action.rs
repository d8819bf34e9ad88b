//! Rate-limit actions: what of a request becomes an entry of a descriptor.
//!
//! Source: route_components.proto and the rate limit filter: an action that yields nothing drops its descriptor, unless it
//! says `skip_if_absent`.

use std::{borrow::Cow, fmt, net::IpAddr};

use ipnet::IpNet;
use serde_json::Value;

use super::matcher::{HeaderMatcher, StringMatcher, flag, number, text};
use crate::descriptor::Entry;

/// One descriptor that Envoy asks about: its actions in order.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its actions.
    pub actions: Vec<Action>,
    /// Tokens it takes, where that is not simply 1 and always the same.
    pub hits: Option<u64>,
    /// Whether it is asked only after the response: it takes tokens, and refuses nobody.
    pub after_response: bool,
    /// Why requests cannot be judged by what a log tells of them; none if they can.
    pub beyond: Option<&'static str>,
    /// Only the filter of this stage asks it.
    pub stage: u64,
}

/// What makes one entry.
#[derive(Debug, Clone)]
pub struct Action {
    /// The entry's key.
    pub key: String,
    /// Where its value comes from.
    pub source: Source,
    /// What holds where there is no value.
    pub absent: Absent,
    /// Requests that it makes an entry for; none for all.
    pub only_if: Option<Condition>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It stands in the configuration.
    Text(String),
    /// A request header, in lower case; `:method`, `:path` and `:authority` too.
    Header(String),
    /// A parameter of the query.
    Query(String),
    /// The client's address.
    Address,
    /// The client's network, by these prefix lengths.
    Network(u8, u8),
    /// Dynamic metadata: of which filter, and the path in it.
    Metadata(String, Vec<String>),
    /// The cluster that the route leads to.
    Cluster,
    /// Something else of the request, by its name in Envoy's configuration.
    Other(String),
}

/// What holds where a request has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// There is no descriptor.
    Drop,
    /// The descriptor has no such entry.
    Skip,
    /// This value.
    Default(String),
}

/// Which requests an action is for.
#[derive(Debug, Clone)]
pub enum Condition {
    /// All of these match, or not all of them.
    Headers(Vec<HeaderMatcher>, bool),
    /// All of these match, or not all of them.
    Query(Vec<(String, Option<StringMatcher>)>, bool),
    /// Something else.
    Other(String),
}

/// What is known of a request.
pub trait Facts {
    /// The value of `source`.
    fn find(&self, source: &Source) -> Found<'_>;
}

/// What is known of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// The value.
    Value(Cow<'a, str>),
    /// The request has none.
    Absent,
    /// Nobody knows.
    Unknown(Missing),
}

/// What would have to be known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Ask {
    /// Reads an item of `rate_limits`.
    pub(super) fn read(value: &Value) -> Self {
        let hits = &value["hits_addend"];
        let beyond = [
            (!value["limit"].is_null(), "it brings a limit along"),
            (!hits["format"].is_null(), "its hits come from the request"),
            (flag(&hits["is_negative_hits"]), "it gives tokens back"),
        ];
        Self {
            actions: list(&value["actions"]).iter().map(Action::read).collect(),
            hits: number(&hits["number"]),
            beyond: beyond.into_iter().find_map(|(is, why)| is.then_some(why)),
            after_response: flag(&value["apply_on_stream_done"]),
            stage: number(&value["stage"]).unwrap_or_default(),
        }
    }

    /// The entries of a request's descriptor, or none if it gets no such descriptor.
    ///
    /// # Errors
    /// What is not known of the request.
    pub fn entries(&self, facts: &impl Facts) -> Result<Option<Vec<Entry>>, Missing> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.value(facts)? {
                Some(value) => entries.push(Entry::new(action.key.clone(), value)),
                None if action.absent == Absent::Skip && action.only_if.is_none() => {}
                None => return Ok(None),
            }
        }
        // One without entries is asked about, too.
        Ok(Some(entries))
    }
}

impl Action {
    fn new(key: &str, source: Source, absent: Absent) -> Self {
        Self {
            key: key.to_owned(),
            source,
            absent,
            only_if: None,
        }
    }

    fn read(value: &Value) -> Self {
        let Some((kind, body)) = value.as_object().and_then(|fields| fields.iter().next()) else {
            return Self::new(
                "",
                Source::Other("an empty action".to_owned()),
                Absent::Drop,
            );
        };
        let key = |default: &str| text(&body["descriptor_key"]).unwrap_or(default).to_owned();
        let fixed = |key: &str| Self::new(key, fixed(&body["descriptor_value"]), Absent::Drop);
        let expect = body["expect_match"].as_bool().unwrap_or(true);
        match kind.as_str() {
            "generic_key" => fixed(&key("generic_key")),
            "request_headers" => {
                let header = text(&body["header_name"])
                    .unwrap_or_default()
                    .to_lowercase();
                Self::new(&key(""), Source::Header(header), absent(body))
            }
            "remote_address" => Self::new("remote_address", Source::Address, Absent::Drop),
            "masked_remote_address" => {
                Self::new("masked_remote_address", network(body), Absent::Drop)
            }
            "destination_cluster" => {
                Self::new("destination_cluster", Source::Cluster, Absent::Drop)
            }
            "query_parameters" => {
                let name = text(&body["query_parameter_name"]).unwrap_or_default();
                Self::new(&key(""), Source::Query(name.to_owned()), absent(body))
            }
            "metadata" | "dynamic_metadata" => {
                Self::new(&key(""), metadata(&body["metadata_key"]), absent(body))
            }
            "header_value_match" => Self {
                only_if: Some(Condition::Headers(
                    HeaderMatcher::list(&body["headers"]),
                    expect,
                )),
                ..fixed(&key("header_match"))
            },
            "query_parameter_value_match" => Self {
                only_if: Some(Condition::Query(
                    parameters(&body["query_parameters"]),
                    expect,
                )),
                ..fixed(&key("query_match"))
            },
            "remote_address_match" => Self {
                only_if: Some(Condition::Other("the client's address".to_owned())),
                ..fixed(&key("remote_address_match"))
            },
            "extension" => extension(body),
            other => Self::new(&key(other), Source::Other(other.to_owned()), absent(body)),
        }
    }

    fn value(&self, facts: &impl Facts) -> Result<Option<String>, Missing> {
        if let Some(condition) = &self.only_if
            && !condition.holds(facts)?
        {
            return Ok(None);
        }
        let found = match &self.source {
            Source::Text(value) => return Ok(Some(value.clone())),
            Source::Network(v4, v6) => match facts.find(&Source::Address) {
                Found::Value(address) => Found::Value(masked(&address, *v4, *v6).into()),
                other => other,
            },
            source => facts.find(source),
        };
        match (found, &self.absent) {
            (Found::Unknown(missing), _) => Err(missing),
            (Found::Value(value), _) if !value.is_empty() => Ok(Some(value.into_owned())),
            (_, Absent::Default(value)) => Ok(Some(value.clone())),
            _ => Ok(None),
        }
    }
}

impl Condition {
    /// Whether it holds for a request.
    ///
    /// # Errors
    /// What is not known of the request.
    pub fn holds(&self, facts: &impl Facts) -> Result<bool, Missing> {
        match self {
            Self::Headers(matchers, expect) => {
                Ok(HeaderMatcher::all_match(matchers, facts)? == *expect)
            }
            Self::Query(matchers, expect) => {
                for (name, wanted) in matchers {
                    let holds = match facts.find(&Source::Query(name.clone())) {
                        Found::Unknown(missing) => return Err(missing),
                        Found::Absent => false,
                        Found::Value(value) => {
                            wanted.as_ref().is_none_or(|wanted| wanted.matches(&value))
                        }
                    };
                    if !holds {
                        return Ok(!expect);
                    }
                }
                Ok(*expect)
            }
            Self::Other(what) => Err(Missing(what.clone())),
        }
    }
}

/// The items of a list; none where there is no list.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The parameters of a query that are to match, each with what its value is to be.
pub(super) fn parameters(value: &Value) -> Vec<(String, Option<StringMatcher>)> {
    let parameter = |value: &Value| {
        let name = text(&value["name"]).unwrap_or_default().to_owned();
        let wanted = &value["string_match"];
        (
            name,
            (!wanted.is_null()).then(|| StringMatcher::read(wanted)),
        )
    };
    list(value).iter().map(parameter).collect()
}

fn absent(body: &Value) -> Absent {
    match (text(&body["default_value"]), flag(&body["skip_if_absent"])) {
        (Some(default), _) if !default.is_empty() => Absent::Default(default.to_owned()),
        (_, true) => Absent::Skip,
        _ => Absent::Drop,
    }
}

/// A value of the configuration; one with a format string in it comes from the request.
fn fixed(value: &Value) -> Source {
    let value = text(value).unwrap_or_default().to_owned();
    match value.contains('%') {
        true => Source::Other(value),
        false => Source::Text(value),
    }
}

fn network(body: &Value) -> Source {
    let length = |field: &str, most: u8| {
        let length = number(&body[field]).unwrap_or(most.into());
        u8::try_from(length).unwrap_or(most).min(most)
    };
    Source::Network(
        length("v4_prefix_mask_len", 32),
        length("v6_prefix_mask_len", 128),
    )
}

fn metadata(key: &Value) -> Source {
    let filter = text(&key["key"]).unwrap_or_default().to_owned();
    let path = list(&key["path"])
        .iter()
        .filter_map(|part| text(&part["key"]));
    Source::Metadata(filter, path.map(str::to_owned).collect())
}

/// Source: an input's name is the entry's key.
fn extension(body: &Value) -> Action {
    let name = text(&body["name"]).unwrap_or_default();
    let config = &body["typed_config"];
    let kind = text(&config["@type"]).unwrap_or_default();
    let source = match kind.rsplit('.').next().unwrap_or_default() {
        "SourceIPInput" => Source::Address,
        "HttpRequestHeaderMatchInput" => Source::Header(
            text(&config["header_name"])
                .unwrap_or_default()
                .to_lowercase(),
        ),
        "HttpRequestQueryParamMatchInput" => {
            Source::Query(text(&config["query_param"]).unwrap_or_default().to_owned())
        }
        other => Source::Other(other.to_owned()),
    };
    Action::new(name, source, Absent::Drop)
}

/// `192.0.2.0/24`, as Envoy writes it.
fn masked(address: &str, v4: u8, v6: u8) -> String {
    let Ok(address) = address.parse::<IpAddr>() else {
        return String::new();
    };
    let length = if address.is_ipv4() { v4 } else { v6 };
    let net = IpNet::new(address, length).expect("prefix lengths are cut to what an address has");
    net.trunc().to_string()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Header(name) => write!(f, "<header {name}>"),
            Self::Query(name) => write!(f, "<query parameter {name}>"),
            Self::Address => f.write_str("<client address>"),
            Self::Network(..) => f.write_str("<client network>"),
            Self::Metadata(filter, path) => write!(f, "<metadata {filter}/{}>", path.join("/")),
            Self::Cluster => f.write_str("<cluster>"),
            Self::Other(what) => write!(f, "<{what}>"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |expect: &bool| if *expect { "" } else { "not " };
        match self {
            Self::Headers(matchers, expect) => {
                let texts: Vec<String> = matchers.iter().map(ToString::to_string).collect();
                write!(f, "{}{}", not(expect), texts.join(" and "))
            }
            Self::Query(parameters, expect) => {
                let names: Vec<&str> = parameters.iter().map(|(name, _)| &**name).collect();
                write!(f, "{}query parameter {}", not(expect), names.join(" and "))
            }
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, action) in self.actions.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}={}", action.key, action.source)?;
        }
        Ok(())
    }
}
