//! What is done with keys: made, looked at, switched off and on, rotated, revoked, brought from elsewhere.
//!
//! A change is checked against the newest table and written only if that is still the newest; else it is checked again. Who
//! changes a key that somebody else has changed in between is told so.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::Mutex;

use super::{
    MOST_KEYS,
    said::{rfc3339, said_of, said_of_change},
};
use crate::{
    home::{Actor, Entry, Follower, Home, HomeError, TRIES},
    keys::{
        Change, KeyRecord, KeyTable, LONGEST_SECRET, Previous, RecordError, SHORTEST_SECRET,
        Secret, Sha256Hash, hash, unix_now,
    },
    limit::Limit,
    plan::{Plans, SharedPlans},
};

/// Changes written in one step.
const BATCH: usize = 1_000;

/// A key to be made.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Its id; drawn if none is given.
    pub id: Option<String>,
    /// The tier it belongs to.
    pub tier: String,
    /// Whose it is.
    pub owner: Option<String>,
    /// What else people want to know of it.
    pub labels: BTreeMap<String, String>,
    /// Limits in place of its tier's.
    pub limits: Vec<Limit>,
    /// From when on it opens nothing, in seconds since 1970.
    pub expires_at: Option<u32>,
    /// Whether it opens nothing until it is enabled.
    pub disabled: bool,
}

/// What is to be said of a key from now on; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct KeyChange {
    /// The tier it belongs to.
    pub tier: Option<String>,
    /// Whose it is; empty for nobody's.
    pub owner: Option<String>,
    /// Labels to set; those with an empty value are removed.
    pub labels: BTreeMap<String, String>,
    /// Limits in place of its tier's; an empty list to have the tier's.
    pub limits: Option<Vec<Limit>>,
    /// From when on it opens nothing, in seconds since 1970; zero for never.
    pub expires_at: Option<u32>,
}

impl KeyChange {
    fn apply(&self, record: &mut KeyRecord) {
        if let Some(tier) = &self.tier {
            record.tier.clone_from(tier);
        }
        if let Some(owner) = &self.owner {
            record.owner = Some(owner.clone()).filter(|owner| !owner.is_empty());
        }
        for (label, value) in &self.labels {
            match value.is_empty() {
                true => record.labels.remove(label),
                false => record.labels.insert(label.clone(), value.clone()),
            };
        }
        if let Some(limits) = &self.limits {
            record.limits.clone_from(limits);
        }
        if let Some(at) = self.expires_at {
            record.expires_at = Some(at).filter(|at| *at > 0);
        }
    }
}

/// Which keys to list.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    /// Of that tier.
    pub tier: Option<String>,
    /// Of that owner.
    pub owner: Option<String>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
}

impl KeyFilter {
    fn fits(&self, record: &KeyRecord) -> bool {
        let has = |(label, value): (&String, &String)| record.labels.get(label) == Some(value);
        self.tier.as_ref().is_none_or(|tier| *tier == record.tier)
            && (self.owner.is_none() || self.owner == record.owner)
            && self.labels.iter().all(has)
    }
}

/// What became of keys from elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Ids of those that are here now.
    pub created: Vec<String>,
    /// Ids of those that are not, and why.
    pub skipped: Vec<(String, String)>,
}

