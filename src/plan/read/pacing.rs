//! Reads what becomes of what is beyond a limit: `delay`, `penalty`.

use std::time::Duration;

use crate::{
    limit::{Limit, Penalty},
    plan::{
        fields::{Fields, Reader},
        mistake::Path,
        scalar::whole_number,
        shapes::PENALTY,
        tree::{Node, Value},
    },
};

/// A penalty begins after so many refusals within this time, unless told.
const AFTER: u32 = 10;
const WITHIN: Duration = Duration::from_secs(60);

/// The longest penalty, unless told; or the first one, if that is longer.
const LONGEST: Duration = Duration::from_secs(3_600);

impl Reader<'_> {
    /// `limit` with its `delay`, if it has one: `up to 500ms`, or `500ms`.
    pub(super) fn with_delay(
        &mut self,
        limit: Limit,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Limit {
        let Some(text) = self.text_of(fields, path, "delay") else {
            return limit;
        };
        let most = text.trim().strip_prefix("up to ").unwrap_or(text);
        let delayed = match duration(most) {
            Some(delay) => limit.clone().with_delay(delay),
            None => {
                let message =
                    format!("`{text}` is not a delay: write a length of time, like `up to 500ms`");
                self.error(fields.place, &path.field("delay"), message);
                return limit;
            }
        };
        delayed.unwrap_or_else(|error| {
            self.error(fields.place, &path.field("delay"), error.to_string());
            limit
        })
    }
}

impl Reader<'_> {
    /// `limit` with its `penalty`, if it has one: `60s`, or an object.
    pub(super) fn with_penalty(
        &mut self,
        limit: Limit,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Limit {
        let Some(node) = fields.get("penalty") else {
            return limit;
        };
        let path = path.field("penalty");
        let Some(penalty) = self.penalty(node, &path) else {
            return limit;
        };
        let penalised = limit.clone().with_penalty(penalty);
        penalised.unwrap_or_else(|error| {
            self.error(node.place, &path, error.to_string());
            limit
        })
    }

    fn penalty(&mut self, node: &Node, path: &Path<'_>) -> Option<Penalty> {
        if !matches!(node.value, Value::Map(_)) {
            let first = self.length(node, path)?;
            return Some(Penalty {
                after: AFTER,
                within: WITHIN,
                first,
                longest: first.max(LONGEST),
            });
        }
        let fields = self.fields(node, path, &PENALTY)?;
        let Some(first) = fields.get("for") else {
            let message = "a penalty needs `for`, for example `{ for: 60s }`";
            self.error(node.place, path, message);
            return None;
        };
        let first = self.length(first, &path.field("for"))?;
        let mut length = |name: &str, default| match fields.get(name) {
            Some(node) => self.length(node, &path.field(name)),
            None => Some(default),
        };
        let (within, longest) = (
            length("within", WITHIN),
            length("longest", first.max(LONGEST)),
        );
        let after = match fields.get("after") {
            Some(node) => self.count(node, &path.field("after")),
            None => Some(AFTER),
        };
        Some(Penalty {
            after: after?,
            within: within?,
            first,
            longest: longest?,
        })
    }

    fn length(&mut self, node: &Node, path: &Path<'_>) -> Option<Duration> {
        let text = self.text(node, path)?;
        let length = duration(text);
        if length.is_none() {
            let message = format!("`{text}` is not a length of time: write, for example, `60s`");
            self.error(node.place, path, message);
        }
        length
    }

    fn count(&mut self, node: &Node, path: &Path<'_>) -> Option<u32> {
        let text = self.text(node, path)?;
        let count = whole_number(text);
        if count.is_none() {
            let message = format!("`{text}` is not a whole number from 0 to 4294967295");
            self.error(node.place, path, message);
        }
        count
    }
}

/// Reads `500ms`, `60s`, `1h 30m`.
fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok()
}
