//! `tollgate plans put|get|history|rollback|reset`.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use serde_json::json;

use crate::{
    cli::{
        self,
        home::{HomeArgs, Output, with_stored_keys},
    },
    home::Actor,
    plan::SharedPlans,
    plan_store::{LARGEST_DOCUMENT, PlanAdmin, PlanError, PlanRecord, PlanView, Put},
};

/// Flags of `plans put`.
#[derive(Debug, Clone, Args)]
pub struct PutArgs {
    /// Plan file, whose `domain` says where it belongs; - for stdin
    file: PathBuf,
    /// Only if the domain has this version; 0 for one without stored plans
    #[arg(long, value_name = "N")]
    if_version: Option<u32>,
    /// Only check it and say what would change
    #[arg(long)]
    dry_run: bool,
}

/// Flags of `plans get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// The domain [default: the only one that has stored plans]
    domain: Option<String>,
    /// An earlier version
    #[arg(long, value_name = "N")]
    version: Option<u32>,
}

/// Flags of `plans history`.
#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// The domain; without it all domains that have stored plans are listed
    domain: Option<String>,
}

/// Flags of `plans rollback`.
#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    /// The version to put in force again
    version: u32,
    /// The domain [default: the only one that has stored plans]
    domain: Option<String>,
    /// Only if the domain has this version now
    #[arg(long, value_name = "N")]
    if_version: Option<u32>,
}

/// Flags of `plans reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// The domain [default: the only one that has stored plans]
    domain: Option<String>,
    /// Only if the domain has this version now
    #[arg(long, value_name = "N")]
    if_version: Option<u32>,
}

/// Changes the stored plans, and counts stored keys for whom something changes.
pub async fn change(
    home: &HomeArgs,
    action: impl AsyncFnOnce(&PlanAdmin, &Actor) -> Result<String, PlanError>,
) -> ExitCode {
    let plans = Arc::new(SharedPlans::open_or_wait(home.served.sources()));
    // Where there is no home, the action says so. Plans can be mended whatever became of the keys.
    if let Ok(place) = home.served.place.place()
        && let Err(message) = with_stored_keys(&plans, place).await
    {
        cli::say(format_args!(
            "warning: stored API keys are not counted: {message}"
        ));
    }
    act(home, plans, action).await
}

/// Looks at the stored plans.
pub async fn look(
    home: &HomeArgs,
    action: impl AsyncFnOnce(&PlanAdmin, &Actor) -> Result<String, PlanError>,
) -> ExitCode {
    let plans = SharedPlans::open_or_wait(home.served.sources());
    act(home, Arc::new(plans), action).await
}

