//! What a change of a rule means.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, charge, charges, compare, differences, lower, texts};
use crate::plan::{
    Role,
    domain::{Domain, Node},
    rule::{Allowance, Rule},
    subject::Variable,
};

/// A rule, and what its place in the tree adds to it.
pub(super) struct Placed<'p> {
    domain: &'p Domain,
    rule: &'p Rule,
    node: Option<&'p Node>,
}

/// All rules of a domain by path.
pub(super) fn rules(domain: &Domain) -> BTreeMap<&str, Placed<'_>> {
    let in_tree = domain
        .nodes
        .iter()
        .filter_map(|node| Some((node.rule.as_ref()?, Some(node))));
    // The rule for what no rule matches stands in no tree; one that does comes later and takes its place here.
    // What stands for a list is told with the list.
    let of_list = |rule: &Rule| domain.lists().is_some_and(|lists| lists.has_rule(rule));
    let rules = domain.rules().filter(|rule| !of_list(rule));
    let all = rules.map(|rule| (rule, None)).chain(in_tree);
    all.map(|(rule, node)| (&*rule.path, Placed { domain, rule, node }))
        .collect()
}

impl Placed<'_> {
    pub(super) fn added(&self) -> (Effect, String) {
        match self.node {
            Some(_) => {
                let says = "its requests met a broader rule or none";
                (
                    Effect::Depends,
                    format!("is new: {}; {says}", self.allows()),
                )
            }
            // The rule for what no rule matches.
            None => (Effect::Tighter, format!("no limit → {}", self.allows())),
        }
    }

    pub(super) fn removed(&self) -> (Effect, String) {
        match self.node {
            Some(_) => {
                let says = "its requests meet a broader rule or none";
                (
                    Effect::Depends,
                    format!("is gone (was {}): {says}", self.allows()),
                )
            }
            None => (Effect::Looser, format!("{} → no limit", self.allows())),
        }
    }

    pub(super) fn changed(&self, after: &Self) -> Option<(Effect, String)> {
        let allowance = self.allowance_changed(after);
        let (mut effect, mut said) = match allowance {
            Some((effect, says)) => (effect, vec![says]),
            None => (Effect::None, Vec::new()),
        };
        let mut facts = differences(&self.facts(), &after.facts());
        if self.counts() && after.counts() {
            facts.extend(differences(&self.counting(), &after.counting()));
        }
        for (says, name) in facts {
            let means = match name {
                "charge" => charges(self.rule.counting, after.rule.counting),
                "mode" if after.rule.role == self.rule.role => Effect::Depends,
                "mode" if after.rule.role == Role::Shadow => Effect::Looser,
                "mode" if self.rule.role == Role::Shadow => Effect::Tighter,
                "mode" | "mode of limits" | "buckets" | "unknown_key" | "api_key_is"
                | "replaces" => Effect::Depends,
                _ => Effect::None,
            };
            effect = effect.and(means);
            said.push(format!("{name}: {says}"));
        }
        (!said.is_empty()).then(|| (effect, said.join("; ")))
    }

    fn allowance_changed(&self, after: &Self) -> Option<(Effect, String)> {
        use Allowance::{Denied, Limits, Listed, Tiers, Unlimited};
        let effect = match (&self.rule.allowance, &after.rule.allowance) {
            (Limits(old), Limits(new)) => return compare(old, new),
            (Tiers(_), Tiers(_)) | (Denied, Denied) | (Unlimited | Listed, Unlimited | Listed) => {
                return None;
            }
            (Tiers(_), _) | (_, Tiers(_)) => Effect::Depends,
            (Denied, _) | (_, Unlimited | Listed) => Effect::Looser,
            (_, Denied) | (Unlimited | Listed, _) => Effect::Tighter,
        };
        Some((effect, format!("{} → {}", self.allows(), after.allows())))
    }

    /// Whether it has limits, always or for some.
    fn counts(&self) -> bool {
        matches!(
            self.rule.allowance,
            Allowance::Limits(_) | Allowance::Tiers(_)
        )
    }

    /// What else of its limits can change. How they count shows in their texts, but for those of tiers.
    fn counting(&self) -> Vec<(&'static str, String)> {
        let counting = self.rule.counting;
        let mut facts = vec![("charge", charge(counting).name().to_owned())];
        if matches!(self.rule.allowance, Allowance::Tiers(_)) {
            facts.push(("algorithm", counting.algorithm.name().to_owned()));
        }
        facts
    }

    fn allows(&self) -> String {
        match &self.rule.allowance {
            Allowance::Unlimited | Allowance::Listed => "no limit".to_owned(),
            Allowance::Denied => "refuses all".to_owned(),
            Allowance::Limits(limits) => texts(limits),
            Allowance::Tiers(_) => "the limits of the API key's tier".to_owned(),
        }
    }

    /// What else of a rule can change, by the field that says it.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let rule = self.rule;
        let mut facts = vec![
            ("mode", mode(rule)),
            ("on_store_error", lower(rule.on_store_error)),
            ("durable", durable(rule)),
            ("lease", lease(rule)),
            ("name", rule.name.as_deref().unwrap_or("none").to_owned()),
            ("replaces", listed(&rule.replaces)),
            ("metadata", format!("{:?}", rule.metadata)),
            ("statistics", rule.statistics.to_string()),
        ];
        let Some(node) = self.node else { return facts };
        let shared = node.variable == Variable::Nothing;
        let buckets = if shared {
            "one for all"
        } else {
            "one per value"
        };
        facts.push(("buckets", buckets.to_owned()));
        if let Some(key_rule) = &node.key_rule {
            let tier = key_rule
                .unknown
                .map(|tier| &*self.domain.tiers[tier as usize]);
            facts.push(("mode of limits", key_rule.beyond.mode.name().to_owned()));
            facts.push(("unknown_key", tier.unwrap_or("deny").to_owned()));
            let is = if key_rule.secret_only {
                "secret"
            } else {
                "id or secret"
            };
            facts.push(("api_key_is", is.to_owned()));
        }
        facts
    }
}

fn durable(rule: &Rule) -> String {
    let durable = rule.allowance.limits().find_map(|limit| limit.durable);
    durable.map_or("no".to_owned(), |durable| durable.to_string())
}

fn mode(rule: &Rule) -> String {
    match (rule.role, rule.quota) {
        (Role::Shadow, true) => "shadow of a quota".to_owned(),
        (role, _) => lower(role),
    }
}

fn lease(rule: &Rule) -> String {
    let leases = rule.allowance.limits().filter_map(|limit| limit.lease);
    let leases: BTreeSet<_> = leases.map(|lease| lease.to_string()).collect();
    match leases.is_empty() {
        true => "none".to_owned(),
        false => leases.into_iter().collect::<Vec<_>>().join(", "),
    }
}

fn listed(names: &[Box<str>]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}
