//! What Envoy is to do with a request: let it on as somebody's, or answer it.

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
        },
        service::auth::v3::{
            CheckResponse, DeniedHttpResponse, OkHttpResponse, attribute_context::HttpRequest,
            check_response::HttpResponse,
        },
        r#type::v3::{HttpStatus, StatusCode},
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc,
    },
};
use serde_json::json;
use tonic::Code;

use super::find;
use crate::{
    keys::{Form, form},
    plan::{Authentication, ErrorStyle, KeySource, KnownKey},
};

/// Why a request does not get on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It carries no key.
    Missing,
    /// Its key has a typo: the checksum does not fit.
    Mistyped,
    /// Its key opens nothing. That it was disabled, say, is nobody's to know.
    Invalid,
    /// Its client stands in a deny list.
    Denied,
}

/// The request goes on as `key`'s. What the client wrote where we write is overwritten or removed.
pub fn welcome(
    key: KnownKey<'_>,
    asked: &Authentication,
    http: &HttpRequest,
    from: &KeySource,
) -> CheckResponse {
    let mut ok = OkHttpResponse::default();
    let names = &asked.upstream_headers;
    for (name, value) in [
        (&names.api_key_id, Some(key.id())),
        (&names.tier, Some(key.tier())),
        (&names.owner, key.owner()),
    ] {
        match (name, value) {
            // A control character would make Envoy fail the whole request.
            (Some(name), Some(value)) if !value.contains(char::is_control) => {
                ok.headers.push(header(name.as_str(), value));
            }
            (Some(name), _) => ok.headers_to_remove.push(name.to_string()),
            (None, _) => {}
        }
    }
    if asked.hide_key {
        hide_key(&mut ok, asked, http, from);
    }
    CheckResponse {
        status: status(Code::Ok),
        dynamic_metadata: Some(metadata(key)),
        http_response: Some(HttpResponse::OkResponse(ok)),
    }
}

/// Takes keys out of the request, also those in places that did not count.
fn hide_key(ok: &mut OkHttpResponse, asked: &Authentication, http: &HttpRequest, from: &KeySource) {
    for source in &asked.key_from {
        match source {
            KeySource::Header(name) => ok.headers_to_remove.push(name.to_string()),
            KeySource::Bearer => {
                // Somebody else's token stays: the upstream may want it.
                let ours = |secret| form(secret) != Form::Foreign;
                if from == source || find::bearer(http).is_some_and(ours) {
                    ok.headers_to_remove.push("authorization".to_owned());
                }
            }
            KeySource::Query(name) if find::has_parameter(http, name) => {
                ok.query_parameters_to_remove.push(name.clone());
            }
            KeySource::Query(_) => {}
        }
    }
}

fn metadata(key: KnownKey<'_>) -> Struct {
    let owner = key.owner().map(|owner| ("owner", owner));
    let fields = [("api_key_id", key.id()), ("tier", key.tier())]
        .into_iter()
        .chain(owner);
    let text = |(name, text): (&str, &str)| {
        let kind = Some(Kind::StringValue(text.to_owned()));
        (name.to_owned(), Value { kind })
    };
    Struct {
        fields: fields.map(text).collect(),
    }
}

/// The request is answered in the style that the plans ask for.
pub fn refusal(asked: &Authentication, refusal: Refusal) -> CheckResponse {
    let code = match (asked.error_style, refusal) {
        (ErrorStyle::Aws, _) => StatusCode::Forbidden,
        (_, Refusal::Missing) => StatusCode::Unauthorized,
        (_, Refusal::Mistyped | Refusal::Invalid | Refusal::Denied) => StatusCode::Forbidden,
    };
    let (content_type, body) = body(asked, code, refusal);
    let mut headers = vec![header("content-type", content_type)];
    if code == StatusCode::Unauthorized {
        // Source: RFC 9110: an answer of 401 says how to authenticate.
        headers.push(header("www-authenticate", challenge(asked)));
    }
    let unauthenticated = code == StatusCode::Unauthorized;
    CheckResponse {
        status: status(match unauthenticated {
            true => Code::Unauthenticated,
            false => Code::PermissionDenied,
        }),
        dynamic_metadata: None,
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: code.into() }),
            headers,
            body,
        })),
    }
}

fn body(asked: &Authentication, code: StatusCode, refusal: Refusal) -> (&'static str, String) {
    let detail = match refusal {
        Refusal::Missing => format!("An API key is needed: send it as {}.", places(asked)),
        Refusal::Mistyped => "The API key is mistyped: its checksum does not fit.".to_owned(),
        Refusal::Invalid => "The API key is not valid.".to_owned(),
        Refusal::Denied => "This client is not let in.".to_owned(),
    };
    match asked.error_style {
        // Source: API Gateway answers every trouble with a key so.
        ErrorStyle::Aws => ("application/json", r#"{"message":"Forbidden"}"#.to_owned()),
        ErrorStyle::ProblemJson => {
            let title = match code {
                StatusCode::Unauthorized => "Unauthorized",
                _ => "Forbidden",
            };
            let code = code as i32;
            let problem =
                json!({ "type": "about:blank", "title": title, "status": code, "detail": detail });
            ("application/problem+json", problem.to_string())
        }
        ErrorStyle::Plain => ("text/plain; charset=utf-8", detail + "\n"),
    }
}

fn places(asked: &Authentication) -> String {
    let places: Vec<_> = asked.key_from.iter().map(ToString::to_string).collect();
    places.join(" or ")
}

fn challenge(asked: &Authentication) -> &'static str {
    match asked.key_from.contains(&KeySource::Bearer) {
        true => "Bearer",
        false => "ApiKey",
    }
}

fn header(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

fn status(code: Code) -> Option<rpc::Status> {
    Some(rpc::Status {
        code: code.into(),
        ..Default::default()
    })
}
