//! Lets in only clients whose certificate is for a name that is told.

use std::{net::IpAddr, sync::Arc};

use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use x509_parser::extensions::GeneralName;

/// A verifier that also wants one of `names`.
#[derive(Debug)]
pub struct OnlyNames {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl OnlyNames {
    /// `verifier` as it is where there are no `names`.
    pub fn wrap(
        verifier: Arc<dyn ClientCertVerifier>,
        names: &[String],
    ) -> Arc<dyn ClientCertVerifier> {
        let names = names.to_vec();
        match names.is_empty() {
            true => verifier,
            false => Arc::new(Self { verifier, names }),
        }
    }
}

/// Whether the certificate is for one of `names`. DNS names are compared without letter case, the others as they are.
fn is_for(certificate: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return false;
    };
    let given = &alternatives.value.general_names;
    given.iter().any(|given| {
        names.iter().any(|name| match given {
            GeneralName::DNSName(dns) => dns.eq_ignore_ascii_case(name),
            GeneralName::URI(uri) => uri == name,
            GeneralName::IPAddress(bytes) => name.parse().ok() == address(bytes),
            _ => false,
        })
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or(v6).ok()
}

impl ClientCertVerifier for OnlyNames {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .verifier
            .verify_client_cert(certificate, between, now)?;
        match is_for(certificate, &self.names) {
            true => Ok(verified),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
