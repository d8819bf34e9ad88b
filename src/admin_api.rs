//! The admin API: keys, plans and buckets changed while the service runs, and usage told, by gRPC and by HTTP with JSON, on a
//! listener of its own.
//!
//! There is no listener without a token or an authority of client certificates, and no call is read before its caller is known.

mod access;
mod audit;
mod buckets;
mod error;
mod grpc;
mod http;
mod plans;
mod refusals;
mod usage;

use std::sync::Arc;

use axum::{Router, middleware};

use crate::{
    bucket_admin::BucketAdmin,
    home::AuditLog,
    key_store::{KeyAdmin, KeyError},
    plan_store::PlanAdmin,
    proto::tollgate::admin::v1::{
        audit_service_server::AuditServiceServer, bucket_service_server::BucketServiceServer,
        key_service_server::KeyServiceServer, plan_service_server::PlanServiceServer,
        usage_service_server::UsageServiceServer,
    },
    settings::AdminTokens,
};

pub use self::{access::Peer, usage::UsageReader};

/// The overlap of a rotation that names none.
pub const OVERLAP: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);

/// What the API changes. What has no home here cannot be changed, and a call says so.
#[derive(Debug, Clone)]
pub struct Desk {
    /// API keys.
    pub keys: Option<Arc<KeyAdmin>>,
    /// Plans in the place of files.
    pub plans: Option<Arc<PlanAdmin>>,
    /// Buckets.
    pub buckets: Arc<BucketAdmin>,
    /// What keys have used; read only.
    pub usage: Option<Arc<UsageReader>>,
    /// Who did what.
    pub audit: Option<Arc<AuditLog>>,
}

/// What the two faces of keys share.
#[derive(Debug, Clone)]
struct Keys(Option<Arc<KeyAdmin>>);

impl Keys {
    fn admin(&self) -> Result<&KeyAdmin, KeyError> {
        self.0.as_deref().ok_or(KeyError::NoHome)
    }
}

/// Everything, for those who have a token, or came with a certificate as [`Peer`] tells.
pub fn router(desk: Desk, tokens: AdminTokens) -> Router {
    let keys = Keys(desk.keys);
    let plans = plans::Plans(desk.plans);
    let buckets = buckets::Buckets(desk.buckets);
    let audit = audit::Audit(desk.audit);
    let usage = usage::Usage(desk.usage);
    let mut services =
        tonic::service::Routes::new(KeyServiceServer::new(grpc::Service::new(keys.clone())));
    services = services
        .add_service(
            PlanServiceServer::new(plans.clone()).max_decoding_message_size(plans::BODY_LIMIT),
        )
        .add_service(BucketServiceServer::new(buckets.clone()))
        .add_service(AuditServiceServer::new(audit.clone()))
        .add_service(UsageServiceServer::new(usage.clone()));
    services
        .into_axum_router()
        .merge(http::router(keys))
        .merge(plans::router(plans))
        .merge(buckets::router(buckets))
        .merge(audit::router(audit))
        .merge(usage::router(usage))
        .fallback(refusals::unknown)
        .layer(middleware::from_fn(refusals::as_problem))
        .layer(middleware::from_fn_with_state(tokens, access::required))
}
