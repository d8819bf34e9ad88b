//! The admin API in gRPC: `tollgate.admin.v1.KeyService`.

use std::time::Duration;

use envoy_types::pb::google::protobuf::Timestamp;
use tonic::{Request, Response, Status};

use super::{Keys, OVERLAP, access::actor, error::status, http::limits};
use crate::{
    home::Actor,
    key_store::{KeyChange, KeyError, KeyFilter, NewKey},
    keys::{KeyRecord, Secret},
    proto::tollgate::admin::v1::{self as pb, key_service_server::KeyService},
};

/// Keys on a page that asks for no number, and the most.
const PAGE: (u32, u32) = (100, 1_000);

/// The service.
#[derive(Debug)]
pub struct Service {
    keys: Keys,
}

impl Service {
    /// Changes `keys`.
    pub fn new(keys: Keys) -> Self {
        Self { keys }
    }

    async fn switch(
        &self,
        by: &Actor,
        request: pb::ChangeKeyRequest,
        enabled: bool,
    ) -> Result<Response<pb::Key>, KeyError> {
        let admin = self.keys.admin()?;
        let record = admin
            .set_enabled(by, &request.id, enabled, seen(request.revision))
            .await?;
        Ok(Response::new(key(record)))
    }
}

#[tonic::async_trait]
impl KeyService for Service {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::KeyWithSecret>, Status> {
        let by = actor(&request);
        let new = new_key(request.into_inner())?;
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let made = admin
            .create(&by, new)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(with_secret(made)))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        let request = request.into_inner();
        let most = match request.page_size {
            0 => PAGE.0,
            size => size.min(PAGE.1),
        } as usize;
        let filter = KeyFilter {
            tier: given(request.tier),
            owner: given(request.owner),
            labels: request.labels.into_iter().collect(),
        };
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let listed = admin.list(&filter, &request.page_token, most).await;
        let records = listed.map_err(|error| status(&error.into()))?;
        let last = records.last().filter(|_| records.len() == most);
        Ok(Response::new(pb::ListKeysResponse {
            next_page_token: last.map(|record| record.id.clone()).unwrap_or_default(),
            keys: records.into_iter().map(key).collect(),
        }))
    }

    async fn get_key(
        &self,
        request: Request<pb::GetKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let shown = admin.show(&request.into_inner().id).await;
        Ok(Response::new(key(shown.map_err(|error| status(&error))?)))
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let (id, revision) = (request.id.clone(), seen(request.revision));
        let change = key_change(request)?;
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let record = admin.update(&by, &id, &change, revision).await;
        Ok(Response::new(key(record.map_err(|error| status(&error))?)))
    }

    async fn disable_key(
        &self,
        request: Request<pb::ChangeKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let by = actor(&request);
        let switched = self.switch(&by, request.into_inner(), false).await;
        switched.map_err(|error| status(&error))
    }

    async fn enable_key(
        &self,
        request: Request<pb::ChangeKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let by = actor(&request);
        let switched = self.switch(&by, request.into_inner(), true).await;
        switched.map_err(|error| status(&error))
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::KeyWithSecret>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let overlap = match request.overlap {
            Some(overlap) => Duration::from_secs(
                u64::try_from(overlap.seconds)
                    .map_err(|_| Status::invalid_argument("overlap: must not be negative"))?,
            ),
            None => OVERLAP,
        };
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let rotated = admin
            .rotate(&by, &request.id, overlap, seen(request.revision))
            .await;
        Ok(Response::new(with_secret(
            rotated.map_err(|error| status(&error))?,
        )))
    }

    async fn revoke_key(
        &self,
        request: Request<pb::ChangeKeyRequest>,
    ) -> Result<Response<pb::RevokeKeyResponse>, Status> {
        let (by, request) = (actor(&request), request.into_inner());
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let revoked = admin.revoke(&by, &request.id, seen(request.revision)).await;
        revoked.map_err(|error| status(&error))?;
        Ok(Response::new(pb::RevokeKeyResponse {}))
    }

    async fn import_keys(
        &self,
        request: Request<pb::ImportKeysRequest>,
    ) -> Result<Response<pb::ImportKeysResponse>, Status> {
        let by = actor(&request);
        let keys = request.into_inner().keys.into_iter();
        let keys = keys.map(|imported| {
            let new = new_key(imported.key.unwrap_or_default())?;
            Ok((new, imported.secret))
        });
        let keys = keys.collect::<Result<Vec<_>, Status>>()?;
        let admin = self.keys.admin().map_err(|error| status(&error))?;
        let imported = admin
            .import(&by, keys)
            .await
            .map_err(|error| status(&error))?;
        let skipped = imported.skipped.into_iter();
        Ok(Response::new(pb::ImportKeysResponse {
            created: imported.created,
            skipped: skipped
                .map(|(id, why)| pb::SkippedKey { id, why })
                .collect(),
        }))
    }
}

fn new_key(request: pb::CreateKeyRequest) -> Result<NewKey, Status> {
    let expires_at = request.expires_at.map(seconds).transpose()?;
    if expires_at == Some(0) {
        return Err(Status::invalid_argument(EXPIRY));
    }
    Ok(NewKey {
        id: given(request.id),
        tier: request.tier,
        owner: given(request.owner),
        labels: request.labels.into_iter().collect(),
        limits: limits(&request.limits).map_err(Status::invalid_argument)?,
        expires_at,
        disabled: request.disabled,
    })
}

fn key_change(request: pb::UpdateKeyRequest) -> Result<KeyChange, Status> {
    let limits = limits(&request.limits).map_err(Status::invalid_argument)?;
    Ok(KeyChange {
        tier: request.tier,
        owner: request.owner,
        labels: request.labels.into_iter().collect(),
        limits: (request.tier_limits || !limits.is_empty()).then_some(limits),
        expires_at: request.expires_at.map(seconds).transpose()?,
    })
}

const EXPIRY: &str = "expires_at: is not between 1970 and 2106";

fn seconds(at: Timestamp) -> Result<u32, Status> {
    u32::try_from(at.seconds).map_err(|_| Status::invalid_argument(EXPIRY))
}

/// Proto3 sends nothing as an empty text.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn seen(revision: u32) -> Option<u32> {
    (revision != 0).then_some(revision)
}

fn with_secret((record, secret): (KeyRecord, Secret)) -> pb::KeyWithSecret {
    pb::KeyWithSecret {
        key: Some(key(record)),
        secret: secret.expose().to_owned(),
    }
}

fn key(record: KeyRecord) -> pb::Key {
    pb::Key {
        id: record.id,
        tier: record.tier,
        owner: record.owner.unwrap_or_default(),
        labels: record.labels.into_iter().collect(),
        limits: record.limits.iter().map(ToString::to_string).collect(),
        enabled: record.enabled,
        expires_at: record.expires_at.map(timestamp),
        created_at: Some(timestamp(record.created_at)),
        changed_at: Some(timestamp(record.changed_at)),
        revision: record.revision,
        previous_until: record.previous.map(|previous| timestamp(previous.until)),
    }
}

fn timestamp(seconds: u32) -> Timestamp {
    Timestamp {
        seconds: seconds.into(),
        nanos: 0,
    }
}
