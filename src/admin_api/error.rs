//! What went wrong, as a gRPC status and as a problem document.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{
    bucket_admin::BucketError, home::HomeError, key_store::KeyError, plan::Mistake,
    plan_store::PlanError,
};

/// An answer to a call that could not be done. Source: RFC 9457.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    /// Of plans that do not load, each with its place.
    mistakes: Vec<Value>,
}

impl Problem {
    /// `detail` says what, where, and what to do.
    pub fn new(status: StatusCode, detail: String) -> Self {
        Self {
            status,
            detail,
            mistakes: Vec::new(),
        }
    }

    /// Something that this service cannot do as it is set up.
    pub fn conflict(detail: &str) -> Self {
        Self::new(StatusCode::CONFLICT, detail.to_owned())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut problem = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.mistakes.is_empty() {
            problem["mistakes"] = self.mistakes.into();
        }
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
        | KeyError::Ended { .. }
        | KeyError::Tier { .. }
        | KeyError::Record(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
        KeyError::Full => (StatusCode::INSUFFICIENT_STORAGE, Code::ResourceExhausted),
        KeyError::NoHome => (StatusCode::CONFLICT, Code::FailedPrecondition),
        KeyError::Home(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
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

fn plan_codes(error: &PlanError) -> (StatusCode, Code) {
    match error {
        PlanError::Mistakes(_) | PlanError::WhichDomain { .. } => {
            (StatusCode::BAD_REQUEST, Code::InvalidArgument)
        }
        PlanError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidArgument),
        PlanError::Full => (StatusCode::INSUFFICIENT_STORAGE, Code::ResourceExhausted),
        PlanError::NoDomain { .. } | PlanError::NoVersion { .. } => {
            (StatusCode::NOT_FOUND, Code::NotFound)
        }
        PlanError::Changed { .. } => (StatusCode::PRECONDITION_FAILED, Code::Aborted),
        PlanError::Busy => (StatusCode::CONFLICT, Code::Aborted),
        PlanError::NoHome | PlanError::NotFromFiles => {
            (StatusCode::CONFLICT, Code::FailedPrecondition)
        }
        PlanError::Home(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
    }
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        let mistakes = match &error {
            PlanError::Mistakes(error) => error.mistakes().iter().map(mistake).collect(),
            _ => Vec::new(),
        };
        Self {
            mistakes,
            ..Self::new(plan_codes(&error).0, error.to_string())
        }
    }
}

fn mistake(mistake: &Mistake) -> Value {
    json!({
        "file": &*mistake.file,
        "line": mistake.place.map(|place| place.line),
        "column": mistake.place.map(|place| place.column),
        "path": mistake.path,
        "message": mistake.message,
    })
}

/// As [`status`], of plans.
pub fn plan_status(error: &PlanError) -> Status {
    Status::new(plan_codes(error).1, error.to_string())
}

fn bucket_codes(error: &BucketError) -> (StatusCode, Code) {
    match error {
        BucketError::Question(_) | BucketError::NoHits => {
            (StatusCode::BAD_REQUEST, Code::InvalidArgument)
        }
        BucketError::NoDomain { .. } | BucketError::NoBucket => {
            (StatusCode::NOT_FOUND, Code::NotFound)
        }
        BucketError::Unsure | BucketError::Audit(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
        }
    }
}

impl From<BucketError> for Problem {
    fn from(error: BucketError) -> Self {
        Self::new(bucket_codes(&error).0, error.to_string())
    }
}

/// As [`status`], of buckets.
pub fn bucket_status(error: &BucketError) -> Status {
    Status::new(bucket_codes(error).1, error.to_string())
}

impl From<HomeError> for Problem {
    fn from(error: HomeError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

/// As [`status`], of the home of what is kept.
pub fn home_status(error: &HomeError) -> Status {
    Status::unavailable(error.to_string())
}
