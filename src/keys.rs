//! API keys that are made and changed while the service runs: what one is, what its secret looks like, and the table that
//! finds it. Pure: no I/O. Where they are kept is `key_store`'s; keys of plan files are `plan`'s.
//!
//! Of a secret only its SHA-256 is known here; [`Secret`] holds one for as long as it takes to hand it out.

mod record;
mod secret;
mod table;

pub use self::{
    record::{Change, KeyRecord, MOST_LABELS, MOST_LIMITS, Previous, RecordError, Sha256Hash},
    secret::{Form, LONGEST_SECRET, SHORTEST_SECRET, Secret, form, hash},
    table::{KeyTable, Lookup, StoredKey, TableEditor},
};

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970. Keys keep their times so; it does until the year 2106.
pub fn unix_now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}
