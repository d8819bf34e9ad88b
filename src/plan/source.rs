//! Finds and reads plan files; and what else plans are made of.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use walkdir::{DirEntry, WalkDir};

use super::{
    document::Document,
    fields::Reader,
    file::PlanFile,
    mistake::{Mistake, Notes, Place},
    options::Sources,
    read::{read, read_tree},
    tree::Node,
};

/// Largest plan file in bytes. One of 10,000 rules has about one million.
pub const LARGEST_FILE: u64 = 16 << 20;

/// A file, or what a control plane sends in place of one.
#[derive(Debug)]
pub struct Source {
    /// Its path, as it was named or found; of a resource, its name.
    pub path: PathBuf,
    /// What it holds.
    pub content: Content,
}

/// What a source holds.
#[derive(Debug)]
pub enum Content {
    /// A file's text.
    Text(String),
    /// The text that stands in the place of a domain's files.
    Stored(Document),
    /// A resource: what a file's text would be parsed to, and the bytes that it came as.
    Resource {
        /// The whole.
        tree: Node,
        /// The bytes.
        encoded: Vec<u8>,
    },
}

impl Source {
    /// What tells it from another of that name.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Text(text) => text.as_bytes(),
            Content::Stored(document) => document.text.as_bytes(),
            Content::Resource { encoded, .. } => encoded,
        }
    }

    /// The document that it is, if it is one.
    pub fn document(&self) -> Option<Document> {
        match &self.content {
            Content::Stored(document) => Some(document.clone()),
            _ => None,
        }
    }

    /// Reads it; what comes out is whole only if nothing was noted as a mistake.
    pub fn read(&self, reader: &mut Reader<'_>) -> PlanFile {
        match &self.content {
            Content::Text(text) => read(text, reader),
            Content::Stored(document) => read(&document.text, reader),
            Content::Resource { tree, .. } => read_tree(tree, reader),
        }
    }
}

/// Deepest folder below a source whose files are read.
const DEEPEST: usize = 16;

/// Reads all files of `sources`: files as they are, folders by their files, sorted by name. Names that begin with a dot are
/// left out, so that a mounted ConfigMap's `..data` does not count twice. `before` are the files found last time.
pub fn gather(sources: &Sources, before: &[PathBuf], notes: &mut Notes) -> Vec<Source> {
    let mut found: Vec<Source> = Vec::new();
    for source in &sources.paths {
        let files = if sources.options.every_file {
            every_file(source, before, notes)
        } else {
            yaml_files(source).unwrap_or_else(|error| {
                notes.error(whole(source, error.to_string()));
                Vec::new()
            })
        };
        for path in files {
            if found.iter().any(|source| source.path == path) {
                continue;
            }
            match read_file(&path) {
                Ok(text) => found.push(Source {
                    path,
                    content: Content::Text(text),
                }),
                Err((place, message)) => notes.error(Mistake {
                    place,
                    ..whole(&path, message)
                }),
            }
        }
    }
    found
}

/// Something about a file as a whole.
fn whole(path: &Path, message: String) -> Mistake {
    Mistake {
        file: Arc::from(path.display().to_string()),
        place: None,
        path: String::new(),
        message,
    }
}

/// A folder and all folders below it, as far as they can be read, in the order of their names.
pub fn folders_below(source: &Path) -> Vec<PathBuf> {
    let found = walk(source).filter_map(Result::ok);
    let folders = found.filter(|entry| entry.file_type().is_dir());
    folders.map(DirEntry::into_path).collect()
}

/// All files of a folder and below it; none where there is no such folder yet.
///
/// What is taken away is gone. But where nothing is left, and what led to the files `before` is away itself or leads nowhere, they may
/// be on a disk that is not there for the moment.
fn every_file(source: &Path, before: &[PathBuf], notes: &mut Notes) -> Vec<PathBuf> {
    let (mut files, mut nowhere) = (Vec::new(), Vec::new());
    for entry in walk(source) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) => files.push(entry.into_path()),
            Err(error) => {
                let path = error.path().unwrap_or(source).to_owned();
                let gone = error
                    .io_error()
                    .is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
                match gone {
                    true => nowhere.push(path),
                    false => notes.error(whole(&path, error.to_string())),
                }
            }
        }
    }
    // Asked last: it may go away while we look, and seem empty then.
    if !source.exists() && !nowhere.iter().any(|path| path == source) {
        nowhere.push(source.to_owned());
    }
    for path in nowhere {
        let led_to_files = before.iter().any(|file| file.starts_with(&path));
        if led_to_files && (files.is_empty() || path == source) {
            notes.error(whole(
                &path,
                "is away; an empty folder would mean no rules".to_owned(),
            ));
        } else if path != source {
            notes.warning(whole(&path, "is a link to nothing".to_owned()));
        }
    }
    files
}

/// Everything below `source`, and itself, without dot entries. Links are followed: a ConfigMap's files and folders are links.
fn walk(source: &Path) -> impl Iterator<Item = walkdir::Result<DirEntry>> {
    let hidden =
        |entry: &DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes()[0] == b'.';
    WalkDir::new(source)
        .follow_links(true)
        .max_depth(DEEPEST)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(move |entry| !hidden(entry))
}

/// The source itself, or the `*.yaml` and `*.yml` of a folder.
fn yaml_files(source: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(source)?.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let dot = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml");
        if yaml && !dot {
            files.push(path);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(io::Error::other(
            "no plan files (*.yaml, *.yml) in this folder",
        )),
        false => Ok(files),
    }
}

/// Reads a file's text, never more of it than [`LARGEST_FILE`].
fn read_file(path: &Path) -> Result<String, (Option<Place>, String)> {
    let whole = |message: String| (None, message);
    let failed = |error: io::Error| (None, error.to_string());
    // Asked before opening: opening a named pipe would wait for a writer.
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(whole(
            "is a folder, and a plan file was expected".to_owned(),
        ));
    }
    if !metadata.is_file() {
        return Err(whole("is not a regular file".to_owned()));
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(LARGEST_FILE) as usize);
    if metadata.len() <= LARGEST_FILE {
        let file = File::open(path).map_err(failed)?;
        file.take(LARGEST_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    }
    let size = metadata.len().max(bytes.len() as u64);
    if size > LARGEST_FILE {
        return Err(whole(format!(
            "has {size} bytes; a plan file has at most {LARGEST_FILE}"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let good = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        let message = "error loading config file: yaml: not UTF-8 text from here on";
        (Some(Place::after(&good)), message.to_owned())
    })
}
