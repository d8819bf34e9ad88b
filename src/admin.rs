//! The HTTP side: health, readiness, metrics, what is loaded, and why a request is decided as it is.

pub mod debug;
pub mod metrics;
pub mod pacing;
pub mod plans;
pub mod usage;

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
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

use crate::{
    explain::{ExplainError, Explanation, Question},
    export::MetricsPage,
    limiter::{DecideError, Limiter},
    settings::HealthNeeds,
};

/// Largest body of a question.
const BODY_LIMIT: usize = 1 << 20;

/// How long a question may wait for the store.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether new requests should come here.
#[derive(Debug)]
pub struct Readiness {
    draining: AtomicBool,
    needs: HealthNeeds,
    limiter: Arc<Limiter>,
}

impl Readiness {
    /// They should until told otherwise, as long as `limiter` has what is needed.
    pub fn new(needs: HealthNeeds, limiter: Arc<Limiter>) -> Self {
        Self {
            draining: AtomicBool::new(false),
            needs,
            limiter,
        }
    }

    /// Whether health says that it serves.
    pub fn healthy(&self) -> bool {
        let planned = || self.limiter.plans().load().domains().next().is_some();
        let stored = || !self.limiter.store().is_down();
        !self.draining() && (!self.needs.plans || planned()) && (!self.needs.store || stored())
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
    metrics: Arc<MetricsPage>,
    readiness: Arc<Readiness>,
}

/// All pages.
pub fn router(
    limiter: Arc<Limiter>,
    metrics: Arc<MetricsPage>,
    readiness: Arc<Readiness>,
) -> Router {
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

/// The process works. It fails while draining, as load balancers that read it expect; it depends on the store only if told.
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

/// The metrics page alone, at `path`.
pub fn metrics_router(metrics: Arc<MetricsPage>, path: String) -> Router {
    Router::new().fallback(async move |uri: Uri| match uri.path() == path {
        true => written(&metrics),
        false => StatusCode::NOT_FOUND.into_response(),
    })
}

async fn metrics_page(State(app): State<App>) -> Response {
    written(&app.metrics)
}

fn written(metrics: &MetricsPage) -> Response {
    match metrics.write() {
        Ok((content_type, page)) => ([(header::CONTENT_TYPE, content_type)], page).into_response(),
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
