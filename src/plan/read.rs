//! Reads a plan file strictly: all mistakes at once, each with its place. What comes out is right in itself; only what two
//! files say together is checked later.

mod durable;
mod limits;
mod metadata;
mod pacing;
mod rules;

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest as _, Sha256};

use super::{
    fields::{Fields, OneOf, Reader},
    file::{ApiKeyFile, OnStoreErrorFile, PlanFile, ResponseFile, TierFile, UnmatchedFile},
    mistake::{Path, Place, did_you_mean, first_at},
    rule::Charge,
    shapes::{API_KEY, PLAN, RESPONSE, TIER},
    tree::{Node, Value, parse},
};
use crate::limit::Algorithm;

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
            reader.error(Some(error.place), &top, message);
            return PlanFile::default();
        }
    };
    if let Some(place) = document.second {
        reader.warning(Some(place), &top, "a second document in a file is not read");
    }
    let empty = Node {
        place: Some(Place { line: 1, column: 1 }),
        value: Value::Map(Vec::new()),
    };
    let mut node = document.top.filter(|node| !node.is_null()).unwrap_or(empty);
    if reader.last_wins {
        reader.settle(&mut node, &top);
    }
    read_tree(&node, reader)
}

/// Reads what is a tree already, as [`read`] reads text.
pub fn read_tree(node: &Node, reader: &mut Reader<'_>) -> PlanFile {
    let top = Path::Top;
    match reader.fields(node, &top, &PLAN) {
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
            further: Vec::new(),
            domain: domain.to_owned(),
            api_keys: self.api_keys(fields, top, &names),
            authentication: self.authentication(fields, top),
            deny: self.list_of(fields, top, "deny"),
            allow: self.list_of(fields, top, "allow"),
            unmatched: self.unmatched(fields, top),
            response: self.response(fields, top),
            on_store_error: self.choice(fields, top, "on_store_error", ON_STORE_ERROR),
            algorithm: self.choice(fields, top, "algorithm", Algorithm::NAMES),
            charge: self.choice(fields, top, "charge", Charge::NAMES),
            overdraw: self.flag(fields, top, "overdraw"),
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
            if let Some(first) = ids.insert(key.id.clone(), node.place) {
                let message = format!("the id stands here twice{}", first_at(first));
                self.error(node.place, &path.field("id"), message);
            }
            if let Some(first) = hashes.insert(key.sha256, node.place) {
                let message = format!("the same secret stands here twice{}", first_at(first));
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
                Some(limit) => UnmatchedFile::Limit(limit),
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

    /// Reads the name of a header; it may be empty, for none.
    fn header_name(&mut self, fields: &Fields<'_>, path: &Path<'_>, field: &str) -> Option<String> {
        let node = fields.get(field)?;
        let path = path.field(field);
        let text = self.text(node, &path)?;
        if !text.is_empty() && http::HeaderName::try_from(text).is_err() {
            self.error(
                node.place,
                &path,
                "HTTP forbids this as the name of a header",
            );
        }
        Some(text.to_ascii_lowercase())
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
            degraded: self.flag(&fields, &path, "degraded"),
            metadata: self.flag(&fields, &path, "metadata"),
            body: self.text_of(&fields, &path, "body").map(str::to_owned),
            quota_body: self
                .text_of(&fields, &path, "quota_body")
                .map(str::to_owned),
            content_type: self
                .text_of(&fields, &path, "content_type")
                .map(str::to_owned),
            warning_header: self.header_name(&fields, &path, "warning_header"),
            warn_at: self.warn_at(&fields, &path),
            overage_header: self.header_name(&fields, &path, "overage_header"),
        }
    }
}
