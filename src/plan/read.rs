//! Reads a plan file strictly: all mistakes at once, each with its place. What comes out is right in itself; only what two
//! files say together is checked later.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::{
    fields::{Fields, OneOf, Reader, Shape, is_number, truth},
    file::{
        ApiKeyFile, ApiKeyIsFile, LimitFile, LimitsFromFile, OnStoreErrorFile, PlanFile,
        RateLimitFile, ReplacesFile, ResponseFile, RuleFile, TierFile, UnmatchedFile,
    },
    mistake::{Path, Place, did_you_mean},
    tree::{Node, Value, parse},
};
use crate::limit::{Limit, Unit};

/// The whole file.
pub const PLAN: Shape = Shape {
    what: "a plan file",
    fields: &[
        "domain",
        "descriptors",
        "tiers",
        "api_keys",
        "unmatched",
        "response",
        "on_store_error",
    ],
    reference: true,
};

/// An item of `descriptors`.
pub const RULE: Shape = Shape {
    what: "a rule",
    fields: &[
        "key",
        "value",
        "cidr",
        "descriptors",
        "rate_limit",
        "limits",
        "limits_from",
        "unknown_key",
        "api_key_is",
        "name",
        "replaces",
        "shadow_mode",
        "quota_mode",
        "share_threshold",
        "detailed_metric",
        "value_to_metric",
        "metadata",
        "on_store_error",
    ],
    reference: true,
};

/// `rate_limit`.
pub const RATE_LIMIT: Shape = Shape {
    what: "a rate_limit",
    fields: &["unit", "requests_per_unit", "unlimited", "name", "replaces"],
    reference: true,
};

/// An item of `replaces`.
pub const REPLACES: Shape = Shape {
    what: "an item of replaces",
    fields: &["name"],
    reference: true,
};

/// A tier.
pub const TIER: Shape = Shape {
    what: "a tier",
    fields: &["limits"],
    reference: false,
};

/// A limit as an object.
pub const LIMIT: Shape = Shape {
    what: "a limit",
    fields: &["limit", "name"],
    reference: false,
};

/// An item of `api_keys`.
pub const API_KEY: Shape = Shape {
    what: "an API key",
    fields: &["id", "sha256", "tier", "owner"],
    reference: false,
};

/// `response`.
pub const RESPONSE: Shape = Shape {
    what: "response",
    fields: &[
        "retry_after",
        "ratelimit",
        "x_ratelimit",
        "metadata",
        "body",
        "content_type",
    ],
    reference: false,
};

/// All kinds of maps.
pub const SHAPES: [&Shape; 8] = [
    &PLAN,
    &RULE,
    &RATE_LIMIT,
    &REPLACES,
    &TIER,
    &LIMIT,
    &API_KEY,
    &RESPONSE,
];

const ON_STORE_ERROR: &[(&str, OnStoreErrorFile)] = &[
    ("local", OnStoreErrorFile::Local),
    ("allow", OnStoreErrorFile::Allow),
    ("deny", OnStoreErrorFile::Deny),
    ("error", OnStoreErrorFile::Error),
];

/// What rules refer to.
struct Context<'c> {
    tiers: &'c [String],
}

/// Reads one file's text. What comes out is whole only if nothing was noted as a mistake.
pub fn read(text: &str, reader: &mut Reader<'_>) -> PlanFile {
    let top = Path::Top;
    let document = match parse(text) {
        Ok(document) => document,
        Err(error) => {
            let message = format!("error loading config file: yaml: {}", error.message);
            reader.error(error.place, &top, message);
            return PlanFile::default();
        }
    };
    if let Some(place) = document.second {
        reader.warning(place, &top, "a second document in a file is not read");
    }
    let empty = Node {
        place: Place { line: 1, column: 1 },
        value: Value::Map(Vec::new()),
    };
    let node = document.top.filter(|node| !node.is_null()).unwrap_or(empty);
    match reader.fields(&node, &top, &PLAN) {
        Some(fields) => reader.plan(&fields, &top),
        None => PlanFile::default(),
    }
}

