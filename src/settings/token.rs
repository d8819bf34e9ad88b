//! The tokens that open the admin API.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::home::Actor;

/// Most tokens.
const MOST_TOKENS: usize = 100;

/// Fewest characters of a token: what is shorter can be guessed.
const SHORTEST: usize = 16;

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
    /// A token that could be guessed.
    #[error(
        "line {line} of the admin tokens has a token of less than {SHORTEST} characters, which could be guessed; make one with `openssl rand -hex 32`"
    )]
    Short {
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
            if token.len() < SHORTEST {
                return Err(TokenError::Short { line: line_number });
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
        let token = AdminTokens::new(" s3cret-token-of-ada\n").unwrap();
        for right in ["Bearer s3cret-token-of-ada", "bearer  s3cret-token-of-ada "] {
            assert_eq!(whose(&token, right), Some("admin"), "{right}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "s3cret-token-of-ada",
            "Basic s3cret-token-of-ada",
            "Bearer s3cret-token-of-ad",
            "Bearer s3cret-token-of-ada2",
        ] {
            assert_eq!(whose(&token, wrong), None, "{wrong}");
        }
        assert_eq!(AdminTokens::new(" \n").unwrap_err(), TokenError::Empty);
        assert_eq!(format!("{token:?}"), "[\"admin\"]");
    }

    #[test]
    fn tokens_may_have_names() {
        let [one, two] = ["1:0123456789abcdef", "2:0123456789abcdef"];
        let text = format!("ada {one}\n\nbob {two}\nnobodys-0123456789\n");
        let tokens = AdminTokens::new(&text).unwrap();
        for (token, name) in [(one, "ada"), (two, "bob"), ("nobodys-0123456789", "admin")] {
            assert_eq!(whose(&tokens, &format!("Bearer {token}")), Some(name));
        }
        for name in ["ada", &format!("ada {one}"), "bob"] {
            assert_eq!(whose(&tokens, &format!("Bearer {name}")), None);
        }
        for (text, error) in [
            ("a b c".to_owned(), TokenError::Malformed { line: 1 }),
            (
                format!("a {one}\nü {two}"),
                TokenError::Malformed { line: 2 },
            ),
            (format!("a {one}\na {two}"), TokenError::Twice { line: 2 }),
            (format!("a {one}\nb {one}"), TokenError::Twice { line: 2 }),
            (format!("{one}\n{two}"), TokenError::Twice { line: 2 }),
            (
                format!("{one}\n{}", &two[3..]),
                TokenError::Short { line: 2 },
            ),
            ("x".to_owned(), TokenError::Short { line: 1 }),
        ] {
            assert_eq!(AdminTokens::new(&text).unwrap_err(), error);
        }
        assert!(AdminTokens::new(&one[2..]).is_ok(), "of sixteen");
        assert!(AdminTokens::default().whose(b"Bearer ").is_none());
    }
}
