//! Flags for plans from a control plane.

use std::path::PathBuf;

use clap::{Args, builder::BoolishValueParser};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use super::pair::pair;
use crate::{
    tls::{ClientFiles, IdentityFiles},
    xds::{ControlPlane, XdsSettings},
};

/// A control plane in place of plan files.
#[derive(Debug, Clone, Args)]
pub struct XdsArgs {
    /// Control plane to get plans from, instead of files: host:port or unix:PATH
    #[arg(long, value_name = "ADDR", env = "TOLLGATE_XDS")]
    xds: Option<ControlPlane>,
    /// What to call this node there
    #[arg(
        long,
        value_name = "ID",
        env = "TOLLGATE_XDS_NODE_ID",
        default_value = "tollgate"
    )]
    xds_node_id: String,
    /// Metadata of this node
    #[arg(long, value_name = "K=V", env = "TOLLGATE_XDS_NODE_METADATA", value_delimiter = ',', value_parser = pair)]
    xds_node_metadata: Vec<(String, String)>,
    /// Header to send there
    #[arg(long, value_name = "K=V", env = "TOLLGATE_XDS_HEADER", value_delimiter = ',', hide_env_values = true, value_parser = header)]
    xds_header: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    /// Connect there over TLS 1.3
    #[arg(long, env = "TOLLGATE_XDS_TLS", requires = "xds", value_parser = BoolishValueParser::new())]
    xds_tls: bool,
    /// Authorities (PEM) of the control plane's certificate [default: those of this system]
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_XDS_CA",
        requires = "xds_tls"
    )]
    xds_ca: Option<PathBuf>,
    /// Certificate (PEM) to show there
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_XDS_CERT",
        requires = "xds_tls",
        requires = "xds_key"
    )]
    xds_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_XDS_KEY",
        requires = "xds_cert"
    )]
    xds_key: Option<PathBuf>,
    /// Name that the control plane's certificate must be for [default: its host]
    #[arg(
        long,
        value_name = "NAME",
        env = "TOLLGATE_XDS_SERVER_NAME",
        requires = "xds_tls"
    )]
    xds_server_name: Option<String>,
    /// Open no port before the first plans have come
    #[arg(long, env = "TOLLGATE_XDS_WAIT", requires = "xds", value_parser = BoolishValueParser::new())]
    xds_wait: bool,
}

impl XdsArgs {
    /// What is asked for, if anything.
    pub fn settings(&self) -> Option<XdsSettings> {
        let identity = self.xds_cert.clone().zip(self.xds_key.clone());
        let tls = self.xds_tls.then(|| ClientFiles {
            ca: self.xds_ca.clone(),
            identity: identity.map(|(cert, key)| IdentityFiles { cert, key }),
            server_name: self.xds_server_name.clone(),
        });
        Some(XdsSettings {
            node_id: self.xds_node_id.clone(),
            node_metadata: self.xds_node_metadata.clone(),
            headers: self.xds_header.clone(),
            tls,
            plans_first: self.xds_wait,
            ..XdsSettings::new(self.xds.clone()?)
        })
    }
}

fn header(text: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), String> {
    let (name, value) = pair(text)?;
    let name = name
        .parse()
        .map_err(|_| format!("`{name}` is no name of a header"))?;
    let value = value
        .parse()
        .map_err(|_| "the value of a header has printable ASCII only".to_owned())?;
    Ok((name, value))
}
