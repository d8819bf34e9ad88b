//! Where traces go.

use std::time::Duration;

use super::EnvironmentError;
use crate::{
    cli::ratelimit::{environment::Tracing, tls_and_xds::identity},
    tls::ClientFiles,
    traces::{OtlpProtocol, ServiceName, TracesSettings, exact_endpoint, random_instance},
};

/// None unless they are switched on.
pub(super) fn settings(tracing: &Tracing) -> Result<Option<TracesSettings>, EnvironmentError> {
    if !tracing.enabled {
        return Ok(None);
    }
    let otlp = &tracing.otlp;
    // Source: envoyproxy/ratelimit: these two, and none is http.
    let protocol = match &*tracing.exporter_protocol {
        "http" | "" => OtlpProtocol::Http,
        "grpc" => OtlpProtocol::Grpc,
        other => {
            let reason = format!("`{other}` is neither http nor grpc");
            return Err(EnvironmentError::value("TRACING_EXPORTER_PROTOCOL", reason));
        }
    };
    let base = match &*otlp.endpoint {
        "" => protocol.usual_endpoint(),
        said => said,
    };
    let (variable, endpoint) = match &*otlp.traces_endpoint {
        "" => ("OTEL_EXPORTER_OTLP_ENDPOINT", protocol.endpoint(base)),
        exact => ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", exact_endpoint(exact)),
    };
    Ok(Some(TracesSettings {
        endpoint: endpoint.map_err(|reason| EnvironmentError::value(variable, reason))?,
        protocol,
        tls: ClientFiles {
            ca: (!otlp.certificate.is_empty()).then(|| otlp.certificate.clone().into()),
            identity: identity(
                [
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                ],
                &otlp.client_certificate,
                &otlp.client_key,
            )?,
            server_name: None,
        },
        timeout: Duration::from_millis(otlp.timeout),
        service: ServiceName {
            name: tracing.service_name.clone(),
            namespace: tracing.service_namespace.clone(),
            instance: match &*tracing.service_instance_id {
                "" => random_instance(),
                said => said.to_owned(),
            },
        },
        sampling: tracing.sampling_rate,
    }))
}
