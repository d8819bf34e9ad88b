//! Plans follow their files, and survive bad ones.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tollgate::plan::{ReloadStatus, SharedPlans, reload::watch};

/// Longest wait for a change to show; the promise is one second, the rest is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Plans that are watched, with polls so rare that none happens while a test runs.
struct Watching {
    plans: Arc<SharedPlans>,
    changes: tokio::sync::watch::Receiver<ReloadStatus>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Watching {
    fn start(source: PathBuf) -> Self {
        Self::polling(source, Duration::from_secs(3_600))
    }

    fn polling(source: PathBuf, poll: Duration) -> Self {
        let plans = Arc::new(SharedPlans::open(vec![source]).unwrap());
        let stop = CancellationToken::new();
        Self {
            changes: plans.changes(),
            task: watch(Arc::clone(&plans), poll, stop.clone()),
            plans,
            stop,
        }
    }

    /// Waits until the status says so.
    async fn until(&mut self, holds: impl FnMut(&ReloadStatus) -> bool) {
        tokio::time::timeout(PATIENCE, self.changes.wait_for(holds))
            .await
            .expect("the change shows in time")
            .unwrap();
    }

    async fn until_limit(&mut self, limit: &str) {
        let plans = Arc::clone(&self.plans);
        self.until(|_| shown(&plans) == limit).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn text(limit: &str) -> String {
    format!("domain: shop\ndescriptors: [{{ key: user, limits: [\"{limit}\"] }}]\n")
}

fn shown(plans: &SharedPlans) -> String {
    let plans = plans.load_full();
    let [found] = &super::matching::found(&plans, &[&[("user", "a")]])[..] else {
        panic!("one answer")
    };
    let limit = found
        .strip_prefix("user: ")
        .and_then(|rest| rest.strip_suffix(" of |1:a"));
    limit.unwrap().to_owned()
}

/// A folder laid out as a kubelet does it.
fn config_map(folder: &Path, version: &str, limit: &str) {
    let data = folder.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("plans.yaml"), text(limit)).unwrap();
    symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    if !folder.join("plans.yaml").exists() {
        symlink("..data/plans.yaml", folder.join("plans.yaml")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_and_a_rename_over_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plans.yaml");
    fs::write(&file, text("1/second")).unwrap();
    let mut watching = Watching::start(file.clone());

    fs::write(&file, text("2/second")).unwrap();
    watching.until_limit("2/second").await;
    for limit in ["3/second", "4/second"] {
        let new = folder.path().join("new");
        fs::write(&new, text(limit)).unwrap();
        fs::rename(&new, &file).unwrap();
        watching.until_limit(limit).await;
    }
    assert_eq!(watching.plans.status().failed, 0);
    watching.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_swap_is_taken_each_time() {
    let folder = tempfile::tempdir().unwrap();
    config_map(folder.path(), "one", "1/second");
    let mut of_folder = Watching::start(folder.path().to_owned());
    let mut of_file = Watching::start(folder.path().join("plans.yaml"));
    for (version, limit) in [("two", "2/second"), ("three", "3/second")] {
        config_map(folder.path(), version, limit);
        of_folder.until_limit(limit).await;
        of_file.until_limit(limit).await;
    }
    assert_eq!(of_folder.plans.load().domains().count(), 1);
    of_folder.end().await;
    of_file.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_a_link_may_be_put_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    for (name, limit) in [("one", "1/second"), ("two", "2/second")] {
        fs::create_dir(root.path().join(name)).unwrap();
        fs::write(root.path().join(name).join("plans.yaml"), text(limit)).unwrap();
    }
    let current = root.path().join("current");
    symlink("one", &current).unwrap();
    let mut watching = Watching::start(current.clone());
    symlink("two", root.path().join("next")).unwrap();
    fs::rename(root.path().join("next"), &current).unwrap();
    watching.until_limit("2/second").await;
    fs::write(current.join("plans.yaml"), text("3/second")).unwrap();
    watching.until_limit("3/second").await;
    watching.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_may_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plans.yaml"), text("1/second")).unwrap();
    let mut watching = Watching::start(folder.path().to_owned());
    fs::write(folder.path().join("more.yml"), "domain: more\n").unwrap();
    watching.until(|status| status.changed == 1).await;
    assert!(watching.plans.load().domain("more").is_some());
    fs::remove_file(folder.path().join("more.yml")).unwrap();
    watching.until(|status| status.changed == 2).await;
    assert!(watching.plans.load().domain("more").is_none());
    watching.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_old_plans_when_reload_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plans.yaml");
    fs::write(&file, text("1/second")).unwrap();
    let mut watching = Watching::start(file.clone());
    let snapshot = watching.plans.load_full();

    fs::write(&file, text("1/fortnight")).unwrap();
    watching.until(|status| status.error.is_some()).await;
    let status = watching.plans.status();
    assert_eq!((status.changed, status.failed), (0, 1));
    assert!(
        status
            .error
            .unwrap()
            .to_string()
            .contains("unknown period `fortnight`")
    );
    assert!(Arc::ptr_eq(&snapshot, &watching.plans.load_full()));
    assert!(watching.plans.reload().is_err());
    assert_eq!(
        watching.plans.status().failed,
        1,
        "the same mistake counts once"
    );

    fs::write(&file, text("1/second")).unwrap();
    watching.until(|status| status.error.is_none()).await;
    assert!(
        Arc::ptr_eq(&snapshot, &watching.plans.load_full()),
        "nothing changed in the end"
    );
    watching.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_finds_what_was_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let target = data.path().join("target");
    fs::write(&target, text("1/second")).unwrap();
    let link = folder.path().join("plans.yaml");
    symlink(&target, &link).unwrap();
    let mut watching = Watching::polling(link, Duration::from_millis(50));
    fs::write(&target, text("2/second")).unwrap();
    watching.until_limit("2/second").await;
    watching.end().await;
}

#[test]
fn counters_go_on_over_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plans.yaml");
    fs::write(&file, text("1/second")).unwrap();
    let plans = SharedPlans::open(vec![file.clone()]).unwrap();
    let counted = |plans: &SharedPlans| {
        let plans = plans.load_full();
        let rule = Arc::clone(plans.domain("shop").unwrap().rules().next().unwrap());
        Arc::clone(&rule.counters)
    };
    let before = counted(&plans);
    fs::write(&file, text("2/second")).unwrap();
    assert!(plans.reload().unwrap());
    assert!(!plans.reload().unwrap());
    assert!(Arc::ptr_eq(&before, &counted(&plans)));
}