/// Why something was not done with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No such key.
    #[error("there is no API key `{id}`; `tollgate keys list` shows those that are there")]
    Unknown {
        /// Its id.
        id: String,
    },
    /// A key of that id is there.
    #[error("there is an API key `{id}` already: choose another id, or rotate that one")]
    Exists {
        /// Its id.
        id: String,
    },
    /// A plan file has a key of that id, which would win.
    #[error(
        "the plan files have an API key `{id}`, and theirs win: choose another id, or change it there"
    )]
    InPlans {
        /// Its id.
        id: String,
    },
    /// A key with that secret is there.
    #[error("the secret of `{id}` is that of the API key `{of}`: one secret belongs to one key")]
    SecretTaken {
        /// The new key.
        id: String,
        /// The key that has it.
        of: String,
    },
    /// The id is somebody's secret.
    #[error("an id that is itself the secret of a key; ids are public, so choose another")]
    IdIsSecret,
    /// A secret that cannot be one.
    #[error(
        "the secret of `{id}` has {length} bytes; one has {SHORTEST_SECRET} to {LONGEST_SECRET}"
    )]
    SecretLength {
        /// The new key.
        id: String,
        /// Its length in bytes.
        length: usize,
    },
    /// It would open nothing from the first.
    #[error("a key that ended at {at} would open nothing: choose a time to come")]
    Ended {
        /// When.
        at: String,
    },
    /// No plan has that tier.
    #[error("no plan has the tier `{tier}`; the tiers are {known}")]
    Tier {
        /// Its name.
        tier: String,
        /// Those that there are.
        known: String,
    },
    /// The key is not as the caller, or this process, has seen it.
    #[error(
        "API key `{id}` was changed by somebody else: it has revision {now}, not {seen}; look at it and try again"
    )]
    Changed {
        /// Its id.
        id: String,
        /// The revision that was looked at.
        seen: u32,
        /// The revision that it has.
        now: u32,
    },
    /// Others change keys faster than this one can be changed.
    #[error("keys are being changed by somebody else all the time; nothing was done, try again")]
    Busy,
    /// Keys have no home here.
    #[error(
        "no API keys are kept here: start with --state-dir DIR or --store redis://…; as `ratelimit` they are in plan files only"
    )]
    NoHome,
    /// Too many keys.
    #[error("there are {MOST_KEYS} API keys, and that is the most: revoke some")]
    Full,
    /// Something that a key cannot be.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The home of the keys did not do it.
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// Changes keys, and brings what changed into the plans in force.
#[derive(Debug)]
pub struct KeyAdmin {
    home: Mutex<Home<KeyTable>>,
    plans: Arc<SharedPlans>,
}

impl KeyAdmin {
    /// Keys of `home`, beside those of the files of `plans`.
    pub fn new(home: Home<KeyTable>, plans: Arc<SharedPlans>) -> Self {
        Self {
            home: Mutex::new(home),
            plans,
        }
    }

    /// Brings the newest keys into the plans in force; answers whether they are others now.
    ///
    /// # Errors
    /// [`HomeError`]; then the keys of before stay.
    pub async fn refresh(&self) -> Result<bool, HomeError> {
        self.refresh_from(&mut *self.home.lock().await).await
    }

    async fn refresh_from(&self, home: &mut Home<KeyTable>) -> Result<bool, HomeError> {
        let plans = self.plans.load_full();
        let new = home.refresh(plans.stored_keys()).await;
        self.plans.set_keys_stale(new.is_err());
        let new = new?;
        let changed = new.is_some();
        let awaited = !plans.keys_are_complete();
        if let Some(table) = new {
            self.plans.set_stored_keys(Arc::new(table));
        } else if awaited {
            self.plans.set_stored_keys(Arc::clone(plans.stored_keys()));
        }
        Ok(changed)
    }

