//! Everything loaded: one immutable snapshot of all plan files.

use std::{
    collections::HashMap,
    hash::Hasher as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use siphasher::sip::SipHasher13;

use super::{
    compile::compile,
    domain::Domain,
    fields::Reader,
    keys::{ApiKey, ApiKeys},
    mistake::{LoadError, Mistake, Notes},
    source::{Content, Source, gather},
};

/// All plans, as they were at one moment.
#[derive(Debug)]
pub struct Plans {
    domains: HashMap<Arc<str>, Domain>,
    keys: ApiKeys,
    files: Vec<PathBuf>,
    warnings: Vec<Mistake>,
    version: u64,
    loaded_at: Option<SystemTime>,
}

impl Plans {
    /// Loads files, and folders of `*.yaml` and `*.yml`. Counters of rules that `previous` has too go on.
    ///
    /// # Errors
    /// All mistakes of all files, each with its place. Nothing is loaded then.
    pub fn load(sources: &[PathBuf], previous: Option<&Self>) -> Result<Self, LoadError> {
        let mut notes = Notes::default();
        let sources = gather(sources, &mut notes);
        Self::build(&sources, previous, notes)
    }

    /// Loads what `gather` finds unless it is word for word what `previous` was made of.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn load_if_changed(
        gather: impl FnOnce(&mut Notes) -> Vec<Source>,
        previous: &Self,
    ) -> Result<Option<Self>, LoadError> {
        let mut notes = Notes::default();
        let sources = gather(&mut notes);
        if notes.total() == 0 && previous.loaded() && version(&sources) == previous.version {
            return Ok(None);
        }
        Self::build(&sources, Some(previous), notes).map(Some)
    }

    /// No plans: none have come yet.
    pub fn awaited() -> Self {
        Self {
            domains: HashMap::new(),
            keys: ApiKeys::default(),
            files: Vec::new(),
            warnings: Vec::new(),
            version: 0,
            loaded_at: None,
        }
    }

    /// Loads texts as if they were files of those names.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn from_texts(texts: &[(&str, &str)]) -> Result<Self, LoadError> {
        let sources: Vec<_> = texts
            .iter()
            .map(|(name, text)| Source {
                path: PathBuf::from(name),
                content: Content::Text((*text).to_owned()),
            })
            .collect();
        Self::build(&sources, None, Notes::default())
    }

    fn build(
        sources: &[Source],
        previous: Option<&Self>,
        mut notes: Notes,
    ) -> Result<Self, LoadError> {
        let mut first: HashMap<String, &Path> = HashMap::new();
        let mut files = Vec::with_capacity(sources.len());
        for source in sources {
            let name: Arc<str> = source.path.display().to_string().into();
            let mut reader = Reader {
                file: Arc::clone(&name),
                notes: &mut notes,
            };
            let file = source.read(&mut reader);
            if let Some(path) = first.get(&file.domain)
                && !file.domain.is_empty()
            {
                notes.error(duplicate_domain(&name, &file.domain, path));
                continue;
            }
            first.insert(file.domain.clone(), &source.path);
            files.push((name, file));
        }
        let mut plans = Self {
            domains: HashMap::with_capacity(files.len()),
            files: sources.iter().map(|source| source.path.clone()).collect(),
            version: version(sources),
            loaded_at: Some(SystemTime::now()),
            ..Self::awaited()
        };
        if notes.total() == 0 {
            for (name, file) in files {
                plans.add(&name, file, previous, &mut notes);
            }
        }
        plans.warnings = notes.finish()?;
        Ok(plans)
    }

    fn add(
        &mut self,
        name: &Arc<str>,
        file: super::file::PlanFile,
        previous: Option<&Self>,
        notes: &mut Notes,
    ) {
        let hashes: Vec<_> = file
            .api_keys
            .iter()
            .flatten()
            .map(|key| (key.sha256, key.id.clone()))
            .collect();
        let before = previous.and_then(|plans| plans.domain(&file.domain));
        let domain = compile(file, name, before, notes);
        for (sha256, id) in hashes {
            let Some(key) = domain.keys.of_id_or_secret(&id) else {
                continue;
            };
            let key = Arc::new(key.clone());
            if let Some(first) = self.keys.add(sha256, &key)
                && (&first.id, &first.tier) != (&key.id, &key.tier)
            {
                notes.error(Mistake {
                    file: Arc::clone(name),
                    place: None,
                    path: "api_keys".to_owned(),
                    message: format!(
                        "the secret of `{id}` is that of `{}` of tier `{}` in domain `{}`: one key has one id and one tier in all domains",
                        first.id, first.tier, first.domain
                    ),
                });
            }
        }
        self.domains.insert(Arc::clone(&domain.name), domain);
    }

    /// The domain of that name.
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name)
    }

    /// All domains, in the order of their names.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        let mut domains: Vec<_> = self.domains.values().collect();
        domains.sort_by_key(|domain| domain.name());
        domains.into_iter()
    }

    /// The API key of that secret. Its id opens nothing here.
    pub fn api_key(&self, secret: &str) -> Option<&ApiKey> {
        self.keys.of_secret(secret)
    }

    /// What is tolerated and yet worth a look: unreachable rules, fields without meaning, a second document in a file.
    pub fn warnings(&self) -> &[Mistake] {
        &self.warnings
    }

    /// The files, or resources, that were read, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// A hash of all files' names and texts.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether they ever came: from files always, from a control plane in time.
    pub fn loaded(&self) -> bool {
        self.loaded_at.is_some()
    }

    /// When they were loaded.
    pub fn loaded_at(&self) -> Option<SystemTime> {
        self.loaded_at
    }
}

fn duplicate_domain(file: &Arc<str>, domain: &str, first: &Path) -> Mistake {
    Mistake {
        file: Arc::clone(file),
        place: None,
        path: "domain".to_owned(),
        message: format!(
            "duplicate domain '{domain}' in config file, first in {}",
            first.display()
        ),
    }
}

fn version(sources: &[Source]) -> u64 {
    let mut hasher = SipHasher13::new();
    for source in sources {
        let path = source.path.as_os_str().as_encoded_bytes();
        for part in [path, source.bytes()] {
            hasher.write_u64(part.len() as u64);
            hasher.write(part);
        }
    }
    hasher.finish()
}
