//! Plans from a control plane: a client of Envoy's aggregated discovery service, state of the world.
//!
//! The control plane sends all resources each time. Those that load replace everything and are acknowledged; others are
//! refused with every mistake named, and what was in force stays in force, whatever happens to the connection. Nothing here
//! decides what a rule means: a resource becomes a tree as a file's text does (`resource`), and `plan/` does the rest.

mod backoff;
mod dial;
mod resource;
mod stream;

use std::{fmt, str::FromStr, time::Duration};

use http::uri::Authority;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

pub use self::{backoff::Backoff, stream::run};
use crate::tls::ClientFiles;

/// The type of the resources. Source: envoyproxy/go-control-plane.
pub const TYPE_URL: &str = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig";

/// How to get plans from a control plane.
#[derive(Debug, Clone)]
pub struct XdsSettings {
    /// Where it is.
    pub server: ControlPlane,
    /// Who we say we are.
    pub node_id: String,
    /// What else we say of ourselves.
    pub node_metadata: Vec<(String, String)>,
    /// Headers of the stream beside gRPC's own.
    pub headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    /// TLS 1.3 with these files, which are read again for each connection; none for plain HTTP/2.
    pub tls: Option<ClientFiles>,
    /// How long to wait before another stream after one that was lost.
    pub backoff: Backoff,
    /// Longest wait where no connection came about at all.
    pub connect_retry: Duration,
    /// Largest update in bytes.
    pub max_message: usize,
    /// Whether the ports open only once the first plans have come. Else calls fail until then.
    pub plans_first: bool,
}

impl XdsSettings {
    /// The usual settings for the control plane at `server`.
    pub fn new(server: ControlPlane) -> Self {
        Self {
            server,
            node_id: "tollgate".to_owned(),
            node_metadata: Vec::new(),
            headers: Vec::new(),
            tls: None,
            backoff: Backoff::default(),
            connect_retry: Duration::from_secs(3),
            max_message: 32 << 20,
            plans_first: false,
        }
    }
}

/// The address of a control plane: `host:port`, looked up for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane(Authority);

/// The text is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of a control plane: write host:port, like envoy-gateway:18001")]
pub struct ControlPlaneError {
    text: String,
}

impl ControlPlane {
    /// Without the brackets of an IPv6 address.
    fn host(&self) -> &str {
        let host = self.0.host();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }
}

impl FromStr for ControlPlane {
    type Err = ControlPlaneError;

    /// Also reads `dns:///host:port`, gRPC's long form of the same.
    fn from_str(text: &str) -> Result<Self, ControlPlaneError> {
        let short = text.strip_prefix("dns:///").unwrap_or(text);
        let authority = short.parse::<Authority>().ok();
        authority
            .filter(|authority| authority.port_u16().is_some() && !short.contains('@'))
            .filter(|authority| !authority.host().is_empty())
            .map(Self)
            .ok_or_else(|| ControlPlaneError {
                text: text.to_owned(),
            })
    }
}

impl fmt::Display for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for (text, host, shown) in [
            ("localhost:18000", "localhost", "localhost:18000"),
            (
                "dns:///envoy-gateway:18001",
                "envoy-gateway",
                "envoy-gateway:18001",
            ),
            ("[::1]:18000", "::1", "[::1]:18000"),
        ] {
            let address: ControlPlane = text.parse().unwrap();
            assert_eq!(
                (address.host(), address.to_string().as_str()),
                (host, shown)
            );
        }
        for text in [
            "",
            "localhost",
            ":18000",
            "http://localhost:1",
            "a:b",
            "u@h:1",
            "h:99999",
        ] {
            assert!(text.parse::<ControlPlane>().is_err(), "{text}");
        }
    }
}
