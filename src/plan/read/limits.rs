//! Reads limits: lists of ours, and the reference's `rate_limit`.

use crate::{
    limit::{Algorithm, Limit, LimitError, Period, Unit},
    plan::{
        beyond::{Mode, WarnAt, WarnAtError},
        fields::{Fields, OneOf, Reader},
        file::{LimitFile, RateLimitFile, ReplacesFile},
        mistake::{Path, Place, did_you_mean},
        scalar::integer,
        shapes::{LIMIT, RATE_LIMIT, REPLACES},
        tree::{Node, Value},
        words::not_a_map,
    },
};

impl Reader<'_> {
    pub(super) fn rule_limits(&mut self, node: &Node, path: &Path<'_>) -> Vec<LimitFile> {
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            let message = "a rule needs at least one limit; to let all pass, write `rate_limit: { unlimited: true }`";
            self.error(node.place, path, message);
        }
        self.limits(node, path)
    }

    /// Reads a list of limits, no two of which count in the same bucket.
    pub(super) fn limits(&mut self, node: &Node, path: &Path<'_>) -> Vec<LimitFile> {
        let mut limits: Vec<LimitFile> = Vec::new();
        for (index, item) in self
            .list(node, path, "limits like `10/second burst 100`")
            .iter()
            .enumerate()
        {
            let path = path.item(index);
            let Some(limit) = self.limit(item, &path) else {
                continue;
            };
            let identity = limit.limit.identity();
            if let Some(first) = limits
                .iter()
                .find(|first| first.limit.identity() == identity)
            {
                let (first, again) = (&first.limit, &limit.limit);
                let tenfold = again.count().saturating_mul(10);
                let seconds = again.period().seconds().saturating_mul(10);
                let message = format!(
                    "`{first}` and `{again}` are of one kind and period and would share a bucket; keep one, or write another period, for example `{tenfold}/{seconds}s`"
                );
                self.error(item.place, &path, message);
            }
            limits.push(limit);
        }
        limits
    }

    fn limit(&mut self, node: &Node, path: &Path<'_>) -> Option<LimitFile> {
        if !matches!(node.value, Value::Map(_)) {
            let text = self.text(node, path)?;
            return self.limit_text(text, node.place, path);
        }
        let fields = self.fields(node, path, &LIMIT)?;
        let name = fields
            .get("name")
            .and_then(|name| self.proper_name(name, &path.field("name")))
            .map(str::to_owned);
        let Some(text) = fields.get("limit") else {
            let message = "a limit needs `limit`, for example `{ limit: 10/second burst 100 }`";
            self.error(node.place, path, message);
            return None;
        };
        let limit_path = path.field("limit");
        let limit = self.text(text, &limit_path)?;
        let limit = self.limit_text(limit, text.place, &limit_path)?;
        let file = self.in_zone(limit, &fields, path)?;
        let limit = self.with_delay(file.limit, &fields, path);
        let limit = self.with_penalty(limit, &fields, path);
        Some(LimitFile {
            limit,
            name,
            mode: self.choice(&fields, path, "mode", Mode::NAMES),
            warn_at: self.warn_at(&fields, path),
            ..file
        })
    }

    /// Reads `warn_at`.
    pub(super) fn warn_at(&mut self, fields: &Fields<'_>, path: &Path<'_>) -> Option<WarnAt> {
        let node = fields.get("warn_at")?;
        let path = path.field("warn_at");
        let parsed = self.text(node, &path)?.parse();
        let say = |error: WarnAtError| self.error(node.place, &path, error.to_string());
        parsed.map_err(say).ok()
    }

    /// Reads `time_zone` and `offset`. What has them counts by the calendar, whatever the algorithm.
    fn in_zone(
        &mut self,
        limit: LimitFile,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Option<LimitFile> {
        let zone = self.text_of(fields, path, "time_zone");
        let offset = self.text_of(fields, path, "offset");
        let plain = limit.plain && zone.is_none() && offset.is_none();
        match limit.limit.in_zone(zone, offset) {
            Ok(zoned) => Some(LimitFile {
                limit: zoned,
                plain,
                ..limit
            }),
            Err(error) => {
                let field = match error {
                    LimitError::Zone { .. } => "time_zone",
                    LimitError::Offset { .. } => "offset",
                    _ => "limit",
                };
                let place = fields.get(field).map_or(fields.place, |node| node.place);
                self.error(place, &path.field(field), error.to_string());
                None
            }
        }
    }

    pub(super) fn limit_text(
        &mut self,
        text: &str,
        place: Option<Place>,
        path: &Path<'_>,
    ) -> Option<LimitFile> {
        match text.parse() {
            Ok(limit) => Some(LimitFile {
                limit,
                plain: Limit::is_plain(text),
                name: None,
                mode: None,
                warn_at: None,
            }),
            Err(error) => {
                let error: LimitError = error;
                self.error(place, path, error.to_string());
                None
            }
        }
    }

    pub(super) fn rate_limit(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Option<RateLimitFile> {
        let path = path.field("rate_limit");
        let node = fields.get("rate_limit")?;
        let fields = self.fields(node, &path, &RATE_LIMIT)?;
        let name = self
            .text_of(&fields, &path, "name")
            .filter(|name| !name.is_empty());
        let unlimited = self.flag(&fields, &path, "unlimited").unwrap_or(false);
        let file = RateLimitFile {
            unit: self.unit(&fields, &path, unlimited),
            requests_per_unit: self.requests_per_unit(&fields, &path),
            unlimited,
            name: name.map(str::to_owned),
            replaces: self.replaces(&fields, &path, name),
        };
        if let (Some(unit), false) = (file.unit, unlimited)
            && let Err(error) = Limit::per(
                file.requests_per_unit,
                Period::of(unit),
                Algorithm::TokenBucket,
            )
        {
            self.error(node.place, &path, error.to_string());
        }
        Some(file)
    }

    fn unit(&mut self, fields: &Fields<'_>, path: &Path<'_>, unlimited: bool) -> Option<Unit> {
        let node = fields.get("unit");
        let place = node.map_or(fields.place, |node| node.place);
        let path = path.field("unit");
        let text = match node {
            Some(node) => self.text(node, &path)?,
            None => "",
        };
        let unit = Unit::ALL
            .into_iter()
            .find(|unit| unit.name().eq_ignore_ascii_case(text));
        match (unit, unlimited) {
            (Some(_), true) => {
                let message = "should not specify rate limit unit when unlimited";
                self.error(place, &path, message);
            }
            (None, true) if !text.is_empty() => {
                self.warning(place, &path, "is ignored when unlimited");
            }
            (None, false) => {
                let names = Unit::ALL.map(Unit::name);
                let hint = did_you_mean(text, names);
                let message = format!(
                    "invalid rate limit unit '{text}'{hint}; use {}",
                    OneOf(&names)
                );
                self.error(place, &path, message);
            }
            _ => {}
        }
        unit
    }

    fn requests_per_unit(&mut self, fields: &Fields<'_>, path: &Path<'_>) -> u32 {
        let Some(node) = fields.get("requests_per_unit") else {
            return 0;
        };
        let path = path.field("requests_per_unit");
        let Some(text) = self.text(node, &path) else {
            return 0;
        };
        let quote = match node.value {
            Value::Scalar { plain: false, .. } => "\"",
            _ => "",
        };
        // The reference takes neither `"5"` nor `5.0`.
        let integer = integer(text).filter(|_| quote.is_empty());
        let number = integer.and_then(|integer| u32::try_from(integer).ok());
        number.unwrap_or_else(|| {
            let words = self.words(node, &path);
            let message =
                format!("`{quote}{text}{quote}` is not a whole number from 0 to 4294967295{words}");
            self.error(node.place, &path, message);
            0
        })
    }

    pub(super) fn replaces(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
        own: Option<&str>,
    ) -> Option<Vec<ReplacesFile>> {
        let path = path.field("replaces");
        let items = self.list(
            fields.get("replaces")?,
            &path,
            "rules to replace, like `{name: …}`",
        );
        let mut replaces = Vec::with_capacity(items.len());
        for (index, node) in items.iter().enumerate() {
            let path = path.item(index);
            if !matches!(node.value, Value::Map(_)) {
                let found = node.kind();
                let message = format!(
                    "expected `{{name: …}}`, found {found} ({})",
                    not_a_map(node)
                );
                self.error(node.place, &path, message);
                continue;
            }
            let Some(fields) = self.fields(node, &path, &REPLACES) else {
                continue;
            };
            let name = self.text_of(&fields, &path, "name").unwrap_or_default();
            if name.is_empty() {
                let message = "should not have an empty replaces entry: add the `name` of a rule";
                self.error(node.place, &path, message);
            } else if own == Some(name) {
                let message = "replaces should not contain name of same descriptor";
                self.error(node.place, &path, message);
            }
            replaces.push(ReplacesFile {
                name: name.to_owned(),
            });
        }
        Some(replaces)
    }
}
