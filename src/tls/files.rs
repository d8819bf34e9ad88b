//! Reads certificates and keys.

use std::{
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
    /// Reads both, and sees whether they go together and are valid at `now`.
    ///
    /// # Errors
    /// Every [`TlsFileError`] but the one about authorities.
    pub fn load(&self, now: SystemTime) -> Result<Identity, TlsFileError> {
        let chain = certificates(&self.cert, TlsFile::Certificate)?;
        let expires = valid_until(&chain[0], &self.cert, now)?;
        let key = private_key(&self.key)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|source| {
            TlsFileError::Pair {
                cert: self.cert.clone(),
                key: self.key.clone(),
                source,
            }
        })?;
        Ok(Identity { key, expires })
    }
}

/// Reads the authorities in `path`; at least one.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, TlsFile::Authorities)? {
        roots
            .add(certificate)
            .map_err(|error| malformed(TlsFile::Authorities, path, error))?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(path: &Path, what: TlsFile) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let text = read(path, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| malformed(what, path, error))?;
    match found.is_empty() {
        true => Err(malformed(what, path, pem::Error::NoItemsFound)),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let text = read(path, TlsFile::Key)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| malformed(TlsFile::Key, path, error))
}

fn valid_until(
    certificate: &CertificateDer<'_>,
    path: &Path,
    now: SystemTime,
) -> Result<SystemTime, TlsFileError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| malformed(TlsFile::Certificate, path, error))?;
    let validity = parsed.validity();
    let [from, until] =
        [validity.not_before, validity.not_after].map(|time| since_epoch(time.timestamp()));
    let path = path.to_owned();
    if now < from {
        return Err(TlsFileError::NotYet { path, at: from });
    }
    if until < now {
        return Err(TlsFileError::Expired { path, at: until });
    }
    Ok(until)
}

/// Times before 1970 are long past either way.
fn since_epoch(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

fn read(path: &Path, what: TlsFile) -> Result<Vec<u8>, TlsFileError> {
    let failed = |source| TlsFileError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    // Asked before opening: opening a named pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("is not a regular file")));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST_FILE {
        let message = format!("has more than {LARGEST_FILE} bytes");
        return Err(failed(io::Error::other(message)));
    }
    Ok(bytes)
}

fn malformed(what: TlsFile, path: &Path, error: impl std::fmt::Display) -> TlsFileError {
    TlsFileError::Malformed {
        what,
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
