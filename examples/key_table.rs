//! What a table of API keys costs: memory per key, and time to find one by its secret or to find none.
//!
//! `cargo run --release --example key_table [KEYS]` prints one line of each. It measures what `ext_authz` does for a request:
//! hash the secret, look in the plans' keys and in the table.

use std::{env, fs, hint::black_box, sync::Arc, time::Instant};

use tollgate::{
    keys::{Change, KeyRecord, KeyTable, Secret, Sha256Hash},
    plan::{Plans, SharedPlans},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PLANS: &str = "domain: shop\ntiers: { free: { limits: [1/second] } }\n";

/// Lookups of each kind, in turns, so that both meet the same caches.
const ROUNDS: usize = 200_000;

fn resident_mib() -> f64 {
    let pages = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: f64 = pages
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a number");
    pages * 4_096.0 / 1_048_576.0
}

fn record(number: usize, secret: &Secret) -> KeyRecord {
    KeyRecord {
        id: format!("key_{number:016x}"),
        tier: "free".to_owned(),
        sha256: Sha256Hash(secret.hash()),
        owner: Some(format!("customer {number}")),
        labels: Default::default(),
        limits: Vec::new(),
        enabled: true,
        expires_at: None,
        created_at: 1,
        changed_at: 1,
        revision: 1,
        previous: None,
    }
}

fn median(mut samples: Vec<u128>) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn main() {
    let keys = env::args()
        .nth(1)
        .map_or(1_000_000, |text| text.parse().expect("a number of keys"));
    let (known, unknown): (Vec<Secret>, Vec<Secret>) = (0..ROUNDS)
        .map(|_| (Secret::generate(), Secret::generate()))
        .unzip();
    let before = resident_mib();
    let mut editor = KeyTable::default().edit();
    for number in 0..keys {
        let drawn = Secret::generate();
        let secret = known.get(number).unwrap_or(&drawn);
        editor.apply(Change::Put(record(number, secret)));
    }
    let table = Arc::new(editor.finish(1));
    println!("memory: {:.0} MiB for {keys} keys", resident_mib() - before);

    let start = Instant::now();
    let mut editor = table.edit();
    editor.apply(Change::Put(record(keys, &Secret::generate())));
    black_box(editor.finish(2));
    println!(
        "change: {:.0} us for one more key",
        start.elapsed().as_secs_f64() * 1e6
    );

    let plans = Arc::new(SharedPlans::fixed(
        Plans::from_texts(&[("plans.yaml", PLANS)]).expect("plans"),
    ));
    plans.set_stored_keys(table);
    let plans = plans.load_full();
    let (mut found, mut missed) = (Vec::new(), Vec::new());
    for (known, unknown) in known.iter().zip(&unknown) {
        for (secret, samples) in [(known, &mut found), (unknown, &mut missed)] {
            let start = Instant::now();
            black_box(plans.check_secret(black_box(secret.expose().as_bytes())));
            samples.push(start.elapsed().as_nanos());
        }
    }
    println!(
        "lookup: {} ns for a known key, {} ns for an unknown one (medians)",
        median(found),
        median(missed)
    );
}
