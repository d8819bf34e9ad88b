//! A version of a domain's plans as it is kept, and the table of all.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    home::{Edit, Kind, Record, Table},
    keys::Change,
    plan::Document,
};

/// Largest document in bytes. One of 10,000 rules has about so many.
pub const LARGEST_DOCUMENT: usize = 1 << 20;

/// Versions of a domain that are kept, that in force among them.
pub const KEPT_VERSIONS: usize = 32;

/// Most bytes of all versions together: every replica holds them.
pub const MOST_BYTES: usize = 16 << 20;

/// Most versions of all domains together.
pub const MOST_RECORDS: usize = 4_096;

/// A version of a domain's plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRecord {
    /// The domain.
    pub domain: String,
    /// Counts the domain's versions, from 1.
    pub version: u32,
    /// What a plan file would hold; none where the domain went back to its files.
    pub text: Option<Arc<str>>,
    /// Who made it.
    pub by: String,
    /// When, in RFC 3339.
    pub at: String,
    /// How it came about, if not by a new text: `rollback to 3`, `reset`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl PlanRecord {
    /// A version of a domain's plans, made now.
    pub fn new(domain: &str, version: u32, text: Option<Arc<str>>, by: &str, note: &str) -> Self {
        let now = std::time::SystemTime::now();
        Self {
            domain: domain.to_owned(),
            version,
            text,
            by: by.to_owned(),
            at: humantime::format_rfc3339_seconds(now).to_string(),
            note: note.to_owned(),
        }
    }

    /// What stands in the place of the domain's files; none where those hold.
    pub fn document(&self) -> Option<Document> {
        Some(Document {
            domain: self.domain.as_str().into(),
            version: self.version,
            text: Arc::clone(self.text.as_ref()?),
            tried: false,
        })
    }

    fn bytes(&self) -> usize {
        self.text.as_ref().map_or(0, |text| text.len())
    }
}

impl Record for PlanRecord {
    fn key(&self) -> String {
        format!("{}@{}", self.domain, self.version)
    }

    fn valid(&self) -> Result<(), String> {
        match self.bytes() {
            bytes if bytes > LARGEST_DOCUMENT => Err(format!(
                "its text has {bytes} bytes, and {LARGEST_DOCUMENT} are the most"
            )),
            _ => Ok(()),
        }
    }
}

/// All versions that are kept, by domain and version.
#[derive(Debug, Clone, Default)]
pub struct PlanTable {
    version: u64,
    records: BTreeMap<String, BTreeMap<u32, PlanRecord>>,
}

impl PlanTable {
    /// The newest version of a domain: that in force, or that which put its files in force again.
    pub fn newest(&self, domain: &str) -> Option<&PlanRecord> {
        self.records.get(domain)?.values().next_back()
    }

    /// The newest version of every domain that has any.
    pub fn all_newest(&self) -> impl Iterator<Item = &PlanRecord> {
        self.records
            .values()
            .filter_map(|versions| versions.values().next_back())
    }

    /// A version that is kept.
    pub fn get(&self, domain: &str, version: u32) -> Option<&PlanRecord> {
        self.records.get(domain)?.get(&version)
    }

    /// All versions of a domain that are kept, newest first.
    pub fn history(&self, domain: &str) -> impl Iterator<Item = &PlanRecord> {
        let versions = self.records.get(domain).into_iter();
        versions.flat_map(|versions| versions.values().rev())
    }

    /// What stands in the place of files.
    pub fn documents(&self) -> Vec<Document> {
        self.all_newest().filter_map(PlanRecord::document).collect()
    }

    /// Bytes of all texts.
    pub fn bytes(&self) -> usize {
        self.records().map(|record| record.bytes()).sum()
    }
}

impl Table for PlanTable {
    type Record = PlanRecord;
    type Editor = Self;
    const KIND: Kind = Kind {
        what: "plan documents",
        file: "plan-documents",
        in_redis: "plans:",
        slack: 64,
    };

    fn version(&self) -> u64 {
        self.version
    }

    fn count(&self) -> usize {
        self.records.values().map(BTreeMap::len).sum()
    }

    fn records(&self) -> impl Iterator<Item = PlanRecord> {
        self.records
            .values()
            .flat_map(|versions| versions.values().cloned())
    }

    fn editor(&self) -> Self {
        self.clone()
    }
}

impl Edit<Self> for PlanTable {
    fn apply(&mut self, change: Change<PlanRecord>) {
        match change {
            Change::Put(record) => {
                let versions = self.records.entry(record.domain.clone()).or_default();
                versions.insert(record.version, record);
            }
            Change::Remove(key) => {
                let Some((domain, version)) = key.rsplit_once('@') else {
                    return;
                };
                if let (Some(versions), Ok(version)) =
                    (self.records.get_mut(domain), version.parse())
                {
                    versions.remove(&version);
                }
            }
        }
    }

    fn finish(self, version: u64) -> Self {
        Self { version, ..self }
    }
}

/// A version as people and programs see it.
#[derive(Debug, Clone, Serialize)]
pub struct PlanView {
    /// The domain.
    pub domain: String,
    /// Counts the domain's versions, from 1.
    pub version: u32,
    /// `stored`, or `files` where the domain went back to its files.
    pub source: &'static str,
    /// Who made it.
    pub by: String,
    /// When, in RFC 3339.
    pub at: String,
    /// How it came about, if not by a new text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl From<&PlanRecord> for PlanView {
    fn from(record: &PlanRecord) -> Self {
        Self {
            domain: record.domain.clone(),
            version: record.version,
            source: match record.text {
                Some(_) => "stored",
                None => "files",
            },
            by: record.by.clone(),
            at: record.at.clone(),
            note: record.note.clone(),
        }
    }
}
