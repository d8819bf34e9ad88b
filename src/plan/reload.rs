//! Keeps the last good plans while their files change.
//!
//! A reader takes one snapshot per request and never waits. A reload that fails leaves the snapshot alone and says so once:
//! in the log, and in [`ReloadStatus`].

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Document, LoadError, LoadOptions, Mistake, Plans, Sources,
    mistake::Notes,
    source::{Source, folders_below, gather},
};
use crate::{keys::KeyTable, watch::Watched};

/// The plans in force, and how the last reloads went.
#[derive(Debug)]
pub struct SharedPlans {
    sources: Sources,
    plans: ArcSwap<Plans>,
    status: watch::Sender<ReloadStatus>,
    /// What stands in the place of the files of some domains.
    documents: ArcSwap<Vec<Document>>,
    /// Whether newer keys than those in force could not be read.
    keys_stale: AtomicBool,
    /// Held while files are read, so that an older reading never comes after a newer one.
    reloading: Mutex<()>,
}

/// How reloads went since the process started.
#[derive(Debug, Clone, Default)]
pub struct ReloadStatus {
    /// Loads that brought plans, that of the start among them.
    pub loads: u64,
    /// Reloads that brought other plans.
    pub changed: u64,
    /// Reloads that failed; the same mistakes found again in files do not count again.
    pub failed: u64,
    /// Why the files do not load as they are now; none if they do.
    pub error: Option<Arc<LoadError>>,
    /// When files were last found changed, for better or worse.
    pub at: Option<SystemTime>,
    /// The control plane, if plans come from one.
    pub stream: Option<StreamStatus>,
}

/// How it stands with the control plane that plans come from.
#[derive(Debug, Clone, Default)]
pub struct StreamStatus {
    /// Its address.
    pub server: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// The version in force, as the control plane calls it; none before the first.
    pub version: Option<String>,
    /// Updates that were taken.
    pub accepted: u64,
    /// Updates that were refused.
    pub rejected: u64,
}

