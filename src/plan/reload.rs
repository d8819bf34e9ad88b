//! Keeps the last good plans while their files change.
//!
//! A reader takes one snapshot per request and never waits. A reload that fails leaves the snapshot alone and says so once:
//! in the log, and in [`ReloadStatus`].

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{LoadError, Mistake, Plans, Sources, source::folders_below};

/// How long to wait for further changes after the first: one edit is several events.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// The plans in force, and how the last reloads went.
#[derive(Debug)]
pub struct SharedPlans {
    sources: Sources,
    plans: ArcSwap<Plans>,
    status: watch::Sender<ReloadStatus>,
    /// Held while files are read, so that an older reading never comes after a newer one.
    reloading: Mutex<()>,
}

/// How reloads went since the process started.
#[derive(Debug, Clone, Default)]
pub struct ReloadStatus {
    /// Reloads that brought other plans.
    pub changed: u64,
    /// Reloads that failed; the same mistakes found again by a poll do not count again.
    pub failed: u64,
    /// Why the files do not load as they are now; none if they do.
    pub error: Option<Arc<LoadError>>,
    /// When files were last found changed, for better or worse.
    pub at: Option<SystemTime>,
}

impl SharedPlans {
    /// Loads `sources` for the first time.
    ///
    /// # Errors
    /// As [`Plans::load`].
    pub fn open(sources: impl Into<Sources>) -> Result<Self, LoadError> {
        let sources = sources.into();
        let plans = Plans::load(&sources, None)?;
        warn(&plans);
        Ok(Self::new(plans, sources))
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

    fn new(plans: Plans, sources: Sources) -> Self {
        Self {
            sources,
            plans: ArcSwap::from_pointee(plans),
            status: watch::Sender::new(ReloadStatus::default()),
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
        let _alone = self.reloading.lock();
        if self.sources.paths.is_empty() {
            return Ok(false);
        }
        let before = self.load_full();
        match Plans::load_if_changed(&self.sources, &before) {
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
        let plans = Arc::clone(self);
        match tokio::task::spawn_blocking(move || plans.reload()).await {
            Ok(result) => result,
            // Plans outlive a fault of ours, or of a library, on some text.
            Err(fault) => {
                let error = LoadError::from(Mistake {
                    file: "plans".into(),
                    place: None,
                    path: String::new(),
                    message: format!("reading failed, which is a fault of Tollgate: {fault}"),
                });
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
        self.plans.store(Arc::new(plans));
        self.status.send_modify(|status| {
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
                tracing::info!("plan files are again those in force");
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
                status.failed += 1;
                status.error = Some(Arc::new(error.clone()));
                status.at = Some(SystemTime::now());
            }
            new
        });
    }
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
    let watched = Watched::new(&plans.sources);
    tokio::spawn(async move {
        let run = run(plans, poll, watched);
        stop.run_until_cancelled(run).await;
    })
}

async fn run(plans: Arc<SharedPlans>, poll: Duration, mut watched: Watched) {
    loop {
        if let Ok(Some(())) = tokio::time::timeout(poll, watched.changed.recv()).await {
            tokio::time::sleep(DEBOUNCE).await;
            let _ = watched.changed.try_recv();
        }
        // Before reading: a change that comes while we read is then noticed.
        watched.renew(&plans.sources);
        // Already said, in the log and in the status.
        let _ = plans.reload_now().await;
    }
}

/// The folders that are watched.
struct Watched {
    watcher: Option<RecommendedWatcher>,
    changed: mpsc::Receiver<()>,
    /// Held so that `changed` never ends, even without a watcher.
    _open: mpsc::Sender<()>,
    warned: bool,
}

impl Watched {
    fn new(sources: &Sources) -> Self {
        // One place is enough: what counts is that something changed since the last look.
        let (tell, changed) = mpsc::channel(1);
        let _open = tell.clone();
        let paths = absolute(sources);
        let tell_if_ours = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| concerns(&event, &paths)) {
                let _ = tell.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(tell_if_ours)
            .inspect_err(|error| tracing::warn!("plan files are polled, not watched: {error}"))
            .ok();
        let mut watched = Self {
            warned: watcher.is_none(),
            watcher,
            changed,
            _open,
        };
        watched.renew(sources);
        watched
    }

    /// Watches all folders, also those that came, or came anew, since the last time.
    fn renew(&mut self, sources: &Sources) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (folder, needed) in folders(sources) {
            let _ = watcher.unwatch(&folder);
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Err(error) if needed && !self.warned && folder.exists() => {
                    self.warned = true;
                    tracing::warn!("plan files are polled, not watched: {error}");
                }
                _ => {}
            }
        }
    }
}

/// The sources as events name them, whatever they are.
fn absolute(sources: &Sources) -> Vec<PathBuf> {
    let absolute = |path: &PathBuf| {
        // Fails only where there is no current folder; then a relative source cannot be read either.
        std::path::absolute(path).unwrap_or_else(|_| path.clone())
    };
    sources.paths.iter().map(absolute).collect()
}

/// The folders to watch, and whether changes of plan files go unnoticed without: those that the files are in, and all on the
/// way to them, of which each may be a link that is put elsewhere.
///
/// Folders rather than files: a watch on a file ends when the file is replaced, and a ConfigMap is a link swapped beside it.
fn folders(sources: &Sources) -> BTreeMap<PathBuf, bool> {
    let mut folders = BTreeMap::new();
    for source in absolute(sources) {
        let folder = source.is_dir();
        for (steps, above) in source.ancestors().enumerate().skip(1) {
            let needed = steps == 1 && !folder;
            *folders.entry(above.to_owned()).or_default() |= needed;
        }
        if sources.options.every_file {
            folders.extend(folders_below(&source).map(|below| (below, true)));
        } else if folder {
            folders.insert(source, true);
        }
    }
    folders
}

/// Whether an event may have changed a plan file. Our own reading causes access events, which do not.
fn concerns(event: &Event, sources: &[PathBuf]) -> bool {
    if matches!(event.kind, EventKind::Access(_)) {
        return false;
    }
    let concerns = |path: &PathBuf| {
        sources.iter().any(|source| {
            let beside = || path.parent() == source.parent() && !source.is_dir();
            path.starts_with(source) || source.starts_with(path) || beside()
        })
    };
    event.need_rescan() || event.paths.iter().any(concerns)
}
