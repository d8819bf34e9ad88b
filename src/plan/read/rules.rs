//! Reads the tree of rules.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{Context, ON_STORE_ERROR};
use crate::{
    limit::Algorithm,
    plan::{
        beyond::Mode,
        fields::{Fields, Reader},
        file::{ApiKeyIsFile, LeaseFile, LimitsFromFile, RuleFile},
        mistake::{Path, first_at},
        rule::Charge,
        shapes::{LEASE, RULE},
        tree::{Node, Value},
        words::not_a_map,
    },
};

impl Reader<'_> {
    /// Reads the field `descriptors`; `parents` is the way to it as the reference writes it, `domain.key_value.key`.
    pub(super) fn rules(
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
                    "expected a rule, a map, found {} ({})",
                    node.kind(),
                    not_a_map(node)
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
            if !unread && let Some(first) = seen.insert(identity, rule.place) {
                let message = format!(
                    "duplicate descriptor composite key '{parents}.{}'{}",
                    rule.shown(),
                    first_at(first)
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
            mode: self.choice(fields, path, "mode", Mode::NAMES),
            shadow_mode: self.flag(fields, path, "shadow_mode"),
            quota_mode: self.flag(fields, path, "quota_mode"),
            share_threshold: self.flag(fields, path, "share_threshold"),
            detailed_metric: self.flag(fields, path, "detailed_metric"),
            value_to_metric: self.flag(fields, path, "value_to_metric"),
            metadata: self.metadata(fields, path),
            on_store_error: self.choice(fields, path, "on_store_error", ON_STORE_ERROR),
            durable: self.durable(fields, path),
            algorithm: self.choice(fields, path, "algorithm", Algorithm::NAMES),
            charge: self.choice(fields, path, "charge", Charge::NAMES),
            overdraw: self.flag(fields, path, "overdraw"),
            lease: self.lease(fields, path),
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
        if let (Some(node), []) = (fields.get("durable"), &ways[..]) {
            let message = "goes with a limit: this rule has none";
            self.error(node.place, &path.field("durable"), message);
        }
        if let (Some(node), true) = (fields.get("cidr"), rule.value.is_some()) {
            let message = "a rule has `value` or `cidr`, not both";
            self.error(node.place, path, message);
        }
        if rule.share_threshold == Some(true) && !rule.joined().contains('*') {
            let message = format!(
                "share_threshold can only be used with wildcard values (containing '*'), but found key '{}'",
                rule.joined()
            );
            let place = fields
                .get("share_threshold")
                .map_or(fields.place, |node| node.place);
            self.error(place, &path.field("share_threshold"), message);
        }
        let several = rule.limits.as_ref().is_some_and(|limits| limits.len() > 1);
        if let (Some(node), Some(true)) = (fields.get("quota_mode"), rule.quota_mode)
            && (several || fields.get("limits_from").is_some())
        {
            let message = "goes with one limit: of several, those that fit would be charged although another refuses; keep one limit, or leave `quota_mode` out";
            self.error(node.place, &path.field("quota_mode"), message);
        }
        self.check_mode(fields, path, rule);
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

    /// A rule in shadow or quota mode takes part as a whole, so that its limits have no say in it.
    fn check_mode(&mut self, fields: &Fields<'_>, path: &Path<'_>, rule: &RuleFile) {
        let whole = match (rule.shadow_mode, rule.quota_mode) {
            (Some(true), _) => "shadow_mode",
            (_, Some(true)) => "quota_mode",
            _ => return,
        };
        let limits = rule.limits.iter().flatten();
        if rule.mode.is_some() || limits.clone().any(|limit| limit.mode.is_some()) {
            let place = fields.get(whole).map_or(fields.place, |node| node.place);
            let message = "is of the whole rule, and `mode` of single limits; keep one of them";
            self.error(place, &path.field(whole), message);
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

    /// Reads a network.
    pub(in crate::plan) fn cidr(&mut self, node: &Node, path: &Path<'_>) -> Option<IpNet> {
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

    fn lease(&mut self, fields: &Fields<'_>, path: &Path<'_>) -> Option<LeaseFile> {
        let path = path.field("lease");
        let fields = self.fields(fields.get("lease")?, &path, &LEASE)?;
        let mut lease = LeaseFile::default();
        if let (Some(node), Some(text)) = (
            fields.get("portion"),
            self.text_of(&fields, &path, "portion"),
        ) {
            let percent = text.strip_suffix('%').and_then(|text| text.parse().ok());
            match percent.filter(|percent| (1..=50).contains(percent)) {
                Some(percent) => lease.percent = percent,
                None => {
                    let message = format!("`{text}` is not a portion: write `1%` to `50%`");
                    self.error(node.place, &path.field("portion"), message);
                }
            }
        }
        if let (Some(node), Some(text)) = (fields.get("for"), self.text_of(&fields, &path, "for")) {
            let life = humantime::parse_duration(text).map(|life| life.as_millis());
            match life.ok().filter(|life| (50..=10_000).contains(life)) {
                Some(life) => lease.life_ms = life as u32,
                None => {
                    let message = format!("`{text}` is not a time from `50ms` to `10s`");
                    self.error(node.place, &path.field("for"), message);
                }
            }
        }
        Some(lease)
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

    /// The same for people: a network beside the key.
    pub fn shown(&self) -> String {
        match self.cidr {
            Some(net) => format!("{}_{net}", self.key),
            None => self.joined(),
        }
    }
}
