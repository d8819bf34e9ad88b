//! The part of the translation that is about TLS and the control plane.

use super::{
    environment::{ConfigType, Environment, GrpcTls, Xds},
    translate::EnvironmentError,
};
use crate::{
    tls::{ClientFiles, IdentityFiles, ServerFiles},
    xds::{Backoff, XdsSettings},
};

/// TLS on the gRPC port, if asked for.
///
/// # Errors
/// A file that is not named.
pub fn grpc_tls(grpc: &GrpcTls) -> Result<Option<ServerFiles>, EnvironmentError> {
    if !grpc.server_use_tls {
        return Ok(None);
    }
    let identity = identity(
        ["GRPC_SERVER_TLS_CERT", "GRPC_SERVER_TLS_KEY"],
        &grpc.server_tls_cert,
        &grpc.server_tls_key,
    )?;
    let identity = identity.ok_or_else(|| {
        EnvironmentError::value("GRPC_SERVER_TLS_CERT", "GRPC_SERVER_USE_TLS needs it")
    })?;
    Ok(Some(ServerFiles {
        identity,
        client_ca: said(&grpc.client_tls_cacert).map(Into::into),
        client_optional: false,
        client_san: said(&grpc.client_tls_san).into_iter().collect(),
    }))
}

/// The control plane, if plans come from one.
///
/// # Errors
/// An address, a header or a size that is none.
pub fn xds(environment: &Environment) -> Result<Option<XdsSettings>, EnvironmentError> {
    if environment.plans.config_type != ConfigType::Xds {
        return Ok(None);
    }
    let xds = &environment.xds;
    let server = xds
        .server_url
        .parse()
        .map_err(|error| EnvironmentError::value("CONFIG_GRPC_XDS_SERVER_URL", error))?;
    let native = XdsSettings::new(server);
    Ok(Some(XdsSettings {
        node_id: xds.node_id.clone(),
        node_metadata: xds.node_metadata.0.clone(),
        headers: headers(&xds.client_additional_headers.0)?,
        tls: client_tls(xds)?,
        backoff: Backoff {
            initial: xds.backoff_initial_interval,
            max: xds.backoff_max_interval,
            random_factor: match xds.backoff_jitter {
                true => xds.backoff_random_factor,
                false => 0.0,
            },
        },
        connect_retry: xds.server_connect_retry_interval,
        max_message: match &*xds.max_msg_size {
            // Source: envoyproxy/ratelimit leaves 0 to its gRPC library's default.
            "" | "0" => native.max_message,
            text => text.parse().map_err(|error| {
                EnvironmentError::value("XDS_CLIENT_MAX_MSG_SIZE_IN_BYTES", error)
            })?,
        },
        plans_first: !environment.plans.force_start_without_initial_config,
        ..native
    }))
}

fn headers<K: std::str::FromStr, V: std::str::FromStr>(
    pairs: &[(String, String)],
) -> Result<Vec<(K, V)>, EnvironmentError> {
    let wrong = |name: &String| {
        let reason = format!("`{name}` with its value is no header");
        EnvironmentError::value("CONFIG_GRPC_XDS_CLIENT_ADDITIONAL_HEADERS", reason)
    };
    let header = |(name, value): &(String, String)| {
        let both = name.parse().ok().zip(value.parse().ok());
        both.ok_or_else(|| wrong(name))
    };
    pairs.iter().map(header).collect()
}

fn client_tls(xds: &Xds) -> Result<Option<ClientFiles>, EnvironmentError> {
    if !xds.server_use_tls {
        return Ok(None);
    }
    Ok(Some(ClientFiles {
        ca: said(&xds.server_tls_cacert).map(Into::into),
        identity: identity(
            [
                "CONFIG_GRPC_XDS_CLIENT_TLS_CERT",
                "CONFIG_GRPC_XDS_CLIENT_TLS_KEY",
            ],
            &xds.client_tls_cert,
            &xds.client_tls_key,
        )?,
        server_name: said(&xds.server_tls_san),
    }))
}

/// Both or none.
///
/// # Errors
/// One without the other.
pub fn identity(
    variables: [&'static str; 2],
    cert: &str,
    key: &str,
) -> Result<Option<IdentityFiles>, EnvironmentError> {
    let [cert_variable, key_variable] = variables;
    match (said(cert), said(key)) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(IdentityFiles {
            cert: cert.into(),
            key: key.into(),
        })),
        (Some(_), None) => Err(EnvironmentError::value(key_variable, "the key is missing")),
        (None, Some(_)) => Err(EnvironmentError::value(
            cert_variable,
            "the certificate is missing",
        )),
    }
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
