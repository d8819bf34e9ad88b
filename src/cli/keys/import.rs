//! `tollgate keys import`: what API Gateway's command line printed.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::{Answer, Failure, Output, print::print_imported};
use crate::{
    cli,
    home::Actor,
    key_store::{AwsFile, AwsKey, AwsPlan, KeyAdmin, NewKey, read_aws},
};

/// Largest file in bytes.
const LARGEST: u64 = 256 << 20;

/// Flags of `keys import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What `aws apigateway get-api-keys --include-values` or `get-usage-plans` printed; - for stdin
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The tier of the keys; API Gateway's list of keys does not say it [default: the only usage plan of the files]
    #[arg(long)]
    tier: Option<String>,
}

/// Takes the keys over; a failure if some could not be. Usage plans become tiers, which belong into a plan file: they are printed.
pub async fn run(keys: &KeyAdmin, by: &Actor, args: &ImportArgs, output: Output) -> Answer {
    let (mut found, mut plans) = (Vec::new(), Vec::new());
    for file in &args.files {
        let named = |message: String| Failure::CannotTell(format!("{}: {message}", file.display()));
        let text = text_of(file).map_err(|error| named(error.to_string()))?;
        match read_aws(&text).map_err(|error| named(error.to_string()))? {
            AwsFile::Keys(keys) => found.extend(keys),
            AwsFile::Plans(read) => plans.extend(read),
        }
    }
    for note in plans.iter().filter_map(AwsPlan::notes) {
        cli::say(format_args!("note: {note}"));
    }
    if found.is_empty() {
        return Ok((tiers(&plans, output), ExitCode::SUCCESS));
    }
    let tier = tier(args.tier.as_deref(), &plans)?;
    let (mut whole, mut without) = (Vec::new(), Vec::new());
    for key in found {
        match with_secret(key, &tier) {
            Ok(key) => whole.push(key),
            Err(skipped) => without.push(skipped),
        }
    }
    let mut imported = keys.import(by, whole).await?;
    imported.skipped.extend(without);
    let code = match imported.skipped.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    };
    Ok((print_imported(&imported, output), code))
}

fn text_of(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    match file == Path::new("-") {
        true => io::stdin().take(LARGEST).read_to_string(&mut text)?,
        false => fs::File::open(file)?
            .take(LARGEST)
            .read_to_string(&mut text)?,
    };
    Ok(text)
}

fn tier(told: Option<&str>, plans: &[AwsPlan]) -> Result<String, Failure> {
    match (told, plans) {
        (Some(tier), _) => Ok(tier.to_owned()),
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => Err(Failure::No(
            "which tier the keys belong to is not in these files: say it with --tier".to_owned(),
        )),
    }
}

/// The key and its secret; or its id, and why it cannot be taken.
fn with_secret(key: AwsKey, tier: &str) -> Result<(NewKey, String), (String, String)> {
    let Some(secret) = key.value else {
        let why = "it has no value: call `aws apigateway get-api-keys --include-values`";
        return Err((key.id, why.to_owned()));
    };
    let new = NewKey {
        id: Some(key.id),
        tier: tier.to_owned(),
        owner: key.name.filter(|name| !name.is_empty()),
        labels: key.tags,
        disabled: !key.enabled,
        ..NewKey::default()
    };
    Ok((new, secret))
}

/// Usage plans as the `tiers` of a plan file.
fn tiers(plans: &[AwsPlan], output: Output) -> String {
    if output == Output::Json {
        let tiers = plans
            .iter()
            .map(|plan| (plan.name.clone(), json!({ "limits": plan.limits() })));
        let tiers: serde_json::Map<_, _> = tiers.collect();
        return json!({ "tiers": tiers }).to_string();
    }
    let mut text = "# usage plans of API Gateway, to be put into a plan file\ntiers:".to_owned();
    for plan in plans {
        // A JSON string is YAML, too, whatever the name holds.
        text += &format!(
            "\n  {}: {{ limits: {} }}",
            json!(plan.name),
            json!(plan.limits())
        );
    }
    text
}
