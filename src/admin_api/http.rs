//! The admin API in HTTP and JSON.
//!
//! ```text
//! POST   /v1/keys               make one           GET /v1/keys?tier=&owner=&label=&after=&limit=   list
//! GET    /v1/keys/ID            look               DELETE /v1/keys/ID?revision=              revoke
//! PATCH  /v1/keys/ID            change what is said of it
//! POST   /v1/keys/ID/disable    and enable         POST /v1/keys/ID/rotate                   another secret
//! POST   /v1/keys:import        with their secrets
//! ```

use std::collections::BTreeMap;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Keys, OVERLAP, error::Problem};
use crate::{
    home::Actor,
    key_store::{
        KeyChange, KeyError, KeyFilter, KeyView, KeyWithSecret, NewKey, parse_expiry, parse_overlap,
    },
    limit::Limit,
};

/// Largest body.
const BODY_LIMIT: usize = 1 << 16;

/// Largest body that brings keys along: some ten thousand.
const IMPORT_LIMIT: usize = 4 << 20;

/// Keys on a page that asks for no number, and the most.
const PAGE: (usize, usize) = (100, 1_000);

/// The pages.
pub fn router(keys: Keys) -> Router {
    Router::new()
        .route("/v1/keys", get(list).post(create))
        .route("/v1/keys/{id}", get(show).patch(update).delete(revoke))
        .route("/v1/keys/{id}/disable", post(disable))
        .route("/v1/keys/{id}/enable", post(enable))
        .route("/v1/keys/{id}/rotate", post(rotate))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .route(
            "/v1/keys:import",
            post(import).layer(DefaultBodyLimit::max(IMPORT_LIMIT)),
        )
        .with_state(keys)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a key, as {\"tier\":\"free\"}")]
struct NewKeyBody {
    tier: String,
    id: Option<String>,
    owner: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    limits: Vec<String>,
    expires_at: Option<String>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ChangeBody {
    revision: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RotateBody {
    revision: Option<u32>,
    overlap: Option<String>,
}

/// What is absent stays; what is null goes.
// Source: RFC 7396, JSON Merge Patch.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UpdateBody {
    revision: Option<u32>,
    #[serde(deserialize_with = "present")]
    tier: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    owner: Option<Option<String>>,
    labels: BTreeMap<String, Option<String>>,
    #[serde(deserialize_with = "present")]
    limits: Option<Option<Vec<String>>>,
    #[serde(deserialize_with = "present")]
    expires_at: Option<Option<String>>,
}

/// Tells null from absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl TryFrom<UpdateBody> for KeyChange {
    type Error = Problem;

