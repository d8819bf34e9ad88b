//! Turns a line of an access log into what Envoy would ask about that request.

use serde_json::Value;

use super::{
    Request, moment,
    template::{Template, field},
};
use crate::{
    clock::Timestamp,
    descriptor::{Descriptor, Hits, Query},
    envoy::{Ask, Asked, Manager, Missing, access_log, route},
};

/// Fields that may hold the time, where nobody says which one does.
pub const TIME_FIELDS: [&str; 4] = ["time", "start_time", "timestamp", "@timestamp"];

/// How lines become requests.
#[derive(Debug)]
pub enum Reader {
    /// As this connection manager's routes and access log say.
    Envoy {
        /// The manager; it has a log in JSON.
        manager: Box<Manager>,
        /// The field that holds the time, if it is not the one of `%START_TIME%`.
        time: Option<String>,
    },
    /// By templates.
    Templates {
        /// The domain that is asked.
        domain: String,
        /// One per descriptor.
        templates: Vec<Template>,
        /// The field that holds the time, if one is named.
        time: Option<String>,
    },
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// A request that is asked about.
    Request(Request),
    /// A request that nobody is asked about.
    NotAsked,
    /// A request of which the log does not tell enough.
    Unknown(Missing),
}

impl Reader {
    /// Reads a line.
    ///
    /// # Errors
    /// Why it is no request of such a log.
    pub fn read(&self, line: &[u8]) -> Result<Read, String> {
        let value: Value =
            serde_json::from_slice(line).map_err(|error| format!("no JSON ({error})"))?;
        if !value.is_object() {
            return Err("no JSON object".to_owned());
        }
        let at = self.time(&value)?;
        let read = match self {
            Self::Templates {
                domain, templates, ..
            } => {
                let entries = templates
                    .iter()
                    .filter_map(|template| template.entries(&value));
                let descriptors = entries.map(|entries| descriptor(entries, None)).collect();
                Ok((query(domain, descriptors).into_iter().collect(), None))
            }
            Self::Envoy { manager, .. } => queries(manager, &value),
        };
        let (queries, refused_then): (Vec<Query>, _) = match read {
            Ok(read) => read,
            Err(missing) => return Ok(Read::Unknown(missing)),
        };
        for query in &queries {
            query.check().map_err(|error| error.to_string())?;
        }
        Ok(match queries.is_empty() {
            true => Read::NotAsked,
            false => Read::Request(Request {
                at,
                queries,
                refused_then,
            }),
        })
    }

    fn time(&self, line: &Value) -> Result<Timestamp, String> {
        let (Self::Envoy { time, .. } | Self::Templates { time, .. }) = self;
        let (value, name) = match (time, self) {
            (Some(time), _) => (field(line, time), time.as_str()),
            (None, Self::Envoy { manager, .. }) => {
                let log = manager.access_log.as_ref();
                let value = log.and_then(|log| log.field(line, &["START_TIME"]));
                (value.unwrap_or(&Value::Null), "%START_TIME%")
            }
            (None, Self::Templates { .. }) => {
                let fields = TIME_FIELDS.iter().map(|name| field(line, name));
                let value = fields.into_iter().find(|value| !value.is_null());
                (value.unwrap_or(&Value::Null), "time")
            }
        };
        moment::read(value).ok_or_else(|| match value {
            Value::Null => format!("no field of {name}"),
            value => format!("{name} is {value}, which is no moment"),
        })
    }
}

/// What the filters of a manager would ask about a logged request, and whether a limit refused it then.
fn queries(manager: &Manager, value: &Value) -> Result<(Vec<Query>, Option<bool>), Missing> {
    let Some(log) = &manager.access_log else {
        return Err(Missing("an access log in JSON".to_owned()));
    };
    let flags = log
        .field(value, &["RESPONSE_FLAGS"])
        .and_then(Value::as_str);
    let has = |flag: &str| flags.map(|flags| flags.split(',').any(|known| known == flag));
    // Source: Envoy's response flags: UAEX, refused by ext_authz; RL, refused by the rate limit service.
    if manager.authz_first && has("UAEX") == Some(true) {
        return Ok((Vec::new(), None));
    }
    let mut line = access_log::Line {
        log,
        value,
        cluster: None,
    };
    let Some(route) = route::find(&manager.hosts, &line)? else {
        return Ok((Vec::new(), None));
    };
    line.cluster = route.cluster.as_deref();
    let mut queries = Vec::new();
    if route.answered.is_none() {
        for asked in &route.asked {
            if let Asked::Of(domain, asks) = asked {
                queries.extend(query(domain, descriptors(asks, &line)?));
            }
        }
    }
    Ok((queries, has("RL")))
}

fn descriptors(asks: &[Ask], line: &access_log::Line<'_>) -> Result<Vec<Descriptor>, Missing> {
    let mut descriptors = Vec::new();
    for ask in asks.iter().filter(|ask| !ask.after_response) {
        if let Some(entries) = ask.entries(line)? {
            if let Some(why) = ask.beyond {
                return Err(Missing(format!("what ({ask}) asks: {why}")));
            }
            descriptors.push(descriptor(entries, ask.hits));
        }
    }
    Ok(descriptors)
}

fn descriptor(entries: Vec<crate::descriptor::Entry>, hits: Option<u64>) -> Descriptor {
    Descriptor {
        entries,
        hits: hits.map_or(Hits::default(), Hits::Take),
        says_hits: hits.is_some(),
        limit: None,
    }
}

/// A query, if there is something to ask.
fn query(domain: &str, descriptors: Vec<Descriptor>) -> Option<Query> {
    (!descriptors.is_empty()).then(|| Query {
        domain: domain.to_owned(),
        descriptors,
    })
}
