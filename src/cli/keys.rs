//! `tollgate keys`: API keys that are in no plan file. Works on their home itself, with or without a running server.

mod import;
mod print;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use self::print::{print_key, print_list, print_made, print_revoked};
use super::{ConfigArgs, pair::pair, store::StoreArgs};
use crate::{
    key_store::{KeyAdmin, KeyError, KeyFilter, NewKey, parse_expiry},
    limit::Limit,
    plan::SharedPlans,
    settings::key_home,
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
    config: ConfigArgs,
    #[command(flatten)]
    store: StoreArgs,
    /// The state directory, if that keeps the keys
    #[arg(long, value_name = "DIR", env = "TOLLGATE_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// How answers look
    #[arg(long, default_value = "text")]
    output: Output,
}

/// How answers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key; its secret is shown this once
    Create(On<CreateArgs>),
    /// List keys
    List(On<ListArgs>),
    /// Show a key
    Show(On<ShowArgs>),
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
    #[arg(long, value_name = "D", default_value = "24h", value_parser = humantime::parse_duration)]
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

#[derive(Debug, Args)]
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
            on.run(async |keys, args, output| {
                done(print_made(keys.create(args.into()).await?, output))
            })
            .await
        }
        KeysCommand::List(on) => {
            on.run(async |keys, args, output| {
                let listed = keys.list(&args.into(), "", usize::MAX).await;
                done(print_list(listed.map_err(KeyError::from)?, output))
            })
            .await
        }
        KeysCommand::Show(on) => {
            on.run(async |keys, args, output| done(print_key(keys.show(&args.id).await?, output)))
                .await
        }
        KeysCommand::Disable(on) => on.switch(false).await,
        KeysCommand::Enable(on) => on.switch(true).await,
        KeysCommand::Rotate(on) => {
            on.run(async |keys, args, output| {
                let ChangeArgs { id, revision } = args.change;
                done(print_made(
                    keys.rotate(&id, args.overlap, revision).await?,
                    output,
                ))
            })
            .await
        }
        KeysCommand::Revoke(on) => {
            on.run(async |keys, args, output| {
                keys.revoke(&args.id, args.revision).await?;
                done(print_revoked(&args.id, output))
            })
            .await
        }
        KeysCommand::Import(on) => {
            on.run(async |keys, args, output| import::run(keys, &args, output).await)
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
    async fn run(self, action: impl AsyncFnOnce(&KeyAdmin, A, Output) -> Answer) -> ExitCode {
        let keys = match self.open() {
            Ok(keys) => keys,
            Err(message) => return super::fail(&message),
        };
        match action(&keys, self.what, self.output).await {
            Ok((text, code)) => super::answer(text, code),
            Err(Failure::No(message)) => {
                super::say(format_args!("error: {message}"));
                ExitCode::FAILURE
            }
            Err(Failure::CannotTell(message)) => super::fail(&message),
        }
    }

    fn open(&self) -> Result<KeyAdmin, String> {
        let store = self.store.choice()?;
        let home = key_home(&store, self.state_dir.as_deref());
        let home = home.ok_or_else(|| KeyError::NoHome.to_string())?;
        let sources = self.config.sources();
        super::readable(&sources, "--config")?;
        let plans = SharedPlans::open(sources).map_err(|error| error.to_string())?;
        Ok(KeyAdmin::new(home.open(), Arc::new(plans)))
    }
}

impl On<ChangeArgs> {
    async fn switch(self, enabled: bool) -> ExitCode {
        self.run(async |keys, args, output| {
            let record = keys.set_enabled(&args.id, enabled, args.revision).await?;
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
            KeyError::Store(_) | KeyError::Busy | KeyError::NoHome => {
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

impl From<ListArgs> for KeyFilter {
    fn from(args: ListArgs) -> Self {
        Self {
            tier: args.tier,
            owner: args.owner,
            labels: args.labels.into_iter().collect(),
        }
    }
}
