//! The tokens that open the admin API.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::home::Actor;

/// Most tokens.
const MOST_TOKENS: usize = 100;

/// Who has a token that has no name.
const NAMELESS: &str = "admin";

/// Tokens, as their SHA-256, and whose they are. `Debug` shows the names only.
#[derive(Clone, Default)]
pub struct AdminTokens(Arc<[(Actor, [u8; 32])]>);

/// The text holds no tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing but blanks.
    #[error("the admin token is empty: anyone could change API keys")]
    Empty,
    /// A line that is none.
    #[error(
        "line {line} of the admin tokens is neither `TOKEN` nor `NAME TOKEN`, in letters, digits and signs of ASCII"
    )]
    Malformed {
        /// Which, from 1.
        line: usize,
    },
    /// A name or token twice.
    #[error("line {line} of the admin tokens has the name or the token of an earlier one")]
    Twice {
        /// Which, from 1.
        line: usize,
    },
    /// Too many.
    #[error("there are more than {MOST_TOKENS} admin tokens")]
    TooMany,
}

impl AdminTokens {
    /// Reads tokens: one a line, `TOKEN` or `NAME TOKEN`. Blanks around them and empty lines do not count.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let mut tokens: Vec<(Actor, [u8; 32])> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (name, token) = match words[..] {
                [] => continue,
                [token] => (NAMELESS, token),
                [name, token] => (name, token),
                _ => return Err(TokenError::Malformed { line: line_number }),
            };
            let graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
            if !graphic(name) || !graphic(token) {
                return Err(TokenError::Malformed { line: line_number });
            }
            let hash: [u8; 32] = Sha256::digest(token).into();
            if tokens
                .iter()
                .any(|(other, known)| other.name() == name || *known == hash)
            {
                return Err(TokenError::Twice { line: line_number });
            }
            tokens.push((Actor::new(name), hash));
        }
        match tokens.len() {
            0 => Err(TokenError::Empty),
            count if count > MOST_TOKENS => Err(TokenError::TooMany),
            _ => Ok(Self(tokens.into())),
        }
    }

    /// Whose token that is, where it is `Bearer TOKEN`. Compares with all, in a time that tells nothing of where they differ.
    pub fn whose(&self, authorization: &[u8]) -> Option<&Actor> {
        let (scheme, token) = authorization.split_at_checked(7)?;
        let hash: [u8; 32] = Sha256::digest(token.trim_ascii()).into();
        let mut found = u32::MAX;
        for (index, (_, known)) in self.0.iter().enumerate() {
            let same: Choice = hash.ct_eq(known);
            found.conditional_assign(&(index as u32), same);
        }
        let (actor, _) = self.0.get(found as usize)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(actor)
    }
}

impl fmt::Debug for AdminTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(actor, _)| actor.name());
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose<'t>(tokens: &'t AdminTokens, authorization: &str) -> Option<&'t str> {
        tokens.whose(authorization.as_bytes()).map(Actor::name)
    }

    #[test]
    fn only_the_whole_token_fits() {
        let token = AdminTokens::new(" s3cret-token\n").unwrap();
        for right in ["Bearer s3cret-token", "bearer  s3cret-token "] {
            assert_eq!(whose(&token, right), Some("admin"), "{right}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "s3cret-token",
            "Basic s3cret-token",
            "Bearer s3cret-toke",
            "Bearer s3cret-token2",
        ] {
            assert_eq!(whose(&token, wrong), None, "{wrong}");
        }
        assert_eq!(AdminTokens::new(" \n").unwrap_err(), TokenError::Empty);
        assert_eq!(format!("{token:?}"), "[\"admin\"]");
    }

    #[test]
    fn tokens_may_have_names() {
        let tokens = AdminTokens::new("ada a:1\n\nbob b2\nnobodys\n").unwrap();
        for (token, name) in [("a:1", "ada"), ("b2", "bob"), ("nobodys", "admin")] {
            assert_eq!(whose(&tokens, &format!("Bearer {token}")), Some(name));
        }
        for name in ["ada", "ada a:1", "bob"] {
            assert_eq!(whose(&tokens, &format!("Bearer {name}")), None);
        }
        for (text, error) in [
            ("a b c", TokenError::Malformed { line: 1 }),
            ("a 1\nü 2", TokenError::Malformed { line: 2 }),
            ("a 1\na 2", TokenError::Twice { line: 2 }),
            ("a 1\nb 1", TokenError::Twice { line: 2 }),
            ("1\n2", TokenError::Twice { line: 2 }),
        ] {
            assert_eq!(AdminTokens::new(text).unwrap_err(), error);
        }
        assert!(AdminTokens::default().whose(b"Bearer ").is_none());
    }
}
