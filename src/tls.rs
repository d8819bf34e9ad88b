//! TLS from files: certificates and keys are read, checked and made into settings of rustls. Opens no connection.
//!
//! Files are PEM. Whoever holds settings made here decides when to read the files again: [`crate::server`] when they change,
//! clients each time they connect.

mod error;
mod files;
mod name;
mod san;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    server::WebPkiClientVerifier,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};

use self::san::OnlyNames;
pub use self::{
    error::{TlsFile, TlsFileError},
    files::{Identity, IdentityFiles, IdentityPems, Pem},
    name::name_of,
};

/// What a server shows, and what it wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// The server's certificate and key.
    pub identity: IdentityFiles,
    /// Authorities of client certificates; with them every client must have one, unless it is optional.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come without a certificate though there are authorities. One that shows another is refused.
    pub client_optional: bool,
    /// With `client_ca`: names of which the client's certificate must hold one (DNS name, URI or IP address, exactly so).
    /// Any of that authority will do if there are none.
    pub client_san: Vec<String>,
}

impl ServerFiles {
    /// All files, to be watched.
    pub fn paths(&self) -> Vec<PathBuf> {
        let IdentityFiles { cert, key } = &self.identity;
        let pair = [cert.clone(), key.clone()].into_iter();
        pair.chain(self.client_ca.clone()).collect()
    }

    /// Reads all files as they are now.
    ///
    /// # Errors
    /// The first file that cannot be read.
    pub fn read(&self) -> Result<ServerPems, TlsFileError> {
        Ok(ServerPems {
            identity: self.identity.read()?,
            client_ca: self
                .client_ca
                .as_deref()
                .map(|path| Pem::read(path, TlsFile::Authorities))
                .transpose()?,
            client_optional: self.client_optional,
            client_san: self.client_san.clone(),
        })
    }
}

/// What a server's files held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPems {
    identity: IdentityPems,
    client_ca: Option<Pem>,
    client_optional: bool,
    client_san: Vec<String>,
}

impl ServerPems {
    /// Settings for HTTP/2 over TLS 1.2 or 1.3, and when the server's certificate expires.
    ///
    /// # Errors
    /// A file that is not what it should be, a pair that does not fit, a certificate not valid at `now`.
    pub fn config(&self, now: SystemTime) -> Result<(ServerConfig, SystemTime), TlsFileError> {
        let identity = self.identity.check(now)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("ring has suites for both");
        let builder = match &self.client_ca {
            Some(pem) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(pem.authorities()?),
                    provider(),
                );
                let verifier = match self.client_optional {
                    true => verifier.allow_unauthenticated(),
                    false => verifier,
                };
                let verifier = verifier.build().expect("there is an authority");
                builder.with_client_cert_verifier(OnlyNames::wrap(verifier, &self.client_san))
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok((config, identity.expires))
    }
}

/// What a client trusts, and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Authorities that sign servers; the system's own if none.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key, for servers that want one.
    pub identity: Option<IdentityFiles>,
    /// The name that the server's certificate must be for, if it is not the one in its address.
    pub server_name: Option<String>,
}

impl ClientFiles {
    /// Settings of these TLS `versions`. Without ALPN: the protocol's own to add.
    ///
    /// # Errors
    /// A file that cannot be read or is not what it should be, a pair that does not fit, a certificate not valid at `now`; no
    /// authority at all.
    pub fn load(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        now: SystemTime,
    ) -> Result<ClientConfig, TlsFileError> {
        let roots = match &self.ca {
            Some(path) => Pem::read(path, TlsFile::Authorities)?.authorities()?,
            None => system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("ring has suites for all versions")
            .with_root_certificates(roots);
        Ok(match &self.identity {
            Some(files) => {
                let identity = files.read()?.check(now)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)))
            }
            None => builder.with_no_client_auth(),
        })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn system_authorities() -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(TlsFileError::NoSystemAuthorities),
        false => Ok(roots),
    }
}
