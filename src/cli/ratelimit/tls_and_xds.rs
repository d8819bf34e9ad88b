//! The part of the translation that is about TLS and the control plane.

use std::{str::FromStr, time::Duration};

use super::{
    environment::{ConfigType, Environment, GrpcTls, Xds},
    translate::EnvironmentError,
};
use crate::{
    tls::{ClientFiles, IdentityFiles, ServerFiles},
    xds::{Backoff, ControlPlane, Target, XdsSettings},
};

/// TLS on the gRPC port, if asked for.
///
/// # Errors
/// A file that is not named.
pub fn grpc_tls(
    grpc: &GrpcTls,
    notes: &mut Vec<String>,
) -> Result<Option<ServerFiles>, EnvironmentError> {
    if !grpc.server_use_tls {
        return Ok(None);
    }
    let needed = |variable, file: &str| match said(file) {
        Some(file) => Ok(file.into()),
        None => {
            let reason = "GRPC_SERVER_USE_TLS needs it";
            Err(EnvironmentError::value(variable, reason))
        }
    };
    if grpc.client_tls_cacert.is_empty() && !grpc.client_tls_san.is_empty() {
        notes.push("GRPC_CLIENT_TLS_SAN: has no effect without GRPC_CLIENT_TLS_CACERT, so clients need no certificate".to_owned());
    }
    Ok(Some(ServerFiles {
        identity: IdentityFiles {
            cert: needed("GRPC_SERVER_TLS_CERT", &grpc.server_tls_cert)?,
            key: needed("GRPC_SERVER_TLS_KEY", &grpc.server_tls_key)?,
        },
        client_ca: said(&grpc.client_tls_cacert).map(Into::into),
        client_optional: false,
        client_san: said(&grpc.client_tls_san).into_iter().collect(),
    }))
}

/// The control plane, if plans come from one.
pub fn xds(environment: &Environment, notes: &mut Vec<String>) -> Option<XdsSettings> {
    if environment.plans.config_type != ConfigType::Xds {
        return None;
    }
    let xds = &environment.xds;
    let server = control_plane(&xds.server_url, notes);
    let native = XdsSettings::new(server);
    Some(XdsSettings {
        node_id: xds.node_id.clone(),
        node_metadata: node_metadata(&xds.node_metadata, notes),
        headers: headers(&xds.client_additional_headers.0, notes),
        tls: client_tls(xds, notes),
        backoff: Backoff {
            initial: or_usual(xds.backoff_initial_interval, Duration::from_millis(100)),
            max: or_usual(xds.backoff_max_interval, Duration::from_secs(10)),
            random_factor: match xds.backoff_jitter {
                true => xds.backoff_random_factor,
                false => 0.0,
            },
        },
        connect_retry: xds.server_connect_retry_interval,
        max_message: match usize::try_from(xds.max_msg_size) {
            // Source: envoyproxy/ratelimit leaves 0 to its gRPC library's default.
            Ok(0) => native.max_message,
            Ok(said) => said,
            Err(_) => {
                notes.push(format!(
                    "XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES: `{}` is no size; it counts as {}",
                    xds.max_msg_size, native.max_message
                ));
                native.max_message
            }
        },
        plans_first: !environment.plans.force_start_without_initial_config,
        ..native
    })
}

// Source: envoyproxy/ratelimit starts with any text, and waits for ever.
fn control_plane(url: &str, notes: &mut Vec<String>) -> ControlPlane {
    const VARIABLE: &str = "CONFIG_GRPC_XDS_SERVER_URL";
    match Target::parse(url) {
        Ok(target) => {
            if let Some(server) = target.name_server {
                notes.push(format!(
                    "{VARIABLE}: names are looked up as this machine does, not at {server}"
                ));
            }
            target.server
        }
        Err(error) => {
            notes.push(format!("{VARIABLE}: {error}; no plans come"));
            ControlPlane::Nowhere(error)
        }
    }
}

// Source: jpillora/backoff, which envoyproxy/ratelimit waits by: no time means these.
fn or_usual(said: Duration, usual: Duration) -> Duration {
    if said.is_zero() { usual } else { said }
}

// Source: envoyproxy/ratelimit passes over what has no `=`.
fn node_metadata(text: &str, notes: &mut Vec<String>) -> Vec<(String, String)> {
    let entries = text.split(',').filter(|entry| !entry.is_empty());
    let mut pairs = Vec::new();
    for entry in entries {
        match entry.split_once('=') {
            Some((key, value)) => pairs.push((key.to_owned(), value.to_owned())),
            None => notes.push(format!(
                "CONFIG_GRPC_XDS_NODE_METADATA: `{entry}` is passed over, it is not key=value"
            )),
        }
    }
    pairs
}

/// Those that are headers. Their values may be secrets.
fn headers<K: FromStr, V: FromStr>(
    pairs: &[(String, String)],
    notes: &mut Vec<String>,
) -> Vec<(K, V)> {
    let mut headers = Vec::new();
    for (name, value) in pairs {
        match (name.to_lowercase().parse(), value.parse()) {
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => notes.push(format!(
                "CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS: `{name}` is left out, with its value it is no header"
            )),
        }
    }
    headers
}

fn client_tls(xds: &Xds, notes: &mut Vec<String>) -> Option<ClientFiles> {
    let files = || ClientFiles {
        ca: said(&xds.server_tls_cacert).map(Into::into),
        identity: identity(
            [
                "CONFIG_GRPC_XDS_CLIENT_TLS_CERT",
                "CONFIG_GRPC_XDS_CLIENT_TLS_KEY",
            ],
            &xds.client_tls_cert,
            &xds.client_tls_key,
            notes,
        ),
        server_name: said(&xds.server_tls_san),
    };
    xds.server_use_tls.then(files)
}

/// Both files or none: one without the other is left out, as the reference does.
pub fn identity(
    [cert_variable, key_variable]: [&'static str; 2],
    cert: &str,
    key: &str,
    notes: &mut Vec<String>,
) -> Option<IdentityFiles> {
    let (there, missing) = match (said(cert), said(key)) {
        (Some(cert), Some(key)) => {
            return Some(IdentityFiles {
                cert: cert.into(),
                key: key.into(),
            });
        }
        (None, None) => return None,
        (Some(_), None) => (cert_variable, key_variable),
        (None, Some(_)) => (key_variable, cert_variable),
    };
    notes.push(format!(
        "{there}: has no effect without {missing}, so no certificate is shown"
    ));
    None
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
