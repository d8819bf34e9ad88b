//! A key in words, for the audit log: everything but its secret and the hash of it.

use std::time::Duration;

use indexmap::IndexMap;

use crate::keys::KeyRecord;

/// What is said of a key, by name; first what decides most.
type Facts = IndexMap<String, String>;

/// What a new key is: `tier free; owner Ada; expires 2027-01-31T00:00:00Z`.
pub fn said_of(record: &KeyRecord) -> String {
    let facts = facts(record).into_iter();
    let facts = facts.map(|(name, value)| format!("{name} {value}"));
    facts.collect::<Vec<_>>().join("; ")
}

/// What changes from one revision of a key to the next: `tier free → premium; owner none → Ada`.
pub fn said_of_change(before: &KeyRecord, after: &KeyRecord) -> String {
    let (old, mut new) = (facts(before), facts(after));
    let mut changes = Vec::new();
    for (name, was) in old {
        let is = new.shift_remove(&name).unwrap_or_else(|| "none".to_owned());
        if is != was {
            changes.push(format!("{name} {was} → {is}"));
        }
    }
    let added = new.iter();
    changes.extend(added.map(|(name, is)| format!("{name} none → {is}")));
    changes.join("; ")
}

/// Seconds since 1970, in RFC 3339.
pub fn rfc3339(seconds: u32) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds.into());
    humantime::format_rfc3339_seconds(time).to_string()
}

fn facts(record: &KeyRecord) -> Facts {
    let mut facts = Facts::from([("tier".to_owned(), record.tier.clone())]);
    if let Some(owner) = &record.owner {
        facts.insert("owner".to_owned(), owner.clone());
    }
    if let Some(at) = record.expires_at {
        facts.insert("expires".to_owned(), rfc3339(at));
    }
    if !record.limits.is_empty() {
        let limits: Vec<_> = record.limits.iter().map(ToString::to_string).collect();
        facts.insert("limits".to_owned(), format!("[{}]", limits.join(", ")));
    }
    if !record.enabled {
        facts.insert("state".to_owned(), "disabled".to_owned());
    }
    for (label, value) in &record.labels {
        facts.insert(format!("label {label}"), value.clone());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_without_its_secret_and_its_hash() {
        let mut key = KeyRecord::example("ada", "a-secret-of-ada");
        key.expires_at = Some(1_800_000_000);
        key.limits = vec!["7/hour".parse().unwrap(), "9/day sliding".parse().unwrap()];
        key.labels.insert("team".to_owned(), "web".to_owned());
        key.enabled = false;
        assert_eq!(
            said_of(&key),
            "tier free; owner Ada; expires 2027-01-15T08:00:00Z; limits [7/hour, 9/day sliding]; state disabled; label team web"
        );
    }

    #[test]
    fn of_a_change_only_what_changes_is_told() {
        let mut before = KeyRecord::example("ada", "a-secret-of-ada");
        before.labels.insert("a".to_owned(), "1".to_owned());
        let mut after = before.clone();
        after.revision += 1;
        assert_eq!(said_of_change(&before, &after), "");
        after.tier = "premium".to_owned();
        after.owner = None;
        after.expires_at = Some(1_800_000_000);
        after.labels = [("b".to_owned(), "2".to_owned())].into();
        assert_eq!(
            said_of_change(&before, &after),
            "tier free → premium; owner Ada → none; label a 1 → none; expires none → 2027-01-15T08:00:00Z; label b none → 2"
        );
    }
}
