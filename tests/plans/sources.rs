//! Which files are read, and how those of one domain are put together.

use std::{fs, path::Path};

use tollgate::plan::{LoadError, LoadOptions, Plans, Sources};

fn load(folder: &Path, options: LoadOptions) -> Result<Plans, LoadError> {
    let sources = Sources {
        paths: vec![folder.to_owned()],
        options,
    };
    Plans::load(&sources, None)
}

fn merged(files: &[(&str, &str)]) -> Result<Plans, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let options = LoadOptions {
        merge_domains: true,
        ..LoadOptions::default()
    };
    let prefix = format!("{}/", folder.path().display());
    load(folder.path(), options).map_err(|error| error.to_string().replace(&prefix, ""))
}

fn keys(plans: &Plans) -> Vec<String> {
    let domains = plans.domains();
    let rules = domains.flat_map(|domain| domain.rules().map(|rule| rule.key.to_string()));
    rules.collect()
}

const LIMIT: &str = "rate_limit: { unit: hour, requests_per_unit: 1 }";

#[test]
fn rules_of_merged_files_stand_in_the_order_of_the_files_names() {
    let first = format!("domain: shop\ndescriptors: [{{ key: path, value: 'a*', {LIMIT} }}]\n");
    let second = format!(
        "domain: shop\ndescriptors: [{{ key: user, {LIMIT} }}, {{ key: path, value: 'ab*', {LIMIT} }}]\n"
    );
    let other = format!("domain: other\ndescriptors: [{{ key: user, {LIMIT} }}]\n");
    let files = [
        ("b.yaml", &*second),
        ("a.yaml", &first),
        ("aa.yaml", &other),
    ];
    let plans = merged(&files).unwrap();
    assert_eq!(
        keys(&plans),
        ["other.user", "shop.path_a*", "shop.user", "shop.path_ab*"]
    );
    let warnings: Vec<_> = plans.warnings().iter().map(ToString::to_string).collect();
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}")
    };
    assert!(
        warning.contains("b.yaml:2:") && warning.contains(": descriptors[1]: never reached"),
        "{warning}"
    );
}

#[test]
fn what_is_said_of_a_whole_domain_stands_in_one_of_its_files() {
    let plans = merged(&[
        ("a.yaml", "domain: shop\n"),
        (
            "b.yaml",
            "domain: shop\nunmatched: deny\nresponse: { body: full }\n",
        ),
    ])
    .unwrap();
    assert_eq!(&*plans.domain("shop").unwrap().response().body, "full");
    assert_eq!(keys(&plans), ["shop.(unmatched)"]);
    let error = merged(&[
        (
            "a.yaml",
            "domain: shop\non_store_error: deny\nunmatched: deny\n",
        ),
        (
            "b.yaml",
            "domain: shop\non_store_error: allow\nunmatched: deny\n",
        ),
    ])
    .unwrap_err();
    assert_eq!(
        error,
        "b.yaml: unmatched: stands in a.yaml too; of the files of one domain, one may have it\n\
         b.yaml: on_store_error: stands in a.yaml too; of the files of one domain, one may have it"
    );
}

#[test]
fn two_files_with_one_rule_do_not_merge() {
    let file = format!("domain: shop\ndescriptors: [{{ key: user, value: x, {LIMIT} }}]\n");
    let error = merged(&[("a.yaml", &file), ("b.yaml", &file)]).unwrap_err();
    assert_eq!(
        error,
        "b.yaml:2:15: descriptors[0]: duplicate descriptor composite key 'shop.user_x', which another file of the domain has"
    );
}

#[test]
fn every_file_is_one_of_plans_but_those_with_a_dot() {
    let folder = tempfile::tempdir().unwrap();
    let options = LoadOptions {
        every_file: true,
        ..LoadOptions::default()
    };
    let load = |below: &str| load(&folder.path().join(below), options.clone());
    let absent = load("absent").unwrap();
    assert!(absent.loaded() && absent.domains().next().is_none());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("limits.txt", "domain: first\n");
    write("team/more", "domain: second\n");
    write(".draft.yaml", "no plan");
    write("..data/limits.txt", "domain: first\n");
    std::os::unix::fs::symlink("nothing", folder.path().join("dangling")).unwrap();
    let plans = load("").unwrap();
    let names: Vec<_> = plans.domains().map(|domain| domain.name()).collect();
    assert_eq!(names, ["first", "second"]);
    assert!(
        plans.warnings()[0]
            .to_string()
            .ends_with("dangling: is a link to nothing")
    );
    std::os::unix::fs::symlink("..", folder.path().join("team/loop")).unwrap();
    let error = load("").unwrap_err().to_string();
    assert!(error.contains("loop"), "{error}");
}