    /// Makes a key. The secret is nowhere but in the answer.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn create(&self, by: &Actor, new: NewKey) -> Result<(KeyRecord, Secret), KeyError> {
        if let Some(at) = new.expires_at.filter(|at| *at <= unix_now()) {
            return Err(KeyError::Ended { at: rfc3339(at) });
        }
        let secret = Secret::generate();
        let record = record_of(&new, secret.hash());
        let detail = said_of(&record);
        let made = self
            .change(|plans| {
                check_new(plans, plans.stored_keys(), &record)?;
                let entry = Entry::new(by, "key.create", &record.id).from_to(None, Some(1));
                let changes = vec![Change::Put(record.clone())];
                Ok((changes, entry.saying(&detail), record.clone()))
            })
            .await?;
        Ok((made, secret))
    }

    /// Keys in the order of their ids, after `after`, at most `most` of them.
    ///
    /// # Errors
    /// [`HomeError`], where the newest cannot be read.
    pub async fn list(
        &self,
        filter: &KeyFilter,
        after: &str,
        most: usize,
    ) -> Result<Vec<KeyRecord>, HomeError> {
        self.refresh().await?;
        let plans = self.plans.load_full();
        let keys = plans.stored_keys().iter().filter(|key| key.id() > after);
        let mut keys: Vec<_> = keys.map(|key| (key.id(), key)).collect();
        keys.sort_unstable_by_key(|(id, _)| *id);
        let records = keys.into_iter().map(|(_, key)| key.record());
        Ok(records
            .filter(|record| filter.fits(record))
            .take(most)
            .collect())
    }

    /// The key of that id.
    ///
    /// # Errors
    /// [`KeyError::Unknown`]; [`KeyError::Home`].
    pub async fn show(&self, id: &str) -> Result<KeyRecord, KeyError> {
        self.refresh().await?;
        let plans = self.plans.load_full();
        found(plans.stored_keys(), id)
    }

    /// Switches a key on or off.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn set_enabled(
        &self,
        by: &Actor,
        id: &str,
        enabled: bool,
        seen: Option<u32>,
    ) -> Result<KeyRecord, KeyError> {
        let action = match enabled {
            true => "key.enable",
            false => "key.disable",
        };
        let switch = |_: &Plans, record: &mut KeyRecord| {
            record.enabled = enabled;
            Ok(String::new())
        };
        self.edit(by, action, id, seen, switch).await
    }

    /// Changes what is said of a key; its secret stays.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn update(
        &self,
        by: &Actor,
        id: &str,
        change: &KeyChange,
        seen: Option<u32>,
    ) -> Result<KeyRecord, KeyError> {
        let edit = |plans: &Plans, record: &mut KeyRecord| {
            let before = record.clone();
            change.apply(record);
            record.check()?;
            match plans.has_tier(&record.tier) {
                true => Ok(said_of_change(&before, record)),
                false => Err(unknown_tier(plans, &record.tier)),
            }
        };
        self.edit(by, "key.update", id, seen, edit).await
    }

    /// Gives a key another secret; the one of before opens for `overlap` yet.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn rotate(
        &self,
        by: &Actor,
        id: &str,
        overlap: Duration,
        seen: Option<u32>,
    ) -> Result<(KeyRecord, Secret), KeyError> {
        let secret = Secret::generate();
        let overlap = u32::try_from(overlap.as_secs()).unwrap_or(u32::MAX);
        let until = unix_now().saturating_add(overlap);
        let rotate = |_: &Plans, record: &mut KeyRecord| {
            let sha256 = std::mem::replace(&mut record.sha256, Sha256Hash(secret.hash()));
            record.previous = (overlap > 0).then_some(Previous { sha256, until });
            Ok(match overlap {
                0 => "the old secret opens nothing any more".to_owned(),
                _ => format!("the old secret opens until {}", rfc3339(until)),
            })
        };
        let record = self.edit(by, "key.rotate", id, seen, rotate).await?;
        Ok((record, secret))
    }

    /// Removes a key for good.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn revoke(&self, by: &Actor, id: &str, seen: Option<u32>) -> Result<(), KeyError> {
        let mut first = seen;
        self.change(|plans| {
            let record = found(plans.stored_keys(), id)?;
            unchanged(&record, &mut first)?;
            let entry = Entry::new(by, "key.revoke", id).from_to(Some(record.revision), None);
            let entry = entry.saying(&said_of(&record));
            Ok((vec![Change::Remove(id.to_owned())], entry, ()))
        })
        .await
    }

    /// Takes keys over with the secrets that they have. Those that cannot be taken are named with the reason.
    ///
    /// # Errors
    /// [`HomeError`] and [`KeyError::Busy`]; keys of earlier steps of a thousand may be here then.
    pub async fn import(
        &self,
        by: &Actor,
        keys: Vec<(NewKey, String)>,
    ) -> Result<Imported, KeyError> {
        let mut imported = Imported::default();
        for batch in keys.chunks(BATCH) {
            let import = |plans: &Plans| {
                let (changes, imported) = import_batch(plans, batch);
                let (created, _) = &imported;
                let entry = Entry::new(by, "key.import", &format!("{} keys", created.len()));
                Ok((changes, entry.saying(&created.join(", ")), imported))
            };
            let (created, skipped) = self.change(import).await?;
            imported.created.extend(created);
            imported.skipped.extend(skipped);
        }
        Ok(imported)
    }

    /// Changes a key as `edit` does, which tells the audit log what it did.
    async fn edit(
        &self,
        by: &Actor,
        action: &str,
        id: &str,
        seen: Option<u32>,
        edit: impl Fn(&Plans, &mut KeyRecord) -> Result<String, KeyError>,
    ) -> Result<KeyRecord, KeyError> {
        let mut first = seen;
        self.change(|plans| {
            let mut record = found(plans.stored_keys(), id)?;
            unchanged(&record, &mut first)?;
            let said = edit(plans, &mut record)?;
            let before = record.revision;
            record.revision = before.saturating_add(1);
            record.changed_at = unix_now();
            let entry = Entry::new(by, action, id).from_to(Some(before), Some(record.revision));
            Ok((
                vec![Change::Put(record.clone())],
                entry.saying(&said),
                record,
            ))
        })
        .await
    }

    /// Writes what `decide` says of the newest plans and keys, and asks it again where those were not the newest.
    async fn change<T>(
        &self,
        mut decide: impl FnMut(&Plans) -> Result<(Vec<Change>, Entry, T), KeyError>,
    ) -> Result<T, KeyError> {
        let mut home = self.home.lock().await;
        for _ in 0..TRIES {
            self.refresh_from(&mut home).await?;
            let plans = self.plans.load_full();
            let (changes, entry, answer) = decide(&plans)?;
            if changes.is_empty() {
                return Ok(answer);
            }
            match home.append(plans.stored_keys(), changes, &entry).await {
                Err(HomeError::Stale { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    entry.log();
                    self.refresh_from(&mut home).await?;
                    return Ok(answer);
                }
            }
        }
        Err(KeyError::Busy)
    }
}

