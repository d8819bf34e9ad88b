//! A table in a state directory: `api-keys.log`, to which changes are appended, and others like it.
//!
//! A line is a CRC-32 and JSON. The first says what the file is, each further one holds changes that came together. A writer
//! holds a lock, and says yes after fsync. A last line without an end is a change that nobody was told of: readers wait for
//! its end and the next writer removes it. Any other line that does not fit spoils the whole file, which is then not used.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read as _, Seek, SeekFrom, Write},
    marker::PhantomData,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{AuditLog, Edit, Entry, HomeError, Kind, Record, Table};
use crate::keys::Change;

/// The version of the format that this build writes, and the only one it reads.
const FORMAT: u32 = 1;

/// Longest wait for the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Records on a line of a file that is written anew.
const RECORDS_ON_A_LINE: usize = 256;

/// Longest line in bytes: a reader takes no more into memory.
const LONGEST_LINE: u64 = 1 << 30;

/// A table in a state directory.
#[derive(Debug)]
pub struct FolderHome<T> {
    folder: PathBuf,
    cursor: Option<Cursor>,
    table: PhantomData<fn() -> T>,
}

/// What the first line says.
fn magic(kind: Kind) -> String {
    format!("tollgate {}", kind.file.replace('-', " "))
}

/// How far the file was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    /// Which file: a rewritten one has another number.
    inode: (u64, u64),
    offset: u64,
    line: u64,
    version: u64,
    changes: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    file: String,
    format: u32,
    /// The version that the lines right below make.
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<C> {
    version: u64,
    changes: C,
}

/// A line as it is read.
type LineOf<T> = Line<Vec<Change<<T as Table>::Record>>>;

impl<T: Table> FolderHome<T> {
    /// A table in `folder`, which may not be there yet. Nothing is read.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            cursor: None,
            table: PhantomData,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", T::KIND.file))
    }

    /// As [`Home::refresh`](super::Home::refresh).
    pub fn refresh(&mut self, table: &T) -> Result<Option<T>, HomeError> {
        let path = self.path();
        let failed = |source| file_error(&path, source);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.cursor = None;
                return Ok((table.version() > 0).then(T::default));
            }
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        let inode = (metadata.dev(), metadata.ino());
        let goes_on = |cursor: &Cursor| {
            cursor.inode == inode
                && cursor.version == table.version()
                && cursor.offset <= metadata.len()
        };
        let known = self.cursor.filter(goes_on);
        if known.is_some_and(|cursor| cursor.offset == metadata.len()) {
            return Ok(None);
        }
        let empty = T::default();
        let (base, start) = match known {
            Some(cursor) => (table, Some(cursor)),
            None => (&empty, None),
        };
        let (new, cursor) = Reading::new(&path, file, inode, start)?.read(base)?;
        let changed = start != Some(cursor);
        self.cursor = Some(cursor);
        Ok(changed.then_some(new))
    }

    /// As [`Home::append`](super::Home::append).
    pub fn append(
        &mut self,
        table: &T,
        changes: &[Change<T::Record>],
        entry: &Entry,
    ) -> Result<(), HomeError> {
        let _lock = lock(&self.folder, T::KIND.file)?;
        if self.refresh(table)?.is_some() {
            // What the cursor has read is not in the caller's table.
            self.cursor = None;
            let what = T::KIND.what;
            return Err(HomeError::Stale { what });
        }
        let outdated = |cursor: Cursor| cursor.changes > table.count() as u64 * 2 + T::KIND.slack;
        match self.cursor {
            Some(cursor) if !outdated(cursor) => {}
            _ => self.write_anew(table)?,
        }
        let cursor = self.cursor.expect("read or written anew just now");
        let path = self.path();
        let line = Line {
            version: table.version() + 1,
            changes,
        };
        // First: a crash in between leaves an entry of a change that was not made, never a change without one.
        AuditLog::append_to(&self.folder, entry)?;
        append_line(&path, cursor.offset, &line).map_err(|source| file_error(&path, source))
    }

    /// Puts a file in place that holds `table` and nothing that is outdated.
    fn write_anew(&mut self, table: &T) -> Result<(), HomeError> {
        let (path, draft) = (
            self.path(),
            self.folder.join(format!(".{}.draft", T::KIND.file)),
        );
        let write = || -> io::Result<()> {
            let file = private()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&draft)?;
            let mut writer = io::BufWriter::new(file);
            let version = table.version();
            let header = Header {
                file: magic(T::KIND),
                format: FORMAT,
                version,
            };
            writer.write_all(&framed(&header)?)?;
            let mut records = table.records().map(Change::Put).peekable();
            while records.peek().is_some() {
                let changes: Vec<_> = records.by_ref().take(RECORDS_ON_A_LINE).collect();
                writer.write_all(&framed(&Line { version, changes })?)?;
            }
            writer
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?
                .sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| file_error(&path, source))?;
        let metadata = fs::metadata(&path).map_err(|source| file_error(&path, source))?;
        self.cursor = Some(Cursor {
            inode: (metadata.dev(), metadata.ino()),
            offset: metadata.len(),
            line: 1 + table.count().div_ceil(RECORDS_ON_A_LINE) as u64,
            version: table.version(),
            changes: table.count() as u64,
        });
        Ok(())
    }
}

