//! What a certificate's holder is called.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// The first DNS name or URI that a certificate is for, else its common name, else its serial number.
pub fn name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.map(|found| &found.value.general_names);
    let alternative = alternatives
        .into_iter()
        .flatten()
        .find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        });
    let common = || {
        let mut names = parsed.subject().iter_common_name();
        names.next()?.as_str().ok().map(str::to_owned)
    };
    let serial = || format!("certificate {}", parsed.raw_serial_as_string());
    Some(alternative.or_else(common).unwrap_or_else(serial))
}
