//! Usage over the admin API: `tollgate.admin.v1.UsageService`, and the same in HTTP and JSON.
//!
//! ```text
//! GET /v1/usage?from=&to=&by=hour|day|month&key=&tier=&owner=&after=&limit=
//! ```

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tonic::{Code, Request, Response, Status};

use super::error::Problem;
use crate::{
    clock::{Clock as _, SystemClock},
    plan::SharedPlans,
    proto::tollgate::admin::v1::{
        self as pb, get_usage_request, usage_service_server::UsageService,
    },
    usage::{By, Day, Recorder, Report, ReportError, ReportRow, UsageQuery, UsageStore, report},
};

/// Rows on a page that asks for no number, and the most.
const PAGE: (usize, usize) = (1_000, 10_000);

/// Most rows of a report, over all its pages.
const MOST_ROWS: usize = 100_000;

/// Where usage is read.
#[derive(Debug)]
pub struct UsageReader {
    store: Mutex<UsageStore>,
    plans: Arc<SharedPlans>,
    recorder: Option<Arc<Recorder>>,
}

/// Why a question about usage has no answer.
#[derive(Debug, thiserror::Error)]
pub enum UsageFault {
    /// Usage has no place here.
    #[error("no usage is kept here: start with --usage and --state-dir DIR or --store redis://…")]
    NoHome,
    /// Something that was asked is not there to ask for.
    #[error("{0}")]
    Question(String),
    /// There is no report.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl UsageReader {
    /// Reads `store`, to which `recorder` writes if this process meters. Whose a key is, `plans` say.
    pub fn new(
        store: UsageStore,
        plans: Arc<SharedPlans>,
        recorder: Option<Arc<Recorder>>,
    ) -> Self {
        Self {
            store: Mutex::new(store),
            plans,
            recorder,
        }
    }

    /// Up to `most` rows after the first `after`, and where the next page begins. What this process has counted so far is
    /// among them.
    async fn page(
        &self,
        query: &UsageQuery,
        after: usize,
        most: usize,
    ) -> Result<(Report, Option<usize>), UsageFault> {
        if let Some(recorder) = &self.recorder {
            // What could not be kept is in a later answer; if it cannot be read either, that is said below.
            let _ = recorder.flush().await;
        }
        let plans = self.plans.load_full();
        let mut store = self.store.lock().await;
        let mut report = report(&mut store, &plans, query, MOST_ROWS).await?;
        let end = after.saturating_add(most);
        let next = (end < report.rows.len()).then_some(end);
        report.rows = report.rows.into_iter().skip(after).take(most).collect();
        Ok((report, next))
    }
}

/// What the two faces share.
#[derive(Debug, Clone)]
pub struct Usage(pub Option<Arc<UsageReader>>);

impl Usage {
    fn reader(&self) -> Result<&UsageReader, UsageFault> {
        self.0.as_deref().ok_or(UsageFault::NoHome)
    }
}

/// The page.
pub fn router(usage: Usage) -> Router {
    Router::new()
        .route("/v1/usage", get(show))
        .with_state(usage)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UsageParams {
    from: Option<String>,
    to: Option<String>,
    by: Option<By>,
    key: Option<String>,
    tier: Option<String>,
    owner: Option<String>,
    after: usize,
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
struct UsagePage {
    #[serde(flatten)]
    report: Report,
    /// What `after` is on the next page; none on the last.
    next: Option<usize>,
}

async fn show(
    State(usage): State<Usage>,
    params: Result<Query<UsageParams>, QueryRejection>,
) -> Result<Json<UsagePage>, Problem> {
    let Query(params) =
        params.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let (after, limit) = (params.after, params.limit);
    let query = params.query()?;
    let most = limit.unwrap_or(PAGE.0).clamp(1, PAGE.1);
    let (report, next) = usage.reader()?.page(&query, after, most).await?;
    Ok(Json(UsagePage { report, next }))
}

impl UsageParams {
    fn query(self) -> Result<UsageQuery, UsageFault> {
        let day = |name: &str, text: Option<String>| {
            let day = text.map(|text| text.parse::<Day>()).transpose();
            day.map_err(|error| UsageFault::Question(format!("{name}: {error}")))
        };
        let (from, to) = (day("from", self.from)?, day("to", self.to)?);
        let (from, to) = UsageQuery::days(from, to, SystemClock.now());
        Ok(UsageQuery {
            from,
            to,
            by: self.by.unwrap_or(By::Day),
            key: self.key,
            tier: self.tier,
            owner: self.owner,
        })
    }
}

#[tonic::async_trait]
impl UsageService for Usage {
    async fn get_usage(
        &self,
        request: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageResponse>, Status> {
        let request = request.into_inner();
        let by = match request.by() {
            get_usage_request::By::Hour => By::Hour,
            get_usage_request::By::Unspecified | get_usage_request::By::Day => By::Day,
            get_usage_request::By::Month => By::Month,
        };
        let after = match &*request.page_token {
            "" => 0,
            text => text
                .parse()
                .map_err(|_| Status::invalid_argument("page_token: is none of ours"))?,
        };
        let most = match request.page_size as usize {
            0 => PAGE.0,
            size => size.min(PAGE.1),
        };
        let params = UsageParams {
            from: given(request.from),
            to: given(request.to),
            by: Some(by),
            key: given(request.key),
            tier: given(request.tier),
            owner: given(request.owner),
            after,
            limit: Some(most),
        };
        let query = params.query()?;
        let (report, next) = self.reader()?.page(&query, after, most).await?;
        Ok(Response::new(pb::GetUsageResponse {
            from: report.from,
            to: report.to,
            rows: report.rows.into_iter().map(row).collect(),
            next_page_token: next.map(|next| next.to_string()).unwrap_or_default(),
        }))
    }
}

/// Proto3 sends nothing as an empty text.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn row(row: ReportRow) -> pb::UsageRow {
    pb::UsageRow {
        period: row.period,
        domain: row.domain,
        key: row.key.unwrap_or_default(),
        owner: row.owner.unwrap_or_default(),
        tier: row.tier.unwrap_or_default(),
        limit: row.limit,
        admitted: row.admitted,
        refused: row.refused,
        overage: row.overage,
    }
}

fn codes(fault: &UsageFault) -> (StatusCode, Code) {
    match fault {
        UsageFault::NoHome => (StatusCode::CONFLICT, Code::FailedPrecondition),
        UsageFault::Report(ReportError::Store(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
        }
        UsageFault::Report(ReportError::TooManyRows { .. }) => {
            (StatusCode::BAD_REQUEST, Code::ResourceExhausted)
        }
        UsageFault::Question(_) | UsageFault::Report(_) => {
            (StatusCode::BAD_REQUEST, Code::InvalidArgument)
        }
    }
}

impl From<UsageFault> for Problem {
    fn from(fault: UsageFault) -> Self {
        Self::new(codes(&fault).0, fault.to_string())
    }
}

impl From<UsageFault> for Status {
    fn from(fault: UsageFault) -> Self {
        Self::new(codes(&fault).1, fault.to_string())
    }
}
