//! Flags of the commands that change what a running service has, and what they work on: its home itself, with or without a
//! running service.

use std::{
    env,
    path::PathBuf,
    sync::{Arc, Once},
};

use clap::{Args, ValueEnum};

use super::{ConfigArgs, counting::CountingArgs, store::StoreArgs};
use crate::{
    home::{Actor, Place, Table},
    key_store::KeyAdmin,
    plan::{SharedPlans, Sources},
    plan_store::PlanTable,
    settings::{StoreChoice, home_of},
};

/// Where what is made at run time is kept: what `serve` was told.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The state directory, if that keeps what is made at run time
    #[arg(long, value_name = "DIR", env = "TOLLGATE_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl PlaceArgs {
    /// The store that is named.
    pub fn choice(&self) -> Result<StoreChoice, String> {
        self.store.choice()
    }

    /// Where what is made at run time is kept, if anywhere.
    pub fn place(&self) -> Result<Option<Place>, String> {
        let place = home_of(&self.choice()?, self.state_dir.as_deref());
        if let Some(Place::Folder(folder)) = &place
            && !folder.exists()
        {
            static NOTE: Once = Once::new();
            // Else a wrong name looks like a service without keys.
            NOTE.call_once(|| {
                let folder = folder.display();
                super::say(format_args!(
                    "note: {folder} is not there, so nothing is kept in it yet"
                ));
            });
        }
        Ok(place)
    }
}

/// What `serve` was told: plans, and where what is made at run time is kept.
#[derive(Debug, Clone, Args)]
pub struct ServedArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    counting: CountingArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// The same, and who does it.
#[derive(Debug, Clone, Args)]
pub struct HomeArgs {
    #[command(flatten)]
    pub served: ServedArgs,
    /// Who does it, for the audit log, which adds this machine's name [default: $USER]
    #[arg(long = "as", value_name = "NAME")]
    by: Option<String>,
    /// How answers look
    #[arg(long, default_value = "text")]
    pub output: Output,
}

/// How answers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

impl ServedArgs {
    /// The plan files, which need not be readable.
    pub fn sources(&self) -> Sources {
        self.counting.sources(self.config.sources())
    }

    /// The plans in force, as `serve` has them, with the documents of their home.
    pub async fn plans(&self) -> Result<Arc<SharedPlans>, String> {
        let sources = self.sources();
        super::readable(&sources.paths, "--config")?;
        plans_in_force(sources, self.place.place()?).await
    }

    /// The same with the API keys of their home.
    pub async fn plans_and_keys(&self) -> Result<Arc<SharedPlans>, String> {
        let plans = self.plans().await?;
        with_stored_keys(&plans, self.place.place()?).await?;
        Ok(plans)
    }
}

impl HomeArgs {
    /// Who gives the command.
    pub fn actor(&self) -> Actor {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let user = self.by.clone().or_else(|| set("USER"));
        let user = user.unwrap_or_else(|| "unknown".to_owned());
        match nix::unistd::gethostname() {
            Ok(host) => Actor::new(&format!("{user}@{}", host.to_string_lossy())),
            Err(_) => Actor::new(&user),
        }
    }
}

/// The plans of `sources`, with the documents of `place` in the place of files.
async fn plans_in_force(
    sources: Sources,
    place: Option<Place>,
) -> Result<Arc<SharedPlans>, String> {
    let documents = match place {
        Some(place) => table_in::<PlanTable>(place).await?.documents(),
        None => Vec::new(),
    };
    let plans = SharedPlans::open_with(sources, documents);
    Ok(Arc::new(plans.map_err(|error| error.to_string())?))
}

/// The newest table of that kind that `place` keeps.
pub async fn table_in<T: Table>(place: Place) -> Result<T, String> {
    let read = place.open::<T>().refresh(&Arc::default()).await;
    let table = read.map_err(|error| super::chain(&error))?;
    Ok(table.unwrap_or_default())
}

/// Brings the API keys of `place` into the plans.
pub async fn with_stored_keys(
    plans: &Arc<SharedPlans>,
    place: Option<Place>,
) -> Result<(), String> {
    let Some(place) = place else { return Ok(()) };
    let keys = KeyAdmin::new(place.open(), Arc::clone(plans));
    let read = keys.refresh().await;
    read.map(drop).map_err(|error| super::chain(&error))
}
