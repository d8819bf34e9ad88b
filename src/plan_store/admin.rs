//! What is done with plan documents: put, looked at, rolled back, removed.
//!
//! A change is checked against the newest plans and written only if those are still the newest; else it is checked again. Who
//! changes a domain that somebody else has changed in between is told so.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{
    KEPT_VERSIONS, LARGEST_DOCUMENT, PlanRecord, PlanTable,
    record::{MOST_BYTES, MOST_RECORDS},
};
use crate::{
    home::{Actor, Entry, Follower, Home, HomeError, Record as _, TRIES, Table as _},
    keys::Change,
    plan::{
        Document, LoadError, SharedPlans,
        diff::{self, diff},
        domain_of,
    },
};

/// Bytes of what changes that the audit log is told, where that is not all in the first sentence.
const MOST_SAID: usize = 900;

/// Why something was not done with plan documents.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The plans would not load.
    #[error("{0}")]
    Mistakes(#[from] LoadError),
    /// The text is too long.
    #[error("the document has {bytes} bytes, and {LARGEST_DOCUMENT} are the most")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Too much is kept.
    #[error(
        "all stored plans together would be more than {MOST_BYTES} bytes or {MOST_RECORDS} versions: make the documents smaller"
    )]
    Full,
    /// No document of that domain was ever put.
    #[error("there are no stored plans of the domain `{domain}`: its files hold, if it has any")]
    NoDomain {
        /// The domain.
        domain: String,
    },
    /// No domain was named, and there is not just one.
    #[error("name a domain that has stored plans: {}", if known.is_empty() { "there is none" } else { known })]
    WhichDomain {
        /// Those that have stored plans.
        known: String,
    },
    /// That version is not there.
    #[error(
        "version {version} of the plans of `{domain}` is not there, or has no text; `tollgate plans history {domain}` shows those that are kept"
    )]
    NoVersion {
        /// The domain.
        domain: String,
        /// The version.
        version: u32,
    },
    /// The domain is not as the caller, or this process, has seen it.
    #[error(
        "the plans of `{domain}` were changed by somebody else: they have version {now}, not {seen}; look at them and try again"
    )]
    Changed {
        /// The domain.
        domain: String,
        /// The version that was looked at; 0 for none.
        seen: u32,
        /// The version that it has.
        now: u32,
    },
    /// Others change plans faster than this one can be changed.
    #[error("plans are being changed by somebody else all the time; nothing was done, try again")]
    Busy,
    /// Documents have no home here.
    #[error(
        "no plans are kept here: start with --state-dir DIR or --store redis://…; as `ratelimit` they are in files only"
    )]
    NoHome,
    /// Plans come from elsewhere.
    #[error("plans come from a control plane here, so that is where to change them")]
    NotFromFiles,
    /// The home did not do it.
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// What a change of a domain's plans came to.
#[derive(Debug)]
pub struct Put {
    /// The version that is in force now; the one that would be, where it was only tried.
    pub record: PlanRecord,
    /// Whether it is a new one.
    pub new: bool,
    /// What changes, and for whom.
    pub changes: Vec<diff::Change>,
    /// What is tolerated in the plans and yet worth a look.
    pub warnings: Vec<String>,
}

/// Changes plan documents, and brings what changed into force.
#[derive(Debug)]
pub struct PlanAdmin {
    home: Mutex<(Home<PlanTable>, Arc<PlanTable>)>,
    plans: Arc<SharedPlans>,
}

/// What is to become of a domain's plans.
enum Wanted {
    Text(Arc<str>),
    Version(u32),
    Files,
}

impl PlanAdmin {
    /// Documents of `home`, of which `table` has been read and is in `plans`.
    pub fn new(home: Home<PlanTable>, table: Arc<PlanTable>, plans: Arc<SharedPlans>) -> Self {
        Self {
            home: Mutex::new((home, table)),
            plans,
        }
    }

    /// Brings the newest documents into force; answers whether they are others now. Plans that do not load with them stay as
    /// they are, which the log and [`ReloadStatus`](crate::plan::ReloadStatus) say.
    ///
    /// # Errors
    /// [`HomeError`]; then the documents of before stay.
    pub async fn refresh(&self) -> Result<bool, HomeError> {
        self.refresh_from(&mut *self.home.lock().await).await
    }

    async fn refresh_from(
        &self,
        (home, table): &mut (Home<PlanTable>, Arc<PlanTable>),
    ) -> Result<bool, HomeError> {
        let Some(new) = home.refresh(table).await? else {
            return Ok(false);
        };
        *table = Arc::new(new);
        let _ = self.plans.set_documents(table.documents()).await;
        Ok(true)
    }

