//! Everything loaded: one immutable snapshot of all plan files.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hasher as _,
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use siphasher::sip::SipHasher13;

use super::{
    authentication::Authentication,
    compile::compile,
    document::Document,
    domain::Domain,
    fields::Reader,
    file::PlanFile,
    keys::{ApiKey, ApiKeys, KeyCheck},
    merge::merge,
    mistake::{LoadError, Mistake, Notes},
    options::{LoadOptions, Modes, Sources},
    rule::ResponseOptions,
    source::{Content, Source, gather},
};
use crate::keys::KeyTable;

/// All plans, as they were at one moment. A copy shares what was loaded.
#[derive(Debug, Clone)]
pub struct Plans {
    loaded: Arc<Loaded>,
    /// The keys that are in no file.
    stored: Arc<KeyTable>,
    /// Whether those have not been read yet.
    awaited: bool,
}

/// What the files say.
#[derive(Debug)]
struct Loaded {
    domains: HashMap<Arc<str>, Domain>,
    keys: ApiKeys,
    tiers: BTreeSet<Arc<str>>,
    authentication: Arc<Authentication>,
    files: Vec<PathBuf>,
    documents: Vec<Document>,
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
            loaded: Arc::new(Loaded::none(options)),
            stored: Arc::default(),
            awaited: false,
        }
    }

    /// Loads files and folders. Counters of rules that `previous` has too go on.
    ///
    /// # Errors
    /// All mistakes of all files, each with its place. Nothing is loaded then.
    pub fn load(sources: &Sources, previous: Option<&Self>) -> Result<Self, LoadError> {
        let mut notes = Notes::default();
        let before = previous.map_or(&[][..], Self::files);
        let texts = gather(sources, before, &mut notes);
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
        if previous.loaded() && notes.total() == 0 && version(&sources) == previous.version() {
            return Ok(None);
        }
        Self::build(&sources, options, Some(previous), notes).map(Some)
    }

    /// Loads what `gather` finds, to see whether it loads. Nothing is in force then.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub(super) fn try_load(
        gather: impl FnOnce(&mut Notes) -> Vec<Source>,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let mut notes = Notes::default();
        let sources = gather(&mut notes);
        Self::build(&sources, options, None, notes)
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
        let documents: Vec<Document> = sources.iter().filter_map(Source::document).collect();
        for source in sources {
            let name: Arc<str> = source.path.display().to_string().into();
            let mut apart = Notes::default();
            let mut reader = Reader {
                file: Arc::clone(&name),
                notes: &mut apart,
                reference: true,
                last_wins: options.last_wins,
            };
            let file = source.read(&mut reader);
            let stored = documents
                .iter()
                .find(|stored| *stored.domain == *file.domain);
            if let Some(stored) = stored.filter(|_| source.document().is_none()) {
                notes.warning(not_in_force(&name, stored));
                continue;
            }
            notes.absorb(apart);
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
        let mut plans = Loaded {
            files: sources.iter().map(|source| source.path.clone()).collect(),
            documents,
            version: version(sources),
            loaded_at: Some(SystemTime::now()),
            ..Loaded::none(options)
        };
        if notes.total() == 0 {
            for (name, file) in files {
                plans.add(&name, file, options, previous, &mut notes);
            }
        }
        plans.authenticate(&mut notes);
        plans.warnings = notes.finish()?;
        Ok(Self {
            loaded: Arc::new(plans),
            stored: previous
                .map(|plans| Arc::clone(&plans.stored))
                .unwrap_or_default(),
            awaited: previous.is_some_and(|plans| plans.awaited),
        })
    }

    /// The same with these keys beside those of the files.
    pub(super) fn with_stored_keys(&self, stored: Arc<KeyTable>, awaited: bool) -> Self {
        Self {
            loaded: Arc::clone(&self.loaded),
            stored,
            awaited,
        }
    }

    /// The keys that are in no file.
    pub fn stored_keys(&self) -> &Arc<KeyTable> {
        &self.stored
    }

    /// Whether all keys are here. They are not while the home of those that are in no file has not been read yet.
    pub fn keys_are_complete(&self) -> bool {
        !self.awaited
    }

    /// The domain of that name.
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        self.loaded.domains.get(name)
    }

    /// All domains, in the order of their names.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        let mut domains: Vec<_> = self.loaded.domains.values().collect();
        domains.sort_by_key(|domain| domain.name());
        domains.into_iter()
    }

    /// The API key of a file whose secret has that SHA-256.
    pub fn api_key(&self, sha256: &[u8; 32]) -> Option<&ApiKey> {
        self.loaded.keys.of_hash(sha256)
    }

    /// The API key of a file that has that id.
    pub fn api_key_of_id(&self, id: &str) -> Option<&ApiKey> {
        self.loaded.keys.of_id(id)
    }

    /// What a secret opens in any domain. An id opens nothing here.
    pub fn check_secret(&self, secret: &[u8]) -> KeyCheck<'_> {
        match KeyCheck::secret(&self.loaded.keys, &self.stored, secret) {
            KeyCheck::Known(key) if !self.has_tier(key.tier()) => KeyCheck::Unknown,
            found => found,
        }
    }

    /// How keys are asked for where a request names no domain.
    pub fn authentication(&self) -> &Arc<Authentication> {
        &self.loaded.authentication
    }

    /// Whether any domain has a tier of that name.
    pub fn has_tier(&self, name: &str) -> bool {
        self.loaded.tiers.contains(name)
    }

    /// The names of all tiers, sorted.
    pub fn tiers(&self) -> &BTreeSet<Arc<str>> {
        &self.loaded.tiers
    }

    /// What is tolerated and yet worth a look: unreachable rules, fields without meaning, a second document in a file.
    pub fn warnings(&self) -> &[Mistake] {
        &self.loaded.warnings
    }

    /// The files, or resources, that were read, in order.
    pub fn files(&self) -> &[PathBuf] {
        &self.loaded.files
    }

    /// The documents that stand in the place of files.
    pub fn documents(&self) -> &[Document] {
        &self.loaded.documents
    }

    /// A hash of all files' names and texts.
    pub fn version(&self) -> u64 {
        self.loaded.version
    }

    /// Whether any plans were loaded, though they may be of no domain.
    pub fn loaded(&self) -> bool {
        self.loaded.loaded_at.is_some()
    }

    /// When they were loaded.
    pub fn loaded_at(&self) -> Option<SystemTime> {
        self.loaded.loaded_at
    }

    /// What answers show where no domain says otherwise.
    pub fn response(&self) -> &Arc<ResponseOptions> {
        &self.loaded.response
    }

    /// What holds for all rules.
    pub fn modes(&self) -> Modes {
        self.loaded.modes
    }
}

