//! `tollgate keys`: API keys that are in no plan file. Works on their home itself, with or without a running server.

mod import;
mod print;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use clap::{ArgGroup, Args, Subcommand};

use self::print::{print_key, print_list, print_made, print_revoked};
use super::{
    home::{HomeArgs, Output},
    pair::pair,
};
use crate::{
    home::Actor,
    key_store::{KeyAdmin, KeyChange, KeyError, KeyFilter, NewKey, parse_expiry, parse_overlap},
    limit::Limit,
};

/// Flags of `keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

/// What to do, and where keys and plans are: what `serve` was told.
#[derive(Debug, Args)]
struct On<A: Args> {
    #[command(flatten)]
    what: A,
    #[command(flatten)]
    home: HomeArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key; its secret is shown this once
    Create(On<CreateArgs>),
    /// List keys
    List(On<ListArgs>),
    /// Show a key
    Show(On<ShowArgs>),
    /// Change what is said of a key; its secret stays
    Update(On<UpdateArgs>),
    /// Let a key open nothing, until it is enabled again
    Disable(On<ChangeArgs>),
    /// Let a disabled key open again
    Enable(On<ChangeArgs>),
    /// Give a key another secret; the one of before opens for a while yet
    Rotate(On<RotateArgs>),
    /// Remove a key for good
    Revoke(On<ChangeArgs>),
    /// Take keys over from AWS API Gateway, with the secrets that they have
    Import(On<import::ImportArgs>),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// Its id
    id: String,
}

#[derive(Debug, Args)]
struct RotateArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// How long the secret of before still opens; 0s to end it now
    #[arg(long, value_name = "D", default_value = "24h", value_parser = parse_overlap)]
    overlap: Duration,
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The tier it belongs to
    #[arg(long)]
    tier: String,
    /// Whose it is
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Its public name [default: drawn]
    #[arg(long)]
    id: Option<String>,
    /// What else there is to know of it; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// A limit in place of the tier's, like `20/second burst 50`; repeatable
    #[arg(long = "limit", value_name = "LIMIT")]
    limits: Vec<Limit>,
    /// When it ends: a time from now, like 90d, or 2027-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = parse_expiry)]
    expires: Option<u32>,
    /// Make it, but let it open nothing until it is enabled
    #[arg(long)]
    disabled: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["tier", "owner", "labels", "limits", "tier_limits", "expires"]))]
struct UpdateArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The tier it belongs to
    #[arg(long)]
    tier: Option<String>,
    /// Whose it is; empty for nobody's
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// A label to set, or with nothing behind `=` to remove; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// A limit in place of the tier's and of those that it has of its own; repeatable
    #[arg(long = "limit", value_name = "LIMIT")]
    limits: Vec<Limit>,
    /// Give it the limits of its tier again
    #[arg(long, conflicts_with = "limits")]
    tier_limits: bool,
    /// When it ends: a time from now, like 90d, or 2027-01-31T12:00:00Z, or `never`
    #[arg(long, value_name = "WHEN", value_parser = expiry_or_never)]
    expires: Option<u32>,
}

fn expiry_or_never(text: &str) -> Result<u32, String> {
    match text {
        "never" => Ok(0),
        text => parse_expiry(text),
    }
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only those of this tier
    #[arg(long)]
    tier: Option<String>,
    /// Only those of this owner
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Only those with this label; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
}

#[derive(Debug, Clone, Args)]
struct ChangeArgs {
    /// Its id
    id: String,
    /// Only if it still has this revision
    #[arg(long, value_name = "N")]
    revision: Option<u32>,
}

