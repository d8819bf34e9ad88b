//! Plans in the place of files: `tollgate.admin.v1.PlanService`, and the same in HTTP.
//!
//! ```text
//! GET    /v1/plans                    domains that have stored plans
//! PUT    /v1/plans/DOMAIN             the body is what a plan file would hold; ?dry_run=true only tells what would change
//! GET    /v1/plans/DOMAIN?version=    one version, as it was put; its number is the ETag
//! GET    /v1/plans/DOMAIN/history     versions that are kept
//! POST   /v1/plans/DOMAIN/rollback    {"version": N}
//! DELETE /v1/plans/DOMAIN             the files hold again
//! ```
//!
//! `If-Match: "N"` and `If-None-Match: *` say which version was looked at.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tonic::{Request, Status};

use super::{
    access::actor,
    error::{Problem, plan_status},
    http::{bad, read},
};
use crate::{
    home::Actor,
    plan::domain_of,
    plan_store::{LARGEST_DOCUMENT, PlanAdmin, PlanError, PlanRecord, PlanView, Put},
    proto::tollgate::admin::v1::{self as pb, plan_service_server::PlanService},
};

/// Largest body, and message: a document and what is around it.
pub const BODY_LIMIT: usize = LARGEST_DOCUMENT + (1 << 12);

/// What mistakes call a document that came over the network.
const NAME: &str = "document";

/// What the two faces share.
#[derive(Debug, Clone)]
pub struct Plans(pub Option<Arc<PlanAdmin>>);

impl Plans {
    fn admin(&self) -> Result<&PlanAdmin, PlanError> {
        self.0.as_deref().ok_or(PlanError::NoHome)
    }
}

/// The pages.
pub fn router(plans: Plans) -> Router {
    Router::new()
        .route("/v1/plans", get(list))
        .route("/v1/plans/{domain}", get(show).put(put).delete(reset))
        .route("/v1/plans/{domain}/history", get(history))
        .route("/v1/plans/{domain}/rollback", post(rollback))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(plans)
}

#[derive(Serialize)]
struct PutView {
    #[serde(flatten)]
    plan: PlanView,
    changed: bool,
    changes: Vec<String>,
    warnings: Vec<String>,
}

