//! The admin API: keys made and changed while the service runs, and what they have used, by gRPC and by HTTP with JSON, on a listener of its own.
//!
//! There is no listener without a token, and no call is read before its token is found right.

mod error;
mod grpc;
mod http;
mod token;
mod usage;

use std::sync::Arc;

use axum::{Router, middleware};

pub use self::usage::UsageReader;

use crate::{
    key_store::{KeyAdmin, KeyError},
    proto::tollgate::admin::v1::{
        key_service_server::KeyServiceServer, usage_service_server::UsageServiceServer,
    },
    settings::AdminToken,
};

/// The overlap of a rotation that names none.
pub const OVERLAP: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// What the two faces share.
#[derive(Debug, Clone)]
struct Keys(Option<Arc<KeyAdmin>>);

impl Keys {
    fn admin(&self) -> Result<&KeyAdmin, KeyError> {
        self.0.as_deref().ok_or(KeyError::NoHome)
    }
}

/// Everything, behind the token.
pub fn router(
    keys: Option<Arc<KeyAdmin>>,
    usage: Option<Arc<UsageReader>>,
    token: AdminToken,
) -> Router {
    let (keys, usage) = (Keys(keys), usage::Usage(usage));
    let service = KeyServiceServer::new(grpc::Service::new(keys.clone()));
    tonic::service::Routes::new(service)
        .add_service(UsageServiceServer::new(usage.clone()))
        .into_axum_router()
        .merge(http::router(keys))
        .merge(usage::router(usage))
        .layer(middleware::from_fn_with_state(token, token::required))
}
