//! Flags for TLS on the gRPC listeners.

use std::path::PathBuf;

use clap::Args;

use crate::tls::{IdentityFiles, ServerFiles};

/// TLS on the TCP addresses where gRPC is served. Files are read again when they change.
#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    /// Certificate (PEM, with its chain) for gRPC over TLS; a new file is used without a restart
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_GRPC_TLS_CERT",
        requires = "grpc_tls_key"
    )]
    grpc_tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_GRPC_TLS_KEY",
        requires = "grpc_tls_cert"
    )]
    grpc_tls_key: Option<PathBuf>,
    /// Authorities (PEM) of client certificates; clients without one are refused
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_GRPC_CLIENT_CA",
        requires = "grpc_tls_cert"
    )]
    grpc_client_ca: Option<PathBuf>,
    /// DNS name, URI or IP address that a client's certificate must be for; repeatable, any will do
    #[arg(
        long,
        value_name = "NAME",
        env = "TOLLGATE_GRPC_CLIENT_SAN",
        value_delimiter = ',',
        requires = "grpc_client_ca"
    )]
    grpc_client_san: Vec<String>,
}

impl TlsArgs {
    /// What is asked for, if anything.
    pub fn files(&self) -> Option<ServerFiles> {
        let (cert, key) = (self.grpc_tls_cert.clone()?, self.grpc_tls_key.clone()?);
        Some(ServerFiles {
            identity: IdentityFiles { cert, key },
            client_ca: self.grpc_client_ca.clone(),
            client_optional: false,
            client_san: self.grpc_client_san.clone(),
        })
    }
}
