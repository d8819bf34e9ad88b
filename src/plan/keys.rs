//! API keys of plan files: known by their id, or by the SHA-256 of their secret. The secret itself is nowhere.

use std::{collections::HashMap, fmt, sync::Arc};

use super::stamp::stamp;
use crate::{
    keys::{KeyTable, LONGEST_SECRET, Lookup, StoredKey, hash, unix_now},
    limit::Limit,
};

/// An API key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its public name.
    pub id: Arc<str>,
    /// The domain whose plan file lists it.
    pub domain: Arc<str>,
    /// The tier it belongs to.
    pub tier: Arc<str>,
    /// The tier's index among the domain's tiers.
    pub tier_index: u32,
    /// Whose it is, if the plans say so.
    pub owner: Option<Box<str>>,
    /// Stands for its id and tier.
    pub stamp: u128,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({} of tier {})", self.id, self.tier)
    }
}

/// API keys by id and by secret.
#[derive(Default)]
pub struct ApiKeys {
    by_id: HashMap<Arc<str>, Arc<ApiKey>>,
    by_hash: HashMap<[u8; 32], Arc<ApiKey>>,
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.by_id.values()).finish()
    }
}

impl ApiKeys {
    /// Adds a key; answers the one that already has this secret, which stays.
    pub fn add(&mut self, sha256: [u8; 32], key: &Arc<ApiKey>) -> Option<Arc<ApiKey>> {
        if let Some(first) = self.by_hash.get(&sha256) {
            return Some(Arc::clone(first));
        }
        self.by_id.insert(Arc::clone(&key.id), Arc::clone(key));
        self.by_hash.insert(sha256, Arc::clone(key));
        None
    }

    /// The key whose secret has that SHA-256.
    pub fn of_hash(&self, sha256: &[u8; 32]) -> Option<&ApiKey> {
        self.by_hash.get(sha256).map(AsRef::as_ref)
    }

    /// The key of that id.
    pub fn of_id(&self, id: &str) -> Option<&ApiKey> {
        self.by_id.get(id).map(AsRef::as_ref)
    }

    /// The ids that are known here and there, and whose secret there is another one.
    pub fn with_another_secret<'a>(&'a self, there: &'a Self) -> impl Iterator<Item = &'a str> {
        let other = |hash: &[u8; 32], id: &str| {
            there.by_id.contains_key(id) && there.by_hash.get(hash).is_none_or(|key| &*key.id != id)
        };
        let known = self.by_hash.iter();
        known.filter_map(move |(hash, key)| other(hash, &key.id).then_some(&*key.id))
    }

    /// All keys, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ApiKey>> {
        self.by_hash.values()
    }
}

/// A key that opens, wherever it is kept.
#[derive(Debug, Clone, Copy)]
pub enum KnownKey<'p> {
    /// In a plan file.
    File(&'p ApiKey),
    /// In the key store.
    Stored(&'p StoredKey),
}

impl<'p> KnownKey<'p> {
    /// Its public name.
    pub fn id(self) -> &'p str {
        match self {
            Self::File(key) => &key.id,
            Self::Stored(key) => key.id(),
        }
    }

    /// The tier it belongs to.
    pub fn tier(self) -> &'p str {
        match self {
            Self::File(key) => &key.tier,
            Self::Stored(key) => key.tier(),
        }
    }

    /// Stands for its id and tier.
    pub fn stamp(self) -> u128 {
        match self {
            Self::File(key) => key.stamp,
            // Of these a million may be in memory.
            Self::Stored(key) => stamp(&[key.id(), key.tier()]),
        }
    }

    /// Whose it is.
    pub fn owner(self) -> Option<&'p str> {
        match self {
            Self::File(key) => key.owner.as_deref(),
            Self::Stored(key) => key.owner(),
        }
    }

    /// Limits in place of its tier's; empty to have the tier's.
    pub fn limits(self) -> &'p [Limit] {
        match self {
            Self::File(_) => &[],
            Self::Stored(key) => key.limits(),
        }
    }
}

/// What a text that should be a key opens.
#[derive(Debug, Clone, Copy)]
pub enum KeyCheck<'p> {
    /// This key.
    Known(KnownKey<'p>),
    /// Nothing: it was disabled.
    Disabled,
    /// Nothing: its time is over.
    Expired,
    /// Nothing.
    Unknown,
}

impl<'p> KeyCheck<'p> {
    /// What `secret` opens. Keys of files win. The steps are the same for a key that is known and one that is not.
    pub fn secret(files: &'p ApiKeys, stored: &'p KeyTable, secret: &[u8]) -> Self {
        if secret.len() > LONGEST_SECRET || (files.by_hash.is_empty() && stored.is_empty()) {
            return Self::Unknown;
        }
        let sha256 = hash(secret);
        let (file, stored) = (files.of_hash(&sha256), stored.of_hash(&sha256, unix_now()));
        match (file, stored) {
            (Some(key), _) => Self::Known(KnownKey::File(key)),
            (None, Lookup::Live(key)) => Self::Known(KnownKey::Stored(key)),
            (None, Lookup::Disabled) => Self::Disabled,
            (None, Lookup::Expired) => Self::Expired,
            (None, Lookup::Unknown) => Self::Unknown,
        }
    }

    /// The key, if it opens.
    pub fn known(self) -> Option<KnownKey<'p>> {
        match self {
            Self::Known(key) => Some(key),
            _ => None,
        }
    }
}

/// The key of that id.
pub fn key_of_id<'p>(files: &'p ApiKeys, stored: &'p KeyTable, id: &str) -> Option<KnownKey<'p>> {
    if let Some(key) = files.of_id(id) {
        return Some(KnownKey::File(key));
    }
    if stored.is_empty() {
        return None;
    }
    stored.of_id(id, unix_now()).live().map(KnownKey::Stored)
}
