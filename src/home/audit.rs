//! Who changed what, and when: kept beside the tables, bounded, newest first to read. No secret is ever in it.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{
    HomeError, Place,
    folder::{file_error, framed, lock, private, unframed},
    redis::{AUDIT, Link},
};

/// Entries that Redis keeps.
pub const MOST_ENTRIES: usize = 10_000;

/// Most entries of one answer.
pub const MOST_ON_A_PAGE: usize = 1_000;

/// A file of this size, in bytes, is put aside and another begun: at least so much is kept, at most twice as much.
const LARGEST_FILE: u64 = 8 << 20;

/// Longest text of an entry in bytes.
const LONGEST: usize = 1_024;

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(Arc<str>);

impl Actor {
    /// The name of a token, or of who gives a command.
    pub fn new(name: &str) -> Self {
        Self(bounded(name).into())
    }

    /// What they are called.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Tells it from all others.
    pub id: String,
    /// When, in RFC 3339, by the clock of the process that did it.
    pub at: String,
    /// Who.
    pub by: String,
    /// What: `key.create`, `plans.put`, `buckets.grant`.
    pub action: String,
    /// With which key, domain or descriptor.
    pub on: String,
    /// Its revision or version before; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u32>,
    /// The one after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
    /// What else there is to know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Entry {
    /// What `by` does now.
    pub fn new(by: &Actor, action: &str, on: &str) -> Self {
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: format!(
                "{:013x}{:08x}",
                since.as_millis() as u64,
                rand::random::<u32>()
            ),
            at: humantime::format_rfc3339_millis(now).to_string(),
            by: by.name().to_owned(),
            action: action.to_owned(),
            on: bounded(on),
            before: None,
            after: None,
            detail: String::new(),
        }
    }

    /// The same, from one revision or version to another.
    pub fn from_to(self, before: Option<u32>, after: Option<u32>) -> Self {
        Self {
            before,
            after,
            ..self
        }
    }

    /// The same, with something more to say.
    pub fn saying(self, detail: &str) -> Self {
        Self {
            detail: bounded(detail),
            ..self
        }
    }

    /// As it is kept.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers only")
    }

    /// Tells the log of something that was done.
    pub fn log(&self) {
        tracing::info!(
            by = self.by,
            action = self.action,
            on = self.on,
            before = self.before,
            after = self.after,
            detail = self.detail,
            "changed by an administrator"
        );
    }
}

/// So much of a text as an entry holds, without control characters.
fn bounded(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        if kept.len() + c.len_utf8() > LONGEST {
            kept.push('…');
            break;
        }
        kept.push(if c.is_control() { ' ' } else { c });
    }
    kept
}

/// Entries, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditPage {
    /// At most as many as were asked for.
    pub entries: Vec<Entry>,
    /// Where older ones go on; none if there are none.
    pub next: Option<String>,
}

/// The audit log of a home.
#[derive(Debug)]
pub struct AuditLog(Kept);

#[derive(Debug)]
enum Kept {
    Folder(PathBuf),
    Redis(Box<Mutex<Link>>),
}

impl AuditLog {
    /// The log of that home. Nothing is read yet.
    pub fn of(place: Place) -> Self {
        Self(match place {
            Place::Folder(folder) => Kept::Folder(folder),
            Place::Redis(url) => Kept::Redis(Box::new(Mutex::new(Link::new(*url)))),
        })
    }

    /// Adds an entry about something that is in no table.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn write(&self, entry: &Entry) -> Result<(), HomeError> {
        match &self.0 {
            Kept::Folder(folder) => {
                let (folder, entry) = (folder.clone(), entry.clone());
                aside(move || {
                    let _lock = lock(&folder, "audit")?;
                    AuditLog::append_to(&folder, &entry)
                })
                .await
            }
            Kept::Redis(link) => {
                let mut command = ::redis::cmd("XADD");
                command.arg(AUDIT).arg("MAXLEN").arg(MOST_ENTRIES);
                command.arg("*").arg("entry").arg(entry.json());
                let _id: String = link.lock().await.ask(&command).await?;
                Ok(())
            }
        }
    }

    /// The newest entries, or those before `before`, the `next` of an earlier page; only those about `on`, if that is told.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn read(
        &self,
        on: Option<&str>,
        before: Option<&str>,
        most: usize,
    ) -> Result<AuditPage, HomeError> {
        let most = most.clamp(1, MOST_ON_A_PAGE);
        let about = |entry: &Entry| on.is_none_or(|on| entry.on == on);
        match &self.0 {
            Kept::Folder(folder) => {
                let folder = folder.clone();
                let mut entries = aside(move || read_folder(&folder)).await?;
                if let Some(before) = before {
                    let at = entries.iter().position(|entry| entry.id == before);
                    entries.drain(..at.map_or(entries.len(), |at| at + 1));
                }
                entries.retain(about);
                let more = entries.len() > most;
                entries.truncate(most);
                let last = entries.last().filter(|_| more);
                Ok(AuditPage {
                    next: last.map(|entry| entry.id.clone()),
                    entries,
                })
            }
            Kept::Redis(link) => {
                let mut link = link.lock().await;
                let mut page = AuditPage::default();
                let mut end = before.map_or("+".to_owned(), |id| format!("({id}"));
                loop {
                    let found = read_stream(&mut link, &end).await?;
                    let whole = found.len() < MOST_ON_A_PAGE;
                    for (id, entry) in found {
                        if page.entries.len() == most {
                            return Ok(page);
                        }
                        end = format!("({id}");
                        if let Some(entry) = entry.filter(about) {
                            page.entries.push(entry);
                            page.next = Some(id);
                        }
                    }
                    if whole {
                        page.next = None;
                        return Ok(page);
                    }
                }
            }
        }
    }

    /// Adds an entry to the file of a state directory, whose lock the caller holds.
    pub(super) fn append_to(folder: &Path, entry: &Entry) -> Result<(), HomeError> {
        let path = folder.join(FILE);
        let append = || -> io::Result<()> {
            let size = fs::metadata(&path).map_or(0, |found| found.len());
            if size >= LARGEST_FILE {
                fs::rename(&path, folder.join(ASIDE))?;
            }
            let mut file = private().read(true).append(true).create(true).open(&path)?;
            let mut line = framed(entry)?;
            if !ends_well(&mut file)? {
                // What a crash cut off becomes a line that readers pass over.
                line.insert(0, b'\n');
            }
            file.write_all(&line)?;
            file.sync_data()
        };
        append().map_err(|source| file_error(&path, source))
    }
}

