//! Usage in a state directory: a file per day, `usage/2026-11-30.log`, to which counts are appended.
//!
//! A line is a CRC-32 and JSON. The first says what the file is, each further one holds rows and what to add to them, by hour of
//! the day. A writer holds a lock and syncs each line; readers need no lock. A last line without an end was never said to be
//! kept: readers leave it out and the next writer removes it. A file that has grown far beyond its sums is written anew.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read as _, Write},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{Chunk, Counts, Day, Period, Retention, Row, UsageError};
use crate::home::{framed, private, unframed};

/// What the first line says: the format that this build writes, and the only one it reads.
const HEADER: &str = "tollgate usage 2";

/// How far a file grows, beyond twice its sums, before it is written anew.
const SLACK_BYTES: u64 = 1 << 20;

/// Longest line in bytes: a reader takes no more into memory.
const LONGEST_LINE: u64 = 1 << 30;

/// Rows on a line of a file that is written anew.
const ROWS_ON_A_LINE: usize = 8_192;

/// Usage in a state directory.
#[derive(Debug)]
pub struct FolderUsage {
    folder: PathBuf,
    retention: Retention,
    /// How long the files of these days were when they were written anew.
    sums: HashMap<Day, u64>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    file: String,
}

/// What to add to a row, by hour of the day.
type Hours = Vec<(u8, Counts)>;

impl FolderUsage {
    /// Usage in the folder `usage` of `state`, which may not be there yet. Nothing is read.
    pub fn new(state: &Path, retention: Retention) -> Self {
        Self {
            folder: state.join("usage"),
            retention,
            sums: HashMap::new(),
        }
    }

    /// As [`UsageStore::add`](super::UsageStore::add). A chunk that failed was not kept.
    pub fn add(&mut self, chunk: &Chunk) -> Result<(), UsageError> {
        let _lock = self.lock()?;
        let day = Day::of_hour(chunk.hour);
        let path = self.path(day);
        let hour = hour_of_day(chunk.hour);
        let rows = chunk.rows.iter();
        let rows: Vec<_> = rows
            .map(|(row, counts)| (&**row, [(hour, counts)]))
            .collect();
        let (is_new, length) = append(&path, &rows).map_err(|source| file_error(&path, source))?;
        // What follows is for next time: the chunk is kept, and saying otherwise would have it kept twice.
        if is_new {
            self.sums.clear();
            self.forget_oldest();
        }
        let sums = self.sums.get(&day).copied().unwrap_or(0);
        if length > 2 * sums + SLACK_BYTES {
            let sums = self.write_anew(day).unwrap_or_else(|error| {
                tracing::warn!("usage is kept, but its file stays long: {error}");
                length
            });
            self.sums.insert(day, sums);
        }
        Ok(())
    }

    /// As [`UsageStore::read`](super::UsageStore::read).
    pub fn read(&self, period: Period) -> Result<HashMap<Row, Counts>, UsageError> {
        let (day, hour) = match period {
            Period::Day(day) => (day, None),
            Period::Hour(hour) => (Day::of_hour(hour), Some(hour_of_day(hour))),
        };
        let mut sums: HashMap<Row, Counts> = HashMap::new();
        self.read_each(day, |row, hours| {
            let mut sum = Counts::default();
            for (at, counts) in hours {
                if hour.is_none_or(|hour| hour == at) {
                    sum.add(counts);
                }
            }
            if !sum.is_zero() {
                sums.entry(row).or_default().add(sum);
            }
        })?;
        Ok(sums)
    }

    /// Reads the whole lines of a day's file.
    fn read_each(&self, day: Day, each: impl FnMut(Row, Hours)) -> Result<(), UsageError> {
        let path = self.path(day);
        match File::open(&path) {
            Ok(file) => read(&path, file, each),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(file_error(&path, error)),
        }
    }

    fn path(&self, day: Day) -> PathBuf {
        self.folder.join(format!("{day}.log"))
    }

