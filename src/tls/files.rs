//! Reads certificates and keys.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

use super::{TlsFile, TlsFileError, provider};

/// Largest file in bytes. A bundle of all public authorities has 0.2 MB.
const LARGEST_FILE: u64 = 4 << 20;

/// A certificate's file, its chain after it, and its key's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// Both.
    pub key: CertifiedKey,
    /// When the certificate expires.
    pub expires: SystemTime,
}

impl IdentityFiles {
    /// Reads both as they are now.
    ///
    /// # Errors
    /// [`TlsFileError::Read`].
    pub fn read(&self) -> Result<IdentityPems, TlsFileError> {
        Ok(IdentityPems {
            cert: Pem::read(&self.cert, TlsFile::Certificate)?,
            key: Pem::read(&self.key, TlsFile::Key)?,
        })
    }
}

/// What the files of a certificate and its key held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPems {
    /// The certificate, and those between it and its authority.
    pub cert: Pem,
    /// Its key.
    pub key: Pem,
}

impl IdentityPems {
    /// Sees whether they go together and are valid at `now`.
    ///
    /// # Errors
    /// [`TlsFileError::Malformed`], [`Pair`](TlsFileError::Pair), [`Expired`](TlsFileError::Expired) or
    /// [`NotYet`](TlsFileError::NotYet).
    pub fn check(&self, now: SystemTime) -> Result<Identity, TlsFileError> {
        let chain = self.cert.certificates()?;
        let expires = self.cert.valid_until(&chain[0], now)?;
        let key = CertifiedKey::from_der(chain, self.key.private_key()?, &provider()).map_err(
            |source| TlsFileError::Pair {
                cert: self.cert.path.clone(),
                key: self.key.path.clone(),
                source,
            },
        )?;
        Ok(Identity { key, expires })
    }
}

/// What one file held at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    what: TlsFile,
    path: PathBuf,
    text: Vec<u8>,
}

impl Pem {
    /// Reads `path`, which should hold `what`.
    ///
    /// # Errors
    /// [`TlsFileError::Read`].
    pub fn read(path: &Path, what: TlsFile) -> Result<Self, TlsFileError> {
        let text = read(path).map_err(|source| TlsFileError::Read {
            what,
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            what,
            path: path.to_owned(),
            text,
        })
    }

    /// What stands in it.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The authorities in it; at least one.
    ///
    /// # Errors
    /// [`TlsFileError::Malformed`].
    pub fn authorities(&self) -> Result<RootCertStore, TlsFileError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots
                .add(certificate)
                .map_err(|error| self.malformed(error))?;
        }
        Ok(roots)
    }

    /// At least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.text).collect();
        let found = found.map_err(|error| self.malformed(error))?;
        match found.is_empty() {
            true => Err(self.malformed(pem::Error::NoItemsFound)),
            false => Ok(found),
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsFileError> {
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|error| self.malformed(error))
    }

    fn valid_until(
        &self,
        certificate: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<SystemTime, TlsFileError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| self.malformed(error))?;
        let validity = parsed.validity();
        let [from, until] =
            [validity.not_before, validity.not_after].map(|time| since_epoch(time.timestamp()));
        let path = self.path.clone();
        if now < from {
            return Err(TlsFileError::NotYet { path, at: from });
        }
        if until < now {
            return Err(TlsFileError::Expired { path, at: until });
        }
        Ok(until)
    }

    fn malformed(&self, error: impl fmt::Display) -> TlsFileError {
        TlsFileError::Malformed {
            what: self.what,
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

impl fmt::Debug for Pem {
    /// Without the text, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({} in {})", self.what, self.path.display())
    }
}

/// Times before 1970 are long past either way.
fn since_epoch(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// Reads a file, never more of it than [`LARGEST_FILE`].
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Asked before opening: opening a named pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > LARGEST_FILE {
        true => Err(io::Error::other(format!(
            "has more than {LARGEST_FILE} bytes"
        ))),
        false => Ok(bytes),
    }
}
