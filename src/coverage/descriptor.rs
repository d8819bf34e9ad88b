//! What one descriptor can meet: which entries it may have, which requests get it, and what its rules say.

use std::sync::Arc;

use super::{DescriptorCoverage, METHODS, State};
use crate::{
    envoy::{
        Action, Ask, Facts, Filter, Found, Missing, Source, action::Absent, matcher::HeaderMatcher,
    },
    plan::{Allowance, Domain, Mode, Role, Rule, RuleLimit},
};

/// Most optional entries of a descriptor whose every combination is looked at.
const MOST_OPTIONAL: usize = 6;

/// A descriptor and what it can meet, before it is known for which method.
pub(super) struct Met<'a> {
    pub ask: &'a Ask,
    pub told: DescriptorCoverage,
    /// Whether it ever refuses anybody: some of its rules do, and it is not asked only after the response.
    pub refuses: bool,
}

impl Met<'_> {
    /// How far it limits the requests of a method.
    pub fn state(&self, method: &str) -> State {
        let facts = Method(method);
        let mut state = match (self.refuses, self.told.every_value) {
            (false, _) => return State::Without,
            (true, true) => State::Limited,
            (true, false) => State::Partly,
        };
        for action in &self.ask.actions {
            match action
                .only_if
                .as_ref()
                .map(|condition| condition.holds(&facts))
            {
                Some(Ok(false)) => return State::Without,
                Some(Err(_)) => state = State::Partly,
                None if may_be_absent(action) => state = State::Partly,
                _ => {}
            }
        }
        match self
            .told
            .only_if
            .iter()
            .any(|only| only.ends_with(" requests"))
        {
            true => State::Partly,
            false => state,
        }
    }
}

/// A request of which only the method is known.
struct Method<'a>(&'a str);

impl Facts for Method<'_> {
    fn find(&self, source: &Source) -> Found<'_> {
        match source {
            Source::Header(name) if name == ":method" => Found::Value(self.0.into()),
            other => Found::Unknown(Missing(other.to_string())),
        }
    }
}

/// The methods of requests whose headers may match.
pub(super) fn methods_of(headers: &[HeaderMatcher]) -> impl Iterator<Item = &'static str> {
    let takes = |method: &&str| {
        !matches!(
            HeaderMatcher::all_match(headers, &Method(method)),
            Ok(false)
        )
    };
    METHODS.into_iter().filter(takes)
}

/// Whether a request may lack it, which drops the descriptor.
fn may_be_absent(action: &Action) -> bool {
    let always = match &action.source {
        Source::Text(_) | Source::Address | Source::Network(..) | Source::Cluster => true,
        Source::Header(name) => [":method", ":path", ":authority"].contains(&name.as_str()),
        _ => false,
    };
    !always && action.absent == Absent::Drop
}

/// What a request must have, or be, to get a descriptor.
pub(super) fn only_if(filter: &Filter, ask: &Ask) -> Vec<String> {
    let requests = filter
        .requests
        .iter()
        .map(|kind| format!("{kind} requests"));
    let conditions = ask.actions.iter().filter_map(|action| {
        let condition = action.only_if.as_ref().map(ToString::to_string);
        condition.or_else(|| may_be_absent(action).then(|| format!("{} is there", action.source)))
    });
    conditions.chain(requests).collect()
}

/// The entries that a descriptor can have, with and without those that may be left out.
pub(super) fn combinations(actions: &[Action]) -> Vec<Vec<(&str, Option<&str>)>> {
    let entry = |action: &Action| action.absent == Absent::Skip;
    let optional = actions.iter().filter(|action| entry(action)).count();
    let choices = 1_u32 << optional.min(MOST_OPTIONAL);
    (0..choices)
        .map(|choice| {
            let mut left = choice;
            let chosen = actions.iter().filter(|action| {
                let leave_out = entry(action) && left & 1 == 1;
                if entry(action) {
                    left >>= 1;
                }
                !leave_out
            });
            let shapes: Vec<_> = chosen.map(shape).collect();
            shapes
        })
        .collect()
}

fn shape(action: &Action) -> (&str, Option<&str>) {
    match &action.source {
        Source::Text(value) => (&action.key, Some(value)),
        _ => (&action.key, None),
    }
}

/// Whether a rule ever refuses anybody.
pub(super) fn may_refuse(rule: &Rule) -> bool {
    let refuses =
        |limits: &[Arc<RuleLimit>]| limits.iter().any(|limit| limit.mode == Mode::Enforce);
    rule.role != Role::Shadow
        && match &rule.allowance {
            Allowance::Unlimited | Allowance::Listed => false,
            Allowance::Limits(limits) => refuses(limits),
            // An unknown key may be refused, whatever the tiers' limits.
            Allowance::Denied | Allowance::Tiers(_) => true,
        }
}

/// What a rule allows, in words.
pub(super) fn allows(domain: &Domain, rule: &Rule) -> String {
    let limits = |limits: &[Arc<RuleLimit>]| match limits {
        [] => "no limit".to_owned(),
        limits => {
            let texts: Vec<String> = limits.iter().map(|limit| limit.to_string()).collect();
            texts.join(" and ")
        }
    };
    let allows = match &rule.allowance {
        Allowance::Unlimited => "unlimited".to_owned(),
        Allowance::Listed => "no limit".to_owned(),
        Allowance::Denied => "nothing".to_owned(),
        Allowance::Limits(own) => limits(own),
        Allowance::Tiers(tiers) => {
            let named = domain.tiers().iter().zip(tiers);
            let texts: Vec<String> = named
                .map(|(name, own)| format!("{name}: {}", limits(own)))
                .collect();
            texts.join("; ")
        }
    };
    match rule.role {
        Role::Enforced => allows,
        Role::Shadow => format!("{allows} (in shadow mode)"),
        Role::Quota => format!("{allows} (in quota mode)"),
    }
}
