//! What a config file of envoyproxy/ratelimit does differently here by default, and how to keep what it did.
//!
//! One note per subject, with the first place and a count. Reads the file's text on its own, since what was left unsaid
//! matters here, and a compiled plan no longer knows that.

use std::sync::Arc;

use crate::{
    limit::Unit,
    plan::{
        Mistake,
        mistake::{Path, Place},
        scalar::truth,
        shapes::REFERENCE,
        tree::{Node, Value, parse},
    },
};

/// What was found in one file.
#[derive(Debug)]
pub struct Review {
    /// Whether it has a limit and no field of ours: most likely it was written for envoyproxy/ratelimit.
    pub theirs: bool,
    /// What differs; nothing for a file without limits in the reference's form.
    pub notes: Vec<Mistake>,
}

/// Reviews a file that loads. `counting` is what holds where it says nothing.
pub fn review(file: &str, text: &str, counting: Counting) -> Review {
    let top = parse(text).ok().and_then(|document| document.top);
    let mut found = Found::default();
    if let Some(top) = &top {
        found.level(top, &Path::Top, counting);
    }
    Review {
        theirs: found.limits.count > 0 && !found.ours,
        notes: found.notes(file),
    }
}

/// How much of the reference's way to count is kept: by default, in a file, or below a rule.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting {
    /// Limits count in fixed windows.
    pub windows: bool,
    /// Each descriptor is charged on its own.
    pub charges_apart: bool,
}

/// How often something stands in a file, and where first.
#[derive(Debug, Default)]
struct Count {
    count: usize,
    first: Option<(Place, String)>,
}

impl Count {
    fn add(&mut self, place: Place, path: &Path<'_>) {
        self.count += 1;
        self.first.get_or_insert_with(|| (place, path.to_string()));
    }
}

#[derive(Debug, Default)]
struct Found {
    /// A field that only we have.
    ours: bool,
    on_store_error: bool,
    response: bool,
    limits: Count,
    buckets: Count,
    long_buckets: Count,
    taken_together: Count,
    addresses: Count,
    statistics: Count,
}

impl Found {
    /// The file itself, or a rule.
    fn level(&mut self, node: &Node, path: &Path<'_>, counting: Counting) {
        let Value::Map(fields) = &node.value else {
            return;
        };
        let field = |name: &str| {
            let mut named = fields.iter().filter(|(key, _)| text(key) == Some(name));
            named
                .next()
                .map(|(_, value)| value)
                .filter(|value| !value.is_null())
        };
        let is = |name: &str| field(name).and_then(text).and_then(truth) == Some(true);
        self.fields_of_ours(fields);
        self.on_store_error |= field("on_store_error").is_some();
        self.response |= field("response").is_some();
        let said = |name: &str, otherwise: bool, default: &str| {
            field(name)
                .and_then(text)
                .map_or(otherwise, |said| said != default)
        };
        let counting = Counting {
            windows: said("algorithm", counting.windows, "token_bucket"),
            charges_apart: said("charge", counting.charges_apart, "all_or_nothing"),
        };
        if let Some(limit) = field("rate_limit") {
            self.limit(limit, &path.field("rate_limit"), counting);
        }
        if is("detailed_metric") || is("value_to_metric") {
            self.statistics.add(node.place, path);
        }
        let address = field("key").and_then(text) == Some("remote_address");
        if address && field("value").is_none() {
            self.addresses.add(node.place, path);
        }
        if let Some(Value::List(rules)) = field("descriptors").map(|rules| &rules.value) {
            let path = path.field("descriptors");
            for (index, rule) in rules.iter().enumerate() {
                self.level(rule, &path.item(index), counting);
            }
        }
    }

    fn limit(&mut self, node: &Node, path: &Path<'_>, counting: Counting) {
        let Value::Map(fields) = &node.value else {
            return;
        };
        self.fields_of_ours(fields);
        let unit = fields.iter().find(|(key, _)| text(key) == Some("unit"));
        let Some(unit) = unit.and_then(|(_, unit)| Unit::parse(text(unit)?)) else {
            return;
        };
        self.limits.add(node.place, path);
        if !counting.windows {
            self.buckets.add(node.place, path);
            if matches!(unit, Unit::Week | Unit::Month | Unit::Year) {
                self.long_buckets.add(node.place, path);
            }
        }
        if !counting.charges_apart {
            self.taken_together.add(node.place, path);
        }
    }

    fn fields_of_ours(&mut self, fields: &[(Node, Node)]) {
        let theirs = |key| text(key).is_some_and(|name| REFERENCE.contains(&name));
        self.ours |= !fields.iter().all(|(key, _)| theirs(key));
    }

    fn notes(&self, file: &str) -> Vec<Mistake> {
        if self.limits.count == 0 {
            return Vec::new();
        }
        let file: Arc<str> = file.into();
        let mut notes = Vec::new();
        let mut note = |first: Option<&(Place, String)>, message: String| {
            let (place, path) = first.cloned().unzip();
            notes.push(Mistake {
                file: Arc::clone(&file),
                place,
                path: path.unwrap_or_default(),
                message,
            });
        };
        let mut count = |of: &Count, what: &str, message: &str| {
            if of.count > 0 {
                let message = format!("{}: {message}", times(of.count, what));
                note(of.first.as_ref(), message);
            }
        };
        count(&self.buckets, "limit", BUCKETS);
        count(&self.long_buckets, "limit", LONG_BUCKETS);
        // Where there is one limit, no other can be spared.
        if self.taken_together.count > 1 {
            count(&self.taken_together, "limit", TAKEN_TOGETHER);
        }
        count(&self.addresses, "rule", ADDRESSES);
        count(&self.statistics, "rule", STATISTICS);
        if !self.on_store_error {
            note(None, ON_STORE_ERROR.to_owned());
        }
        if !self.response {
            note(None, RESPONSE.to_owned());
        }
        notes
    }
}

const BUCKETS: &str = "a token bucket each, where envoyproxy/ratelimit counts in windows that begin anew with each unit: room comes back bit by bit, not at once. To keep windows: `algorithm: fixed_window` in the file or on a rule, or TOLLGATE_ALGORITHM=fixed_window";
const LONG_BUCKETS: &str = "per week, month or year, refilled all the time, so that the first of them lets up to twice its number pass. For a quota per calendar month: `limits: [\"N/month\"]`; for windows as they were: `algorithm: fixed_window`";
const TAKEN_TOGETHER: &str = "a request that meets several takes from all of them, or from none if one refuses; a refused request costs nothing. To charge each on its own, refused or not: `charge: independent` in the file or on a rule, or TOLLGATE_CHARGE=independent";
const ADDRESSES: &str =
    "an IPv6 address counts as its /64, since one client has as many addresses as it likes";
const STATISTICS: &str = "detailed_metric or value_to_metric, which make a statistic of each value; their number is bounded, and further values share one";
const ON_STORE_ERROR: &str = "while Redis does not answer, limits are counted in this process, where envoyproxy/ratelimit fails the call. To keep that: `on_store_error: error`";
const RESPONSE: &str = "by `tollgate serve`, answers get Retry-After and RateLimit headers, metadata, and a refusal a body: `response` turns each off. Started as `ratelimit`, they get what its variables ask for";

/// `1 limit`, `2 limits`.
fn times(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}
