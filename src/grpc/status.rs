//! The one place where errors become gRPC statuses.

use http::Response;
use tonic::{Code, Status, body::Body};

use super::convert::RequestError;
use crate::{
    descriptor::QueryError,
    limiter::DecideError,
    metrics::{ErrorLabels, ErrorReason, Metrics},
    settings::Dialect,
};

/// A request that cannot be judged: INVALID_ARGUMENT, which says what is wrong with it; UNKNOWN where the dialect has it so.
pub fn invalid(metrics: &Metrics, dialect: Dialect, error: &RequestError) -> Status {
    count(metrics, ErrorReason::InvalidRequest);
    let code = match error {
        RequestError::Query(QueryError::EmptyDomain | QueryError::NoDescriptors) => {
            code(dialect, Code::InvalidArgument)
        }
        _ => Code::InvalidArgument,
    };
    Status::new(code, error.to_string())
}

/// The code of an error that envoyproxy/ratelimit has too: it says UNKNOWN of each.
fn code(dialect: Dialect, ours: Code) -> Code {
    match dialect {
        Dialect::Tollgate => ours,
        Dialect::Reference => Code::Unknown,
    }
}

/// A query that was not decided.
pub fn undecided(metrics: &Metrics, dialect: Dialect, error: &DecideError) -> Status {
    match error {
        DecideError::NoPlans => {
            count(metrics, ErrorReason::NoPlans);
            Status::new(code(dialect, Code::Unavailable), error.to_string())
        }
        DecideError::Override { .. } => {
            count(metrics, ErrorReason::InvalidRequest);
            Status::invalid_argument(error.to_string())
        }
        DecideError::Store(_) => {
            count(metrics, ErrorReason::Store);
            Status::unavailable(error.to_string())
        }
    }
}

/// A key that no file has, while those that are in no file have not been read yet.
pub fn keys_awaited(metrics: &Metrics) -> Status {
    count(metrics, ErrorReason::Store);
    Status::unavailable("the API keys have not been read yet")
}

/// The answer to a call whose message may not have been one. No service of ours answers INTERNAL or OUT_OF_RANGE: these
/// are tonic's words for a message that does not decode, and for one that is too large.
pub fn unread(metrics: &Metrics, mut response: Response<Body>) -> Response<Body> {
    let Some(code) = response.headers_mut().get_mut(Status::GRPC_STATUS) else {
        return response;
    };
    match Code::from_bytes(code.as_bytes()) {
        Code::Internal => *code = i32::from(Code::InvalidArgument).into(),
        Code::OutOfRange => {}
        _ => return response,
    }
    count(metrics, ErrorReason::InvalidRequest);
    response
}

fn count(metrics: &Metrics, reason: ErrorReason) {
    metrics.errors.get_or_create(&ErrorLabels { reason }).inc();
}