const FILE: &str = "audit.log";
const ASIDE: &str = "audit.log.1";

/// Whether a file is empty or ends with a whole line.
fn ends_well(file: &mut fs::File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// All entries of a state directory, newest first. Damaged lines are passed over, and the log says so.
fn read_folder(folder: &Path) -> Result<Vec<Entry>, HomeError> {
    let (mut entries, mut damaged) = (Vec::new(), 0);
    for name in [ASIDE, FILE] {
        let path = folder.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(file_error(&path, error)),
        };
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let entry = unframed(line).ok();
            match entry.and_then(|json| serde_json::from_slice(json).ok()) {
                Some(entry) => entries.push(entry),
                None => damaged += 1,
            }
        }
    }
    if damaged > 0 {
        tracing::warn!(damaged, folder = %folder.display(), "lines of the audit log are damaged and left out");
    }
    entries.reverse();
    Ok(entries)
}

type Row = (String, Vec<(String, String)>);

/// A page of the stream from `end` back. An entry that is none of ours is left out.
async fn read_stream(
    link: &mut Link,
    end: &str,
) -> Result<Vec<(String, Option<Entry>)>, HomeError> {
    let mut command = ::redis::cmd("XREVRANGE");
    command.arg(AUDIT).arg(end).arg("-");
    command.arg("COUNT").arg(MOST_ON_A_PAGE);
    let rows: Vec<Row> = link.ask(&command).await?;
    let entry = |fields: Vec<(String, String)>| {
        let (_, json) = fields.into_iter().find(|(name, _)| name == "entry")?;
        serde_json::from_str(&json).ok()
    };
    let rows = rows.into_iter();
    Ok(rows.map(|(id, fields)| (id, entry(fields))).collect())
}

/// Work on files, where it keeps no request waiting.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HomeError> + Send + 'static,
) -> Result<T, HomeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(fault) => Err(file_error(Path::new(FILE), io::Error::other(fault))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, AuditLog) {
        let folder = tempfile::tempdir().unwrap();
        let log = AuditLog::of(Place::Folder(folder.path().to_owned()));
        (folder, log)
    }

    async fn on(
        log: &AuditLog,
        before: Option<&str>,
        most: usize,
    ) -> (Vec<String>, Option<String>) {
        let page = log.read(None, before, most).await.unwrap();
        (page.entries.into_iter().map(|e| e.on).collect(), page.next)
    }

    #[tokio::test]
    async fn entries_are_read_newest_first_in_pages() {
        let (_folder, log) = log();
        assert_eq!(
            log.read(None, None, 10).await.unwrap(),
            AuditPage::default()
        );
        for n in 0..5 {
            let entry = Entry::new(&Actor::new("ada"), "key.create", &format!("k{n}"));
            log.write(&entry).await.unwrap();
        }
        let (first, next) = on(&log, None, 3).await;
        assert_eq!(first, ["k4", "k3", "k2"]);
        assert_eq!(
            on(&log, next.as_deref(), 3).await,
            (vec!["k1".into(), "k0".into()], None)
        );
        let of_one = log.read(Some("k1"), None, 3).await.unwrap();
        assert_eq!(of_one.entries.len(), 1);
    }

    #[tokio::test]
    async fn an_entry_that_was_cut_off_costs_no_other() {
        let (folder, log) = log();
        for n in 0..2 {
            let entry = Entry::new(&Actor::new("ada"), "key.create", &format!("k{n}"));
            log.write(&entry).await.unwrap();
        }
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let entry = Entry::new(&Actor::new("ada"), "key.create", "k2");
        log.write(&entry).await.unwrap();
        assert_eq!(on(&log, None, 9).await.0, ["k2", "k0"]);
    }

    #[tokio::test]
    async fn a_large_file_is_put_aside_and_still_read() {
        let (folder, log) = log();
        let entry = |on: &str| Entry::new(&Actor::new("ada"), "key.create", on);
        log.write(&entry("old")).await.unwrap();
        let path = folder.path().join(FILE);
        let mut filler = fs::read(&path).unwrap();
        while (filler.len() as u64) < LARGEST_FILE {
            filler.extend_from_within(..);
        }
        fs::write(&path, filler).unwrap();
        log.write(&entry("new")).await.unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1_000);
        assert_eq!(on(&log, None, 2).await.0, ["new", "old"]);
    }

    #[test]
    fn texts_are_bounded_and_of_one_line() {
        let entry = Entry::new(&Actor::new("a\nb"), "key.create", &"ä".repeat(5_000));
        assert_eq!(entry.by, "a b");
        assert!(entry.on.len() <= LONGEST + 3 && entry.on.ends_with('…'));
    }
}
