//! Buckets by hand: `tollgate.admin.v1.BucketService`, and `POST /v1/buckets/show`, `/reset` and `/grant` with the body of
//! `POST /explain`, to which `grant` adds `hits`.

use std::sync::Arc;

use axum::{
    Extension, Json, Router, body::Bytes, extract::DefaultBodyLimit, extract::State, routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use super::{
    access::actor,
    error::{Problem, bucket_status},
    http::read,
};
use crate::{
    bucket_admin::{BucketAdmin, BucketView, Deed},
    explain::{Question, QuestionDescriptor, QuestionEntry},
    home::Actor,
    proto::tollgate::admin::v1::{self as pb, bucket_service_server::BucketService},
};

/// Largest body.
const BODY_LIMIT: usize = 1 << 16;

/// What the two faces share.
#[derive(Debug, Clone)]
pub struct Buckets(pub Arc<BucketAdmin>);

/// The pages.
pub fn router(buckets: Buckets) -> Router {
    Router::new()
        .route("/v1/buckets/show", post(show))
        .route("/v1/buckets/reset", post(reset))
        .route("/v1/buckets/grant", post(grant))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(buckets)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    domain: String,
    descriptors: Vec<QuestionDescriptor>,
    #[serde(default)]
    hits: u64,
}

type Answer = Result<Json<Value>, Problem>;

async fn show(State(buckets): State<Buckets>, by: Extension<Actor>, body: Bytes) -> Answer {
    let (question, _) = question(read(&body)?);
    buckets.act(&by, &question, Deed::Show).await
}

async fn reset(State(buckets): State<Buckets>, by: Extension<Actor>, body: Bytes) -> Answer {
    let (question, _) = question(read(&body)?);
    buckets.act(&by, &question, Deed::Reset).await
}

async fn grant(State(buckets): State<Buckets>, by: Extension<Actor>, body: Bytes) -> Answer {
    let (question, hits) = question(read(&body)?);
    buckets.act(&by, &question, Deed::Grant(hits)).await
}

fn question(body: Body) -> (Question, u64) {
    let question = Question {
        domain: body.domain,
        descriptors: body.descriptors,
        hits_addend: 0,
    };
    (question, body.hits)
}

impl Buckets {
    async fn act(&self, by: &Actor, question: &Question, deed: Deed) -> Answer {
        let buckets = self.0.act(by, question, deed).await?;
        Ok(Json(json!({ "buckets": buckets })))
    }

    async fn call(
        &self,
        request: Request<pb::BucketsRequest>,
        deed: impl FnOnce(u64) -> Deed,
    ) -> Result<Response<pb::BucketsResponse>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let descriptors = request.descriptors.into_iter().map(descriptor).collect();
        let question = Question {
            domain: request.domain,
            descriptors,
            hits_addend: 0,
        };
        let done = self.0.act(&by, &question, deed(request.hits)).await;
        let buckets = done.map_err(|error| bucket_status(&error))?;
        Ok(Response::new(pb::BucketsResponse {
            buckets: buckets.into_iter().map(bucket).collect(),
        }))
    }
}

fn descriptor(descriptor: pb::BucketDescriptor) -> QuestionDescriptor {
    let entries = descriptor.entries.into_iter();
    let entries = entries.map(|pb::BucketEntry { key, value }| QuestionEntry { key, value });
    QuestionDescriptor {
        entries: entries.collect(),
        hits_addend: None,
    }
}

fn bucket(view: BucketView) -> pb::Bucket {
    pb::Bucket {
        descriptor: view.descriptor,
        rule: view.rule,
        limit: view.limit,
        capacity: view.capacity,
        before: view.before,
        remaining: view.remaining,
        reset_after_seconds: view.reset_after_seconds,
        penalised_seconds: view.penalised_seconds,
    }
}

#[tonic::async_trait]
impl BucketService for Buckets {
    async fn show_buckets(
        &self,
        request: Request<pb::BucketsRequest>,
    ) -> Result<Response<pb::BucketsResponse>, Status> {
        self.call(request, |_| Deed::Show).await
    }

    async fn reset_buckets(
        &self,
        request: Request<pb::BucketsRequest>,
    ) -> Result<Response<pb::BucketsResponse>, Status> {
        self.call(request, |_| Deed::Reset).await
    }

    async fn grant_buckets(
        &self,
        request: Request<pb::BucketsRequest>,
    ) -> Result<Response<pb::BucketsResponse>, Status> {
        self.call(request, Deed::Grant).await
    }
}
