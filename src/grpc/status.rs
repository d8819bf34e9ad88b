//! The one place where errors become gRPC statuses.

use http::Response;
use tonic::{Code, Status, body::Body};

use super::convert::RequestError;
use crate::{
    limiter::DecideError,
    metrics::{ErrorLabels, ErrorReason, Metrics},
};

/// A request that cannot be judged: INVALID_ARGUMENT, which says what is wrong with it.
pub fn invalid(metrics: &Metrics, error: &RequestError) -> Status {
    count(metrics, ErrorReason::InvalidRequest);
    Status::invalid_argument(error.to_string())
}

/// A query that was not decided.
pub fn undecided(metrics: &Metrics, error: &DecideError) -> Status {
    match error {
        DecideError::Override { .. } => {
            count(metrics, ErrorReason::InvalidRequest);
            Status::invalid_argument(error.to_string())
        }
        DecideError::NoPlans => no_plans(metrics),
        DecideError::Store(_) => {
            count(metrics, ErrorReason::Store);
            Status::unavailable(error.to_string())
        }
    }
}

/// Nothing can be decided yet: UNAVAILABLE, so that Envoy's `failure_mode_deny` decides.
pub fn no_plans(metrics: &Metrics) -> Status {
    count(metrics, ErrorReason::NoPlans);
    Status::unavailable(DecideError::NoPlans.to_string())
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
