//! Finds a key by its id or by the SHA-256 of its secret.
//!
//! A table never changes: a change makes a new one that shares all but a few of its shards with the old one, so that a
//! reader needs no lock and a change among a million keys costs microseconds. An index is a sorted list per shard, which
//! needs 16 bytes a key and takes the same steps for a key that is there and one that is not.

use std::{collections::BTreeMap, fmt, hash::Hasher as _, sync::Arc};

use siphasher::sip::SipHasher13;

use super::record::{Change, KeyRecord, Previous, Sha256Hash};
use crate::limit::Limit;

/// Parts of an index. A change copies one of them; a million keys make lists of a thousand.
const SHARDS: usize = 1_024;

/// A key in the table, packed: a million of them stand in memory.
pub struct StoredKey {
    sha256: [u8; 32],
    /// Id, then tier, then owner: one block for all three.
    texts: Box<str>,
    /// What most keys do not have.
    more: Option<Box<More>>,
    /// 0 for never.
    expires_at: u32,
    created_at: u32,
    changed_at: u32,
    revision: u32,
    id_length: u8,
    tier_length: u8,
    owned: bool,
    enabled: bool,
}

// With its two counts it fills a block of the allocator, of which a million are in memory.
const _: () = assert!(size_of::<StoredKey>() == 80);

#[derive(Default)]
struct More {
    labels: BTreeMap<String, String>,
    limits: Vec<Limit>,
    previous: Option<Previous>,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredKey({} of tier {})", self.id(), self.tier())
    }
}

impl StoredKey {
    fn new(record: KeyRecord) -> Self {
        let plain =
            record.labels.is_empty() && record.limits.is_empty() && record.previous.is_none();
        let owner = record.owner.as_deref().unwrap_or_default();
        Self {
            sha256: record.sha256.0,
            texts: [&*record.id, &*record.tier, owner].concat().into(),
            expires_at: record.expires_at.unwrap_or(0),
            created_at: record.created_at,
            changed_at: record.changed_at,
            revision: record.revision,
            id_length: length(&record.id),
            tier_length: length(&record.tier),
            owned: record.owner.is_some(),
            enabled: record.enabled,
            more: (!plain).then(|| {
                Box::new(More {
                    labels: record.labels,
                    limits: record.limits,
                    previous: record.previous,
                })
            }),
        }
    }

    /// Its public name.
    pub fn id(&self) -> &str {
        &self.texts[..usize::from(self.id_length)]
    }

    /// The tier it belongs to.
    pub fn tier(&self) -> &str {
        &self.texts[usize::from(self.id_length)..][..usize::from(self.tier_length)]
    }

    /// Whose it is.
    pub fn owner(&self) -> Option<&str> {
        let before = usize::from(self.id_length) + usize::from(self.tier_length);
        self.owned.then(|| &self.texts[before..])
    }

    /// Limits in place of its tier's; empty to have the tier's.
    pub fn limits(&self) -> &[Limit] {
        self.more.as_ref().map_or(&[], |more| &more.limits)
    }

    /// All that is known of it.
    pub fn record(&self) -> KeyRecord {
        let more = self.more.as_deref();
        KeyRecord {
            id: self.id().to_owned(),
            tier: self.tier().to_owned(),
            sha256: Sha256Hash(self.sha256),
            owner: self.owner().map(str::to_owned),
            labels: more.map(|more| more.labels.clone()).unwrap_or_default(),
            limits: self.limits().to_vec(),
            enabled: self.enabled,
            expires_at: (self.expires_at != 0).then_some(self.expires_at),
            created_at: self.created_at,
            changed_at: self.changed_at,
            revision: self.revision,
            previous: self.previous().cloned(),
        }
    }

    fn previous(&self) -> Option<&Previous> {
        self.more.as_ref()?.previous.as_ref()
    }

    fn expired(&self, now: u32) -> bool {
        self.expires_at != 0 && now >= self.expires_at
    }

    fn looked_up(&self, now: u32) -> Lookup<'_> {
        match (self.enabled, self.expired(now)) {
            (false, _) => Lookup::Disabled,
            (true, true) => Lookup::Expired,
            (true, false) => Lookup::Live(self),
        }
    }

    /// Every hash under which it is found.
    fn hashes(&self) -> impl Iterator<Item = [u8; 32]> {
        let previous = self.previous().map(|previous| previous.sha256.0);
        [Some(self.sha256), previous].into_iter().flatten()
    }
}

/// What was found.
#[derive(Debug, Clone, Copy)]
pub enum Lookup<'t> {
    /// A key that opens.
    Live(&'t StoredKey),
    /// A key that was disabled.
    Disabled,
    /// A key, or a rotated secret, whose time is over.
    Expired,
    /// Nothing.
    Unknown,
}

