//! Everything loaded: one immutable snapshot of all plan files.

use std::{collections::HashMap, hash::Hasher as _, path::PathBuf, sync::Arc, time::SystemTime};

use siphasher::sip::SipHasher13;

use super::{
    compile::compile,
    domain::Domain,
    fields::Reader,
    file::PlanFile,
    keys::{ApiKey, ApiKeys},
    merge::merge,
    mistake::{LoadError, Mistake, Notes},
    options::{LoadOptions, Modes, Sources},
    rule::ResponseOptions,
    source::{Content, Source, gather},
};

/// All plans, as they were at one moment.
#[derive(Debug)]
pub struct Plans {
    domains: HashMap<Arc<str>, Domain>,
    keys: ApiKeys,
    files: Vec<PathBuf>,
    response: Arc<ResponseOptions>,
    modes: Modes,
    warnings: Vec<Mistake>,
    version: u64,
    loaded_at: Option<SystemTime>,
}

impl Plans {
    /// No plans: none was loaded yet.
    pub fn none(options: &LoadOptions) -> Self {
        Self {
            domains: HashMap::new(),
            keys: ApiKeys::default(),
            files: Vec::new(),
            response: Arc::new(options.response.clone()),
            modes: options.modes,
            warnings: Vec::new(),
            version: 0,
            loaded_at: None,
        }
    }

    /// Loads files and folders. Counters of rules that `previous` has too go on.
    ///
    /// # Errors
    /// All mistakes of all files, each with its place. Nothing is loaded then.
    pub fn load(sources: &Sources, previous: Option<&Self>) -> Result<Self, LoadError> {
        let mut notes = Notes::default();
        let texts = gather(sources, &mut notes);
        Self::build(&texts, &sources.options, previous, notes)
    }

    /// Loads what `gather` finds unless it is word for word what `previous` was made of.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn load_if_changed(
        gather: impl FnOnce(&mut Notes) -> Vec<Source>,
        options: &LoadOptions,
        previous: &Self,
    ) -> Result<Option<Self>, LoadError> {
        let mut notes = Notes::default();
        let sources = gather(&mut notes);
        if previous.loaded() && notes.total() == 0 && version(&sources) == previous.version {
            return Ok(None);
        }
        Self::build(&sources, options, Some(previous), notes).map(Some)
    }

    /// Loads texts as if they were files of those names.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn from_texts(texts: &[(&str, &str)]) -> Result<Self, LoadError> {
        Self::from_texts_by(texts, &LoadOptions::default())
    }

    /// As [`Plans::from_texts`], by other options.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn from_texts_by(texts: &[(&str, &str)], options: &LoadOptions) -> Result<Self, LoadError> {
        let sources: Vec<_> = texts
            .iter()
            .map(|(name, text)| Source {
                path: PathBuf::from(name),
                content: Content::Text((*text).to_owned()),
            })
            .collect();
        Self::build(&sources, options, None, Notes::default())
    }

    fn build(
        sources: &[Source],
        options: &LoadOptions,
        previous: Option<&Self>,
        mut notes: Notes,
    ) -> Result<Self, LoadError> {
        let mut first: HashMap<String, usize> = HashMap::new();
        let mut files: Vec<(Arc<str>, PlanFile)> = Vec::with_capacity(sources.len());
        for source in sources {
            let name: Arc<str> = source.path.display().to_string().into();
            let mut reader = Reader {
                file: Arc::clone(&name),
                notes: &mut notes,
                reference: true,
            };
            let file = source.read(&mut reader);
            match first.get(&file.domain) {
                _ if file.domain.is_empty() => {}
                None => {
                    first.insert(file.domain.clone(), files.len());
                    files.push((name, file));
                }
                Some(index) => {
                    let (first, all) = &mut files[*index];
                    if options.merge_domains {
                        merge(all, first, file, &name, &mut notes);
                    } else {
                        notes.error(duplicate_domain(&name, &file.domain, first));
                    }
                }
            }
        }
        let mut plans = Self {
            files: sources.iter().map(|source| source.path.clone()).collect(),
            version: version(sources),
            loaded_at: Some(SystemTime::now()),
            ..Self::none(options)
        };
        if notes.total() == 0 {
            for (name, file) in files {
                plans.add(&name, file, options, previous, &mut notes);
            }
        }
        plans.warnings = notes.finish()?;
        Ok(plans)
    }

    fn add(
        &mut self,
        name: &Arc<str>,
        file: PlanFile,
        options: &LoadOptions,
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
        let domain = compile(file, name, options, before, notes);
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

    /// What answers show where no domain says otherwise.
    pub fn response(&self) -> &Arc<ResponseOptions> {
        &self.response
    }

    /// What holds for all rules.
    pub fn modes(&self) -> Modes {
        self.modes
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

    /// Whether any plans were loaded, though they may be of no domain.
    pub fn loaded(&self) -> bool {
        self.loaded_at.is_some()
    }

    /// When they were loaded.
    pub fn loaded_at(&self) -> Option<SystemTime> {
        self.loaded_at
    }
}

fn duplicate_domain(file: &Arc<str>, domain: &str, first: &str) -> Mistake {
    Mistake {
        file: Arc::clone(file),
        place: None,
        path: "domain".to_owned(),
        message: format!("duplicate domain '{domain}' in config file, first in {first}"),
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
