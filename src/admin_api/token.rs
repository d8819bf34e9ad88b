//! Nobody comes in without the token.

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use tonic::{Status, body::Body};

use super::error::Problem;
use crate::settings::AdminToken;

/// Lets nobody in without the token; each face refuses in its own way.
pub async fn required(State(token): State<AdminToken>, request: Request, next: Next) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    if authorization.is_some_and(|value| token.fits(value.as_bytes())) {
        return next.run(request).await;
    }
    let message = "the admin API needs its token: authorization: Bearer TOKEN";
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        let refusal = Status::unauthenticated(message).into_http::<Body>();
        return refusal.map(axum::body::Body::new);
    }
    let problem = Problem::new(axum::http::StatusCode::UNAUTHORIZED, message.to_owned());
    ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response()
}
