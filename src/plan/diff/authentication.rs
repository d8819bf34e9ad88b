//! What a change of plans means for how API keys are asked for.

use super::{Change, ChangeKind, ChangeSubject, Effect, Pair, differences};
use crate::plan::{Domain, Plans, authentication::Authentication};

impl Pair<'_> {
    /// Where keys are looked for, and what those hear who have none.
    pub(super) fn authentication(&self, into: &mut Vec<Change>) {
        for (says, name) in differences(&facts(self.old_asks), &facts(self.new_asks)) {
            // The first place that has a key counts, so a place more may refuse and a place less may let pass.
            let effect = match name {
                "key_from" => Effect::Depends,
                _ => Effect::None,
            };
            into.push(self.change(
                ChangeSubject::Authentication,
                name,
                ChangeKind::Changed,
                (effect, says),
            ));
        }
    }
}

/// How the domain's keys are asked for.
pub(super) fn asked<'p>(plans: &'p Plans, domain: &'p Domain) -> &'p Authentication {
    domain.authentication().unwrap_or(plans.authentication())
}

fn facts(asked: &Authentication) -> Vec<(&'static str, String)> {
    let places: Vec<String> = asked.key_from.iter().map(ToString::to_string).collect();
    let mut facts = vec![
        ("key_from", places.join(", ")),
        ("error_style", asked.error_style.name().to_owned()),
        ("hide_key", asked.hide_key.to_string()),
    ];
    let headers = &asked.upstream_headers;
    let told = [
        ("upstream_headers.api_key_id", &headers.api_key_id),
        ("upstream_headers.tier", &headers.tier),
        ("upstream_headers.owner", &headers.owner),
    ];
    let told = told.into_iter().filter_map(|(field, header)| {
        let header = header.as_ref()?;
        Some((field, header.to_string()))
    });
    facts.extend(told);
    facts
}