/// Waits for the lock of one of the files of a state directory, which is made if it is not there.
pub(super) fn lock(folder: &Path, file: &str) -> Result<Flock<File>, HomeError> {
    let path = folder.join(format!("{file}.lock"));
    let failed = |source| file_error(&path, source);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| file_error(folder, source))?;
    let mut file = private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, error)) if error != nix::errno::Errno::EWOULDBLOCK => {
                return Err(failed(error.into()));
            }
            Err(_) if Instant::now() > end => {
                let path = path.display().to_string();
                return Err(HomeError::Locked { path });
            }
            Err((unlocked, _)) => file = unlocked,
        }
        sleep(Duration::from_millis(10));
    }
}

/// Files that only their owner reads.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Adds a line at `offset`, where the last whole line ends, and takes it back if it cannot be written whole.
fn append_line(path: &Path, offset: u64, line: &impl Serialize) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.set_len(offset)?;
    file.seek(SeekFrom::Start(offset))?;
    let written = file
        .write_all(&framed(line)?)
        .and_then(|()| file.sync_data());
    if written.is_err() {
        file.set_len(offset)?;
    }
    written
}

/// A line of a file: a checksum and JSON.
pub(crate) fn framed(content: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_string(content).map_err(io::Error::other)?;
    Ok(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes())
}

pub(super) fn file_error(path: &Path, source: io::Error) -> HomeError {
    HomeError::File {
        path: path.display().to_string(),
        source,
    }
}

/// The lines of a file from a place on.
struct Reading<'p, T> {
    path: &'p Path,
    reader: BufReader<File>,
    at: Cursor,
    /// The version of the header, whose records may stand on several lines.
    header: Option<u64>,
    table: PhantomData<T>,
}

impl<'p, T: Table> Reading<'p, T> {
    fn new(
        path: &'p Path,
        mut file: File,
        inode: (u64, u64),
        start: Option<Cursor>,
    ) -> Result<Self, HomeError> {
        let at = start.unwrap_or(Cursor {
            inode,
            offset: 0,
            line: 0,
            version: 0,
            changes: 0,
        });
        file.seek(SeekFrom::Start(at.offset))
            .map_err(|source| file_error(path, source))?;
        let mut reading = Self {
            path,
            reader: BufReader::new(file),
            at,
            header: None,
            table: PhantomData,
        };
        if start.is_none() {
            reading.header()?;
        }
        Ok(reading)
    }

