//! Finds and reads plan files; and what else plans are made of.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    fields::Reader,
    file::PlanFile,
    mistake::{Mistake, Notes, Place},
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
            Content::Resource { encoded, .. } => encoded,
        }
    }

    /// Reads it; what comes out is whole only if nothing was noted as a mistake.
    pub fn read(&self, reader: &mut Reader<'_>) -> PlanFile {
        match &self.content {
            Content::Text(text) => read(text, reader),
            Content::Resource { tree, .. } => read_tree(tree, reader),
        }
    }
}

/// Reads all files of `sources`: files as they are, folders by their `*.yaml` and `*.yml`, sorted by name. Names that begin
/// with a dot are left out, so that a mounted ConfigMap's `..data` does not count twice.
pub fn gather(sources: &[PathBuf], notes: &mut Notes) -> Vec<Source> {
    let mut found: Vec<Source> = Vec::new();
    for source in sources {
        let files = match files_of(source) {
            Ok(files) => files,
            Err(error) => {
                note(notes, source, None, error.to_string());
                continue;
            }
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
                Err((place, message)) => note(notes, &path, place, message),
            }
        }
    }
    found
}

fn note(notes: &mut Notes, path: &Path, place: Option<Place>, message: String) {
    notes.error(Mistake {
        file: Arc::from(path.display().to_string()),
        place,
        path: String::new(),
        message,
    });
}

fn files_of(source: &Path) -> io::Result<Vec<PathBuf>> {
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
        let place = Place {
            line: good.matches('\n').count() as u32 + 1,
            column: good.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1,
        };
        (Some(place), "is not UTF-8 text from here on".to_owned())
    })
}
