//! `tollgate check --from limitador`: plan files made from limitador's.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    cli,
    migrate::limitador::{self, Conversion, PlanText},
    plan::LARGEST_FILE,
};

/// Plan files go to stdout or into `folder`, what is to be said about them to stderr. Exit 0 if every limit has a
/// counterpart, 1 if one has none or, where `strict`, if there is a note, 2 if a file cannot be read or written.
pub fn run(files: &[PathBuf], folder: Option<&Path>, strict: bool) -> ExitCode {
    let mut all = Vec::new();
    for file in files {
        match read(file) {
            Ok(text) => all.push(limitador::convert(&file.display().to_string(), &text)),
            Err(error) => return cli::fail(&format!("cannot read {}: {error}", file.display())),
        }
    }
    for conversion in &all {
        tell(conversion);
    }
    let (limits, mapped) = all.iter().fold((0, 0), |(limits, mapped), conversion| {
        (limits + conversion.limits, mapped + conversion.mapped)
    });
    cli::say(format_args!(
        "{mapped} of {limits} limits have a counterpart"
    ));
    let good = |conversion: &Conversion| {
        conversion.unmapped.is_none() && (conversion.notes.is_empty() || !strict)
    };
    let code = if all.iter().all(good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    let plans: Vec<_> = all
        .into_iter()
        .flat_map(|conversion| conversion.plans)
        .collect();
    match folder {
        Some(folder) => write(&plans, folder, code),
        None => print(&plans, code),
    }
}

fn print(plans: &[PlanText], code: ExitCode) -> ExitCode {
    if plans.is_empty() {
        return code;
    }
    if plans.len() > 1 {
        cli::say(
            "a plan file holds one domain: part the text at each `---`, or name a folder with --write",
        );
    }
    let texts: Vec<&str> = plans.iter().map(|plan| plan.text.trim_end()).collect();
    cli::answer(texts.join("\n---\n"), code)
}

fn write(plans: &[PlanText], folder: &Path, code: ExitCode) -> ExitCode {
    for (plan, name) in plans.iter().zip(limitador::file_names(plans)) {
        let path = folder.join(name);
        if let Err(error) = write_new(&path, &plan.text) {
            return cli::fail(&format!("cannot write {}: {error}", path.display()));
        }
        cli::say(format_args!(
            "wrote {}: domain {}",
            path.display(),
            plan.domain
        ));
    }
    code
}

fn tell(conversion: &Conversion) {
    if let Some(unmapped) = &conversion.unmapped {
        cli::say(unmapped);
    }
    for note in &conversion.notes {
        cli::say(format_args!("note: {note}"));
    }
}

fn read(file: &Path) -> io::Result<String> {
    let size = fs::metadata(file)?.len();
    if size > LARGEST_FILE {
        let message = format!("it has {size} bytes, more than {LARGEST_FILE}");
        return Err(io::Error::other(message));
    }
    fs::read_to_string(file)
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    fs::File::create_new(path)?.write_all(text.as_bytes())
}
