//! What went wrong, as a gRPC status and as a problem document.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tonic::{Code, Status};

use crate::key_store::KeyError;

/// An answer to a call that could not be done. Source: RFC 9457.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    /// `detail` says what, where, and what to do.
    pub fn new(status: StatusCode, detail: String) -> Self {
        Self { status, detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let problem = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, content_type, Json(problem)).into_response()
    }
}

fn codes(error: &KeyError) -> (StatusCode, Code) {
    match error {
        KeyError::Unknown { .. } => (StatusCode::NOT_FOUND, Code::NotFound),
        KeyError::Exists { .. } | KeyError::InPlans { .. } | KeyError::SecretTaken { .. } => {
            (StatusCode::CONFLICT, Code::AlreadyExists)
        }
        KeyError::Changed { .. } | KeyError::Busy => (StatusCode::CONFLICT, Code::Aborted),
        KeyError::IdIsSecret
        | KeyError::SecretLength { .. }
        | KeyError::Tier { .. }
        | KeyError::Record(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        KeyError::Full => (StatusCode::INSUFFICIENT_STORAGE, Code::ResourceExhausted),
        KeyError::NoHome => (StatusCode::CONFLICT, Code::FailedPrecondition),
        KeyError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        Self::new(codes(&error).0, error.to_string())
    }
}

/// The gRPC face's way to say it.
pub fn status(error: &KeyError) -> Status {
    Status::new(codes(error).1, error.to_string())
}
