//! The HTTP side: health, readiness, metrics, what is loaded, and why a request is decided as it is.

pub mod debug;
pub mod metrics;
pub mod plans;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

use crate::{
    explain::{ExplainError, Explanation, Question},
    limiter::{DecideError, Limiter},
    metrics::Metrics,
    plan::SharedPlans,
};

/// Largest body of a question.
const BODY_LIMIT: usize = 1 << 20;

/// How long a question may wait for the store.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether new requests should come here.
#[derive(Debug)]
pub struct Readiness {
    draining: AtomicBool,
    /// Plans without which they should not.
    needs: Option<Arc<SharedPlans>>,
}

impl Readiness {
    /// They should, until told otherwise; and while `needs` has no domain they should not.
    pub fn new(needs: Option<Arc<SharedPlans>>) -> Self {
        Self {
            draining: AtomicBool::new(false),
            needs,
        }
    }

    /// Whether health says that it serves.
    pub fn healthy(&self) -> bool {
        let planned = |plans: &Arc<SharedPlans>| plans.load().domains().next().is_some();
        !self.draining() && self.needs.as_ref().is_none_or(planned)
    }

    /// From now on they should not.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
struct App {
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// All pages.
pub fn router(limiter: Arc<Limiter>, metrics: Arc<Metrics>, readiness: Arc<Readiness>) -> Router {
    Router::new()
        .route("/healthcheck", get(healthcheck))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/plans", get(plans_page))
        .route("/explain", post(explain))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(App {
            limiter,
            metrics,
            readiness,
        })
}

/// The process works. It fails while draining, as load balancers that read it expect; it never depends on the store.
async fn healthcheck(State(app): State<App>) -> Response {
    match app.readiness.healthy() {
        true => "OK".into_response(),
        false => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// New requests may come: plans are loaded. Without the store, rules answer by their `on_store_error`.
async fn ready(State(app): State<App>) -> Response {
    if app.readiness.draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response();
    }
    if !app.limiter.plans().load().loaded() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no plans").into_response();
    }
    "ready".into_response()
}

async fn metrics_page(State(app): State<App>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match app.metrics.page() {
        Ok(page) => ([(header::CONTENT_TYPE, content_type)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn plans_page(State(app): State<App>) -> Json<serde_json::Value> {
    Json(plans::page(app.limiter.plans()))
}

async fn explain(
    State(app): State<App>,
    question: Result<Json<Question>, JsonRejection>,
) -> Result<Json<Explanation>, Response> {
    let Json(question) = question.map_err(|error| problem(error.status(), &error.body_text()))?;
    let deadline = Instant::now() + EXPLAIN_TIMEOUT;
    crate::explain::explain(&app.limiter, &question, deadline)
        .await
        .map(Json)
        .map_err(|error| problem(status_of(&error), &error.to_string()))
}

fn status_of(error: &ExplainError) -> StatusCode {
    match error {
        ExplainError::Decide(DecideError::Store(_) | DecideError::NoPlans) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ExplainError::Decide(DecideError::Override { .. }) | ExplainError::Question(_) => {
            StatusCode::BAD_REQUEST
        }
    }
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}
