//! `tollgate plans`: what a change of plans changes, and for whom; and plans in the place of files, also while a server runs.

mod stored;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use self::stored::{GetArgs, HistoryArgs, PutArgs, ResetArgs, RollbackArgs};
use super::{
    counting::CountingArgs,
    home::{HomeArgs, PlaceArgs, table_in},
};
use crate::{
    keys::KeyTable,
    plan::{
        Plans,
        diff::{Change, ChangeKind, ChangeSubject, diff},
    },
};

/// What to do with plans.
#[derive(Debug, Clone, Subcommand)]
pub enum PlansCommand {
    /// Say what changes for whom between two states of the plans; exit 0 if nothing does, 1 if something does
    Diff(DiffArgs),
    /// Put plans in the place of a domain's files
    Put(On<PutArgs>),
    /// Show the stored plans of a domain, as they were put
    Get(On<GetArgs>),
    /// List the domains that have stored plans, or the versions of one
    History(On<HistoryArgs>),
    /// Put an earlier version in force again
    Rollback(On<RollbackArgs>),
    /// Put a domain's files in force again
    Reset(On<ResetArgs>),
}

/// What to do, and where plans are kept: what `serve` was told.
#[derive(Debug, Clone, Args)]
pub struct On<A: Args> {
    #[command(flatten)]
    what: A,
    #[command(flatten)]
    home: HomeArgs,
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
    #[command(flatten)]
    place: PlaceArgs,
}

/// What a diff says that does not know them.
const NOT_COUNTED: &str = "note: API keys made at run time are not counted: say where they are kept, with --store or --state-dir";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the command. All but `diff` exit 0 if it was done, 1 if it was not and why, 2 if that could not be told.
pub async fn run(command: PlansCommand) -> ExitCode {
    match command {
        PlansCommand::Diff(args) => run_diff(&args).await,
        PlansCommand::Put(on) => {
            stored::change(&on.home, async |admin, by| {
                stored::put(admin, by, &on.what, on.home.output).await
            })
            .await
        }
        PlansCommand::Get(on) => {
            stored::look(&on.home, async |admin, _| {
                stored::get(admin, &on.what, on.home.output).await
            })
            .await
        }
        PlansCommand::History(on) => {
            stored::look(&on.home, async |admin, _| {
                stored::history(admin, &on.what, on.home.output).await
            })
            .await
        }
        PlansCommand::Rollback(on) => {
            stored::change(&on.home, async |admin, by| {
                stored::rollback(admin, by, &on.what, on.home.output).await
            })
            .await
        }
        PlansCommand::Reset(on) => {
            stored::change(&on.home, async |admin, by| {
                stored::reset(admin, by, &on.what, on.home.output).await
            })
            .await
        }
    }
}

/// Exit 0 if nothing changes, 1 if something does, 2 if plans do not load or stored keys cannot be read.
async fn run_diff(args: &DiffArgs) -> ExitCode {
    let (changes, stored) = match args.changes().await {
        Ok(found) => found,
        Err(message) => return super::fail(&message),
    };
    if stored.is_none() && changes.iter().any(of_keys) {
        super::say(NOT_COUNTED);
    }
    let code = match changes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    match args.output {
        Output::Json => super::answer(json!({ "changes": changes, "stored_keys": stored }), code),
        Output::Text => super::answer(text(&changes), code),
    }
}

impl DiffArgs {
    /// What changes, and how many stored keys there are, if that is known.
    async fn changes(&self) -> Result<(Vec<Change>, Option<usize>), String> {
        let old = load(&self.old, &self.counting)?;
        let new = load(&self.new, &self.counting)?;
        let stored = match self.place.place()? {
            Some(place) => Some(table_in(place).await?),
            None => None,
        };
        let count = stored.as_ref().map(KeyTable::len);
        Ok((diff(&old, &new, &stored.unwrap_or_default()), count))
    }
}

/// Whether a change means something for the keys of a tier, or of a whole domain.
fn of_keys(change: &Change) -> bool {
    let whole = change.change != ChangeKind::Changed;
    change.subject == ChangeSubject::Tier || (change.subject == ChangeSubject::Domain && whole)
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
