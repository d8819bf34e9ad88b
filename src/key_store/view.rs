//! A key as people and programs see it: without its secret, and without the hash of it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::said::rfc3339;
use crate::keys::{KeyRecord, Secret, unix_now};

/// A key. Times are RFC 3339.
#[derive(Debug, Clone, Serialize)]
pub struct KeyView {
    /// Its public name.
    pub id: String,
    /// The tier it belongs to.
    pub tier: String,
    /// Whose it is.
    pub owner: Option<String>,
    /// `enabled`, `disabled` or `expired`.
    pub state: &'static str,
    /// What else people want to know of it.
    pub labels: BTreeMap<String, String>,
    /// Limits in place of its tier's, as plan files write them.
    pub limits: Vec<String>,
    /// From when on it opens nothing.
    pub expires_at: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// When it was last changed.
    pub changed_at: String,
    /// Counts its changes, from 1.
    pub revision: u32,
    /// Until when the secret of before the last rotation opens.
    pub previous_until: Option<String>,
}

/// A key and its secret, which is shown only this once.
#[derive(Debug, Clone, Serialize)]
pub struct KeyWithSecret {
    /// The key.
    #[serde(flatten)]
    pub key: KeyView,
    /// Its secret.
    #[serde(serialize_with = "exposed")]
    pub secret: Secret,
}

fn exposed<S: serde::Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

impl From<KeyRecord> for KeyView {
    fn from(record: KeyRecord) -> Self {
        let now = unix_now();
        let over = record.expires_at.is_some_and(|at| now >= at);
        let previous = record.previous.filter(|previous| now < previous.until);
        Self {
            state: match (record.enabled, over) {
                (false, _) => "disabled",
                (true, true) => "expired",
                (true, false) => "enabled",
            },
            id: record.id,
            tier: record.tier,
            owner: record.owner,
            labels: record.labels,
            limits: record.limits.iter().map(ToString::to_string).collect(),
            expires_at: record.expires_at.map(rfc3339),
            created_at: rfc3339(record.created_at),
            changed_at: rfc3339(record.changed_at),
            revision: record.revision,
            previous_until: previous.map(|previous| rfc3339(previous.until)),
        }
    }
}

/// Reads for how long the secret of before a rotation still opens: `24h`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_overlap(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is no length of time: write 24h, or 0s for none"))
}

/// Reads a time: `90d` from now, or `2027-01-31` or `2027-01-31T12:00:00Z`; in seconds since 1970.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_expiry(text: &str) -> Result<u32, String> {
    let seconds = if let Ok(after) = humantime::parse_duration(text) {
        u64::from(unix_now()).checked_add(after.as_secs())
    } else {
        let whole = match text.len() {
            10 => format!("{text}T00:00:00Z"),
            _ => text.to_owned(),
        };
        let at = humantime::parse_rfc3339_weak(&whole)
            .map_err(|_| format!("`{text}` is no time: write 90d, or 2027-01-31T12:00:00Z"))?;
        at.duration_since(std::time::UNIX_EPOCH)
            .ok()
            .map(|since| since.as_secs())
    };
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    seconds
        .filter(|at| *at > 0)
        .ok_or_else(|| format!("`{text}` is not between 1970 and 2106"))
}