impl SharedPlans {
    /// Loads `sources` for the first time.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn open(sources: impl Into<Sources>) -> Result<Self, LoadError> {
        Self::open_with(sources, Vec::new())
    }

    /// The same, with `documents` in the place of the files of their domains.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn open_with(
        sources: impl Into<Sources>,
        documents: Vec<Document>,
    ) -> Result<Self, LoadError> {
        let sources = sources.into();
        let all = |notes: &mut Notes| with_documents(&documents, gather(&sources, &[], notes));
        let plans = Plans::try_load(all, &sources.options)?;
        warn(&plans);
        let shared = Self::new(plans, sources);
        shared.documents.store(Arc::new(documents));
        Ok(shared)
    }

    /// Loads `sources` for the first time, or waits for them to become good: until then there are no plans.
    pub fn open_or_wait(sources: impl Into<Sources>) -> Self {
        let sources = sources.into();
        let none = Plans::none(&sources.options);
        let shared = Self::new(none, sources);
        // Already said, in the log and in the status.
        let _ = shared.reload();
        shared
    }

    /// Plans that come from no file and never change.
    pub fn fixed(plans: Plans) -> Self {
        Self::new(plans, Sources::default())
    }

    /// Plans that come from the control plane at `server` in time; until then there are none.
    pub fn streamed(server: String, options: LoadOptions) -> Self {
        let none = Plans::none(&options);
        let paths = Vec::new();
        let shared = Self::new(none, Sources { paths, options });
        shared.status.send_modify(|status| {
            status.stream = Some(StreamStatus {
                server,
                ..StreamStatus::default()
            });
        });
        shared
    }

    fn new(plans: Plans, sources: Sources) -> Self {
        Self {
            sources,
            status: watch::Sender::new(ReloadStatus {
                loads: plans.loaded().into(),
                ..ReloadStatus::default()
            }),
            plans: ArcSwap::from_pointee(plans),
            documents: ArcSwap::default(),
            keys_stale: AtomicBool::new(false),
            reloading: Mutex::new(()),
        }
    }

    /// The plans in force, for the time of one request.
    pub fn load(&self) -> Guard<Arc<Plans>> {
        self.plans.load()
    }

    /// The plans in force, to keep.
    pub fn load_full(&self) -> Arc<Plans> {
        self.plans.load_full()
    }

    /// From now on keys are awaited that are in no file: until they come, a key that no file has may yet be one.
    pub fn await_stored_keys(&self) {
        self.plans
            .rcu(|before| before.with_stored_keys(Arc::clone(before.stored_keys()), true));
    }

    /// Puts keys beside those of the files.
    pub fn set_stored_keys(&self, stored: Arc<KeyTable>) {
        self.plans
            .rcu(|before| before.with_stored_keys(Arc::clone(&stored), false));
    }

    /// Says whether newer keys than those in force could not be read.
    pub fn set_keys_stale(&self, stale: bool) {
        self.keys_stale.store(stale, Ordering::Relaxed);
    }

    /// Whether newer keys than those in force could not be read.
    pub fn keys_are_stale(&self) -> bool {
        self.keys_stale.load(Ordering::Relaxed)
    }

    /// How reloads went.
    pub fn status(&self) -> ReloadStatus {
        self.status.borrow().clone()
    }

    /// Tells of each change of [`status`](Self::status).
    pub fn changes(&self) -> watch::Receiver<ReloadStatus> {
        self.status.subscribe()
    }

    /// Reads the files again; answers whether other plans are now in force. Blocks on the file system.
    ///
    /// # Errors
    /// As [`Plans::load`]; then the plans of before stay in force.
    pub fn reload(&self) -> Result<bool, LoadError> {
        if self.sources.paths.is_empty() {
            return Ok(false);
        }
        self.replace(|before, notes| self.read(before, &self.documents.load(), notes))
    }

    /// Whether plans come from files, so that documents can stand in their place.
    pub fn come_from_files(&self) -> bool {
        !self.sources.paths.is_empty()
    }

    /// Puts `documents`, those that may be there already among them, in the place of the files of their domains.
    ///
    /// # Errors
    /// As [`reload`](Self::reload): they are tried again whenever files change.
    pub async fn set_documents(
        self: &Arc<Self>,
        documents: Vec<Document>,
    ) -> Result<bool, LoadError> {
        self.documents.store(Arc::new(documents));
        self.reload_now().await
    }

    /// What the plans would be with the files as they are now, and these documents in the place of some.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub async fn preview(self: &Arc<Self>, documents: Vec<Document>) -> Result<Plans, LoadError> {
        let plans = Arc::clone(self);
        let load = move || {
            let before = plans.load_full();
            let all = |notes: &mut Notes| plans.read(&before, &documents, notes);
            Plans::try_load(all, &plans.sources.options)
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        loaded.unwrap_or_else(|fault| Err(fault_of_ours(&fault)))
    }

    /// The files as they are now, with `documents` in the place of those of their domains.
    fn read(&self, before: &Plans, documents: &[Document], notes: &mut Notes) -> Vec<Source> {
        with_documents(documents, gather(&self.sources, before.files(), notes))
    }

    /// Puts in force what `read` finds, told which plans are.
    fn replace(
        &self,
        read: impl FnOnce(&Plans, &mut Notes) -> Vec<Source>,
    ) -> Result<bool, LoadError> {
        let _alone = self.reloading.lock();
        let before = self.load_full();
        let all = |notes: &mut Notes| read(&before, notes);
        match Plans::load_if_changed(all, &self.sources.options, &before) {
            Ok(None) => {
                self.now_good();
                Ok(false)
            }
            Ok(Some(plans)) => {
                self.put(plans);
                Ok(true)
            }
            Err(error) => {
                self.now_bad(&error);
                Err(error)
            }
        }
    }

    /// [`reload`](Self::reload) for async callers: on SIGHUP, say.
    ///
    /// # Errors
    /// As [`reload`](Self::reload).
    pub async fn reload_now(self: &Arc<Self>) -> Result<bool, LoadError> {
        self.aside(Self::reload).await
    }

    /// Puts what `gather` finds in the place of all plans; answers whether other plans are now in force.
    ///
    /// # Errors
    /// All mistakes, those that `gather` notes too; then the plans of before stay in force.
    pub async fn replace_now(
        self: &Arc<Self>,
        gather: impl FnOnce(&mut Notes) -> Vec<Source> + Send + 'static,
    ) -> Result<bool, LoadError> {
        self.aside(|plans| plans.replace(|_, notes| gather(notes)))
            .await
    }

    /// Tells how it stands with the control plane.
    pub fn tell_stream(&self, tell: impl FnOnce(&mut StreamStatus)) {
        self.status
            .send_modify(|status| tell(status.stream.get_or_insert_default()));
    }

    /// Loads where waiting for the file system, or computing for a while, delays nobody.
    async fn aside(
        self: &Arc<Self>,
        load: impl FnOnce(&Self) -> Result<bool, LoadError> + Send + 'static,
    ) -> Result<bool, LoadError> {
        let plans = Arc::clone(self);
        match tokio::task::spawn_blocking(move || load(&plans)).await {
            Ok(result) => result,
            // Plans outlive a fault of ours, or of a library, on some text.
            Err(fault) => {
                let error = fault_of_ours(&fault);
                self.now_bad(&error);
                Err(error)
            }
        }
    }

    fn put(&self, plans: Plans) {
        warn(&plans);
        let rules: usize = plans.domains().map(|domain| domain.rules().count()).sum();
        tracing::info!(
            version = format!("{:016x}", plans.version()),
            domains = plans.domains().count(),
            rules,
            "plans loaded"
        );
        if plans.domains().next().is_none() && self.load().domains().next().is_some() {
            tracing::warn!(
                "no domain is left in the plans: every request passes until one comes back"
            );
        }
        // Keys may have changed since the files were read.
        self.plans.rcu(|before| {
            let stored = Arc::clone(before.stored_keys());
            plans.with_stored_keys(stored, !before.keys_are_complete())
        });
        self.status.send_modify(|status| {
            status.loads += 1;
            status.changed += 1;
            status.error = None;
            status.at = Some(SystemTime::now());
        });
    }

    /// The files are again those in force, after a mistake was taken back.
    fn now_good(&self) {
        self.status.send_if_modified(|status| {
            let mended = status.error.take().is_some();
            if mended {
                tracing::info!("the plans are again those in force");
                status.at = Some(SystemTime::now());
            }
            mended
        });
    }

    fn now_bad(&self, error: &LoadError) {
        self.status.send_if_modified(|status| {
            let new = status.error.as_deref() != Some(error);
            if new {
                let kept = match self.load().loaded() {
                    true => "those of before stay in force",
                    false => "and there are none yet: calls fail until they load",
                };
                tracing::error!("plans not loaded, {kept}:\n{error}");
                status.error = Some(Arc::new(error.clone()));
                status.at = Some(SystemTime::now());
            }
            // Files are read again and again as they are; an update comes once.
            let counts = new || status.stream.is_some();
            status.failed += u64::from(counts);
            counts
        });
    }
}

