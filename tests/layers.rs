//! The map in ARCHITECTURE.md holds: a module uses only those above it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Rows of the map's table, top to bottom. Modules of one row may use each other.
fn rows() -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let page = fs::read_to_string(page).expect("ARCHITECTURE.md is there");
    let (_, map) = page.split_once("## The map").expect("it has a map");
    let (map, _) = map.split_once("\n## ").expect("and more after it");
    let cells = map.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = cells.map(|line| line.split('|').next().expect("a first cell"));
    cells.map(modules).collect()
}

/// The modules of a cell; files with an ending are entries, which nothing uses.
fn modules(cell: &str) -> Vec<String> {
    cell.split(['`', ' ', ','])
        .map(|name| name.trim_end_matches('/'))
        .filter(|name| !name.is_empty() && !name.contains('.'))
        .map(str::to_owned)
        .collect()
}

fn row_of(module: &str, rows: &[Vec<String>]) -> usize {
    let found = rows
        .iter()
        .position(|row| row.iter().any(|name| name == module));
    found.unwrap_or_else(|| panic!("{module} has no row in the map of ARCHITECTURE.md"))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The top-level module of a file below src, or none for entries.
fn module_of(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!["lib", "main", "bin"].contains(&name)).then(|| name.to_owned())
}

/// Modules that the text names as `crate::NAME`, alone or in a `use crate::{…}`.
fn used(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut names = Vec::new();
    for (place, _) in code.match_indices("crate::") {
        let rest = &code[place + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_heads(group)),
            None => names.push(head(rest)),
        }
    }
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

fn head(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first names of a use group, up to its closing brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut start) = (0, Vec::new(), true);
    for (place, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            _ if depth == 0 && start && !c.is_whitespace() => {
                heads.push(head(&group[place..]));
                start = false;
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn a_module_uses_only_those_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rows = rows();
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = BTreeMap::new();
    for file in files {
        let below = file.strip_prefix(&root).expect("below src");
        let Some(module) = module_of(below) else {
            continue;
        };
        let text = fs::read_to_string(&file).expect("readable");
        for used in used(&text) {
            if used != module && row_of(&used, &rows) > row_of(&module, &rows) {
                wrong.insert(format!("{}", below.display()), used);
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "these use a module below them: {wrong:#?}"
    );
}

#[test]
fn the_map_has_every_module_once_and_no_other() {
    let mut mapped: Vec<String> = rows().concat();
    mapped.sort();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let below = files
        .iter()
        .map(|file| file.strip_prefix(&root).expect("below src"));
    let mut modules: Vec<String> = below.filter_map(module_of).collect();
    modules.sort();
    modules.dedup();
    assert_eq!(mapped, modules);
}

#[test]
fn uses_are_found() {
    let text = "use crate::{\n    bucket::{Balance, x::y},\n    limit::Limit,\n};\nlet a = crate::store::X; // crate::cli\n";
    assert_eq!(used(text), ["bucket", "limit", "store", "cli"]);
    assert_eq!(used("// crate::cli\nuse crate::metrics;"), ["metrics"]);
}
