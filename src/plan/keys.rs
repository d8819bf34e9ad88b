//! API keys: known by their id, or by the SHA-256 of their secret. The secret itself is nowhere.

use std::{collections::HashMap, fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

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

    /// The key of that secret.
    pub fn of_secret(&self, secret: &str) -> Option<&ApiKey> {
        if self.by_hash.is_empty() {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(secret).into();
        self.by_hash.get(&hash).map(AsRef::as_ref)
    }

    /// The key of that id or secret.
    pub fn of_id_or_secret(&self, text: &str) -> Option<&ApiKey> {
        match self.by_id.get(text) {
            Some(key) => Some(key),
            None => self.of_secret(text),
        }
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