impl<'t> Lookup<'t> {
    /// The key, if it opens.
    pub fn live(self) -> Option<&'t StoredKey> {
        match self {
            Self::Live(key) => Some(key),
            _ => None,
        }
    }
}

/// Keys by a hash; its first bits choose the shard.
type Index = Vec<Arc<Vec<(u64, Arc<StoredKey>)>>>;

/// All keys, as they were at one version.
#[derive(Clone)]
pub struct KeyTable {
    version: u64,
    length: usize,
    by_secret: Index,
    by_id: Index,
}

impl Default for KeyTable {
    fn default() -> Self {
        let shard = Arc::default();
        Self {
            version: 0,
            length: 0,
            by_secret: vec![Arc::clone(&shard); SHARDS],
            by_id: vec![shard; SHARDS],
        }
    }
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "KeyTable({} keys at version {})",
            self.length, self.version
        )
    }
}

impl KeyTable {
    /// Counts the changes of its home.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many keys it holds, those that open nothing too.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What the secret of that SHA-256 opens at `now`, in seconds since 1970.
    pub fn of_hash(&self, sha256: &[u8; 32], now: u32) -> Lookup<'_> {
        let Some(key) = self.holder(sha256) else {
            return Lookup::Unknown;
        };
        let rotated = key.sha256 != *sha256;
        match key.previous() {
            Some(previous) if rotated && now >= previous.until => Lookup::Expired,
            _ => key.looked_up(now),
        }
    }

    /// The key of that id, if it opens at `now`.
    pub fn of_id(&self, id: &str, now: u32) -> Lookup<'_> {
        self.get(id)
            .map_or(Lookup::Unknown, |key| key.looked_up(now))
    }

    /// The key of that id, whether it opens or not.
    pub fn get(&self, id: &str) -> Option<&StoredKey> {
        candidates(&self.by_id, id_hash(id))
            .find(|key| key.id() == id)
            .map(AsRef::as_ref)
    }

    /// The key that has, or had until lately, the secret of that SHA-256.
    pub fn holder(&self, sha256: &[u8; 32]) -> Option<&StoredKey> {
        candidates(&self.by_secret, secret_hash(sha256))
            .find(|key| key.hashes().any(|hash| hash == *sha256))
            .map(AsRef::as_ref)
    }

    /// All keys, in an order that changes do not disturb.
    pub fn iter(&self) -> impl Iterator<Item = &StoredKey> {
        self.by_id
            .iter()
            .flat_map(|shard| shard.iter().map(|(_, key)| key.as_ref()))
    }

    /// Begins a new table from this one.
    pub fn edit(&self) -> TableEditor {
        TableEditor {
            table: self.clone(),
        }
    }
}

/// A table in the making.
#[derive(Debug)]
pub struct TableEditor {
    table: KeyTable,
}

impl TableEditor {
    /// Makes a change. The last one for an id counts.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(record) => self.put(record),
            Change::Remove(id) => self.remove(&id),
        }
    }

    fn put(&mut self, record: KeyRecord) {
        self.remove(&record.id);
        let key = Arc::new(StoredKey::new(record));
        let table = &mut self.table;
        for sha256 in key.hashes() {
            insert(&mut table.by_secret, secret_hash(&sha256), &key);
        }
        insert(&mut table.by_id, id_hash(key.id()), &key);
        table.length += 1;
    }

    fn remove(&mut self, id: &str) {
        let table = &mut self.table;
        let found = candidates(&table.by_id, id_hash(id)).find(|key| key.id() == id);
        let Some(key) = found.map(Arc::clone) else {
            return;
        };
        for sha256 in key.hashes() {
            take_out(&mut table.by_secret, secret_hash(&sha256), &key);
        }
        take_out(&mut table.by_id, id_hash(id), &key);
        table.length -= 1;
    }

    /// The table as it is by now, still of the old version.
    pub fn table(&self) -> &KeyTable {
        &self.table
    }

    /// The new table, of that version.
    pub fn finish(mut self, version: u64) -> KeyTable {
        self.table.version = version;
        for index in [&mut self.table.by_secret, &mut self.table.by_id] {
            for shard in index.iter_mut().filter_map(Arc::get_mut) {
                shard.shrink_to_fit();
            }
        }
        self.table
    }
}

fn length(name: &str) -> u8 {
    u8::try_from(name.len()).expect("KeyRecord::check() bounds names")
}

fn candidates(index: &Index, hash: u64) -> impl Iterator<Item = &Arc<StoredKey>> {
    let shard = &index[shard_of(hash)];
    let first = shard.partition_point(|(other, _)| *other < hash);
    let same = shard[first..]
        .iter()
        .take_while(move |(other, _)| *other == hash);
    same.map(|(_, key)| key)
}

