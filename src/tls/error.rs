//! What is wrong with a file of certificates or keys.

use std::{fmt, io, path::PathBuf, time::SystemTime};

use tokio_rustls::rustls;

/// What a file should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    /// A certificate, and those between it and its authority.
    Certificate,
    /// The key of a certificate.
    Key,
    /// Certificates of authorities.
    Authorities,
}

impl fmt::Display for TlsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Authorities => "certificate of an authority",
        })
    }
}

/// Why files do not make a TLS side. Never holds what stands in them.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The file cannot be read.
    #[error("cannot read the {what} in {}: {source}", path.display())]
    Read {
        /// What it should hold.
        what: TlsFile,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} holds no {what}: {reason}", path.display())]
    Malformed {
        /// What it should hold.
        what: TlsFile,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is of no kind we can use, or belongs to another certificate.
    #[error("the certificate in {} and the private key in {} do not go together: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The certificate is too old.
    #[error("the certificate in {} expired at {}", path.display(), humantime::format_rfc3339_seconds(*at))]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        at: SystemTime,
    },
    /// The certificate is not valid yet, or the clock is wrong.
    #[error("the certificate in {} is not valid before {}", path.display(), humantime::format_rfc3339_seconds(*at))]
    NotYet {
        /// The file.
        path: PathBuf,
        /// When it will be.
        at: SystemTime,
    },
    /// There is nobody to trust.
    #[error("this system has no certificates of authorities: name a file of them")]
    NoSystemAuthorities,
}
