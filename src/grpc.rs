//! The gRPC face: rate-limit service, external authorization, health, reflection. Protobuf types stay in here.

pub mod authz;
pub mod beyond;
pub mod convert;
pub mod json;
pub mod reference;
pub mod rls;
pub mod status;
pub mod unread;

use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::AuthorizationServer;
use tonic::service::Routes;
use unread::Watched;

use crate::{
    metrics::Metrics,
    plan::SharedPlans,
    proto::{
        DESCRIPTORS,
        envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitServiceServer,
    },
};

/// The name under which gRPC health reports the service, beside the empty one.
pub const HEALTH_SERVICE: &str = "ratelimit";

/// All services, to be served on every gRPC listener.
pub fn routes(
    rls: rls::Service,
    plans: Arc<SharedPlans>,
    metrics: &Arc<Metrics>,
    health: tonic_health::server::HealthService,
) -> Routes {
    let authz = authz::Service::new(plans, metrics.clone());
    let mut routes = Routes::builder();
    routes
        .add_service(Watched::new(RateLimitServiceServer::new(rls), metrics))
        .add_service(Watched::new(AuthorizationServer::new(authz), metrics))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection().build_v1().expect("proto/ compiled"))
        .add_service(reflection().build_v1alpha().expect("proto/ compiled"));
    routes.routes()
}

fn reflection<'b>() -> tonic_reflection::server::Builder<'b> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("envoy.service.ratelimit.v3.RateLimitService")
        .with_service_name("grpc.health.v1.Health")
}
