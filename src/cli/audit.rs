//! `tollgate audit`: who changed what, and when.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::home::{HomeArgs, Output};
use crate::home::{AuditLog, Entry};

/// Flags of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Only what concerns this key, domain, or bucket as it is listed
    #[arg(long, value_name = "NAME")]
    on: Option<String>,
    /// At most so many entries, the newest
    #[arg(long, value_name = "N", default_value = "100")]
    limit: usize,
    #[command(flatten)]
    home: HomeArgs,
}

/// Exit 0 if the log could be read, 2 if not.
pub async fn run(args: AuditArgs) -> ExitCode {
    match entries(&args).await {
        Ok(entries) => {
            let text = match args.home.output {
                Output::Json => format!("{:#}", json!(entries)),
                Output::Text => table(&entries),
            };
            super::answer(text, ExitCode::SUCCESS)
        }
        Err(message) => super::fail(&message),
    }
}

async fn entries(args: &AuditArgs) -> Result<Vec<Entry>, String> {
    let place = args.home.served.place.place()?;
    let place = place
        .ok_or("no audit log is kept here: say where with --state-dir DIR or --store redis://…")?;
    let log = AuditLog::of(place);
    let mut entries: Vec<Entry> = Vec::new();
    let mut before = None;
    while entries.len() < args.limit {
        let most = args.limit - entries.len();
        let page = log.read(args.on.as_deref(), before.as_deref(), most).await;
        let page = page.map_err(|error| super::chain(&error))?;
        entries.extend(page.entries);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(entries)
}

/// One entry a line, newest first.
fn table(entries: &[Entry]) -> String {
    let width = |text: fn(&Entry) -> &str| entries.iter().map(|entry| text(entry).len()).max();
    let by = width(|entry| &entry.by).unwrap_or(0).max(2);
    let action = width(|entry| &entry.action).unwrap_or(0).max(6);
    let on = width(|entry| &entry.on).unwrap_or(0).clamp(2, 60);
    let mut text = format!(
        "{:24}  {:by$}  {:action$}  {:on$}  {:10}  detail",
        "at", "by", "action", "on", "version"
    );
    for entry in entries {
        let number = |version: Option<u32>| version.map_or("-".to_owned(), |n| n.to_string());
        let versions = match (entry.before, entry.after) {
            (None, None) => String::new(),
            (before, after) => format!("{} → {}", number(before), number(after)),
        };
        let row = format!(
            "{:24}  {:by$}  {:action$}  {:on$}  {versions:10}  {}",
            entry.at, entry.by, entry.action, entry.on, entry.detail
        );
        text += &format!("\n{}", row.trim_end());
    }
    text
}
