//! A key as it is kept and sent: everything but its secret.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::limit::Limit;

/// Most labels of a key.
pub const MOST_LABELS: usize = 32;

/// Most limits that a key may have of its own.
pub const MOST_LIMITS: usize = 16;

/// Longest id, tier and name or value of a label, in bytes.
const LONGEST_NAME: usize = 128;

/// Longest owner in bytes.
const LONGEST_OWNER: usize = 256;

/// A key. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Its public name.
    pub id: String,
    /// The tier it belongs to.
    pub tier: String,
    /// SHA-256 of its secret.
    pub sha256: Sha256Hash,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What else people want to know of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Limits in place of its tier's; none to have the tier's.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "limits_to_texts",
        deserialize_with = "limits_from_texts"
    )]
    pub limits: Vec<Limit>,
    /// Whether it opens anything.
    pub enabled: bool,
    /// From when on it opens nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u32>,
    /// When it was made.
    pub created_at: u32,
    /// When it was last changed.
    pub changed_at: u32,
    /// Counts its changes, from 1. Who changes a key may say which revision was looked at.
    pub revision: u32,
    /// The secret of before a rotation, for as long as it still opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// A secret that was replaced and opens for a while yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Previous {
    /// Its SHA-256.
    pub sha256: Sha256Hash,
    /// From when on it opens nothing.
    pub until: u32,
}

/// What happens to one key, or to one record of another table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change<R = KeyRecord> {
    /// It is now this.
    Put(R),
    /// The one of that id is gone.
    Remove(String),
}

/// A SHA-256, in text as 64 hexadecimal digits. `Debug` does not show it: log lines are no place for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256Hash(pub [u8; 32]);

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Hash(…)")
    }
}

impl Serialize for Sha256Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Sha256Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut hash = [0; 32];
        let whole = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !whole {
            return Err(D::Error::custom("a SHA-256 has 64 hexadecimal digits"));
        }
        for (byte, place) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[place..place + 2], 16).map_err(D::Error::custom)?;
        }
        Ok(Self(hash))
    }
}

fn limits_to_texts<S: Serializer>(limits: &[Limit], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(limits.iter().map(ToString::to_string))
}

fn limits_from_texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Limit>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let read = |text: &String| Limit::from_str(text).map_err(D::Error::custom);
    texts.iter().map(read).collect()
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A name that cannot be one.
    #[error("{what} must have 1 to {most} bytes, and neither `\"` nor control characters")]
    Name {
        /// Whose name.
        what: &'static str,
        /// Its most bytes.
        most: usize,
    },
    /// More labels than a key has.
    #[error("a key has at most {MOST_LABELS} labels")]
    Labels,
    /// More limits than a key has.
    #[error("a key has at most {MOST_LIMITS} limits of its own")]
    Limits,
    /// Two limits that would be one bucket.
    #[error(
        "the limits `{0}` and `{1}` of a key differ in their numbers only, so they would share a bucket"
    )]
    SameBucket(String, String),
}

impl KeyRecord {
    /// Whether it may be kept.
    ///
    /// # Errors
    /// [`RecordError`]: the first thing that is wrong.
    pub fn check(&self) -> Result<(), RecordError> {
        name("an id", &self.id, LONGEST_NAME)?;
        name("a tier", &self.tier, LONGEST_NAME)?;
        if let Some(owner) = &self.owner {
            name("an owner", owner, LONGEST_OWNER)?;
        }
        for (label, value) in &self.labels {
            name("a label", label, LONGEST_NAME)?;
            name("a label's value", value, LONGEST_NAME)?;
        }
        if self.labels.len() > MOST_LABELS {
            return Err(RecordError::Labels);
        }
        if self.limits.len() > MOST_LIMITS {
            return Err(RecordError::Limits);
        }
        for (index, limit) in self.limits.iter().enumerate() {
            let same = |earlier: &&Limit| earlier.identity() == limit.identity();
            if let Some(earlier) = self.limits[..index].iter().find(same) {
                return Err(RecordError::SameBucket(
                    earlier.to_string(),
                    limit.to_string(),
                ));
            }
        }
        Ok(())
    }
}

fn name(what: &'static str, text: &str, most: usize) -> Result<(), RecordError> {
    let bad = |c: char| c == '"' || c.is_control();
    match text.is_empty() || text.len() > most || text.contains(bad) {
        true => Err(RecordError::Name { what, most }),
        false => Ok(()),
    }
}

#[cfg(test)]
impl KeyRecord {
    /// A key of the free tier, for tests.
    pub(crate) fn example(id: &str, secret: &str) -> Self {
        Self {
            id: id.to_owned(),
            tier: "free".to_owned(),
            sha256: Sha256Hash(super::hash(secret.as_bytes())),
            owner: Some("Ada".to_owned()),
            labels: BTreeMap::new(),
            limits: Vec::new(),
            enabled: true,
            expires_at: None,
            created_at: 1,
            changed_at: 1,
            revision: 1,
            previous: None,
        }
    }
}