impl Loaded {
    fn none(options: &LoadOptions) -> Self {
        Self {
            domains: HashMap::new(),
            keys: ApiKeys::default(),
            tiers: BTreeSet::new(),
            authentication: Arc::default(),
            files: Vec::new(),
            documents: Vec::new(),
            response: Arc::new(options.response.clone()),
            modes: options.modes,
            warnings: Vec::new(),
            version: 0,
            loaded_at: None,
        }
    }

    fn add(
        &mut self,
        name: &Arc<str>,
        file: PlanFile,
        options: &LoadOptions,
        previous: Option<&Plans>,
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
            let Some(key) = domain.keys.of_id(&id) else {
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
        self.tiers.extend(domain.tiers().iter().cloned());
        self.domains.insert(Arc::clone(&domain.name), domain);
    }

    /// What holds where a request names no domain: what the only file that says something says. Where several do, the first
    /// by domain.
    fn authenticate(&mut self, notes: &mut Notes) {
        let mut said: Vec<_> = self
            .domains
            .values()
            .filter(|domain| domain.authentication.is_some())
            .collect();
        said.sort_by_key(|domain| domain.name());
        let Some(first) = said.first() else { return };
        let differs = said
            .iter()
            .find(|domain| domain.authentication != first.authentication);
        if let Some(other) = differs {
            notes.warning(Mistake {
                file: Arc::clone(&other.name),
                place: None,
                path: "authentication".to_owned(),
                message: format!(
                    "differs from that of domain `{}`, which holds for requests whose route sends no context extension `domain`",
                    first.name
                ),
            });
        }
        self.authentication = first.authentication.clone().expect("filtered by it");
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

fn not_in_force(file: &Arc<str>, stored: &Document) -> Mistake {
    Mistake {
        file: Arc::clone(file),
        place: None,
        path: String::new(),
        message: match stored.tried {
            false => format!(
                "not in force: the stored plans of `{0}`, version {1}, stand in its place until `tollgate plans reset {0}`",
                stored.domain, stored.version
            ),
            true => format!(
                "would not be in force: these plans of `{}` would stand in its place",
                stored.domain
            ),
        },
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
