//! Puts the files of one domain together.
//!
//! Source: envoyproxy/ratelimit, MERGE_DOMAIN_CONFIG: the rules of later files come after those of earlier ones, and no two
//! stand for the same key and value. What is said of a whole domain stands in one of its files.

use std::{collections::HashSet, mem, sync::Arc};

use super::{
    file::PlanFile,
    mistake::{Mistake, Notes},
};

/// Adds to `all`, which begins with the file `first`, what the file `name` says of the same domain.
pub fn merge(
    all: &mut PlanFile,
    first: &Arc<str>,
    more: PlanFile,
    name: &Arc<str>,
    notes: &mut Notes,
) {
    // Whole, so that a new field is not forgotten here.
    let PlanFile {
        domain: _,
        further: _,
        descriptors,
        tiers,
        api_keys,
        authentication,
        deny,
        allow,
        unmatched,
        response,
        on_store_error,
        algorithm,
        charge,
        overdraw,
    } = more;
    let mut take = |field: &str, here: bool, there: bool| {
        if here && there {
            let message =
                format!("stands in {first} too; of the files of one domain, one may have it");
            notes.error(mistake(name, field, message));
        }
        there
    };
    if take("tiers", !all.tiers.is_empty(), !tiers.is_empty()) {
        all.tiers = tiers;
    }
    if take("api_keys", all.api_keys.is_some(), api_keys.is_some()) {
        all.api_keys = api_keys;
    }
    let (here, there) = (all.authentication.is_some(), authentication.is_some());
    if take("authentication", here, there) {
        all.authentication = authentication;
    }
    if take("deny", all.deny.is_some(), deny.is_some()) {
        all.deny = deny;
    }
    if take("allow", all.allow.is_some(), allow.is_some()) {
        all.allow = allow;
    }
    if take("unmatched", all.unmatched.is_told(), unmatched.is_told()) {
        all.unmatched = unmatched;
    }
    let told = |response: &_| *response != Default::default();
    if take("response", told(&all.response), told(&response)) {
        all.response = response;
    }
    let (here, there) = (all.on_store_error.is_some(), on_store_error.is_some());
    if take("on_store_error", here, there) {
        all.on_store_error = on_store_error;
    }
    if take("algorithm", all.algorithm.is_some(), algorithm.is_some()) {
        all.algorithm = algorithm;
    }
    if take("charge", all.charge.is_some(), charge.is_some()) {
        all.charge = charge;
    }
    if take("overdraw", all.overdraw.is_some(), overdraw.is_some()) {
        all.overdraw = overdraw;
    }
    let descriptors = descriptors.unwrap_or_default();
    let mut rules = mem::take(&mut all.descriptors).unwrap_or_default();
    let seen: HashSet<_> = rules
        .iter()
        .map(|rule| (rule.joined(), rule.cidr))
        .collect();
    for (index, rule) in descriptors.iter().enumerate() {
        if seen.contains(&(rule.joined(), rule.cidr)) {
            let message = format!(
                "duplicate descriptor composite key '{}.{}', which another file of the domain has",
                all.domain,
                rule.shown()
            );
            notes.error(Mistake {
                place: rule.place,
                ..mistake(name, &format!("descriptors[{index}]"), message)
            });
        }
    }
    all.further.push((rules.len(), Arc::clone(name)));
    rules.extend(descriptors);
    all.descriptors = Some(rules);
}

fn mistake(file: &Arc<str>, path: &str, message: String) -> Mistake {
    Mistake {
        file: Arc::clone(file),
        place: None,
        path: path.to_owned(),
        message,
    }
}