/// The files need not load: what is put may be what mends them.
async fn act(
    home: &HomeArgs,
    plans: Arc<SharedPlans>,
    action: impl AsyncFnOnce(&PlanAdmin, &Actor) -> Result<String, PlanError>,
) -> ExitCode {
    let place = match home.served.place.place() {
        Ok(Some(place)) => place,
        Ok(None) => return cli::fail(&PlanError::NoHome.to_string()),
        Err(message) => return cli::fail(&message),
    };
    let admin = PlanAdmin::new(place.open(), Arc::default(), plans);
    match action(&admin, &home.actor()).await {
        Ok(text) => cli::answer(text, ExitCode::SUCCESS),
        Err(error @ (PlanError::Home(_) | PlanError::Busy)) => cli::fail(&cli::chain(&error)),
        Err(PlanError::Mistakes(error)) => {
            cli::say(error);
            ExitCode::FAILURE
        }
        Err(error) => {
            cli::say(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Puts a file's text.
pub async fn put(
    admin: &PlanAdmin,
    by: &Actor,
    args: &PutArgs,
    output: Output,
) -> Result<String, PlanError> {
    let name = args.file.display().to_string();
    let text = text_of(&args.file).map_err(|error| unreadable(&name, error))?;
    let put = admin.put(by, &text, &name, args.if_version, args.dry_run);
    Ok(print(&put.await?, args.dry_run, output))
}

/// Shows a text.
pub async fn get(admin: &PlanAdmin, args: &GetArgs, output: Output) -> Result<String, PlanError> {
    let domain = domain(admin, args.domain.as_ref()).await?;
    let record = admin.get(&domain, args.version).await?;
    if output == Output::Json {
        let mut view = json!(PlanView::from(&record));
        view["text"] = json!(record.text);
        return Ok(json_text(&view));
    }
    match record.text {
        Some(text) => Ok(text.trim_end().to_owned()),
        None => Ok(format!(
            "# version {}: the files of {domain} hold",
            record.version
        )),
    }
}

/// Lists versions, or domains.
pub async fn history(
    admin: &PlanAdmin,
    args: &HistoryArgs,
    output: Output,
) -> Result<String, PlanError> {
    let records: Vec<PlanRecord> = match &args.domain {
        Some(domain) => admin.history(domain).await?,
        None => admin.table().await?.all_newest().cloned().collect(),
    };
    let views: Vec<PlanView> = records.iter().map(PlanView::from).collect();
    Ok(match output {
        Output::Json => json_text(&json!(views)),
        Output::Text => table(&views),
    })
}

/// Puts an earlier version in force again.
pub async fn rollback(
    admin: &PlanAdmin,
    by: &Actor,
    args: &RollbackArgs,
    output: Output,
) -> Result<String, PlanError> {
    let domain = domain(admin, args.domain.as_ref()).await?;
    let put = admin.rollback(by, &domain, args.version, args.if_version);
    Ok(print(&put.await?, false, output))
}

/// Puts the files in force again.
pub async fn reset(
    admin: &PlanAdmin,
    by: &Actor,
    args: &ResetArgs,
    output: Output,
) -> Result<String, PlanError> {
    let domain = domain(admin, args.domain.as_ref()).await?;
    let put = admin.reset(by, &domain, args.if_version).await?;
    Ok(print(&put, false, output))
}

/// The domain that is named, or else the only one that has stored plans.
async fn domain(admin: &PlanAdmin, named: Option<&String>) -> Result<String, PlanError> {
    if let Some(domain) = named {
        return Ok(domain.clone());
    }
    let table = admin.table().await?;
    let domains: Vec<_> = table.all_newest().map(|record| &record.domain).collect();
    match domains[..] {
        [only] => Ok(only.clone()),
        _ => Err(PlanError::WhichDomain {
            known: domains.into_iter().cloned().collect::<Vec<_>>().join(", "),
        }),
    }
}

fn text_of(file: &Path) -> io::Result<String> {
    // One more than is allowed, so that too much is refused for what it is.
    let most = LARGEST_DOCUMENT as u64 + 1;
    let mut text = String::new();
    match file == Path::new("-") {
        true => io::stdin().take(most).read_to_string(&mut text)?,
        false => fs::File::open(file)?.take(most).read_to_string(&mut text)?,
    };
    Ok(text)
}

fn unreadable(name: &str, error: io::Error) -> PlanError {
    PlanError::Home(crate::home::HomeError::File {
        path: name.to_owned(),
        source: error,
    })
}

fn print(put: &Put, dry: bool, output: Output) -> String {
    let view = PlanView::from(&put.record);
    let changes: Vec<String> = put.changes.iter().map(ToString::to_string).collect();
    if output == Output::Json {
        let mut json = json!(view);
        json["changed"] = json!(put.new && !dry);
        json["changes"] = json!(changes);
        json["warnings"] = json!(put.warnings);
        return json_text(&json);
    }
    let PlanView {
        domain, version, ..
    } = view;
    let mut text = match (put.new, dry, &put.record.text) {
        (false, ..) => format!("{domain}: version {version} says the same already"),
        (true, true, _) => format!("{domain}: would be version {version}; nothing was changed"),
        (true, false, Some(_)) => format!("{domain}: version {version} is in force"),
        (true, false, None) => format!("{domain}: version {version}, its files hold again"),
    };
    for change in changes {
        text += &format!("\n  {change}");
    }
    for warning in &put.warnings {
        text += &format!("\nwarning: {warning}");
    }
    text
}

fn table(views: &[PlanView]) -> String {
    let width = |text: fn(&PlanView) -> &str| views.iter().map(|view| text(view).len()).max();
    let domain = width(|view| &view.domain).unwrap_or(0).max(6);
    let by = width(|view| &view.by).unwrap_or(0).max(2);
    let mut text = format!(
        "{:domain$}  version  source  {:20}  {:by$}  note",
        "domain", "at", "by"
    );
    for view in views {
        let row = format!(
            "{:domain$}  {:>7}  {:6}  {:20}  {:by$}  {}",
            view.domain, view.version, view.source, view.at, view.by, view.note
        );
        text += &format!("\n{}", row.trim_end());
    }
    text
}

fn json_text(value: &serde_json::Value) -> String {
    format!("{value:#}")
}
