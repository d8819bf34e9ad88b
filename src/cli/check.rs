//! `tollgate check`: are these plans good?

mod envoy;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use super::ConfigArgs;
use crate::plan::Plans;

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Plan files and folders; with --envoy, unless told, those that `serve` would take
    #[arg(required_unless_present = "envoy", value_name = "FILES")]
    files: Vec<PathBuf>,
    /// Take warnings for mistakes
    #[arg(long)]
    strict: bool,
    /// Envoy's configuration, or what its admin page /config_dump says: tell which limits apply to which of its routes
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// How the answer looks
    #[arg(long, default_value = "text", requires = "envoy")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Tells every mistake and warning on stdout, as they are its answer. Exit 0 if the plans load, 1 if they do not, 2 if a file cannot be read.
pub fn run(args: &CheckArgs) -> ExitCode {
    let files = ConfigArgs::of(&args.files).sources();
    if let Some((file, error)) = super::unreadable(&files) {
        return super::fail(&format!("cannot read {}: {error}", file.display()));
    }
    match Plans::load(&files, None) {
        Ok(plans) => {
            if let Some(config) = &args.envoy {
                return envoy::run(config, &plans, args.strict, args.output);
            }
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
