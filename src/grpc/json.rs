//! The rate-limit service over plain HTTP: a `RateLimitRequest` as protobuf-JSON in, a `RateLimitResponse` out.
//!
//! Source: envoyproxy/ratelimit, `/json`: any method; what is no request, or cannot be judged, is 400 `Bad Request`.

use std::{sync::LazyLock, time::Instant};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::rls::{NO_DEADLINE, Service};
use crate::proto::{
    DESCRIPTORS,
    envoy::service::ratelimit::v3::{RateLimitResponse, rate_limit_response::Code},
};

/// Largest body; as large as a gRPC message may be.
const BODY_LIMIT: usize = 4 << 20;

/// The messages, for reading and writing JSON.
struct Messages {
    request: MessageDescriptor,
    response: MessageDescriptor,
}

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("proto/ compiled");
    let message = |name: &str| {
        let name = format!("envoy.service.ratelimit.v3.{name}");
        pool.get_message_by_name(&name).expect("proto/ has it")
    };
    Messages {
        request: message("RateLimitRequest"),
        response: message("RateLimitResponse"),
    }
});

/// The page `/json`, answered by `service`.
pub fn router(service: Service) -> Router {
    Router::new()
        .route("/json", any(decide))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(service)
}

async fn decide(State(service): State<Service>, headers: HeaderMap, body: Bytes) -> Response {
    answer(&service, &headers, &body).await.unwrap_or_else(|| {
        let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        (StatusCode::BAD_REQUEST, plain, "Bad Request\n").into_response()
    })
}

/// None where there is nothing to decide, or it was not decided.
async fn answer(service: &Service, headers: &HeaderMap, body: &[u8]) -> Option<Response> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let request = DynamicMessage::deserialize(MESSAGES.request.clone(), &mut json).ok()?;
    json.end().ok()?;
    let request = request.transcode_to().ok()?;
    let start = Instant::now();
    let response = service
        .decide(request, start, start + NO_DEADLINE, service.span(headers))
        .await
        .ok()?;
    let status = match response.overall_code() {
        Code::Ok => StatusCode::OK,
        Code::OverLimit => StatusCode::TOO_MANY_REQUESTS,
        Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let json = [(header::CONTENT_TYPE, "application/json")];
    Some((status, json, to_json(&response)?).into_response())
}

fn to_json(response: &RateLimitResponse) -> Option<Vec<u8>> {
    let mut message = DynamicMessage::new(MESSAGES.response.clone());
    message.transcode_from(response).ok()?;
    let mut json = serde_json::Serializer::new(Vec::new());
    message
        .serialize_with_options(&mut json, &SerializeOptions::default())
        .ok()?;
    Some(json.into_inner())
}
