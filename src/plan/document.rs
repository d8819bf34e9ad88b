//! Plans of a domain that are in no file: they were put there at run time and stand in the place of the domain's files.

use std::{path::PathBuf, sync::Arc};

use super::{
    fields::Reader,
    mistake::{LoadError, Notes},
    read::read,
    source::{Content, Source},
};

/// The plans of one domain, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The domain that the text names.
    pub domain: Arc<str>,
    /// Counts the domain's documents, from 1.
    pub version: u32,
    /// What a plan file would hold.
    pub text: Arc<str>,
    /// Whether it is only tried, and nothing stands in the place of files yet.
    pub tried: bool,
}

impl Document {
    /// What stands in the place of a file's path: `stored:shop@3`.
    pub fn name(&self) -> String {
        format!("stored:{}@{}", self.domain, self.version)
    }

    pub(super) fn source(&self) -> Source {
        Source {
            path: PathBuf::from(self.name()),
            content: Content::Stored(self.clone()),
        }
    }
}

/// The domain that the text of a document names; `name` is what mistakes call it.
///
/// # Errors
/// All mistakes in the text that show without the other plans.
pub fn domain_of(text: &str, name: &str) -> Result<String, LoadError> {
    let mut notes = Notes::default();
    let mut reader = Reader {
        file: Arc::from(name),
        notes: &mut notes,
        reference: true,
        last_wins: false,
    };
    let file = read(text, &mut reader);
    notes.finish().map(|_| file.domain)
}
