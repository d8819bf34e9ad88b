//! `tollgate check`: are these plans good?

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use crate::plan::Plans;

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Plan files and folders
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// Take warnings for mistakes
    #[arg(long)]
    strict: bool,
}

/// Exit 0 if the plans load, 1 if they do not, 2 if a file cannot be read.
pub fn run(args: &CheckArgs) -> ExitCode {
    if let Some((file, error)) = unreadable(&args.files) {
        return super::fail(&format!("cannot read {}: {error}", file.display()));
    }
    match Plans::load(&args.files, None) {
        Ok(plans) => {
            for warning in plans.warnings() {
                super::say(format_args!("warning: {warning}"));
            }
            let good = !args.strict || plans.warnings().is_empty();
            let code = if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
            super::answer(summary(&plans), code)
        }
        Err(error) => {
            super::say(error);
            ExitCode::FAILURE
        }
    }
}

fn unreadable(files: &[PathBuf]) -> Option<(&Path, io::Error)> {
    files
        .iter()
        .find_map(|file| Some((file.as_path(), fs::metadata(file).err()?)))
}

fn summary(plans: &Plans) -> String {
    let domains: Vec<String> = plans
        .domains()
        .map(|domain| {
            format!(
                "{} ({} rules, {} API keys)",
                domain.name(),
                domain.rules().count(),
                domain.api_keys().count()
            )
        })
        .collect();
    format!(
        "ok: {}",
        if domains.is_empty() {
            "no domain".to_owned()
        } else {
            domains.join(", ")
        }
    )
}
