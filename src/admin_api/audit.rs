//! Who did what: `tollgate.admin.v1.AuditService`, and `GET /v1/audit?on=&before=&limit=`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    routing::get,
};
use serde::Deserialize;
use tonic::{Request, Response, Status};

use super::{
    error::{Problem, home_status},
    http::bad,
};
use crate::{
    home::{AuditLog, AuditPage, Entry},
    proto::tollgate::admin::v1::{self as pb, audit_service_server::AuditService},
};

/// Entries on a page that asks for no number.
const PAGE: usize = 100;

const NO_HOME: &str =
    "no audit log is kept here, but in the log: start with --state-dir DIR or --store redis://…";

/// What the two faces share.
#[derive(Debug, Clone)]
pub struct Audit(pub Option<Arc<AuditLog>>);

/// The page.
pub fn router(audit: Audit) -> Router {
    Router::new()
        .route("/v1/audit", get(list))
        .with_state(audit)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    on: Option<String>,
    before: Option<String>,
    limit: Option<usize>,
}

async fn list(
    State(audit): State<Audit>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<AuditPage>, Problem> {
    let Query(query) = query.map_err(|error| bad(error.body_text()))?;
    let Some(log) = audit.0 else {
        return Err(Problem::conflict(NO_HOME));
    };
    let most = query.limit.unwrap_or(PAGE);
    let page = log.read(query.on.as_deref(), query.before.as_deref(), most);
    Ok(Json(page.await?))
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit(
        &self,
        request: Request<pb::ListAuditRequest>,
    ) -> Result<Response<pb::ListAuditResponse>, Status> {
        let request = request.into_inner();
        let Some(log) = &self.0 else {
            return Err(Status::failed_precondition(NO_HOME));
        };
        let told = |text: String| Some(text).filter(|text| !text.is_empty());
        let (on, before) = (told(request.on), told(request.page_token));
        let most = match request.page_size {
            0 => PAGE,
            size => size as usize,
        };
        let page = log.read(on.as_deref(), before.as_deref(), most).await;
        let page = page.map_err(|error| home_status(&error))?;
        Ok(Response::new(pb::ListAuditResponse {
            entries: page.entries.into_iter().map(entry).collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }
}

fn entry(entry: Entry) -> pb::AuditEntry {
    pb::AuditEntry {
        id: entry.id,
        at: entry.at,
        by: entry.by,
        action: entry.action,
        on: entry.on,
        before: entry.before.unwrap_or(0),
        after: entry.after.unwrap_or(0),
        detail: entry.detail,
    }
}
