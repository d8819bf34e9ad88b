//! Numbers that stand for texts, made when these are loaded, so that no request has to hash them.

use std::{hash::Hasher as _, sync::OnceLock};

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// Drawn anew for each process, so that no client can find texts of one stamp.
static KEY: OnceLock<[u64; 2]> = OnceLock::new();

/// Stands for a list of texts in this process. No two lists have the same stamp, and sums of stamps are as good as stamps: of
/// 128 random bits no two are alike.
pub fn stamp(texts: &[&str]) -> u128 {
    let [k0, k1] = *KEY.get_or_init(rand::random);
    let mut hasher = SipHasher13::new_with_keys(k0, k1);
    for text in texts {
        hasher.write_usize(text.len());
        hasher.write(text.as_bytes());
    }
    hasher.finish128().as_u128()
}
