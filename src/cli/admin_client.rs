//! How commands reach the admin API of a running service.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tonic::{
    Request,
    metadata::AsciiMetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::small_file;

/// Largest file of tokens in bytes.
const LARGEST_TOKENS: u64 = 1 << 16;

/// Largest file of certificates or keys in bytes.
const LARGEST_PEM: u64 = 4 << 20;

/// Where the admin API is, and what opens it.
#[derive(Debug, Clone, Args)]
pub struct AdminClientArgs {
    /// Admin API of a running service, for buckets that are not in Redis [default: http://127.0.0.1:8082]
    #[arg(long, value_name = "URL", env = "TOLLGATE_ADMIN")]
    admin: Option<String>,
    /// File that holds a token of it; or TOLLGATE_ADMIN_TOKEN holds it
    #[arg(long, value_name = "FILE", env = "TOLLGATE_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Authorities (PEM) of its certificate
    #[arg(long, value_name = "FILE", env = "TOLLGATE_ADMIN_CA")]
    admin_ca: Option<PathBuf>,
    /// Client certificate (PEM) to show there
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_ADMIN_CERT",
        requires = "admin_key"
    )]
    admin_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "TOLLGATE_ADMIN_KEY",
        requires = "admin_cert"
    )]
    admin_key: Option<PathBuf>,
}

/// Longest wait for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl AdminClientArgs {
    /// Whether a service is named.
    pub fn named(&self) -> bool {
        self.admin.is_some()
    }

    /// A connection.
    pub async fn connect(&self) -> Result<Channel, String> {
        let url = self.admin.as_deref().unwrap_or("http://127.0.0.1:8082");
        let failed = |error: tonic::transport::Error| {
            format!("the admin API at {url}: {}", super::chain(&error))
        };
        let nobody = |error| match self.admin {
            Some(_) => failed(error),
            None => format!(
                "{}; buckets that are not in Redis (--store) are in the service: say where its admin API is, with --admin",
                failed(error)
            ),
        };
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(failed)?
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE);
        if url.starts_with("https:") {
            endpoint = endpoint.tls_config(self.tls()?).map_err(failed)?;
        }
        endpoint.connect().await.map_err(nobody)
    }

    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let read = |path: &PathBuf| {
            let read = small_file::read_any(path, LARGEST_PEM);
            read.map_err(|error| format!("{}: {error}", path.display()))
        };
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &self.admin_ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(cert), Some(key)) = (&self.admin_cert, &self.admin_key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }

    /// A call with the token, if there is one. Of several the first is taken.
    pub fn request<T>(&self, message: T) -> Result<Request<T>, String> {
        let text = match &self.admin_token_file {
            Some(file) => token_text(file)?,
            None => env::var("TOLLGATE_ADMIN_TOKEN").unwrap_or_default(),
        };
        let mut request = Request::new(message);
        let first = text.lines().find(|line| !line.trim().is_empty());
        if let Some(token) = first.and_then(|line| line.split_ascii_whitespace().last()) {
            let value = format!("Bearer {token}").parse::<AsciiMetadataValue>();
            let value = value.map_err(|_| "the admin token is none".to_owned())?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// What `--admin-token-file` holds, which may be a pipe: `--admin-token-file <(pass tollgate)`.
pub fn token_text(file: &Path) -> Result<String, String> {
    let read = small_file::read_any(file, LARGEST_TOKENS).map_err(|error| error.to_string());
    let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "is no text".to_owned()));
    text.map_err(|error| format!("--admin-token-file: {}: {error}", file.display()))
}
