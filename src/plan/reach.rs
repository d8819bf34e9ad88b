//! Which rules a descriptor of a known shape can meet, whatever values its requests bring.

use std::sync::Arc;

use super::{
    Rule,
    domain::{Domain, Node, Unmatched},
};

/// An entry's key, and its value where that is always the same.
pub type Shape<'a> = (&'a str, Option<&'a str>);

/// What descriptors of one shape can meet.
#[derive(Debug, Default)]
pub struct Reach<'p> {
    /// Every rule that some values meet, in file order.
    pub rules: Vec<&'p Arc<Rule>>,
    /// Whether all values meet one of them.
    pub always: bool,
}

impl Domain {
    /// What descriptors of these entries can meet.
    pub fn reach(&self, entries: &[Shape<'_>]) -> Reach<'_> {
        if entries.is_empty() {
            return Reach::default();
        }
        let mut rules = Vec::new();
        let always = self.reach_below(self.top(), entries, &mut rules);
        Reach { rules, always }
    }

    /// The rule for requests that meet no other, if they do not simply pass.
    pub fn unmatched_rule(&self) -> Option<&Arc<Rule>> {
        match &self.unmatched {
            Unmatched::Allow => None,
            Unmatched::Deny(rule) | Unmatched::Limit(rule) => Some(rule),
        }
    }

    /// Collects the rules that can be met below `node`; answers whether one always is.
    fn reach_below<'p>(
        &'p self,
        node: &'p Node,
        entries: &[Shape<'_>],
        into: &mut Vec<&'p Arc<Rule>>,
    ) -> bool {
        let Some(((key, value), rest)) = entries.split_first() else {
            into.extend(&node.rule);
            return node.rule.is_some();
        };
        let Some(level) = &node.level else {
            return false;
        };
        let (nodes, mut always) = match value {
            Some(value) => {
                let joined = format!("{key}_{value}");
                let found = level.find(key, value, joined.as_bytes());
                (
                    found.map(|(node, _)| node).into_iter().collect(),
                    found.is_some(),
                )
            }
            None => level.reachable(key),
        };
        for index in nodes {
            always &= self.reach_below(self.node(index), rest, into);
        }
        always
    }
}
