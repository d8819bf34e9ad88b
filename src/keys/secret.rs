//! What a secret looks like: `tg_`, 30 random letters and digits, 6 more that are their checksum.
//!
//! The prefix lets secret scanners find a key that leaked (`tg_[0-9A-Za-z]{36}`), and the checksum tells a typo from a key
//! that is unknown. Source of the idea: GitHub's token format.

use std::fmt;

use rand::distr::{Alphanumeric, SampleString as _};
use sha2::{Digest as _, Sha256};

/// Longest secret in bytes; a longer text is no key, and is not even hashed.
pub const LONGEST_SECRET: usize = 4_096;

/// Shortest secret in bytes that is taken from elsewhere: shorter ones are guessed.
pub const SHORTEST_SECRET: usize = 16;

const PREFIX: &str = "tg_";
const RANDOM: usize = 30;
const CHECKSUM: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key's secret. `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new one, from a cryptographically secure source: 178 bits.
    pub fn generate() -> Self {
        let mut text = PREFIX.to_owned();
        Alphanumeric.append_string(&mut rand::rng(), &mut text, RANDOM);
        text += &checksum(text.as_bytes());
        Self(text)
    }

    /// The secret itself, for the one who asked for it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub fn hash(&self) -> [u8; 32] {
        hash(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a text that should be a secret looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As ours: prefix, length and checksum fit.
    Ours,
    /// It begins as ours do, and is not one: a typo, or a part of one.
    Mistyped,
    /// Made elsewhere.
    Foreign,
}

/// Tells a typo without knowing any key.
pub fn form(text: &[u8]) -> Form {
    let Some(rest) = text.strip_prefix(PREFIX.as_bytes()) else {
        return Form::Foreign;
    };
    let whole = rest.len() == RANDOM + CHECKSUM && rest.iter().all(u8::is_ascii_alphanumeric);
    let (body, sum) = text.split_at(text.len().saturating_sub(CHECKSUM));
    match whole && checksum(body).as_bytes() == sum {
        true => Form::Ours,
        false => Form::Mistyped,
    }
}

/// What is kept of a secret.
pub fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// CRC-32 in base 62; six digits hold it.
fn checksum(text: &[u8]) -> String {
    let mut rest = crc32fast::hash(text);
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|digit| *digit as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_secret_is_recognised_and_each_is_another() {
        let (one, other) = (Secret::generate(), Secret::generate());
        assert_ne!(one.expose(), other.expose());
        assert_eq!(one.expose().len(), 39);
        assert_eq!(form(one.expose().as_bytes()), Form::Ours);
        assert_eq!(format!("{one:?}"), "Secret(…)");
    }

    #[test]
    fn every_typo_of_one_character_is_told() {
        let secret = Secret::generate();
        for place in 3..secret.expose().len() {
            let mut typo = secret.expose().as_bytes().to_vec();
            typo[place] = if typo[place] == b'x' { b'y' } else { b'x' };
            assert_eq!(form(&typo), Form::Mistyped, "{place}");
        }
        let cut = &secret.expose()[..20];
        assert_eq!(form(cut.as_bytes()), Form::Mistyped);
        assert_eq!(form(b"tg_"), Form::Mistyped);
        assert_eq!(form(b"demo-free-key"), Form::Foreign);
        assert_eq!(form(b""), Form::Foreign);
    }
}