    fn try_from(body: UpdateBody) -> Result<Self, Problem> {
        let texts = body.limits.map(Option::unwrap_or_default);
        let expires_at = body.expires_at.map(|at| match at {
            Some(text) => parse_expiry(&text),
            None => Ok(0),
        });
        let labels = body.labels.into_iter();
        let without = || bad("tier: a key always has one; leave it out to keep it".to_owned());
        Ok(Self {
            tier: body.tier.map(|tier| tier.ok_or_else(without)).transpose()?,
            owner: body.owner.map(Option::unwrap_or_default),
            labels: labels
                .map(|(label, value)| (label, value.unwrap_or_default()))
                .collect(),
            limits: texts.map(|texts| limits(&texts)).transpose().map_err(bad)?,
            expires_at: expires_at.transpose().map_err(bad)?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    tier: Option<String>,
    owner: Option<String>,
    /// `KEY=VALUE`.
    label: Option<String>,
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct KeyPage {
    keys: Vec<KeyView>,
    /// What `after` is on the next page; none on the last.
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "keys, as {\"keys\":[…]}")]
struct ImportBody {
    keys: Vec<ImportedBody>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a secret and its key, as {\"secret\":\"…\",\"key\":{…}}"
)]
struct ImportedBody {
    secret: String,
    key: NewKeyBody,
}

impl TryFrom<NewKeyBody> for NewKey {
    type Error = Problem;

    fn try_from(body: NewKeyBody) -> Result<Self, Problem> {
        let expires_at = body.expires_at.as_deref().map(parse_expiry);
        Ok(Self {
            id: body.id,
            tier: body.tier,
            owner: body.owner,
            labels: body.labels,
            limits: limits(&body.limits).map_err(bad)?,
            expires_at: expires_at.transpose().map_err(bad)?,
            disabled: body.disabled,
        })
    }
}

async fn create(
    State(keys): State<Keys>,
    Extension(by): Extension<Actor>,
    body: Bytes,
) -> Result<(StatusCode, Json<KeyWithSecret>), Problem> {
    let body: NewKeyBody = read(&body)?;
    let new = body.try_into()?;
    let (record, secret) = keys.admin()?.create(&by, new).await?;
    let key = record.into();
    Ok((StatusCode::CREATED, Json(KeyWithSecret { key, secret })))
}

async fn list(
    State(keys): State<Keys>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<KeyPage>, Problem> {
    let Query(query) = query.map_err(|error| bad(error.body_text()))?;
    let label = query.label.as_ref().map(|label| {
        let pair = label.split_once('=');
        pair.ok_or_else(|| bad(format!("label: `{label}` is not KEY=VALUE")))
    });
    let label = label.transpose()?;
    let filter = KeyFilter {
        tier: query.tier,
        owner: query.owner,
        labels: label
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into_iter()
            .collect(),
    };
    let most = query.limit.unwrap_or(PAGE.0).clamp(1, PAGE.1);
    let records = keys
        .admin()?
        .list(&filter, &query.after, most)
        .await
        .map_err(KeyError::from)?;
    let full = records.len() == most;
    let next = records
        .last()
        .filter(|_| full)
        .map(|record| record.id.clone());
    Ok(Json(KeyPage {
        keys: records.into_iter().map(KeyView::from).collect(),
        next,
    }))
}

async fn show(State(keys): State<Keys>, Path(id): Path<String>) -> Result<Json<KeyView>, Problem> {
    Ok(Json(keys.admin()?.show(&id).await?.into()))
}

async fn update(
    State(keys): State<Keys>,
    Extension(by): Extension<Actor>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<KeyView>, Problem> {
    let body: UpdateBody = read(&body)?;
    let revision = body.revision;
    let change = body.try_into()?;
    let record = keys.admin()?.update(&by, &id, &change, revision).await?;
    Ok(Json(record.into()))
}

async fn disable(
    keys: State<Keys>,
    by: Extension<Actor>,
    id: Path<String>,
    body: Bytes,
) -> Result<Json<KeyView>, Problem> {
    switch(keys, by, id, &body, false).await
}

async fn enable(
    keys: State<Keys>,
    by: Extension<Actor>,
    id: Path<String>,
    body: Bytes,
) -> Result<Json<KeyView>, Problem> {
    switch(keys, by, id, &body, true).await
}

async fn switch(
    State(keys): State<Keys>,
    Extension(by): Extension<Actor>,
    Path(id): Path<String>,
    body: &[u8],
    enabled: bool,
) -> Result<Json<KeyView>, Problem> {
    let body: ChangeBody = read_or_default(body)?;
    let record = keys
        .admin()?
        .set_enabled(&by, &id, enabled, body.revision)
        .await?;
    Ok(Json(record.into()))
}

async fn rotate(
    State(keys): State<Keys>,
    Extension(by): Extension<Actor>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<KeyWithSecret>, Problem> {
    let body: RotateBody = read_or_default(&body)?;
    let overlap = match body.overlap {
        Some(text) => parse_overlap(&text).map_err(|error| bad(format!("overlap: {error}")))?,
        None => OVERLAP,
    };
    let (record, secret) = keys
        .admin()?
        .rotate(&by, &id, overlap, body.revision)
        .await?;
    let key = record.into();
    Ok(Json(KeyWithSecret { key, secret }))
}

async fn revoke(
    State(keys): State<Keys>,
    Extension(by): Extension<Actor>,
    Path(id): Path<String>,
    query: Result<Query<ChangeBody>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let Query(query) = query.map_err(|error| bad(error.body_text()))?;
    keys.admin()?.revoke(&by, &id, query.revision).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn import(
    State(keys): State<Keys>,
    Extension(by): Extension<Actor>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let body: ImportBody = read(&body)?;
    let pairs = body.keys.into_iter();
    let pairs = pairs.map(|imported| Ok((imported.key.try_into()?, imported.secret)));
    let imported = keys
        .admin()?
        .import(&by, pairs.collect::<Result<_, Problem>>()?)
        .await?;
    let skipped = imported.skipped.iter();
    let skipped = skipped.map(|(id, why)| json!({ "id": id, "why": why }));
    Ok(Json(
        json!({ "created": imported.created, "skipped": skipped.collect::<Vec<_>>() }),
    ))
}

/// Reads limits as plan files write them.
pub fn limits(texts: &[String]) -> Result<Vec<Limit>, String> {
    let read = |text: &String| {
        text.parse()
            .map_err(|error| format!("limits: `{text}`: {error}"))
    };
    texts.iter().map(read).collect()
}

/// Reads a body of JSON.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| bad(error.to_string()))
}

fn read_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Problem> {
    match body.is_empty() {
        true => Ok(T::default()),
        false => read(body),
    }
}

/// A question that cannot be one.
pub fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
