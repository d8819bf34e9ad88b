//! Flags of `serve` about traces.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::{
    tls::ClientFiles,
    traces::{OtlpProtocol, ServiceName, TracesSettings, random_instance},
};

/// Spans of decisions, sent by OTLP.
#[derive(Debug, Clone, Args)]
pub(super) struct TracesArgs {
    /// OTLP collector to send a span of each decision to: http://HOST:4318 or https://HOST; off unless told
    #[arg(long, value_name = "URL", env = "TOLLGATE_TRACES_ENDPOINT")]
    traces_endpoint: Option<String>,
    /// How to talk to it; gRPC collectors listen on port 4317
    #[arg(long, env = "TOLLGATE_TRACES_PROTOCOL", default_value = "http")]
    traces_protocol: Protocol,
    /// Part of the requests that come without a trace whose spans are sent, from 0 to 1; others follow their parent
    #[arg(long, value_name = "R", env = "TOLLGATE_TRACES_SAMPLING", default_value = "1", value_parser = super::statistics::ratio)]
    traces_sampling: f32,
    /// Name of this service in traces
    #[arg(
        long,
        value_name = "NAME",
        env = "TOLLGATE_TRACES_SERVICE",
        default_value = "tollgate"
    )]
    traces_service: String,
    /// Authorities (PEM) of the collector's certificate [default: those of this system]
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TRACES_CA")]
    traces_ca: Option<PathBuf>,
}

/// How to talk to a collector.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Protocol {
    /// Protobuf over HTTP
    Http,
    /// gRPC
    Grpc,
}

impl TracesArgs {
    pub(super) fn settings(&self) -> Result<Option<TracesSettings>, String> {
        let Some(endpoint) = &self.traces_endpoint else {
            return Ok(None);
        };
        let protocol = match self.traces_protocol {
            Protocol::Http => OtlpProtocol::Http,
            Protocol::Grpc => OtlpProtocol::Grpc,
        };
        Ok(Some(TracesSettings {
            endpoint: protocol
                .endpoint(endpoint)
                .map_err(|reason| format!("--traces-endpoint: `{endpoint}`: {reason}"))?,
            protocol,
            tls: ClientFiles {
                ca: self.traces_ca.clone(),
                ..ClientFiles::default()
            },
            timeout: Duration::from_secs(10),
            service: ServiceName {
                name: self.traces_service.clone(),
                namespace: String::new(),
                instance: random_instance(),
            },
            sampling: self.traces_sampling.into(),
        }))
    }
}
