//! Keys on stdout.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;

use super::Output;
use crate::{
    key_store::{Imported, KeyView, KeyWithSecret},
    keys::{KeyRecord, Secret},
};

/// A key that was made, with the secret that is shown only now.
pub fn print_made((record, secret): (KeyRecord, Secret), output: Output) -> String {
    let key = KeyView::from(record);
    match output {
        Output::Json => json_text(&KeyWithSecret { key, secret }),
        Output::Text => {
            let about = about(&key);
            let secret = secret.expose();
            format!("{about}secret       {secret}\n\nKeep the secret: nobody can show it again.")
        }
    }
}

/// A key.
pub fn print_key(record: KeyRecord, output: Output) -> String {
    let key = KeyView::from(record);
    match output {
        Output::Json => json_text(&key),
        Output::Text => about(&key).trim_end().to_owned(),
    }
}

/// Keys, one a line.
pub fn print_list(records: Vec<KeyRecord>, output: Output) -> String {
    let keys: Vec<KeyView> = records.into_iter().map(KeyView::from).collect();
    if output == Output::Json {
        return json_text(&keys);
    }
    let width = keys
        .iter()
        .map(|key| key.id.len())
        .max()
        .unwrap_or(0)
        .max(2);
    let mut text = format!(
        "{:width$}  {:12}  {:8}  {:20}  owner",
        "id", "tier", "state", "expires"
    );
    for key in &keys {
        let expires = key.expires_at.as_deref().unwrap_or("-");
        let owner = key.owner.as_deref().unwrap_or("-");
        let _ = write!(
            text,
            "\n{:width$}  {:12}  {:8}  {expires:20}  {owner}",
            key.id, key.tier, key.state
        );
    }
    text
}

/// A key that is gone.
pub fn print_revoked(id: &str, output: Output) -> String {
    match output {
        Output::Json => json_text(&json!({ "id": id, "state": "revoked" })),
        Output::Text => format!("{id} is revoked"),
    }
}

/// What became of keys from elsewhere.
pub fn print_imported(imported: &Imported, output: Output) -> String {
    let skipped = imported.skipped.iter();
    match output {
        Output::Json => json_text(&json!({
            "created": imported.created,
            "skipped": skipped.map(|(id, why)| json!({ "id": id, "why": why })).collect::<Vec<_>>(),
        })),
        Output::Text => {
            let lines = skipped.map(|(id, why)| format!("\nnot imported: {id}: {why}"));
            format!(
                "imported: {}{}",
                imported.created.len(),
                lines.collect::<String>()
            )
        }
    }
}

fn about(key: &KeyView) -> String {
    let labels: Vec<_> = key
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let lines = [
        ("id", Some(key.id.clone())),
        ("tier", Some(key.tier.clone())),
        ("owner", key.owner.clone()),
        ("state", Some(key.state.to_owned())),
        ("labels", some(labels.join(", "))),
        ("limits", some(key.limits.join(", "))),
        ("expires", key.expires_at.clone()),
        ("created", Some(key.created_at.clone())),
        ("changed", Some(key.changed_at.clone())),
        ("revision", Some(key.revision.to_string())),
        (
            "old secret",
            key.previous_until
                .as_ref()
                .map(|until| format!("opens until {until}")),
        ),
    ];
    let lines = lines
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    lines
        .map(|(name, value)| format!("{name:12} {value}\n"))
        .collect()
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("texts and numbers only")
}
