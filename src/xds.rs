//! Plans from a control plane: a client of Envoy's aggregated discovery service, state of the world.
//!
//! The control plane sends all resources each time. Those that load replace everything and are acknowledged; others are
//! refused with every mistake named, and what was in force stays in force, whatever happens to the connection. Nothing here
//! decides what a rule means: a resource becomes a tree as a file's text does (`resource`), and `plan/` does the rest.

mod backoff;
mod dial;
mod resource;
mod stream;
mod target;

use std::time::Duration;

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

pub use self::{
    backoff::Backoff,
    stream::run,
    target::{ControlPlane, Target, TargetError},
};
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
    /// Longest wait where no connection came about at all; at least 50 ms.
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
