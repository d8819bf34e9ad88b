//! `tollgate healthcheck`: does a running server serve? For containers, which have no other tool inside.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{grpc::HEALTH_SERVICE, settings::Address};

/// Flags of `healthcheck`.
#[derive(Debug, Clone, Args)]
pub struct HealthcheckArgs {
    /// The server's gRPC address; of several, the first is asked
    #[arg(
        long,
        value_name = "ADDR",
        env = "TOLLGATE_GRPC_LISTEN",
        value_delimiter = ',',
        default_value = "127.0.0.1:8081"
    )]
    target: Vec<Address>,
    /// How long to wait
    #[arg(long, value_name = "D", default_value = "1s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Exit 0 if it serves, 1 if it says that it does not, 2 if it does not answer.
pub async fn run(args: HealthcheckArgs) -> ExitCode {
    let Some(target) = args.target.first() else {
        return super::fail("--target is empty");
    };
    match tokio::time::timeout(args.timeout, ask(target)).await {
        Ok(Ok(ServingStatus::Serving)) => super::answer("serving", ExitCode::SUCCESS),
        Ok(Ok(status)) => {
            let status = status.as_str_name().to_lowercase().replace('_', " ");
            super::answer(status, ExitCode::FAILURE)
        }
        Ok(Err(message)) => super::fail(&format!("{target} does not answer: {message}")),
        Err(_) => super::fail(&format!(
            "{target} does not answer within {:?}",
            args.timeout
        )),
    }
}

async fn ask(target: &Address) -> Result<ServingStatus, String> {
    let uri = match target {
        // A server that listens on every address is asked on this machine's own.
        Address::Tcp(address) if address.ip().is_unspecified() => {
            let host = if address.is_ipv6() {
                "[::1]"
            } else {
                "127.0.0.1"
            };
            format!("http://{host}:{}", address.port())
        }
        Address::Tcp(address) => format!("http://{address}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| super::chain(&error))?;
    let request = HealthCheckRequest {
        service: HEALTH_SERVICE.to_owned(),
    };
    let response = HealthClient::new(channel)
        .check(request)
        .await
        .map_err(|status| format!("{}: {}", status.code(), status.message()))?;
    Ok(response.into_inner().status())
}
