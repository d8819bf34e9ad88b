//! What a change of allow and deny lists means.

use super::{Change, ChangeKind, ChangeSubject, Effect, Pair};
use crate::plan::{List, domain::Domain};

/// Most clients that a sentence names.
const NAMED: usize = 5;

pub(super) fn changes(pair: &Pair<'_>, into: &mut Vec<Change>) {
    let deny = |domain: &Domain| domain.lists().map(|lists| clients(&lists.deny));
    let allow = |domain: &Domain| domain.lists().map(|lists| clients(&lists.allow));
    let both = |of: &dyn Fn(&Domain) -> Option<Vec<String>>| {
        [pair.old, pair.new].map(|domain| of(domain).unwrap_or_default())
    };
    let (refused, no_longer) = (
        "refused, whatever their limits",
        "no longer refused outright",
    );
    let said = [
        (
            "deny",
            both(&deny),
            [(refused, Effect::Tighter), (no_longer, Effect::Looser)],
        ),
        (
            "allow",
            both(&allow),
            [
                ("let pass, whatever their limits", Effect::Looser),
                ("limited again", Effect::Tighter),
            ],
        ),
    ];
    for (name, [old, new], [(come, in_effect), (gone, out_effect)]) in said {
        let differences = [
            (without(&new, &old), come, in_effect, ChangeKind::Added),
            (without(&old, &new), gone, out_effect, ChangeKind::Removed),
        ];
        for (clients, means, effect, change) in differences {
            if !clients.is_empty() {
                let says = (effect, format!("{} are {means}", named(&clients)));
                into.push(pair.change(ChangeSubject::List, name, change, says));
            }
        }
    }
}

fn clients(list: &List) -> Vec<String> {
    let networks = list.cidr().iter().map(ToString::to_string);
    let keys = list.api_keys().iter().map(|id| format!("API key {id}"));
    networks.chain(keys).collect()
}

fn without<'a>(these: &'a [String], those: &[String]) -> Vec<&'a str> {
    let those: std::collections::HashSet<_> = those.iter().collect();
    let left = these.iter().filter(|client| !those.contains(client));
    left.map(String::as_str).collect()
}

fn named(clients: &[&str]) -> String {
    match clients.len().saturating_sub(NAMED) {
        0 => clients.join(", "),
        more => format!("{} and {more} more", clients[..NAMED].join(", ")),
    }
}
