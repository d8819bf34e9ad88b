//! API keys that are made and changed at run time: what is done with them, and how their home keeps them.

mod admin;
mod import;
mod said;
mod view;

pub use self::{
    admin::{Imported, KeyAdmin, KeyChange, KeyError, KeyFilter, NewKey},
    import::{AwsFile, AwsKey, AwsPlan, ImportError, read_aws},
    view::{KeyView, KeyWithSecret, parse_expiry, parse_overlap},
};
use crate::{
    home::{Edit, Kind, Record, Table},
    keys::{Change, KeyRecord, KeyTable, TableEditor},
};

/// Most keys that a home takes.
pub const MOST_KEYS: usize = 2_000_000;

impl Record for KeyRecord {
    fn key(&self) -> String {
        self.id.clone()
    }

    fn valid(&self) -> Result<(), String> {
        self.check().map_err(|error| error.to_string())
    }
}

impl Table for KeyTable {
    type Record = KeyRecord;
    type Editor = TableEditor;
    const KIND: Kind = Kind {
        what: "API keys",
        file: "api-keys",
        in_redis: "",
        slack: 1_000,
    };

    fn version(&self) -> u64 {
        self.version()
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn records(&self) -> impl Iterator<Item = KeyRecord> {
        self.iter().map(|key| key.record())
    }

    fn editor(&self) -> TableEditor {
        self.edit()
    }
}

impl Edit<KeyTable> for TableEditor {
    fn apply(&mut self, change: Change) {
        TableEditor::apply(self, change);
    }

    fn finish(self, version: u64) -> KeyTable {
        TableEditor::finish(self, version)
    }
}
