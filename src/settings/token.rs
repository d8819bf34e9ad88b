//! The token that opens the admin API.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The token, as its SHA-256. `Debug` does not show it.
#[derive(Clone)]
pub struct AdminToken(Arc<[u8; 32]>);

/// The text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing but blanks.
    #[error("the admin token is empty: anyone could change API keys")]
    Empty,
    /// It cannot be sent in a header.
    #[error(
        "the admin token has characters that no header can carry: use letters, digits and signs of ASCII"
    )]
    Unprintable,
}

impl AdminToken {
    /// Reads a token; blanks around it do not count.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        match text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(Arc::new(Sha256::digest(text).into()))),
            false => Err(TokenError::Unprintable),
        }
    }

    /// Whether that is `Bearer TOKEN`. Compares in a time that tells nothing of where they differ.
    pub fn fits(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked(7) else {
            return false;
        };
        let hash: [u8; 32] = Sha256::digest(token.trim_ascii()).into();
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(hash.ct_eq(&*self.0))
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_fits() {
        let token = AdminToken::new(" s3cret-token\n").unwrap();
        for right in ["Bearer s3cret-token", "bearer  s3cret-token "] {
            assert!(token.fits(right.as_bytes()), "{right}");
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
            assert!(!token.fits(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(AdminToken::new(" \n").unwrap_err(), TokenError::Empty);
        assert_eq!(AdminToken::new("a b").unwrap_err(), TokenError::Unprintable);
        assert_eq!(format!("{token:?}"), "AdminToken(…)");
    }
}
