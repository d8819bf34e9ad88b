//! What goes with a `delay` or a `penalty`, and what does not.

use super::{
    beyond::Mode,
    rule::{Allowance, Charge, Counting, Rule},
};
use crate::limit::{Kind, Limit};

/// Whether more than a refusal may become of what is beyond this rule's limits.
pub fn paces(rule: &Rule) -> bool {
    let mut limits = rule.allowance.limits();
    limits.any(|limit| limit.limit.delay_us() > 0 || limit.guard().is_some())
}

/// What is worth a warning of a rule with these limits: that of a soft one nobody waits and nobody is penalised.
pub fn idle_when_soft(allowance: &Allowance) -> Option<String> {
    let mut soft = allowance.limits().filter(|rule| rule.mode == Mode::Soft);
    soft.find_map(|rule| {
        let limit = &rule.limit;
        let what = match (limit.delay_us() > 0, limit.penalty().is_some()) {
            (true, true) => "`delay` and `penalty` do",
            (true, false) => "`delay` does",
            (false, true) => "`penalty` does",
            (false, false) => return None,
        };
        Some(format!(
            "`{limit}` is soft, which lets all pass at once: its {what} nothing until `mode` is `enforce`"
        ))
    })
}

/// Why a rule that counts so cannot have these limits, of which some have a delay or a penalty.
pub fn cannot_wait<T>(limits: &[(Limit, T)], counting: Counting, quota: bool) -> Option<String> {
    limits.iter().find_map(|(limit, _)| {
        let delayed = limit.delay_us() > 0;
        let what = match (delayed, limit.penalty()) {
            (true, _) => "delay",
            (false, Some(_)) => "penalty",
            (false, None) => return None,
        };
        let other = match (counting.charge, limit.kind()) {
            (charge, _) if charge != Charge::AllOrNothing => format!("`charge: {}`", charge.name()),
            _ if counting.overdraw => "`overdraw: true`".to_owned(),
            _ if quota => "`quota_mode: true`".to_owned(),
            (_, Kind::Bucket { .. }) => return None,
            _ if delayed => "`algorithm: fixed_window`".to_owned(),
            _ => return None,
        };
        Some(format!(
            "`{limit}` has a {what}, which does not go with {other}"
        ))
    })
}