    /// The newest table.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn table(&self) -> Result<Arc<PlanTable>, HomeError> {
        let mut home = self.home.lock().await;
        self.refresh_from(&mut home).await?;
        Ok(Arc::clone(&home.1))
    }

    /// A version of a domain's plans that is kept, or the newest.
    ///
    /// # Errors
    /// [`PlanError::NoDomain`], [`PlanError::NoVersion`], [`PlanError::Home`].
    pub async fn get(&self, domain: &str, version: Option<u32>) -> Result<PlanRecord, PlanError> {
        let table = self.table().await?;
        let newest = newest(&table, domain)?;
        match version {
            None => Ok(newest.clone()),
            Some(version) => table
                .get(domain, version)
                .cloned()
                .ok_or_else(|| no_version(domain, version)),
        }
    }

    /// All versions of a domain that are kept, newest first.
    ///
    /// # Errors
    /// [`PlanError::NoDomain`], [`PlanError::Home`].
    pub async fn history(&self, domain: &str) -> Result<Vec<PlanRecord>, PlanError> {
        let table = self.table().await?;
        newest(&table, domain)?;
        Ok(table.history(domain).cloned().collect())
    }

    /// Puts `text` in the place of the files of the domain that it names; `name` is what mistakes call it. With `dry` it only
    /// says what would change.
    ///
    /// # Errors
    /// [`PlanError`].
    pub async fn put(
        &self,
        by: &Actor,
        text: &str,
        name: &str,
        seen: Option<u32>,
        dry: bool,
    ) -> Result<Put, PlanError> {
        if text.len() > LARGEST_DOCUMENT {
            return Err(PlanError::TooLarge { bytes: text.len() });
        }
        let domain = domain_of(text, name)?;
        let wanted = Wanted::Text(text.into());
        let put = self.change(by, &domain, &wanted, seen, dry).await;
        put.map_err(|error| match error {
            Refused::Mistakes(document, error) => {
                PlanError::Mistakes(error.calling(&document, name))
            }
            Refused::Else(error) => error,
        })
    }

    /// Puts the text of an earlier version in force again, as a new one.
    ///
    /// # Errors
    /// [`PlanError`].
    pub async fn rollback(
        &self,
        by: &Actor,
        domain: &str,
        version: u32,
        seen: Option<u32>,
    ) -> Result<Put, PlanError> {
        let wanted = Wanted::Version(version);
        Ok(self.change(by, domain, &wanted, seen, false).await?)
    }

    /// Puts the domain's files in force again.
    ///
    /// # Errors
    /// [`PlanError`].
    pub async fn reset(
        &self,
        by: &Actor,
        domain: &str,
        seen: Option<u32>,
    ) -> Result<Put, PlanError> {
        Ok(self.change(by, domain, &Wanted::Files, seen, false).await?)
    }

    async fn change(
        &self,
        by: &Actor,
        domain: &str,
        wanted: &Wanted,
        seen: Option<u32>,
        dry: bool,
    ) -> Result<Put, Refused> {
        if !self.plans.come_from_files() {
            return Err(PlanError::NotFromFiles.into());
        }
        let mut home = self.home.lock().await;
        let mut first = seen;
        for _ in 0..TRIES {
            self.refresh_from(&mut home).await?;
            let table = Arc::clone(&home.1);
            let before = table.newest(domain);
            unchanged(domain, before, &mut first)?;
            let (record, is_new) = match (before, next(&table, domain, wanted, by)?) {
                (Some(before), next) if before.text == next.text => (before.clone(), false),
                (_, next) => (next, true),
            };
            let documents = documents_with(&table, &record, dry && is_new);
            let new = self.plans.preview(documents).await.map_err(|error| {
                let document = record.document().map(|document| document.name());
                Refused::Mistakes(document.unwrap_or_default(), error)
            })?;
            let old = self.plans.load_full();
            let put = Put {
                changes: diff(&old, &new, old.stored_keys()),
                warnings: new.warnings().iter().map(ToString::to_string).collect(),
                new: is_new,
                record,
            };
            if dry || !put.new {
                return Ok(put);
            }
            let (changes, entry) = (changes(&table, &put.record)?, entry(by, before, &put));
            let (home_of, _) = &mut *home;
            match home_of.append(&table, changes, &entry).await {
                Err(HomeError::Stale { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    entry.log();
                    self.refresh_from(&mut home).await?;
                    return Ok(put);
                }
            }
        }
        Err(PlanError::Busy.into())
    }
}

impl Follower for PlanAdmin {
    const WHAT: &'static str = "stored plans";