    fn lock(&self) -> Result<Flock<File>, UsageError> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder);
        made.map_err(|source| file_error(&self.folder, source))?;
        let path = self.folder.join("lock");
        let file = private().write(true).create(true).open(&path);
        let file = file.map_err(|source| file_error(&path, source))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| file_error(&path, error.into()))
    }

    /// Puts a file in place that holds the sums only; answers its length.
    fn write_anew(&self, day: Day) -> Result<u64, UsageError> {
        let path = self.path(day);
        let mut sums: HashMap<Row, Hours> = HashMap::new();
        self.read_each(day, |row, hours| {
            let sums = sums.entry(row).or_default();
            for (hour, counts) in hours {
                match sums.iter_mut().find(|(known, _)| *known == hour) {
                    Some((_, sum)) => sum.add(counts),
                    None => sums.push((hour, counts)),
                }
            }
        })?;
        let rows: Vec<(Row, Hours)> = sums.into_iter().collect();
        let draft = self.folder.join("draft");
        let write = || -> io::Result<u64> {
            let file = private()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&draft)?;
            let mut writer = io::BufWriter::new(file);
            writer.write_all(&header()?)?;
            for rows in rows.chunks(ROWS_ON_A_LINE) {
                writer.write_all(&framed(&rows)?)?;
            }
            let file = writer
                .into_inner()
                .map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            sync_folder_of(&path)?;
            Ok(file.metadata()?.len())
        };
        write().map_err(|source| file_error(&path, source))
    }

    /// Removes the oldest files. Files are counted, not days: a clock that was wrong for a while has nothing removed that
    /// is still wanted.
    fn forget_oldest(&self) {
        if let Err(error) = keep_newest(&self.folder, self.retention.days as usize) {
            let folder = self.folder.display();
            tracing::warn!("usage older than wanted stays in {folder}: {error}");
        }
    }
}

fn hour_of_day(hour: u32) -> u8 {
    (hour % 24) as u8
}

fn keep_newest(folder: &Path, most: usize) -> io::Result<()> {
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<io::Result<Vec<PathBuf>>>()?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "log"));
    // Names sort as what they name.
    files.sort_unstable();
    let surplus = files.len().saturating_sub(most);
    files[..surplus].iter().try_for_each(fs::remove_file)
}

/// Adds a line behind the last whole one, and takes it back if it cannot be written whole. Answers whether the file is new,
/// and its length.
fn append(path: &Path, line: &impl Serialize) -> io::Result<(bool, u64)> {
    let mut file = private().read(true).append(true).create(true).open(path)?;
    let whole = whole_length(path, &file)?;
    file.set_len(whole)?;
    let mut text = framed(line)?;
    if whole == 0 {
        text = [header()?, text].concat();
    }
    let written = file.write_all(&text).and_then(|()| file.sync_data());
    if written.is_err() {
        file.set_len(whole)?;
    }
    written?;
    if whole == 0 {
        sync_folder_of(path)?;
    }
    Ok((whole == 0, whole + text.len() as u64))
}

/// Where the last whole line ends.
fn whole_length(path: &Path, file: &File) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last == [b'\n'] {
        return Ok(length);
    }
    let text = fs::read(path)?;
    let end = text.iter().rposition(|byte| *byte == b'\n');
    Ok(end.map_or(0, |end| end as u64 + 1))
}

fn header() -> io::Result<Vec<u8>> {
    framed(&Header {
        file: HEADER.to_owned(),
    })
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().expect("files of usage are in a folder");
    File::open(folder)?.sync_all()
}

fn file_error(path: &Path, source: io::Error) -> UsageError {
    UsageError::File {
        path: path.display().to_string(),
        source,
    }
}

/// What a file's whole lines say.
fn read(path: &Path, file: File, mut each: impl FnMut(Row, Hours)) -> Result<(), UsageError> {
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    for line in 1.. {
        let damaged = |reason: String| UsageError::Damaged {
            path: path.display().to_string(),
            line,
            reason,
        };
        text.clear();
        let read = (&mut reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut text);
        let length = read.map_err(|source| file_error(path, source))? as u64;
        if length < LONGEST_LINE && text.last() != Some(&b'\n') {
            break;
        }
        let json = unframed(&text).map_err(|reason| damaged(reason.to_owned()))?;
        if line == 1 {
            let header: Result<Header, _> = serde_json::from_slice(json);
            if header.is_ok_and(|header| header.file == HEADER) {
                continue;
            }
            return Err(damaged(format!("it does not say `{HEADER}`")));
        }
        let rows: Vec<(Row, Hours)> =
            serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        for (row, hours) in rows {
            each(row, hours);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
