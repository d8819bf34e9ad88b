//! Flags that say where buckets live.

use std::path::PathBuf;

use clap::Args;

use crate::{settings::StoreChoice, store::redis::Password};

/// The store of a command. The URLs are not clap's to read: it repeats a value that it refuses, and one may hold a password.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Where buckets live: `memory`, or a Redis URL (redis, rediss, redis+unix, redis+sentinel; see docs/redis.md)
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
}

impl StoreArgs {
    /// The store that the flags name.
    pub fn choice(&self) -> Result<StoreChoice, String> {
        let mut choice = self
            .store
            .parse()
            .map_err(|error| format!("--store: {error}"))?;
        if let Some(file) = &self.store_password_file {
            let StoreChoice::Redis(url) = &mut choice else {
                return Err("--store-password-file: `memory` asks for no password".to_owned());
            };
            url.login.password = Password::File(file.clone());
        }
        Ok(choice)
    }
}
