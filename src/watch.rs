//! Tells when files change: by notification where the system can, and by a look now and then where it cannot.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// How long to wait for further changes after the first: one edit is several events.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// The folders that are watched.
#[derive(Debug)]
pub struct Watched {
    what: &'static str,
    sources: Vec<PathBuf>,
    further: fn(&Path) -> Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    changed: mpsc::Receiver<()>,
    /// Held so that `changed` never ends, even without a watcher.
    _open: mpsc::Sender<()>,
    warned: bool,
}

impl Watched {
    /// Watches `sources`, files and folders; `what` they are is for the log. The folders in a source whose changes count too
    /// are found by `further`, each time anew.
    ///
    /// Where they cannot be watched, a warning says so.
    pub fn new(
        what: &'static str,
        sources: Vec<PathBuf>,
        further: fn(&Path) -> Vec<PathBuf>,
    ) -> Self {
        // One place is enough: what counts is that something changed since the last look.
        let (tell, changed) = mpsc::channel(1);
        let _open = tell.clone();
        let sources: Vec<_> = sources.into_iter().map(absolute).collect();
        let ours = sources.clone();
        let tell_if_ours = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| concerns(&event, &ours)) {
                let _ = tell.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(tell_if_ours)
            .inspect_err(|error| tracing::warn!("{what} are polled, not watched: {error}"))
            .ok();
        let mut watched = Self {
            what,
            sources,
            further,
            warned: watcher.is_none(),
            watcher,
            changed,
            _open,
        };
        watched.renew();
        watched
    }

    /// Completes after a change, or after `poll` without one. A change that comes after this is told by the next call.
    pub async fn changed(&mut self, poll: Duration) {
        if let Ok(Some(())) = tokio::time::timeout(poll, self.changed.recv()).await {
            tokio::time::sleep(DEBOUNCE).await;
            let _ = self.changed.try_recv();
        }
        // Before the caller reads: a change that comes meanwhile is then noticed.
        self.renew();
    }

    /// Watches all folders, also those that came, or came anew, since the last time.
    fn renew(&mut self) {
        let what = self.what;
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for (folder, needed) in folders(&self.sources, self.further) {
            let _ = watcher.unwatch(&folder);
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Err(error) if needed && !self.warned && folder.exists() => {
                    self.warned = true;
                    tracing::warn!("{what} are polled, not watched: {error}");
                }
                _ => {}
            }
        }
    }
}

/// A source as events name it.
fn absolute(path: PathBuf) -> PathBuf {
    // Fails only where there is no current folder; then a relative source cannot be read either.
    std::path::absolute(&path).unwrap_or(path)
}

/// The folders to watch, and whether changes go unnoticed without: those that the sources are in, and all on the way to them,
/// of which each may be a link that is put elsewhere.
///
/// Folders rather than files: a watch on a file ends when the file is replaced, and a ConfigMap is a link swapped beside it.
fn folders(sources: &[PathBuf], further: fn(&Path) -> Vec<PathBuf>) -> BTreeMap<PathBuf, bool> {
    let mut folders = BTreeMap::new();
    for source in sources {
        let folder = source.is_dir();
        for (steps, above) in source.ancestors().enumerate().skip(1) {
            let needed = steps == 1 && !folder;
            *folders.entry(above.to_owned()).or_default() |= needed;
        }
        folders.extend(further(source).into_iter().map(|below| (below, true)));
        if folder {
            folders.insert(source.clone(), true);
        }
    }
    folders
}

/// Whether an event may have changed a source. Our own reading causes access events, which do not.
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
