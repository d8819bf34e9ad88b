//! `tollgate usage`: what API keys have used. Reads where it is kept, with or without a running server.

mod print;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::home::ServedArgs;
use crate::{
    clock::{Clock as _, SystemClock},
    usage::{By, Day, Report, ReportError, Retention, UsageQuery, UsageStore, report},
};

/// Flags of `usage`: what to report, and where usage, keys and plans are: what `serve` was told.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// The first day, in UTC, like 2026-11-01 [default: the first of the month of --to]
    #[arg(long, value_name = "DAY")]
    from: Option<Day>,
    /// The last day [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<Day>,
    /// The length of a period
    #[arg(long, default_value = "day")]
    by: ByArg,
    /// Only of the key of this id
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Only what was used while the key was in this tier
    #[arg(long)]
    tier: Option<String>,
    /// Only of keys of this owner
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// How the answer looks
    #[arg(long, default_value = "table")]
    output: Output,
    #[command(flatten)]
    served: ServedArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ByArg {
    Hour,
    Day,
    Month,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For spreadsheets.
    Csv,
    /// For scripts.
    Json,
}

/// Exit 0 with a report, though it may be empty, 1 for a question that has no answer, 2 if usage could not be read.
pub async fn run(args: UsageArgs) -> ExitCode {
    let report = match args.report().await {
        Ok(report) => report,
        Err(Failure::No(message)) => {
            super::say(format_args!("error: {message}"));
            return ExitCode::FAILURE;
        }
        Err(Failure::CannotTell(message)) => return super::fail(&message),
    };
    let text = match args.output {
        Output::Table => print::table(&report),
        Output::Csv => print::csv(&report),
        Output::Json => print::json(&report),
    };
    super::answer(text.trim_end(), ExitCode::SUCCESS)
}

/// Why there is no report.
enum Failure {
    No(String),
    CannotTell(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::CannotTell(message)
    }
}

impl UsageArgs {
    async fn report(&self) -> Result<Report, Failure> {
        let Some(place) = self.served.place.place()? else {
            let message = "no usage is kept here: say --state-dir DIR or --store redis://…, as the service was told";
            return Err(message.to_owned().into());
        };
        // Plans and keys say whose a key is.
        let plans = self.served.plans_and_keys().await?;
        let (from, to) = UsageQuery::days(self.from, self.to, SystemClock.now());
        let query = UsageQuery {
            from,
            to,
            by: match self.by {
                ByArg::Hour => By::Hour,
                ByArg::Day => By::Day,
                ByArg::Month => By::Month,
            },
            key: self.key.clone(),
            tier: self.tier.clone(),
            owner: self.owner.clone(),
        };
        let mut store = UsageStore::open(place, Retention::default());
        report(&mut store, &plans.load_full(), &query, usize::MAX)
            .await
            .map_err(|error| match error {
                ReportError::Store(_) => Failure::CannotTell(super::chain(&error)),
                _ => Failure::No(error.to_string()),
            })
    }
}