    fn header(&mut self) -> Result<(), HomeError> {
        let mut line = Vec::new();
        let failed = |source| file_error(self.path, source);
        let read = (&mut self.reader).take(1_024).read_until(b'\n', &mut line);
        self.at.offset = read.map_err(failed)? as u64;
        self.at.line = 1;
        let foreign = |reason: &str| HomeError::Foreign {
            path: self.path.display().to_string(),
            what: T::KIND.what,
            reason: reason.to_owned(),
        };
        let json = unframed(&line).map_err(|_| foreign("its first line is not that of one"))?;
        let header: Header = serde_json::from_slice(json)
            .map_err(|_| foreign("its first line is not that of one"))?;
        if header.file != magic(T::KIND) {
            return Err(foreign("it says that it is something else"));
        }
        if header.format != FORMAT {
            let reason = format!(
                "it has format {}, and this build reads {FORMAT}",
                header.format
            );
            return Err(foreign(&reason));
        }
        self.at.version = header.version;
        self.header = Some(header.version);
        Ok(())
    }

    fn read(mut self, base: &T) -> Result<(T, Cursor), HomeError> {
        let mut editor = base.editor();
        while let Some(line) = self.line()? {
            self.at.changes += line.changes.len() as u64;
            for change in line.changes {
                if let Change::Put(record) = &change {
                    record.valid().map_err(|reason| self.damaged(reason))?;
                }
                editor.apply(change);
            }
        }
        Ok((editor.finish(self.at.version), self.at))
    }

    /// The next whole line, or none at the end and before a line that has none.
    fn line(&mut self) -> Result<Option<LineOf<T>>, HomeError> {
        let mut text = Vec::new();
        let read = (&mut self.reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut text);
        let length = read.map_err(|source| file_error(self.path, source))? as u64;
        if length < LONGEST_LINE && text.last() != Some(&b'\n') {
            return Ok(None);
        }
        self.at.line += 1;
        let json = unframed(&text).map_err(|reason| self.damaged(reason.to_owned()))?;
        let line: LineOf<T> =
            serde_json::from_slice(json).map_err(|error| self.damaged(error.to_string()))?;
        let goes_on = line.version == self.at.version + 1;
        if !goes_on && Some(line.version) != self.header {
            let reason = format!("version {} after {}", line.version, self.at.version);
            return Err(self.damaged(reason));
        }
        if goes_on {
            self.header = None;
        }
        self.at.version = line.version;
        self.at.offset += length;
        Ok(Some(line))
    }

    fn damaged(&self, reason: String) -> HomeError {
        HomeError::Damaged {
            path: self.path.display().to_string(),
            line: self.at.line,
            what: T::KIND.what,
            reason,
        }
    }
}

