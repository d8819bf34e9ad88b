//! The name of a bucket.

use std::{
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::OnceLock,
};

use siphasher::sip128::{Hasher128, SipHasher13};

/// Names a bucket: the limit's key prefix, then the subject. Unambiguous, as every part is escaped or length-prefixed.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketKey {
    hash: u128,
    bytes: Box<[u8]>,
}

impl BucketKey {
    /// The bucket of `subject` under a limit whose keys begin with `prefix`.
    pub fn new(prefix: &str, subject: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(prefix.len() + subject.len());
        bytes.extend_from_slice(prefix.as_bytes());
        bytes.extend_from_slice(subject);
        let bytes = bytes.into_boxed_slice();
        Self {
            hash: hash(&bytes),
            bytes,
        }
    }

    /// The key as Redis gets it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A keyed hash that stands for the bucket in this process's tables. Its key is drawn at random when the process starts,
    /// so that no client can make two names collide.
    pub fn hash(&self) -> u128 {
        self.hash
    }
}

impl fmt::Debug for BucketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketKey({})", self.bytes.escape_ascii())
    }
}

/// Builds the hasher of tables whose keys nobody outside could aim at: [`BucketKey::hash`] or a part of it, or addresses.
pub type Prehashed = BuildHasherDefault<PrehashedKey>;

/// Takes a key that is a hash already as it is, and spreads an address.
#[derive(Default)]
pub struct PrehashedKey(u64);

impl Hasher for PrehashedKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys are integers");
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn write_usize(&mut self, address: usize) {
        self.0 = (address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

fn hash(bytes: &[u8]) -> u128 {
    static KEY: OnceLock<(u64, u64)> = OnceLock::new();
    let (k0, k1) = KEY.get_or_init(|| (rand::random(), rand::random()));
    let mut hasher = SipHasher13::new_with_keys(*k0, *k1);
    hasher.write(bytes);
    hasher.finish128().as_u128()
}
