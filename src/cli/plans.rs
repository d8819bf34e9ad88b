//! `tollgate plans`: what a change of plans changes, and for whom.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::counting::CountingArgs;
use crate::plan::{
    Plans,
    diff::{Change, diff},
};

/// What to do with plans.
#[derive(Debug, Clone, Subcommand)]
pub enum PlansCommand {
    /// Say what changes for whom between two states of the plans; exit 0 if nothing does, 1 if something does
    Diff(DiffArgs),
}

/// Flags of `plans diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// Plan file, or folder of them, as it is
    old: PathBuf,
    /// Plan file, or folder of them, as it shall be
    new: PathBuf,
    /// How the answer looks
    #[arg(long, default_value = "text")]
    output: Output,
    #[command(flatten)]
    counting: CountingArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Exit 0 if nothing changes, 1 if something does, 2 if plans do not load.
pub fn run(command: &PlansCommand) -> ExitCode {
    let PlansCommand::Diff(args) = command;
    let changes = match (
        load(&args.old, &args.counting),
        load(&args.new, &args.counting),
    ) {
        (Ok(old), Ok(new)) => diff(&old, &new),
        (Err(message), _) | (_, Err(message)) => return super::fail(&message),
    };
    let code = match changes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    match args.output {
        Output::Json => super::answer(json!({ "changes": changes }), code),
        Output::Text => super::answer(text(&changes), code),
    }
}

fn load(source: &Path, counting: &CountingArgs) -> Result<Plans, String> {
    let sources = counting.sources(vec![source.to_owned()]);
    if let Some((path, error)) = super::unreadable(&sources.paths) {
        return Err(format!(
            "cannot read plans from {}: {error}",
            path.display()
        ));
    }
    Plans::load(&sources, None).map_err(|error| error.to_string())
}

fn text(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no change for anybody".to_owned();
    }
    let mut lines = Vec::new();
    let mut domain = None;
    for change in changes {
        if domain.replace(&change.domain) != Some(&change.domain) {
            lines.push(format!("{}:", change.domain));
        }
        lines.push(format!("  {change}"));
    }
    lines.join("\n")
}