fn fault_of_ours(fault: &tokio::task::JoinError) -> LoadError {
    LoadError::from(Mistake {
        file: "plans".into(),
        place: None,
        path: String::new(),
        message: format!("reading failed, which is a fault of Tollgate: {fault}"),
    })
}

fn with_documents(documents: &[Document], files: Vec<Source>) -> Vec<Source> {
    documents
        .iter()
        .map(Document::source)
        .chain(files)
        .collect()
}

fn warn(plans: &Plans) {
    for warning in plans.warnings() {
        tracing::warn!("{warning}");
    }
}

/// Reloads `plans` whenever their files change, by notification and by a look every `poll`, until `stop`.
///
/// Where files cannot be watched, a warning says so and the looks remain.
pub fn watch(plans: Arc<SharedPlans>, poll: Duration, stop: CancellationToken) -> JoinHandle<()> {
    let further = match plans.sources.options.every_file {
        true => folders_below,
        false => |_: &Path| Vec::new(),
    };
    let watched = Watched::new("plan files", plans.sources.paths.clone(), further);
    tokio::spawn(async move {
        let run = run(plans, poll, watched);
        stop.run_until_cancelled(run).await;
    })
}

async fn run(plans: Arc<SharedPlans>, poll: Duration, mut watched: Watched) {
    loop {
        watched.changed(poll).await;
        // Already said, in the log and in the status.
        let _ = plans.reload_now().await;
    }
}
