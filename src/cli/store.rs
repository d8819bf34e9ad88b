//! Flags that say where buckets live.

use std::path::PathBuf;

use clap::Args;

use crate::{settings::StoreChoice, store::redis::Password};

/// The store of a command. The URLs are not clap's to read: it repeats a value that it refuses, and one may hold a password.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Where buckets live: `memory`, or a Redis URL (redis, rediss, redis+unix, redis+sentinel, redis+cluster; see docs/redis.md)
    #[arg(
        long,
        value_name = "STORE",
        env = "TOLLGATE_STORE",
        default_value = "memory",
        hide_env_values = true
    )]
    store: String,
    /// File with the password of that Redis, read again at each connection
    #[arg(long, value_name = "FILE", env = "TOLLGATE_STORE_PASSWORD_FILE")]
    store_password_file: Option<PathBuf>,
    /// Redis URL of the buckets of limits per second, if they live in another one
    #[arg(
        long,
        value_name = "URL",
        env = "TOLLGATE_STORE_PER_SECOND",
        hide_env_values = true
    )]
    store_per_second: Option<String>,
}

impl StoreArgs {
    /// The store that the flags name.
    pub fn choice(&self) -> Result<StoreChoice, String> {
        let choice = self.store.parse();
        let mut choice = choice.map_err(|error| format!("--store: {error}"))?;
        let StoreChoice::Redis(redis) = &mut choice else {
            let flag = match (&self.store_password_file, &self.store_per_second) {
                (None, None) => return Ok(choice),
                (Some(_), _) => "--store-password-file",
                (None, Some(_)) => "--store-per-second",
            };
            return Err(format!(
                "{flag} goes with a Redis in --store, not with `memory`"
            ));
        };
        if let Some(file) = &self.store_password_file {
            redis.main.login.password = Password::File(file.clone());
        }
        if let Some(url) = &self.store_per_second {
            let url = url.parse();
            redis.per_second = Some(url.map_err(|error| format!("--store-per-second: {error}"))?);
        }
        Ok(choice)
    }
}
