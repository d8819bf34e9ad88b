//! `envoy.service.auth.v3.Authorization`: is there a valid API key, and whose is it?

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
        },
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            authorization_server::Authorization, check_response::HttpResponse,
        },
        r#type::v3::{HttpStatus, StatusCode},
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc,
    },
};
use tonic::{Code, Request, Response, Status};

use super::status;
use crate::{
    limiter::DecideError,
    metrics::{CheckLabels, CheckResult, Metrics},
    plan::{ApiKey, SharedPlans},
    settings::Dialect,
};

/// The header that carries the key.
const KEY_HEADER: &str = "x-api-key";

/// What API Gateway answers to every trouble with a key.
const FORBIDDEN: &str = r#"{"message":"Forbidden"}"#;

/// The service.
#[derive(Debug)]
pub struct Service {
    plans: Arc<SharedPlans>,
    metrics: Arc<Metrics>,
}

impl Service {
    /// Looks keys up in `plans`.
    pub fn new(plans: Arc<SharedPlans>, metrics: Arc<Metrics>) -> Self {
        Self { plans, metrics }
    }

    fn count(&self, result: CheckResult) {
        self.metrics
            .key_checks
            .get_or_create(&CheckLabels { result })
            .inc();
    }
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let Some(secret) = secret(request.into_inner()) else {
            self.count(CheckResult::Missing);
            return Ok(Response::new(forbidden()));
        };
        let plans = self.plans.load();
        if !plans.loaded() {
            let none = DecideError::NoPlans;
            return Err(status::undecided(&self.metrics, Dialect::Tollgate, &none));
        }
        let response = match plans.api_key(&secret) {
            Some(key) => {
                self.count(CheckResult::Known);
                welcome(key)
            }
            None => {
                self.count(CheckResult::Unknown);
                forbidden()
            }
        };
        Ok(Response::new(response))
    }
}

/// The key that the request carries. Envoy sends header names in lower case.
fn secret(request: CheckRequest) -> Option<String> {
    let mut http = request.attributes?.request?.http?;
    let secret = http.headers.remove(KEY_HEADER).or_else(|| {
        let map = http.header_map?;
        let found = map
            .headers
            .into_iter()
            .find(|header| header.key == KEY_HEADER)?;
        if found.value.is_empty() {
            String::from_utf8(found.raw_value).ok()
        } else {
            Some(found.value)
        }
    })?;
    (!secret.is_empty()).then_some(secret)
}

fn welcome(key: &ApiKey) -> CheckResponse {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let fields = [
        ("api_key_id".to_owned(), text(&key.id)),
        ("tier".to_owned(), text(&key.tier)),
    ];
    CheckResponse {
        status: Some(rpc::Status {
            code: Code::Ok.into(),
            ..Default::default()
        }),
        dynamic_metadata: Some(Struct {
            fields: fields.into_iter().collect(),
        }),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers_to_remove: vec![KEY_HEADER.to_owned()],
            ..Default::default()
        })),
    }
}

fn forbidden() -> CheckResponse {
    let content_type = HeaderValueOption {
        header: Some(HeaderValue {
            key: "content-type".to_owned(),
            value: "application/json".to_owned(),
            raw_value: Vec::new(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    };
    CheckResponse {
        status: Some(rpc::Status {
            code: Code::PermissionDenied.into(),
            ..Default::default()
        }),
        dynamic_metadata: None,
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus {
                code: StatusCode::Forbidden.into(),
            }),
            headers: vec![content_type],
            body: FORBIDDEN.to_owned(),
        })),
    }
}