/// Exit 0 if it was done, 1 if it was not and why, 2 if that could not be told.
pub async fn run(args: KeysArgs) -> ExitCode {
    match args.command {
        KeysCommand::Create(on) => {
            on.run(async |keys, by, args, output| {
                done(print_made(keys.create(by, args.into()).await?, output))
            })
            .await
        }
        KeysCommand::List(on) => {
            on.run(async |keys, _, args, output| {
                let listed = keys.list(&args.into(), "", usize::MAX).await;
                done(print_list(listed.map_err(KeyError::from)?, output))
            })
            .await
        }
        KeysCommand::Show(on) => {
            on.run(async |keys, _, args, output| {
                done(print_key(keys.show(&args.id).await?, output))
            })
            .await
        }
        KeysCommand::Update(on) => {
            on.run(async |keys, by, args, output| {
                let ChangeArgs { id, revision } = args.change.clone();
                let changed = keys.update(by, &id, &args.into(), revision).await?;
                done(print_key(changed, output))
            })
            .await
        }
        KeysCommand::Disable(on) => on.switch(false).await,
        KeysCommand::Enable(on) => on.switch(true).await,
        KeysCommand::Rotate(on) => {
            on.run(async |keys, by, args, output| {
                let ChangeArgs { id, revision } = args.change;
                done(print_made(
                    keys.rotate(by, &id, args.overlap, revision).await?,
                    output,
                ))
            })
            .await
        }
        KeysCommand::Revoke(on) => {
            on.run(async |keys, by, args, output| {
                keys.revoke(by, &args.id, args.revision).await?;
                done(print_revoked(&args.id, output))
            })
            .await
        }
        KeysCommand::Import(on) => {
            on.run(async |keys, by, args, output| import::run(keys, by, &args, output).await)
                .await
        }
    }
}

/// What to print, and the exit code that says the same.
type Answer = Result<(String, ExitCode), Failure>;

fn done(text: String) -> Answer {
    Ok((text, ExitCode::SUCCESS))
}

impl<A: Args> On<A> {
    async fn run(
        self,
        action: impl AsyncFnOnce(&KeyAdmin, &Actor, A, Output) -> Answer,
    ) -> ExitCode {
        let keys = match open(&self.home).await {
            Ok(keys) => keys,
            Err(message) => return super::fail(&message),
        };
        let (by, output) = (self.home.actor(), self.home.output);
        match action(&keys, &by, self.what, output).await {
            Ok((text, code)) => super::answer(text, code),
            Err(Failure::No(message)) => {
                super::say(format_args!("error: {message}"));
                ExitCode::FAILURE
            }
            Err(Failure::CannotTell(message)) => super::fail(&message),
        }
    }
}

async fn open(home: &HomeArgs) -> Result<KeyAdmin, String> {
    let served = &home.served;
    let place = served.place.place()?;
    let place = place.ok_or_else(|| KeyError::NoHome.to_string())?;
    Ok(KeyAdmin::new(place.open(), served.plans().await?))
}

impl On<ChangeArgs> {
    async fn switch(self, enabled: bool) -> ExitCode {
        self.run(async |keys, by, args, output| {
            let record = keys
                .set_enabled(by, &args.id, enabled, args.revision)
                .await?;
            done(print_key(record, output))
        })
        .await
    }
}

/// Why there is no answer.
enum Failure {
    /// It must not be done.
    No(String),
    /// It is not known whether it could be, or was.
    CannotTell(String),
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Home(_) | KeyError::Busy | KeyError::NoHome => {
                Self::CannotTell(super::chain(&error))
            }
            _ => Self::No(error.to_string()),
        }
    }
}

impl From<CreateArgs> for NewKey {
    fn from(args: CreateArgs) -> Self {
        Self {
            id: args.id,
            tier: args.tier,
            owner: args.owner,
            labels: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
            limits: args.limits,
            expires_at: args.expires,
            disabled: args.disabled,
        }
    }
}

impl From<UpdateArgs> for KeyChange {
    fn from(args: UpdateArgs) -> Self {
        Self {
            tier: args.tier,
            owner: args.owner,
            labels: args.labels.into_iter().collect(),
            limits: (args.tier_limits || !args.limits.is_empty()).then_some(args.limits),
            expires_at: args.expires,
        }
    }
}

impl From<ListArgs> for KeyFilter {
    fn from(args: ListArgs) -> Self {
        Self {
            tier: args.tier,
            owner: args.owner,
            labels: args.labels.into_iter().collect(),
        }
    }
}
