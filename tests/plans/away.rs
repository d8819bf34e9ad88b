//! A folder of plans that goes away, empties and comes back, read as `ratelimit` does.

use std::{fs, os::unix::fs::symlink, path::Path};

use tollgate::plan::{LoadOptions, SharedPlans, Sources};

fn open(folder: &Path) -> SharedPlans {
    SharedPlans::open_or_wait(Sources {
        paths: vec![folder.to_owned()],
        options: LoadOptions {
            every_file: true,
            ..LoadOptions::default()
        },
    })
}

fn write(path: &Path, domain: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("domain: {domain}\n")).unwrap();
}

/// Reloads; answers whether other plans are in force, or what the mistake says behind the name of `root`.
fn reload(plans: &SharedPlans, root: &Path) -> Result<bool, String> {
    let root = format!("{}/", root.display());
    plans
        .reload()
        .map_err(|error| error.to_string().replace(&root, ""))
}

fn domains(plans: &SharedPlans) -> Vec<String> {
    let plans = plans.load_full();
    plans
        .domains()
        .map(|domain| domain.name().to_owned())
        .collect()
}

const AWAY: &str = "is away; an empty folder would mean no rules";

#[test]
fn a_folder_that_goes_away_keeps_its_plans_until_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let config = root.join("config");
    write(&config.join("a"), "first");
    write(&config.join("team/b"), "second");
    let plans = open(&config);
    let snapshot = plans.load_full();

    fs::rename(&config, root.join("elsewhere")).unwrap();
    for _ in 0..2 {
        assert_eq!(reload(&plans, root), Err(format!("config: {AWAY}")));
    }
    let status = plans.status();
    assert_eq!((status.failed, status.changed), (1, 1), "it went once");
    assert!(std::sync::Arc::ptr_eq(&snapshot, &plans.load_full()));

    fs::rename(root.join("elsewhere"), &config).unwrap();
    assert_eq!(reload(&plans, root), Ok(false), "what is in force is back");
    assert!(plans.status().error.is_none());

    fs::remove_dir_all(&config).unwrap();
    assert_eq!(reload(&plans, root), Err(format!("config: {AWAY}")));
    write(&config.join("a"), "third");
    assert_eq!(reload(&plans, root), Ok(true));
    assert_eq!(domains(&plans), ["third"]);
    assert_eq!(plans.status().failed, 2);
}

#[test]
fn a_folder_that_is_there_and_empty_has_no_rules() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("config");
    let plans = open(&config);
    assert!(plans.load().loaded(), "not there yet is empty");
    write(&config.join("a"), "first");
    write(&config.join("team/b"), "second");
    assert_eq!(reload(&plans, root.path()), Ok(true));
    // Of several files each may go, and folders with theirs.
    fs::remove_dir_all(config.join("team")).unwrap();
    assert_eq!(reload(&plans, root.path()), Ok(true));
    assert_eq!(domains(&plans), ["first"]);
    fs::remove_file(config.join("a")).unwrap();
    assert_eq!(reload(&plans, root.path()), Ok(true));
    assert!(domains(&plans).is_empty());
    // There is nothing left to lose.
    fs::remove_dir(&config).unwrap();
    assert_eq!(reload(&plans, root.path()), Ok(false));
    assert_eq!(plans.status().failed, 0);
}

/// Links into a volume: one that leads nowhere is a file that was taken away, all of them are a volume that is away.
#[test]
fn links_that_all_lead_nowhere_keep_the_plans() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let (config, volume) = (root.join("config"), root.join("volume"));
    fs::create_dir(&config).unwrap();
    for name in ["a", "b"] {
        write(&volume.join(name), name);
        symlink(volume.join(name), config.join(name)).unwrap();
    }
    let plans = open(&config);
    fs::remove_file(volume.join("b")).unwrap();
    assert_eq!(reload(&plans, root), Ok(true));
    assert_eq!(domains(&plans), ["a"]);
    assert!(
        plans.load().warnings()[0]
            .to_string()
            .ends_with("config/b: is a link to nothing")
    );
    fs::rename(&volume, root.join("elsewhere")).unwrap();
    assert_eq!(reload(&plans, root), Err(format!("config/a: {AWAY}")));
    assert_eq!(domains(&plans), ["a"]);
    fs::rename(root.join("elsewhere"), &volume).unwrap();
    assert_eq!(reload(&plans, root), Ok(false));

    let through = root.join("through");
    symlink(&config, &through).unwrap();
    let plans = open(&through);
    fs::remove_file(&through).unwrap();
    assert_eq!(reload(&plans, root), Err(format!("through: {AWAY}")));
    symlink("nowhere", &through).unwrap();
    assert_eq!(reload(&plans, root), Err(format!("through: {AWAY}")));
    assert_eq!(domains(&plans), ["a"]);
}
