//! What is refused before a page sees it, a body too long, a method or path that is not, in the words of this API.

use axum::{
    body::to_bytes,
    extract::Request,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tonic::{Status, body::Body};

use super::error::Problem;

/// Longest text of the framework that is passed on, in bytes.
const LONGEST: usize = 4_096;

/// Whether these headers are of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A refusal by gRPC.
pub fn refusal(status: Status) -> Response {
    let response = status.into_http::<Body>();
    response.map(axum::body::Body::new)
}

/// There is no such page, or service.
pub async fn unknown(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        return refusal(Status::unimplemented("the admin API has no such service"));
    }
    let (path, pages) = (
        uri.path(),
        "/v1/keys, /v1/plans, /v1/buckets, /v1/audit, /v1/usage",
    );
    let detail = format!("the admin API has no `{method} {path}`; what it has begins with {pages}");
    Problem::new(StatusCode::NOT_FOUND, detail).into_response()
}

/// Makes a problem document of an error that is none yet.
pub async fn as_problem(request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let told = response.headers().get(header::CONTENT_TYPE);
    let is_problem = told.is_some_and(|value| value == "application/problem+json");
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = match status {
        // The framework adds the header on our way out.
        StatusCode::METHOD_NOT_ALLOWED => {
            "the header `allow` names the methods that do something here".into()
        }
        _ => to_bytes(response.into_body(), LONGEST)
            .await
            .unwrap_or_default(),
    };
    let detail = format!("`{asked}`: {}", String::from_utf8_lossy(&text));
    Problem::new(status, detail).into_response()
}
