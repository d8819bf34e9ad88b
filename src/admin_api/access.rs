//! Nobody comes in without a token or a certificate.

use axum::{
    extract::{ConnectInfo, Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use tonic::Status;

use super::{
    error::Problem,
    refusals::{is_grpc, refusal},
};
use crate::{home::Actor, settings::AdminTokens};

/// Who is at the other end of a connection, if a client certificate that was found good tells.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<Actor>);

/// Lets nobody in without a token or a certificate, and tells those behind who came; each face refuses in its own way. A
/// token that does not fit is refused whatever the certificate.
pub async fn required(
    State(tokens): State<AdminTokens>,
    mut request: Request,
    next: Next,
) -> Response {
    let actor = match request.headers().get(header::AUTHORIZATION) {
        Some(value) => tokens.whose(value.as_bytes()).cloned(),
        None => {
            let peer = request.extensions().get::<ConnectInfo<Peer>>();
            peer.and_then(|ConnectInfo(Peer(actor))| actor.clone())
        }
    };
    if let Some(actor) = actor {
        request.extensions_mut().insert(actor);
        return next.run(request).await;
    }
    let message = "the admin API needs its token: authorization: Bearer TOKEN";
    if is_grpc(request.headers()) {
        return refusal(Status::unauthenticated(message));
    }
    let problem = Problem::new(axum::http::StatusCode::UNAUTHORIZED, message.to_owned());
    ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response()
}

/// Who sends a gRPC call.
pub fn actor<T>(request: &tonic::Request<T>) -> Actor {
    let actor = request.extensions().get::<Actor>();
    actor.expect("nobody comes past `required` unknown").clone()
}
