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

/// What the files, by name and text, do differently: one note per subject.
///
/// `counting` is what holds where a file says nothing. A file with fields of ours was not written for envoyproxy/ratelimit; it is
/// looked at only where `all` are asked for. All files load.
pub fn differences<'f>(
    files: impl IntoIterator<Item = (&'f str, &'f str)>,
    all: bool,
    counting: Counting,
) -> Vec<Mistake> {
    let mut total = Found::default();
    for (name, text) in files {
        let found = Found::in_file(name, text, counting);
        if all || !found.ours {
            total.add(found);
        }
    }
    total.notes()
}

/// How much of the reference's way to count is kept: by default, in a file, or below a rule.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counting {
    /// Limits count in fixed windows.
    pub windows: bool,
    /// Each descriptor is charged on its own.
    pub charges_apart: bool,
}

/// How often something stands in the files, and where first.
#[derive(Debug, Default)]
struct Count {
    count: usize,
    first: Option<(Arc<str>, Option<Place>, String)>,
}

impl Count {
    fn add(&mut self, more: Self) {
        self.count += more.count;
        self.first = self.first.take().or(more.first);
    }
}

#[derive(Debug, Default)]
struct Found {
    file: Arc<str>,
    /// A field that only we have.
    ours: bool,
    on_store_error: bool,
    response: bool,
    buckets: Count,
    long_buckets: Count,
    taken_together: Count,
    addresses: Count,
    statistics: Count,
    /// Files that leave it to us what answers while the store does not, and what answers show.
    store_errors: Count,
    responses: Count,
}

impl Found {
    /// Nothing, if the file has no limit in the reference's form.
    fn in_file(name: &str, text: &str, counting: Counting) -> Self {
        let mut found = Self {
            file: name.into(),
            ..Self::default()
        };
        let top = parse(text).ok().and_then(|document| document.top);
        let limits = top.map_or(0, |top| found.level(&top, &Path::Top, counting));
        if limits == 0 {
            return Self::default();
        }
        for (said, count) in [
            (found.on_store_error, &mut found.store_errors),
            (found.response, &mut found.responses),
        ] {
            if !said {
                count.count = 1;
                count.first = Some((Arc::clone(&found.file), None, String::new()));
            }
        }
        found
    }

    fn add(&mut self, file: Self) {
        self.buckets.add(file.buckets);
        self.long_buckets.add(file.long_buckets);
        self.taken_together.add(file.taken_together);
        self.addresses.add(file.addresses);
        self.statistics.add(file.statistics);
        self.store_errors.add(file.store_errors);
        self.responses.add(file.responses);
    }

    /// One more, here.
    fn one(&self, place: Option<Place>, path: &Path<'_>) -> Count {
        Count {
            count: 1,
            first: Some((Arc::clone(&self.file), place, path.to_string())),
        }
    }

    /// The file itself, or a rule; answers how many limits it has.
    fn level(&mut self, node: &Node, path: &Path<'_>, counting: Counting) -> usize {
        let Value::Map(fields) = &node.value else {
            return 0;
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
        let mut limits = match field("rate_limit") {
            Some(limit) => self.limit(limit, &path.field("rate_limit"), counting),
            None => 0,
        };
        if is("detailed_metric") || is("value_to_metric") {
            self.statistics.add(self.one(node.place, path));
        }
        let address = field("key").and_then(text) == Some("remote_address");
        if address && field("value").is_none() {
            self.addresses.add(self.one(node.place, path));
        }
        if let Some(Value::List(rules)) = field("descriptors").map(|rules| &rules.value) {
            let path = path.field("descriptors");
            for (index, rule) in rules.iter().enumerate() {
                limits += self.level(rule, &path.item(index), counting);
            }
        }
        limits
    }

    fn limit(&mut self, node: &Node, path: &Path<'_>, counting: Counting) -> usize {
        let Value::Map(fields) = &node.value else {
            return 0;
        };
        self.fields_of_ours(fields);
        let unit = fields.iter().find(|(key, _)| text(key) == Some("unit"));
        let Some(unit) = unit.and_then(|(_, unit)| Unit::parse(text(unit)?)) else {
            return 0;
        };
        if !counting.windows {
            self.buckets.add(self.one(node.place, path));
            if matches!(unit, Unit::Week | Unit::Month | Unit::Year) {
                self.long_buckets.add(self.one(node.place, path));
            }
        }
        if !counting.charges_apart {
            self.taken_together.add(self.one(node.place, path));
        }
        1
    }

    fn fields_of_ours(&mut self, fields: &[(Node, Node)]) {
        let theirs = |key| text(key).is_some_and(|name| REFERENCE.contains(&name));
        self.ours |= !fields.iter().all(|(key, _)| theirs(key));
    }

    fn notes(self) -> Vec<Mistake> {
        // Where there is one limit, no other can be spared.
        let several = self.taken_together.count > 1;
        let subjects = [
            (self.buckets, "limit", BUCKETS),
            (self.long_buckets, "limit", LONG_BUCKETS),
            (self.addresses, "rule", ADDRESSES),
            (self.statistics, "rule", STATISTICS),
            (self.store_errors, "file", ON_STORE_ERROR),
            (self.responses, "file", RESPONSE),
        ];
        let together = several.then_some((self.taken_together, "limit", TAKEN_TOGETHER));
        let notes = together.into_iter().chain(subjects);
        notes
            .filter_map(|(count, what, message)| note(count, what, message))
            .collect()
    }
}

fn note(count: Count, what: &str, message: &str) -> Option<Mistake> {
    let (file, place, path) = count.first?;
    let plural = if count.count == 1 { "" } else { "s" };
    Some(Mistake {
        file,
        place,
        path,
        message: format!("{} {what}{plural}: {message}", count.count),
    })
}

const BUCKETS: &str = "a token bucket each, where envoyproxy/ratelimit counts in windows that begin anew with each unit: room comes back bit by bit, not at once. To keep windows: `algorithm: fixed_window` in the file or on a rule, or TOLLGATE_ALGORITHM=fixed_window";
const LONG_BUCKETS: &str = "per week, month or year, refilled all the time, so that the first of them lets up to twice its number pass. For a quota per calendar month: `limits: [\"N/month\"]`; for windows as they were: `algorithm: fixed_window`";
const TAKEN_TOGETHER: &str = "a request that meets several takes from all of them, or from none if one refuses; a refused request costs nothing. To charge each on its own, refused or not: `charge: independent` in the file or on a rule, or TOLLGATE_CHARGE=independent";
const ADDRESSES: &str =
    "an IPv6 address counts as its /64, since one client has as many addresses as it likes";
const STATISTICS: &str = "detailed_metric or value_to_metric, which make a statistic of each value; their number is bounded, and further values share one";
const ON_STORE_ERROR: &str = "while Redis does not answer, limits are counted in this process, where envoyproxy/ratelimit fails the call. To keep that: `on_store_error: error`";
const RESPONSE: &str = "by `tollgate serve`, answers get Retry-After and RateLimit headers, metadata, and a refusal a body: `response` turns each off. Started as `ratelimit`, they get what its variables ask for";

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}