fn insert(index: &mut Index, hash: u64, key: &Arc<StoredKey>) {
    let shard = Arc::make_mut(&mut index[shard_of(hash)]);
    let place = shard.partition_point(|(other, _)| *other < hash);
    shard.insert(place, (hash, Arc::clone(key)));
}

fn take_out(index: &mut Index, hash: u64, key: &Arc<StoredKey>) {
    let shard = Arc::make_mut(&mut index[shard_of(hash)]);
    shard.retain(|(other, kept)| *other != hash || !Arc::ptr_eq(kept, key));
}

fn shard_of(hash: u64) -> usize {
    (hash >> 54) as usize
}

/// A SHA-256 is as good a hash as any.
fn secret_hash(sha256: &[u8; 32]) -> u64 {
    u64::from_be_bytes(sha256[..8].try_into().expect("eight of 32 bytes"))
}

fn id_hash(id: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(id.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::hash;

    fn table(records: &[KeyRecord]) -> KeyTable {
        let mut editor = KeyTable::default().edit();
        for record in records {
            editor.apply(Change::Put(record.clone()));
        }
        editor.finish(1)
    }

    fn opens(table: &KeyTable, secret: &str, now: u32) -> Option<String> {
        let found = table.of_hash(&hash(secret.as_bytes()), now).live();
        found.map(|key| key.id().to_owned())
    }

    #[test]
    fn keys_are_found_by_id_and_by_secret_and_come_back_whole() {
        let records: Vec<_> = (0..5_000)
            .map(|n| KeyRecord::example(&format!("key-{n}"), &format!("secret-{n}")))
            .collect();
        let table = table(&records);
        assert_eq!(table.len(), 5_000);
        for (n, record) in records.iter().enumerate() {
            assert_eq!(
                opens(&table, &format!("secret-{n}"), 5),
                Some(record.id.clone())
            );
            assert_eq!(
                table.get(&record.id).map(StoredKey::record).as_ref(),
                Some(record)
            );
        }
        assert_eq!(opens(&table, "secret-5000", 5), None);
        assert_eq!(opens(&table, "key-1", 5), None);
    }

    #[test]
    fn a_new_table_leaves_the_old_one_as_it_was() {
        let old = table(&[KeyRecord::example("a", "1"), KeyRecord::example("b", "2")]);
        let mut editor = old.edit();
        editor.apply(Change::Remove("a".to_owned()));
        editor.apply(Change::Put(KeyRecord::example("b", "3")));
        editor.apply(Change::Remove("nobody".to_owned()));
        let new = editor.finish(2);
        assert_eq!((old.len(), new.len()), (2, 1));
        assert_eq!(opens(&old, "1", 0).as_deref(), Some("a"));
        assert_eq!(opens(&new, "1", 0), None);
        assert_eq!(opens(&new, "2", 0), None);
        assert_eq!(opens(&new, "3", 0).as_deref(), Some("b"));
    }

    #[test]
    fn disabled_and_expired_keys_open_nothing() {
        let disabled = KeyRecord {
            enabled: false,
            ..KeyRecord::example("off", "1")
        };
        let expiring = KeyRecord {
            expires_at: Some(100),
            ..KeyRecord::example("short", "2")
        };
        let table = table(&[disabled, expiring]);
        let lookup = |secret: &str, now| table.of_hash(&hash(secret.as_bytes()), now);
        assert!(matches!(lookup("1", 0), Lookup::Disabled));
        assert!(matches!(lookup("2", 99), Lookup::Live(_)));
        assert!(matches!(lookup("2", 100), Lookup::Expired));
        assert!(matches!(table.of_id("short", 100), Lookup::Expired));
    }

    #[test]
    fn a_rotated_secret_opens_until_its_time_is_over() {
        let previous = Some(Previous {
            sha256: Sha256Hash(hash(b"old")),
            until: 100,
        });
        let table = table(&[KeyRecord {
            previous,
            ..KeyRecord::example("a", "new")
        }]);
        assert_eq!(opens(&table, "old", 99).as_deref(), Some("a"));
        assert_eq!(opens(&table, "old", 100), None);
        assert_eq!(opens(&table, "new", 100).as_deref(), Some("a"));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn nothing_prints_a_secret_or_its_hash() {
        let record = KeyRecord::example("a", "1");
        let (digits, table) = (
            serde_json::to_string(&record.sha256).unwrap(),
            table(std::slice::from_ref(&record)),
        );
        let prints = format!("{record:?} {table:?} {:?}", table.get("a"));
        assert!(!prints.contains(digits.trim_matches('"')), "{prints}");
        assert!(
            !prints.contains(&format!("{:?}", record.sha256.0)),
            "{prints}"
        );
    }
}
