//! Tells when files change: by notification where the system can, and by a look now and then where it cannot.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// How long to wait for further changes after the first: one edit is several events.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// The folders that are watched.
#[derive(Debug)]
pub struct Watched {
    what: &'static str,
    sources: Vec<PathBuf>,
    watcher: Option<RecommendedWatcher>,
    changed: mpsc::Receiver<()>,
    /// Held so that `changed` never ends, even without a watcher.
    _open: mpsc::Sender<()>,
    warned: bool,
}

impl Watched {
    /// Watches `sources`, files and folders; `what` they are is for the log.
    ///
    /// Where they cannot be watched, a warning says so.
    pub fn new(what: &'static str, sources: Vec<PathBuf>) -> Self {
        // One place is enough: what counts is that something changed since the last look.
        let (tell, changed) = mpsc::channel(1);
        let _open = tell.clone();
        let scopes = scopes(&sources);
        let tell_if_ours = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| concerns(&event, &scopes)) {
                let _ = tell.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(tell_if_ours)
            .inspect_err(|error| tracing::warn!("{what} are polled, not watched: {error}"))
            .ok();
        let mut watched = Self {
            what,
            sources,
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
        for scope in scopes(&self.sources) {
            let _ = watcher.unwatch(&scope.folder);
            match watcher.watch(&scope.folder, RecursiveMode::NonRecursive) {
                Err(error) if !self.warned && scope.folder.exists() => {
                    self.warned = true;
                    tracing::warn!("{what} are polled, not watched: {error}");
                }
                _ => {}
            }
        }
    }
}

/// A watched folder, and whether only one name in it matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Scope {
    folder: PathBuf,
    only: Option<PathBuf>,
}

/// A file's folder; a folder itself, and its own name in the folder above, which may be a link that is put elsewhere.
///
/// Folders rather than files: a watch on a file ends when the file is replaced, and a ConfigMap is a link swapped beside it.
/// Paths are absolute, as those of events are, whatever the sources are.
fn scopes(sources: &[PathBuf]) -> HashSet<Scope> {
    let mut scopes = HashSet::new();
    for source in sources {
        // Fails only where there is no current folder; then a relative source cannot be read either.
        let source = &std::path::absolute(source).unwrap_or_else(|_| source.clone());
        let folder = source.is_dir();
        if folder {
            scopes.insert(Scope {
                folder: source.clone(),
                only: None,
            });
        }
        if let Some(above) = source.parent() {
            scopes.insert(Scope {
                folder: above.to_owned(),
                only: folder.then(|| source.clone()),
            });
        }
    }
    scopes
}

/// Whether an event may have changed a source. Our own reading causes access events, which do not.
fn concerns(event: &Event, scopes: &HashSet<Scope>) -> bool {
    if matches!(event.kind, EventKind::Access(_)) {
        return false;
    }
    event.need_rescan()
        || event.paths.iter().any(|path| {
            scopes.iter().any(|scope| match &scope.only {
                Some(only) => path == only,
                None => path.starts_with(&scope.folder) || path.parent() == Some(&scope.folder),
            })
        })
}
