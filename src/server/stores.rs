//! The store that settings name.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking};

use super::{FIRST_CONNECTION, StartError};
use crate::{
    clock::SystemClock,
    settings::{Settings, StoreChoice},
    store::{
        MemoryStore, Store,
        memory::kept::KeptBuckets,
        redis::{RedisSettings, checks::Needs},
    },
};

/// The store, and where its buckets are kept and how often, if they are.
pub async fn open_store(
    settings: &Settings,
    needs: watch::Receiver<Needs>,
) -> Result<(Store, Option<(KeptBuckets, Duration)>), StartError> {
    let max_buckets = settings.max_buckets;
    if let (StoreChoice::Memory, Some(folder), Some(every)) = (
        &settings.store,
        &settings.state_dir,
        settings.snapshot_every,
    ) {
        let (folder, clock) = (folder.clone(), Arc::new(SystemClock));
        let opened = spawn_blocking(move || KeptBuckets::open(&folder, max_buckets, clock)).await;
        let (memory, kept) = opened.expect("reading buckets does not panic")?;
        return Ok((Store::Memory(memory), Some((kept, every))));
    }
    let redis = |redis| RedisSettings {
        timeout: settings.store_timeout,
        local_cache: settings.local_cache,
        group: settings.plans.options.key_prefix.clone(),
        needs,
        ..redis
    };
    Ok((
        connect_store(&settings.store, max_buckets, redis).await,
        None,
    ))
}

/// The store of that choice, where that is Redis with `settings` made of the defaults. Redis is waited for a second at most; starting needs none.
pub async fn connect_store(
    choice: &StoreChoice,
    max_buckets: usize,
    settings: impl FnOnce(RedisSettings) -> RedisSettings,
) -> Store {
    match choice {
        StoreChoice::Memory => Store::Memory(MemoryStore::new(max_buckets, Arc::new(SystemClock))),
        StoreChoice::Redis(choice) => {
            let mut redis = RedisSettings::new(choice.main.clone());
            redis.per_second = choice.per_second.clone();
            let store = Store::redis(settings(redis));
            if !store.first_connection(FIRST_CONNECTION).await {
                tracing::warn!(node = %choice, "starting without the store: rules answer by their on_store_error until it is there");
            }
            store
        }
    }
}
