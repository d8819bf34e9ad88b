//! What keeping the buckets of a memory store costs: the size of the file, and the times to write and to read it.
//!
//! `cargo run --release --example snapshot [BUCKETS]` prints one line. Half of the buckets are monthly quotas, half token buckets.

use std::{env, error::Error, io::BufWriter, sync::Arc, time::Instant};

use tollgate::{
    clock::SystemClock,
    descriptor::Hits,
    plan::{Charge, OnStoreError, Role, RuleLimit},
    store::{BucketKey, Item, MemoryStore, Take, memory::snapshot},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let buckets: usize = env::args()
        .nth(1)
        .map_or(Ok(1_000_000), |text| text.parse())?;
    let limits = ["1000000/month", "100000/day burst 5000"]
        .map(|text| Ok(Arc::new(RuleLimit::new(text.parse()?, None, text, text))));
    let limits = limits
        .into_iter()
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let store = MemoryStore::new(buckets * 2, Arc::new(SystemClock));
    for who in 0..buckets {
        let limit = &limits[who % 2];
        let item = Item {
            key: BucketKey::new(limit.key_prefix(), &who.to_be_bytes()),
            limit: limit.clone(),
            hits: Hits::Take(who as u64 % 5_000 + 1),
            role: Role::Enforced,
            charge: Charge::AllOrNothing,
            on_store_error: OnStoreError::Local,
        };
        store.take(&Take {
            items: [item].into_iter().collect(),
            dry: false,
        });
    }
    let file = tempfile::NamedTempFile::new()?;
    let began = Instant::now();
    let written = snapshot::write(&store, BufWriter::new(&file))?;
    let encoded = began.elapsed();
    file.as_file().sync_all()?;
    let on_disk = began.elapsed();
    let again = MemoryStore::new(buckets * 2, Arc::new(SystemClock));
    let began = Instant::now();
    snapshot::read(file.reopen()?, &again)?;
    println!(
        "{} buckets: {:.1} MiB, {:.1} bytes each; written in {encoded:.0?}, on the disk after {on_disk:.0?}; read in {:.0?}",
        written.buckets,
        written.bytes as f64 / 1_048_576.0,
        written.bytes as f64 / written.buckets as f64,
        began.elapsed(),
    );
    Ok(())
}