/// The JSON of a line whose checksum fits.
pub(crate) fn unframed(line: &[u8]) -> Result<&[u8], &'static str> {
    let line = line.strip_suffix(b"\n").ok_or("it has no end")?;
    let (sum, json) = line.split_at_checked(9).ok_or("it is too short")?;
    let wanted = format!("{:08x} ", crc32fast::hash(json));
    match sum == wanted.as_bytes() {
        true => Ok(json),
        false => Err("its checksum does not fit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        home::Actor,
        keys::{KeyRecord, KeyTable},
    };

    fn record(id: &str) -> Change {
        Change::Put(KeyRecord {
            owner: None,
            ..KeyRecord::example(id, id)
        })
    }

    fn entry() -> Entry {
        Entry::new(&Actor::new("test"), "key.test", "a")
    }

    /// A home and the table of it that was read last.
    struct Kept {
        home: FolderHome<KeyTable>,
        table: KeyTable,
    }

    impl Kept {
        fn new(folder: &Path) -> Self {
            Self {
                home: FolderHome::new(folder.to_owned()),
                table: KeyTable::default(),
            }
        }

        fn read(&mut self) -> Result<usize, HomeError> {
            if let Some(new) = self.home.refresh(&self.table)? {
                self.table = new;
            }
            Ok(self.table.len())
        }

        fn add(&mut self, change: Change) -> Result<(), HomeError> {
            self.read()?;
            self.home.append(&self.table, &[change], &entry())
        }
    }

    #[test]
    fn two_homes_on_one_folder_see_each_others_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (Kept::new(folder.path()), Kept::new(folder.path()));
        assert_eq!(other.read().unwrap(), 0);
        one.add(record("a")).unwrap();
        let unread = other.home.append(&other.table, &[record("b")], &entry());
        assert!(matches!(unread, Err(HomeError::Stale { .. })), "{unread:?}");
        other.add(record("b")).unwrap();
        one.add(Change::Remove("a".to_owned())).unwrap();
        assert_eq!((one.read().unwrap(), other.read().unwrap()), (1, 1));
        assert!(other.table.get("b").is_some());
        assert_eq!(other.table.version(), 3);
        assert!(
            other.home.refresh(&other.table).unwrap().is_none(),
            "nothing is new"
        );
    }

    #[test]
    fn a_change_that_was_cut_off_never_happened() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(folder.path());
        kept.add(record("a")).unwrap();
        let path = kept.home.path();
        let whole = fs::read(&path).unwrap();
        kept.add(record("b")).unwrap();
        let longer = fs::read(&path).unwrap();
        for length in whole.len()..longer.len() {
            fs::write(&path, &longer[..length]).unwrap();
            let mut fresh = Kept::new(folder.path());
            assert_eq!(fresh.read().unwrap(), 1, "{length}");
            fresh.add(record("c")).unwrap();
            assert_eq!(Kept::new(folder.path()).read().unwrap(), 2, "{length}");
        }
    }

    #[test]
    fn a_damaged_file_is_not_used_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(folder.path());
        for id in ["a", "b", "c"] {
            kept.add(record(id)).unwrap();
        }
        assert_eq!(kept.read().unwrap(), 3);
        let path = kept.home.path();
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap();
        for place in first + 1..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let error = Kept::new(folder.path()).read().unwrap_err();
            assert!(
                matches!(error, HomeError::Damaged { .. }),
                "{place}: {error}"
            );
            assert!(
                Kept::new(folder.path()).add(record("d")).is_err(),
                "nor written to"
            );
        }
        // A whole line that is missing shows, too.
        let lines: Vec<_> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        fs::write(&path, [lines[0], lines[1], lines[3]].concat()).unwrap();
        let error = Kept::new(folder.path()).read().unwrap_err().to_string();
        assert!(
            error.contains("api-keys.log:3: damaged (version 3 after 1)"),
            "{error}"
        );
    }

    #[test]
    fn a_file_of_somebody_else_is_refused_and_left_alone() {
        let newer = framed(&Header {
            file: magic(KeyTable::KIND),
            format: 2,
            version: 0,
        });
        for (text, reason) in [
            (b"".to_vec(), "its first line is not that of one"),
            (b"hello\n".to_vec(), "its first line is not that of one"),
            (vec![0; 10_000], "its first line is not that of one"),
            (newer.unwrap(), "it has format 2, and this build reads 1"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut kept = Kept::new(folder.path());
            fs::write(kept.home.path(), &text).unwrap();
            let error = kept.add(record("a")).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert_eq!(fs::read(kept.home.path()).unwrap(), text);
        }
    }

    #[test]
    fn a_file_of_outdated_changes_is_written_anew_and_readers_follow() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = (Kept::new(folder.path()), Kept::new(folder.path()));
        writer.add(record("a")).unwrap();
        reader.read().unwrap();
        let batch: Vec<_> = (0..1_500).map(|_| record("a")).collect();
        writer.read().unwrap();
        writer.home.append(&writer.table, &batch, &entry()).unwrap();
        let long = fs::metadata(writer.home.path()).unwrap().len();
        writer.add(record("b")).unwrap();
        assert!(fs::metadata(writer.home.path()).unwrap().len() < long / 100);
        assert_eq!((reader.read().unwrap(), writer.read().unwrap()), (2, 2));
        assert_eq!(reader.table.version(), 3);
        assert_eq!(Kept::new(folder.path()).read().unwrap(), 2);
    }

    #[test]
    fn only_the_owner_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(&folder.path().join("state"));
        kept.add(record("a")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&kept.home.path()), 0o600);
        assert_eq!(mode(&folder.path().join("state")), 0o700);
    }
}