impl Reader<'_> {
    fn plan(&mut self, fields: &Fields<'_>, top: &Path<'_>) -> PlanFile {
        let domain = self.text_of(fields, top, "domain").unwrap_or_default();
        if domain.is_empty() {
            let message =
                "config file cannot have empty domain: add `domain: NAME`, as Envoy sends it";
            self.error(fields.place, top, message);
        }
        let tiers = self.tiers(fields, top);
        let names: Vec<_> = tiers.keys().cloned().collect();
        let context = Context { tiers: &names };
        PlanFile {
            domain: domain.to_owned(),
            api_keys: self.api_keys(fields, top, &names),
            unmatched: self.unmatched(fields, top),
            response: self.response(fields, top),
            on_store_error: self.choice(fields, top, "on_store_error", ON_STORE_ERROR),
            descriptors: self.rules(fields, top, &context, domain),
            tiers,
        }
    }

    fn tiers(&mut self, fields: &Fields<'_>, top: &Path<'_>) -> BTreeMap<String, TierFile> {
        let mut tiers = BTreeMap::new();
        let Some(node) = fields.get("tiers") else {
            return tiers;
        };
        let path = top.field("tiers");
        for (name, key, value) in self.names(node, &path, "tiers by name").unwrap_or_default() {
            let path = path.field(name);
            self.proper_name(key, &path);
            let Some(tier) = self.fields(value, &path, &TIER) else {
                continue;
            };
            let limits = match tier.get("limits") {
                Some(node) => self.limits(node, &path.field("limits")),
                None => {
                    let message = "a tier needs `limits`; `limits: []` for one without limits";
                    self.error(value.place, &path, message);
                    Vec::new()
                }
            };
            tiers.insert(name.to_owned(), TierFile { limits });
        }
        tiers
    }

    fn api_keys(
        &mut self,
        fields: &Fields<'_>,
        top: &Path<'_>,
        tiers: &[String],
    ) -> Option<Vec<ApiKeyFile>> {
        let path = top.field("api_keys");
        let mut keys = Vec::new();
        let mut ids = HashMap::new();
        let mut hashes = HashMap::new();
        for (index, node) in self
            .list(fields.get("api_keys")?, &path, "API keys")
            .iter()
            .enumerate()
        {
            let path = path.item(index);
            let Some(key) = self.api_key(node, &path, tiers) else {
                continue;
            };
            if let Some(line) = ids.insert(key.id.clone(), node.place.line) {
                let message = format!("the id stands here twice, first at line {line}");
                self.error(node.place, &path.field("id"), message);
            }
            if let Some(line) = hashes.insert(key.sha256, node.place.line) {
                let message = format!("the same secret stands here twice, first at line {line}");
                self.error(node.place, &path.field("sha256"), message);
            }
            keys.push((key, node.place));
        }
        for (index, (key, place)) in keys.iter().enumerate() {
            if hashes.contains_key(&<[u8; 32]>::from(Sha256::digest(&key.id))) {
                let message =
                    "an id that is itself the secret of a key; ids are public, so choose another";
                self.error(*place, &path.item(index).field("id"), message);
            }
        }
        Some(keys.into_iter().map(|(key, _)| key).collect())
    }

    fn api_key(&mut self, node: &Node, path: &Path<'_>, tiers: &[String]) -> Option<ApiKeyFile> {
        let fields = self.fields(node, path, &API_KEY)?;
        for name in ["id", "sha256", "tier"] {
            if fields.get(name).is_none() {
                let message = format!("an API key needs `{name}`");
                self.error(node.place, path, message);
            }
        }
        let id = fields
            .get("id")
            .and_then(|id| self.proper_name(id, &path.field("id")));
        let sha256 = fields
            .get("sha256")
            .and_then(|hash| self.sha256(hash, &path.field("sha256")));
        let tier = fields
            .get("tier")
            .and_then(|tier| self.tier(tier, &path.field("tier"), tiers));
        let owner = self.text_of(&fields, path, "owner").map(str::to_owned);
        Some(ApiKeyFile {
            id: id?.to_owned(),
            sha256: sha256?,
            tier: tier?,
            owner,
        })
    }

    /// Reads 64 hexadecimal digits. The text is never shown: it may be a secret that was put there by mistake.
    fn sha256(&mut self, node: &Node, path: &Path<'_>) -> Option<[u8; 32]> {
        let text = self.text(node, path)?;
        let mut hash = [0; 32];
        let digits = text.as_bytes();
        let whole = digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit);
        if !whole {
            let message = "must be the SHA-256 of the secret as 64 hexadecimal digits: printf %s SECRET | sha256sum";
            self.error(node.place, path, message);
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            let digit = |d: u8| (d as char).to_digit(16).unwrap_or_default() as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Some(hash)
    }

    fn tier(&mut self, node: &Node, path: &Path<'_>, tiers: &[String]) -> Option<String> {
        let text = self.text(node, path)?;
        if tiers.iter().any(|tier| tier == text) {
            return Some(text.to_owned());
        }
        let names: Vec<_> = tiers.iter().map(String::as_str).collect();
        let hint = did_you_mean(text, names.iter().copied());
        let known = match names.len() {
            0 => "; this file has no `tiers`".to_owned(),
            1..=8 => format!("; the tiers are {}", OneOf(&names)),
            _ => String::new(),
        };
        self.error(
            node.place,
            path,
            format!("unknown tier `{text}`{hint}{known}"),
        );
        None
    }

    fn unmatched(&mut self, fields: &Fields<'_>, top: &Path<'_>) -> UnmatchedFile {
        let Some(node) = fields.get("unmatched") else {
            return UnmatchedFile::Allow;
        };
        let path = top.field("unmatched");
        match self.text(node, &path) {
            None | Some("allow") => UnmatchedFile::Allow,
            Some("deny") => UnmatchedFile::Deny,
            Some(text) if text.contains('/') => match self.limit_text(text, node.place, &path) {
                Some(limit) => UnmatchedFile::Limit(LimitFile { limit, name: None }),
                None => UnmatchedFile::Allow,
            },
            Some(text) => {
                let hint = did_you_mean(text, ["allow", "deny"]);
                let message = format!(
                    "unknown `{text}`{hint}; use `allow`, `deny` or a limit like `100/second`"
                );
                self.error(node.place, &path, message);
                UnmatchedFile::Allow
            }
        }
    }

    fn response(&mut self, fields: &Fields<'_>, top: &Path<'_>) -> ResponseFile {
        let path = top.field("response");
        let Some(fields) = fields
            .get("response")
            .and_then(|node| self.fields(node, &path, &RESPONSE))
        else {
            return ResponseFile::default();
        };
        if let Some(node) = fields.get("content_type") {
            let path = path.field("content_type");
            let fits = |text: &str| http::HeaderValue::from_str(text).is_ok_and(|v| !v.is_empty());
            if self.text(node, &path).is_some_and(|text| !fits(text)) {
                let message = "HTTP forbids this as the value of a header: no line breaks, no control characters, not empty";
                self.error(node.place, &path, message);
            }
        }
        ResponseFile {
            retry_after: self.flag(&fields, &path, "retry_after"),
            ratelimit: self.flag(&fields, &path, "ratelimit"),
            x_ratelimit: self.flag(&fields, &path, "x_ratelimit"),
            metadata: self.flag(&fields, &path, "metadata"),
            body: self.text_of(&fields, &path, "body").map(str::to_owned),
            content_type: self
                .text_of(&fields, &path, "content_type")
                .map(str::to_owned),
        }
    }

    fn rules(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
        context: &Context<'_>,
        parents: &str,
    ) -> Option<Vec<RuleFile>> {
        let path = path.field("descriptors");
        let items = self.list(fields.get("descriptors")?, &path, "rules");
        let mut rules = Vec::with_capacity(items.len());
        let mut seen = HashMap::with_capacity(items.len());
        for (index, node) in items.iter().enumerate() {
            let path = path.item(index);
            if !matches!(node.value, Value::Map(_)) {
                let message = format!(
                    "expected a rule, a map, found {} (config error, yaml file contains list of type other than map)",
                    node.kind()
                );
                self.error(node.place, &path, message);
                continue;
            }
            let Some(fields) = self.fields(node, &path, &RULE) else {
                continue;
            };
            let Some(rule) = self.rule(&fields, &path, context, parents) else {
                continue;
            };
            let identity = (rule.joined(), rule.cidr);
            let unread = rule.cidr.is_none() && fields.get("cidr").is_some();
            if !unread && let Some(line) = seen.insert(identity, rule.place.line) {
                let message = format!(
                    "duplicate descriptor composite key '{parents}.{}', first at line {line}",
                    rule.shown()
                );
                self.error(rule.place, &path, message);
            }
            rules.push(rule);
        }
        Some(rules)
    }

    fn rule(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
        context: &Context<'_>,
        parents: &str,
    ) -> Option<RuleFile> {
        let key = self.text_of(fields, path, "key").unwrap_or_default();
        if key.is_empty() {
            let message = "descriptor has empty key: add `key: NAME`, as Envoy sends it";
            self.error(fields.place, path, message);
        }
        let value = self
            .text_of(fields, path, "value")
            .filter(|value| !value.is_empty());
        let cidr = fields
            .get("cidr")
            .and_then(|node| self.cidr(node, &path.field("cidr")));
        let mut rule = RuleFile {
            place: fields.place,
            key: key.to_owned(),
            value: value.map(str::to_owned),
            cidr,
            descriptors: None,
            rate_limit: self.rate_limit(fields, path),
            limits: fields
                .get("limits")
                .map(|node| self.rule_limits(node, &path.field("limits"))),
            limits_from: self.choice(
                fields,
                path,
                "limits_from",
                &[("tier", LimitsFromFile::Tier)],
            ),
            unknown_key: self.unknown_key(fields, path, context),
            api_key_is: self.choice(
                fields,
                path,
                "api_key_is",
                &[("secret", ApiKeyIsFile::Secret)],
            ),
            name: None,
            replaces: None,
            shadow_mode: self.flag(fields, path, "shadow_mode"),
            quota_mode: self.flag(fields, path, "quota_mode"),
            share_threshold: self.flag(fields, path, "share_threshold"),
            detailed_metric: self.flag(fields, path, "detailed_metric"),
            value_to_metric: self.flag(fields, path, "value_to_metric"),
            metadata: self.metadata(fields, path),
            on_store_error: self.choice(fields, path, "on_store_error", ON_STORE_ERROR),
        };
        self.name_and_replaces(fields, path, &mut rule);
        self.check_rule(fields, path, context, &rule);
        let parents = format!("{parents}.{}", rule.shown());
        rule.descriptors = self.rules(fields, path, context, &parents);
        (!key.is_empty()).then_some(rule)
    }

    /// `name` and `replaces` belong to `rate_limit` where the rule has one; the reference ignores them elsewhere.
    fn name_and_replaces(&mut self, fields: &Fields<'_>, path: &Path<'_>, rule: &mut RuleFile) {
        let ours = fields.get("limits").or(fields.get("limits_from")).is_some();
        if !ours {
            for name in ["name", "replaces"] {
                if let Some(node) = fields.get(name) {
                    let message = "is ignored here: it belongs to `rate_limit`, or to a rule with `limits` or `limits_from`";
                    self.warning(node.place, &path.field(name), message);
                }
            }
            return;
        }
        rule.name = fields
            .get("name")
            .and_then(|node| self.proper_name(node, &path.field("name")))
            .map(str::to_owned);
        rule.replaces = self.replaces(fields, path, rule.name.as_deref());
    }

    fn check_rule(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
        context: &Context<'_>,
        rule: &RuleFile,
    ) {
        let ways: Vec<_> = ["rate_limit", "limits", "limits_from"]
            .into_iter()
            .filter(|name| fields.get(name).is_some())
            .collect();
        if let [_, second, ..] = ways[..] {
            let place = fields.get(second).map_or(fields.place, |node| node.place);
            let names = ways
                .iter()
                .map(|way| format!("`{way}`"))
                .collect::<Vec<_>>()
                .join(" and ");
            let message = format!(
                "a rule has one of `limits`, `limits_from` and `rate_limit`; this one has {names}"
            );
            self.error(place, path, message);
        }
        if let (Some(node), true) = (fields.get("cidr"), rule.value.is_some()) {
            let message = "a rule has `value` or `cidr`, not both";
            self.error(node.place, path, message);
        }
        if rule.share_threshold == Some(true) && !rule.joined().contains('*') {
            let message = format!(
                "share_threshold can only be used with wildcard values (with a '*'), found key '{}'",
                rule.joined()
            );
            let place = fields
                .get("share_threshold")
                .map_or(fields.place, |node| node.place);
            self.error(place, &path.field("share_threshold"), message);
        }
        for name in ["unknown_key", "api_key_is"] {
            if let (Some(node), None) = (fields.get(name), fields.get("limits_from")) {
                let message = "goes with `limits_from: tier` only";
                self.error(node.place, &path.field(name), message);
            }
        }
        if let (Some(node), true) = (fields.get("limits_from"), rule.key.contains('*')) {
            let message = "the entry that holds an API key needs a key without `*`";
            self.error(node.place, &path.field("limits_from"), message);
        }
        if let (Some(node), true) = (fields.get("limits_from"), context.tiers.is_empty()) {
            let message = "this file has no `tiers` to take limits from";
            self.error(node.place, &path.field("limits_from"), message);
        }
    }

    fn unknown_key(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
        context: &Context<'_>,
    ) -> Option<String> {
        let node = fields.get("unknown_key")?;
        let path = path.field("unknown_key");
        match self.text(node, &path)? {
            "deny" => None,
            _ => self.tier(node, &path, context.tiers),
        }
    }

    fn cidr(&mut self, node: &Node, path: &Path<'_>) -> Option<IpNet> {
        let text = self.text(node, path)?;
        let message = match (text.parse::<IpNet>(), text.parse::<std::net::IpAddr>()) {
            (Ok(IpNet::V6(net)), _) if net.addr().to_ipv4_mapped().is_some() => {
                "an IPv4 network written as IPv6; write the IPv4 form, which meets both".to_owned()
            }
            (Ok(net), _) if net.trunc() != net => {
                format!(
                    "`{text}` has bits beyond its prefix, did you mean `{}`?",
                    net.trunc()
                )
            }
            (Ok(net), _) => return Some(net),
            (Err(_), Ok(address)) => {
                let whole = if address.is_ipv4() { 32 } else { 128 };
                format!("`{text}` lacks a prefix length, did you mean `{text}/{whole}`?")
            }
            (Err(_), Err(_)) => {
                format!("`{text}` is not a network: write ADDRESS/PREFIX, for example `10.0.0.0/8`")
            }
        };
        self.error(node.place, path, message);
        None
    }

    fn rate_limit(&mut self, fields: &Fields<'_>, path: &Path<'_>) -> Option<RateLimitFile> {
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
            && let Err(error) = Limit::per(file.requests_per_unit, crate::limit::Period::of(unit))
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
        let digits = text.replace('_', "");
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        };
        number.unwrap_or_else(|| {
            let message = format!("`{text}` is not a whole number from 0 to 4294967295");
            self.error(node.place, &path, message);
            0
        })
    }

    fn replaces(
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

    fn rule_limits(&mut self, node: &Node, path: &Path<'_>) -> Vec<LimitFile> {
        if matches!(&node.value, Value::List(items) if items.is_empty()) {
            let message = "a rule needs at least one limit; to let all pass, write `rate_limit: { unlimited: true }`";
            self.error(node.place, path, message);
        }
        self.limits(node, path)
    }

    /// Reads a list of limits, no two of which count in the same bucket.
    fn limits(&mut self, node: &Node, path: &Path<'_>) -> Vec<LimitFile> {
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
            let limit = self.limit_text(text, node.place, path)?;
            return Some(LimitFile { limit, name: None });
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
        let path = path.field("limit");
        let limit = self.text(text, &path)?;
        let limit = self.limit_text(limit, text.place, &path)?;
        Some(LimitFile { limit, name })
    }

    fn limit_text(&mut self, text: &str, place: Place, path: &Path<'_>) -> Option<Limit> {
        match text.parse() {
            Ok(limit) => Some(limit),
            Err(error) => {
                let error: crate::limit::LimitError = error;
                self.error(place, path, error.to_string());
                None
            }
        }
    }

    fn metadata(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let node = fields.get("metadata")?;
        let path = path.field("metadata");
        match self.json(node, &path) {
            serde_json::Value::Object(map) => Some(map),
            _ => {
                let message = format!(
                    "error parsing metadata: expected a map, found {}",
                    node.kind()
                );
                self.error(node.place, &path, message);
                None
            }
        }
    }

    /// YAML's plain scalars as the values they stand for.
    fn json(&mut self, node: &Node, path: &Path<'_>) -> serde_json::Value {
        match &node.value {
            _ if node.is_null() => serde_json::Value::Null,
            Value::Scalar { text, plain } => match (plain, truth(text)) {
                (true, Some(value)) => value.into(),
                (true, None) if is_number(text) => match text.parse::<i64>() {
                    Ok(number) => number.into(),
                    Err(_) => text.parse::<f64>().unwrap_or_default().into(),
                },
                _ => text.as_str().into(),
            },
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| self.json(item, &path.item(index)))
                .collect(),
            Value::Map(_) => self
                .names(node, path, "metadata")
                .unwrap_or_default()
                .into_iter()
                .map(|(name, _, value)| (name.to_owned(), self.json(value, &path.field(name))))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

impl RuleFile {
    /// What the reference compares with an entry's `key_value`: a rule's identity among its siblings.
    pub fn joined(&self) -> String {
        match &self.value {
            Some(value) => format!("{}_{value}", self.key),
            None => self.key.clone(),
        }
    }

    fn shown(&self) -> String {
        match self.cidr {
            Some(net) => format!("{}_{net}", self.key),
            None => self.joined(),
        }
    }
}