impl Follower for KeyAdmin {
    const WHAT: &'static str = "api keys";

    async fn follow(&self) -> Result<bool, HomeError> {
        self.refresh().await
    }
}

fn found(table: &KeyTable, id: &str) -> Result<KeyRecord, KeyError> {
    let key = table
        .get(id)
        .ok_or_else(|| KeyError::Unknown { id: id.to_owned() })?;
    Ok(key.record())
}

/// Whether the key is as it was first seen: by the caller, or by this process.
fn unchanged(record: &KeyRecord, first: &mut Option<u32>) -> Result<(), KeyError> {
    let seen = *first.get_or_insert(record.revision);
    match seen == record.revision {
        true => Ok(()),
        false => Err(KeyError::Changed {
            id: record.id.clone(),
            seen,
            now: record.revision,
        }),
    }
}

fn check_new(plans: &Plans, table: &KeyTable, record: &KeyRecord) -> Result<(), KeyError> {
    record.check()?;
    let id = &record.id;
    if !plans.has_tier(&record.tier) {
        return Err(unknown_tier(plans, &record.tier));
    }
    if plans.api_key_of_id(id).is_some() {
        return Err(KeyError::InPlans { id: id.clone() });
    }
    if table.get(id).is_some() {
        return Err(KeyError::Exists { id: id.clone() });
    }
    let holder = |sha256: &[u8; 32]| {
        let in_plans = plans.api_key(sha256).map(|key| key.id.to_string());
        in_plans.or_else(|| table.holder(sha256).map(|key| key.id().to_owned()))
    };
    if let Some(of) = holder(&record.sha256.0) {
        return Err(KeyError::SecretTaken { id: id.clone(), of });
    }
    let id_as_secret = hash(id.as_bytes());
    if id_as_secret == record.sha256.0 || holder(&id_as_secret).is_some() {
        return Err(KeyError::IdIsSecret);
    }
    match table.len() >= MOST_KEYS {
        true => Err(KeyError::Full),
        false => Ok(()),
    }
}

fn unknown_tier(plans: &Plans, tier: &str) -> KeyError {
    let known: Vec<_> = plans
        .tiers()
        .iter()
        .map(|tier| format!("`{tier}`"))
        .collect();
    KeyError::Tier {
        tier: tier.to_owned(),
        known: match known.is_empty() {
            true => "none: give a plan file `tiers`".to_owned(),
            false => known.join(", "),
        },
    }
}

type ImportedBatch = (Vec<String>, Vec<(String, String)>);

fn import_batch(plans: &Plans, batch: &[(NewKey, String)]) -> (Vec<Change>, ImportedBatch) {
    let (mut changes, mut created, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    // Keys of one batch must differ from each other, too.
    let mut editor = plans.stored_keys().edit();
    for (new, secret) in batch {
        let record = record_of(new, hash(secret.as_bytes()));
        let length = secret.len();
        let checked = match (SHORTEST_SECRET..=LONGEST_SECRET).contains(&length) {
            true => check_new(plans, editor.table(), &record),
            false => Err(KeyError::SecretLength {
                id: record.id.clone(),
                length,
            }),
        };
        match checked {
            Ok(()) => {
                created.push(record.id.clone());
                editor.apply(Change::Put(record.clone()));
                changes.push(Change::Put(record));
            }
            Err(error) => skipped.push((record.id, error.to_string())),
        }
    }
    (changes, (created, skipped))
}

/// A key of its first revision.
fn record_of(new: &NewKey, sha256: [u8; 32]) -> KeyRecord {
    let now = unix_now();
    let drawn = || format!("key_{:016x}", rand::random::<u64>());
    KeyRecord {
        id: new.id.clone().unwrap_or_else(drawn),
        tier: new.tier.clone(),
        sha256: Sha256Hash(sha256),
        owner: new.owner.clone(),
        labels: new.labels.clone(),
        limits: new.limits.clone(),
        enabled: !new.disabled,
        expires_at: new.expires_at,
        created_at: now,
        changed_at: now,
        revision: 1,
        previous: None,
    }
}
