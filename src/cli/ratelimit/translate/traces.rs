//! Where traces go.

use std::time::{Duration, SystemTime};

use http::Uri;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use super::EnvironmentError;
use crate::{
    cli::ratelimit::{
        environment::{Otlp, Tracing},
        tls_and_xds::identity,
    },
    tls::ClientFiles,
    traces::{OtlpProtocol, ServiceName, TracesSettings, exact_endpoint, random_instance},
};

/// None unless they are switched on.
pub(super) fn settings(
    tracing: &Tracing,
    notes: &mut Vec<String>,
) -> Result<Option<TracesSettings>, EnvironmentError> {
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
    let mut tls = ClientFiles {
        ca: (!otlp.certificate.is_empty()).then(|| otlp.certificate.clone().into()),
        identity: identity(
            [
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                "OTEL_EXPORTER_OTLP_CLIENT_KEY",
            ],
            &otlp.client_certificate,
            &otlp.client_key,
            notes,
        ),
        server_name: None,
    };
    let endpoint = endpoint(otlp, protocol, notes);
    if endpoint.scheme_str() == Some("https") {
        leave_out_what_does_not_load(&mut tls, notes);
    }
    Ok(Some(TracesSettings {
        endpoint,
        protocol,
        tls,
        timeout: Duration::from_millis(otlp.timeout.0.get().into()),
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

/// Where spans go. Source: OpenTelemetry's Go SDK, which goes on with the usual place after what it cannot read.
fn endpoint(otlp: &Otlp, protocol: OtlpProtocol, notes: &mut Vec<String>) -> Uri {
    let usual = protocol.usual_endpoint();
    let (variable, said, read) = match (&*otlp.traces_endpoint, &*otlp.endpoint) {
        ("", "") => ("", usual, protocol.endpoint(usual)),
        ("", base) => ("OTEL_EXPORTER_OTLP_ENDPOINT", base, protocol.endpoint(base)),
        (exact, _) => (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            exact,
            exact_endpoint(exact),
        ),
    };
    read.unwrap_or_else(|reason| {
        notes.push(format!(
            "{variable}: `{said}`: {reason}; it counts as {usual}"
        ));
        let usual = protocol.endpoint(usual);
        usual.expect("the usual endpoint is one")
    })
}

/// Source: the same SDK logs what it cannot read of these, and goes on without.
fn leave_out_what_does_not_load(tls: &mut ClientFiles, notes: &mut Vec<String>) {
    let mut loads = |files: &ClientFiles, instead| {
        let loaded = files.load(&[&TLS13, &TLS12], SystemTime::now());
        loaded
            .map_err(|error| notes.push(format!("OTEL_EXPORTER_OTLP: {error}; {instead}")))
            .is_ok()
    };
    let ca = ClientFiles {
        identity: None,
        ..tls.clone()
    };
    if ca.ca.is_some() && !loads(&ca, "the system's authorities are trusted") {
        tls.ca = None;
    }
    if tls.identity.is_some() && !loads(tls, "no certificate is shown") {
        tls.identity = None;
    }
}