impl From<Put> for PutView {
    fn from(put: Put) -> Self {
        Self {
            plan: PlanView::from(&put.record),
            changed: put.new,
            changes: put.changes.iter().map(ToString::to_string).collect(),
            warnings: put.warnings,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    version: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PutQuery {
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackBody {
    version: u32,
}

async fn list(State(plans): State<Plans>) -> Result<Json<Value>, Problem> {
    let table = plans.admin()?.table().await.map_err(PlanError::from)?;
    let all: Vec<_> = table.all_newest().map(PlanView::from).collect();
    Ok(Json(json!({ "plans": all })))
}

async fn show(
    State(plans): State<Plans>,
    Path(domain): Path<String>,
    query: Result<Query<ShowQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(|error| bad(error.body_text()))?;
    let record = plans.admin()?.get(&domain, query.version).await?;
    let headers = [
        (header::ETAG, format!("\"{}\"", record.version)),
        (header::CONTENT_TYPE, "application/yaml".to_owned()),
    ];
    Ok(match record.text {
        Some(text) => (headers, text.to_string()).into_response(),
        None => (StatusCode::NO_CONTENT, headers).into_response(),
    })
}

async fn history(
    State(plans): State<Plans>,
    Path(domain): Path<String>,
) -> Result<Json<Value>, Problem> {
    let records = plans.admin()?.history(&domain).await?;
    let versions: Vec<_> = records.iter().map(PlanView::from).collect();
    Ok(Json(json!({ "versions": versions })))
}

async fn put(
    State(plans): State<Plans>,
    Extension(by): Extension<Actor>,
    Path(domain): Path<String>,
    query: Result<Query<PutQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<PutView>, Problem> {
    let Query(query) = query.map_err(|error| bad(error.body_text()))?;
    let text = std::str::from_utf8(&body).map_err(|error| bad(error.to_string()))?;
    let admin = plans.admin()?;
    let named = domain_of(text, NAME).map_err(PlanError::from)?;
    if named != domain {
        return Err(bad(format!(
            "the document is of the domain `{named}`, not `{domain}`"
        )));
    }
    let seen = seen(&headers)?;
    let put = admin.put(&by, text, NAME, seen, query.dry_run).await?;
    Ok(Json(put.into()))
}

async fn rollback(
    State(plans): State<Plans>,
    Extension(by): Extension<Actor>,
    Path(domain): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<PutView>, Problem> {
    let body: RollbackBody = read(&body)?;
    let seen = seen(&headers)?;
    let admin = plans.admin()?;
    let put = admin.rollback(&by, &domain, body.version, seen).await?;
    Ok(Json(put.into()))
}

async fn reset(
    State(plans): State<Plans>,
    Extension(by): Extension<Actor>,
    Path(domain): Path<String>,
    headers: HeaderMap,
) -> Result<Json<PutView>, Problem> {
    let seen = seen(&headers)?;
    let put = plans.admin()?.reset(&by, &domain, seen).await?;
    Ok(Json(put.into()))
}

/// The version that the caller looked at, if they say so.
// Source: RFC 9110, 13.1.1 and 13.1.2.
fn seen(headers: &HeaderMap) -> Result<Option<u32>, Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    if let Some(none) = text(header::IF_NONE_MATCH) {
        return match none {
            "*" => Ok(Some(0)),
            _ => Err(bad(
                "If-None-Match: write `*`, for a domain without stored plans".to_owned(),
            )),
        };
    }
    let Some(tag) = text(header::IF_MATCH) else {
        return Ok(None);
    };
    let number = tag.trim_matches('"').parse().ok();
    let message = || bad("If-Match: write the version that you looked at, like \"3\"".to_owned());
    number.map(Some).ok_or_else(message)
}

#[tonic::async_trait]
impl PlanService for Plans {
    async fn list_plans(
        &self,
        _request: Request<pb::ListPlansRequest>,
    ) -> Result<tonic::Response<pb::ListPlansResponse>, Status> {
        let admin = self.admin().map_err(|error| plan_status(&error))?;
        let table = admin.table().await;
        let table = table.map_err(|error| plan_status(&error.into()))?;
        let plans = table.all_newest().map(|record| plan(record, false));
        Ok(tonic::Response::new(pb::ListPlansResponse {
            plans: plans.collect(),
        }))
    }

    async fn get_plan(
        &self,
        request: Request<pb::GetPlanRequest>,
    ) -> Result<tonic::Response<pb::Plan>, Status> {
        let request = request.into_inner();
        let admin = self.admin().map_err(|error| plan_status(&error))?;
        let version = (request.version != 0).then_some(request.version);
        let record = admin.get(&request.domain, version).await;
        let record = record.map_err(|error| plan_status(&error))?;
        Ok(tonic::Response::new(plan(&record, true)))
    }

    async fn list_plan_versions(
        &self,
        request: Request<pb::ListPlanVersionsRequest>,
    ) -> Result<tonic::Response<pb::ListPlansResponse>, Status> {
        let admin = self.admin().map_err(|error| plan_status(&error))?;
        let records = admin.history(&request.into_inner().domain).await;
        let records = records.map_err(|error| plan_status(&error))?;
        Ok(tonic::Response::new(pb::ListPlansResponse {
            plans: records.iter().map(|record| plan(record, false)).collect(),
        }))
    }

    async fn put_plan(
        &self,
        request: Request<pb::PutPlanRequest>,
    ) -> Result<tonic::Response<pb::PutPlanResponse>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let admin = self.admin().map_err(|error| plan_status(&error))?;
        let (seen, dry) = (request.if_version, request.dry_run);
        response(admin.put(&by, &request.text, NAME, seen, dry).await)
    }

    async fn rollback_plan(
        &self,
        request: Request<pb::RollbackPlanRequest>,
    ) -> Result<tonic::Response<pb::PutPlanResponse>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let admin = self.admin().map_err(|error| plan_status(&error))?;
        let (domain, version) = (&request.domain, request.version);
        response(
            admin
                .rollback(&by, domain, version, request.if_version)
                .await,
        )
    }

    async fn reset_plan(
        &self,
        request: Request<pb::ResetPlanRequest>,
    ) -> Result<tonic::Response<pb::PutPlanResponse>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let admin = self.admin().map_err(|error| plan_status(&error))?;
        response(admin.reset(&by, &request.domain, request.if_version).await)
    }
}

fn response(put: Result<Put, PlanError>) -> Result<tonic::Response<pb::PutPlanResponse>, Status> {
    let put = put.map_err(|error| plan_status(&error))?;
    Ok(tonic::Response::new(pb::PutPlanResponse {
        plan: Some(plan(&put.record, false)),
        changed: put.new,
        changes: put.changes.iter().map(ToString::to_string).collect(),
        warnings: put.warnings,
    }))
}

fn plan(record: &PlanRecord, with_text: bool) -> pb::Plan {
    let text = record.text.as_ref().filter(|_| with_text);
    pb::Plan {
        domain: record.domain.clone(),
        version: record.version,
        stored: record.text.is_some(),
        by: record.by.clone(),
        at: record.at.clone(),
        note: record.note.clone(),
        text: text.map(ToString::to_string).unwrap_or_default(),
    }
}
