//! The one place where errors become gRPC statuses.

use tonic::Status;

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
        DecideError::Store(_) => {
            count(metrics, ErrorReason::Store);
            Status::unavailable(error.to_string())
        }
    }
}

fn count(metrics: &Metrics, reason: ErrorReason) {
    metrics.errors.get_or_create(&ErrorLabels { reason }).inc();
}
