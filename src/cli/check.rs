//! `tollgate check`: are these plans good?

use std::{path::PathBuf, process::ExitCode};

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

/// Tells every mistake and warning on stdout, as they are its answer. Exit 0 if the plans load, 1 if they do not, 2 if a file cannot be read.
pub fn run(args: &CheckArgs) -> ExitCode {
    if let Some((file, error)) = super::unreadable(&args.files) {
        return super::fail(&format!("cannot read {}: {error}", file.display()));
    }
    match Plans::load(&args.files.clone().into(), None) {
        Ok(plans) => {
            let good = !args.strict || plans.warnings().is_empty();
            let code = if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
            let warnings = plans.warnings().iter();
            let lines = warnings.map(|warning| format!("warning: {warning}\n"));
            let lines: String = lines.chain([summary(&plans)]).collect();
            super::answer(lines, code)
        }
        Err(error) => super::answer(error, ExitCode::FAILURE),
    }
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