    async fn follow(&self) -> Result<bool, HomeError> {
        self.refresh().await
    }
}

/// Why a change was not made; mistakes with what the document was called.
enum Refused {
    Mistakes(String, LoadError),
    Else(PlanError),
}

impl From<PlanError> for Refused {
    fn from(error: PlanError) -> Self {
        Self::Else(error)
    }
}

impl From<HomeError> for Refused {
    fn from(error: HomeError) -> Self {
        Self::Else(error.into())
    }
}

impl From<Refused> for PlanError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Mistakes(_, error) => Self::Mistakes(error),
            Refused::Else(error) => error,
        }
    }
}

fn newest<'t>(table: &'t PlanTable, domain: &str) -> Result<&'t PlanRecord, PlanError> {
    table.newest(domain).ok_or_else(|| PlanError::NoDomain {
        domain: domain.to_owned(),
    })
}

fn no_version(domain: &str, version: u32) -> PlanError {
    PlanError::NoVersion {
        domain: domain.to_owned(),
        version,
    }
}

/// Whether the domain is as it was first seen: by the caller, or by this process.
fn unchanged(
    domain: &str,
    newest: Option<&PlanRecord>,
    first: &mut Option<u32>,
) -> Result<(), PlanError> {
    let now = newest.map_or(0, |record| record.version);
    let seen = *first.get_or_insert(now);
    match seen == now {
        true => Ok(()),
        false => Err(PlanError::Changed {
            domain: domain.to_owned(),
            seen,
            now,
        }),
    }
}

/// The version that comes next.
fn next(
    table: &PlanTable,
    domain: &str,
    wanted: &Wanted,
    by: &Actor,
) -> Result<PlanRecord, PlanError> {
    let version = table.newest(domain).map_or(0, |record| record.version) + 1;
    let (text, note) = match wanted {
        Wanted::Text(text) => (Some(Arc::clone(text)), String::new()),
        Wanted::Version(old) => {
            newest(table, domain)?;
            let record = table.get(domain, *old);
            let text = record.and_then(|record| record.text.clone());
            let text = text.ok_or_else(|| no_version(domain, *old))?;
            (Some(text), format!("rollback to {old}"))
        }
        Wanted::Files => {
            newest(table, domain)?;
            (None, "reset".to_owned())
        }
    };
    Ok(PlanRecord::new(domain, version, text, by.name(), &note))
}

/// What stands in the place of files once `record` is the newest of its domain, which may only be `tried`.
fn documents_with(table: &PlanTable, record: &PlanRecord, tried: bool) -> Vec<Document> {
    let others = table.documents().into_iter();
    let others = others.filter(|document| *document.domain != *record.domain);
    let this = record.document();
    let this = this.map(|document| Document { tried, ..document });
    others.chain(this).collect()
}

/// The new version comes, and one that is too old goes.
fn changes(table: &PlanTable, record: &PlanRecord) -> Result<Vec<Change<PlanRecord>>, PlanError> {
    let text = record.text.as_ref().map_or(0, |text| text.len());
    if table.bytes() + text > MOST_BYTES || table.count() >= MOST_RECORDS {
        return Err(PlanError::Full);
    }
    let outdated = table.history(&record.domain).skip(KEPT_VERSIONS - 1);
    let outdated = outdated.map(|record| Change::Remove(record.key()));
    let put = Change::Put(record.clone());
    Ok(std::iter::once(put).chain(outdated).collect())
}

fn entry(by: &Actor, before: Option<&PlanRecord>, put: &Put) -> Entry {
    let Put {
        record, changes, ..
    } = put;
    let action = match (&record.text, record.note.is_empty()) {
        (None, _) => "plans.reset",
        (Some(_), true) => "plans.put",
        (Some(_), false) => "plans.rollback",
    };
    let said = first_of(changes);
    let detail = match record.note.as_str() {
        "" => said,
        note => format!("{note}: {said}"),
    };
    Entry::new(by, action, &record.domain)
        .from_to(before.map(|record| record.version), Some(record.version))
        .saying(&detail)
}

/// The first changes in words, at most so many bytes of them, and how many more there are.
fn first_of(changes: &[diff::Change]) -> String {
    if changes.is_empty() {
        return "no change for anybody".to_owned();
    }
    let mut said = String::new();
    for (index, change) in changes.iter().enumerate() {
        let next = change.to_string();
        if index > 0 && said.len() + next.len() > MOST_SAID {
            return format!("{said}; and {} more", changes.len() - index);
        }
        said += if index > 0 { "; " } else { "" };
        said += &next;
    }
    said
}
