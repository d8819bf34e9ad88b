//! `tollgate check`: are these plans good, and what becomes of another service's files?

mod convert;
mod envoy;
mod store;

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use super::{ConfigArgs, counting::CountingArgs};
use crate::{
    limit::Algorithm,
    migrate::envoyproxy::{self, Counting},
    plan::{self, Charge, Plans},
};

/// Flags of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Plan files and folders; with --envoy, unless told, those that `serve` would take
    #[arg(required_unless_present_any = ["envoy", "store"], value_name = "FILES")]
    files: Vec<PathBuf>,
    /// Take warnings for mistakes
    #[arg(long)]
    strict: bool,
    /// Whose files they are: tell what will differ, or convert them
    #[arg(long, value_name = "SERVICE")]
    from: Option<Origin>,
    /// With `--from limitador`: write the plan files into this folder, not to stdout
    #[arg(long, value_name = "FOLDER", requires = "from")]
    write: Option<PathBuf>,
    /// Envoy's configuration, or what its admin page /config_dump says: tell which limits apply to which of its routes
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    envoy: Option<PathBuf>,
    /// Redis URL: tell what of that Redis, or of each primary of that cluster, may harm limits. Without files, only that
    #[arg(long, value_name = "URL", conflicts_with = "from")]
    store: Option<String>,
    /// How the answer looks
    #[arg(long, default_value = "text", requires = "envoy")]
    output: Output,
    #[command(flatten)]
    counting: CountingArgs,
}

/// The service that files were written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Origin {
    /// Its files load as they are, and every file of a folder is one; tells what they do differently. Needless for YAML files
    /// that have no field of ours.
    Envoyproxy,
    /// Its limits files become plan files.
    Limitador,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Tells every mistake and warning on stdout, as they are its answer. Exit 0 if the plans load, 1 if they do not, 2 if a file cannot be read.
/// As well if the store does not answer.
pub fn run(args: &CheckArgs) -> ExitCode {
    match &args.store {
        Some(url) if args.files.is_empty() && args.envoy.is_none() => {
            store::run(url, None, args.strict)
        }
        _ => check_files(args),
    }
}

fn check_files(args: &CheckArgs) -> ExitCode {
    let files = ConfigArgs::of(&args.files).sources();
    if let Some((file, error)) = super::unreadable(&files) {
        return super::fail(&format!("cannot read {}: {error}", file.display()));
    }
    match (args.from, &args.write) {
        (Some(Origin::Limitador), folder) => convert::run(&files, folder.as_deref(), args.strict),
        (_, Some(_)) => {
            super::fail("--write goes with --from limitador: other files need no conversion")
        }
        (from, None) => check(args, files, from),
    }
}

fn check(args: &CheckArgs, files: Vec<PathBuf>, from: Option<Origin>) -> ExitCode {
    let mut sources = args.counting.sources(files);
    let reference = from == Some(Origin::Envoyproxy);
    sources.options.every_file = reference;
    sources.options.last_wins = reference;
    match Plans::load(&sources, None) {
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
            let warnings = warnings.map(|warning| format!("warning: {warning}\n"));
            let lines: String = warnings
                .chain([
                    differences(&plans, from, args.counting.counting()),
                    summary(&plans),
                ])
                .collect();
            let code = super::answer(lines, code);
            match &args.store {
                Some(url) if code == ExitCode::SUCCESS => {
                    store::run(url, Some(&plans), args.strict)
                }
                _ => code,
            }
        }
        Err(error) => super::answer(error, ExitCode::FAILURE),
    }
}

/// What files of envoyproxy/ratelimit will do differently: those that look like it, or all where told so.
fn differences(plans: &Plans, from: Option<Origin>, counting: plan::Counting) -> String {
    let files: Vec<(String, String)> = plans
        .files()
        .iter()
        .filter_map(|file| Some((file.display().to_string(), fs::read_to_string(file).ok()?)))
        .collect();
    let files = files.iter().map(|(name, text)| (&**name, &**text));
    let all = from == Some(Origin::Envoyproxy);
    let counting = Counting {
        windows: counting.algorithm == Algorithm::FixedWindow,
        charges_apart: counting.charge != Charge::AllOrNothing,
    };
    let notes = envoyproxy::differences(files, all, counting);
    notes.iter().map(|note| format!("note: {note}\n")).collect()
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
