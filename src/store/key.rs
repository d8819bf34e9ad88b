//! The name of a bucket.

use std::{
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::OnceLock,
};

use siphasher::{
    sip::SipHasher13 as TagHasher,
    sip128::{Hasher128, SipHasher13},
};

/// Start of every key; its number changes with what is stored under keys.
pub const PREFIX: &str = "tollgate:2:";

/// How many tags there are.
pub const TAGS: usize = 256;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Names a bucket: prefix and tag, the limit's key prefix, then the subject. Unambiguous, as every part of a subject is
/// escaped or length-prefixed.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketKey {
    hash: u128,
    bytes: Box<[u8]>,
}

impl BucketKey {
    /// The bucket of `subject` under a limit whose keys go on with `prefix`.
    pub fn new(prefix: &str, subject: &[u8]) -> Self {
        let tag = tag_of(prefix, subject);
        let mut bytes = Vec::with_capacity(PREFIX.len() + 4 + prefix.len() + subject.len());
        bytes.extend_from_slice(PREFIX.as_bytes());
        bytes.extend_from_slice(&tag_text(tag));
        bytes.extend_from_slice(prefix.as_bytes());
        bytes.extend_from_slice(subject);
        let bytes = bytes.into_boxed_slice();
        Self {
            hash: hash(&bytes),
            bytes,
        }
    }

    /// Which of the [`TAGS`] it carries. Keys of one tag are in one slot of a Redis cluster, so one script call takes from
    /// them: all buckets of one subject carry the same, and so do all of a rule without one.
    pub fn tag(&self) -> u8 {
        let digit = |byte: u8| match byte {
            b'a'.. => byte - b'a' + 10,
            _ => byte - b'0',
        };
        let at = PREFIX.len() + 1;
        digit(self.bytes[at]) << 4 | digit(self.bytes[at + 1])
    }

    /// The subject of which it is the bucket, under a limit whose keys go on with `prefix`.
    pub fn subject(&self, prefix: &str) -> &[u8] {
        let from = PREFIX.len() + 4 + prefix.len();
        self.bytes.get(from..).unwrap_or_default()
    }

    /// The key as Redis gets it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A keyed hash that stands for the bucket in this process's tables. Its key is drawn at random when the process starts,
    /// or was when the buckets were first kept in its state directory, so that no client can make two names collide.
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

/// A hash tag as a key carries it: `{7f}`.
pub fn tag_text(tag: u8) -> [u8; 4] {
    let digit = |half: u8| DIGITS[usize::from(half)];
    [b'{', digit(tag >> 4), digit(tag & 15), b'}']
}

/// The same in every process, as replicas share buckets.
fn tag_of(prefix: &str, subject: &[u8]) -> u8 {
    let named = match subject {
        // Up to the limit's kind: the limits of a rule belong together.
        [] => prefix.split('#').next().unwrap_or(prefix).as_bytes(),
        subject => subject,
    };
    TagHasher::new().hash(named) as u8
}

static HASH_KEY: OnceLock<[u64; 2]> = OnceLock::new();

/// The key of [`BucketKey::hash`] in this process; drawn now, if it was not yet. A secret.
pub fn hash_key() -> [u64; 2] {
    *HASH_KEY.get_or_init(rand::random)
}

/// Has this process hash as the one did that drew `key`, so that what is named by hashes in a file is found. Returns whether
/// it does: once a process has hashed, its key stays.
pub fn adopt_hash_key(key: [u64; 2]) -> bool {
    *HASH_KEY.get_or_init(|| key) == key
}

fn hash(bytes: &[u8]) -> u128 {
    let [k0, k1] = hash_key();
    let mut hasher = SipHasher13::new_with_keys(k0, k1);
    hasher.write(bytes);
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_tag_is_that_of_the_subject_and_stays_for_ever() {
        let keys = [("a/b#s60", "|1:x"), ("a/c#b1", "|1:x")]
            .map(|(prefix, subject)| BucketKey::new(prefix, subject.as_bytes()));
        assert_eq!(keys[0].tag(), keys[1].tag());
        // Replicas of two releases share buckets.
        assert_eq!(keys[0].as_bytes(), b"tollgate:2:{2f}a/b#s60|1:x");
        let rule = ["a/b#s60", "a/b#c1"].map(|prefix| BucketKey::new(prefix, b"").tag());
        assert_eq!(rule[0], rule[1]);
    }

    #[test]
    fn every_tag_is_used_and_read_back() {
        let tags: HashSet<u8> = (0..5_000_u32)
            .map(|n| BucketKey::new("", &n.to_be_bytes()).tag())
            .collect();
        assert_eq!(tags.len(), TAGS);
    }
}
