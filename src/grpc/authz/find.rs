//! Where in a request the key is. Envoy sends header names in lower case, and the query as a part of the path.

use std::borrow::Cow;

use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use percent_encoding::percent_decode_str;

use crate::plan::KeySource;

/// A key as the request carries it.
pub struct Found<'r> {
    /// The key.
    pub secret: Cow<'r, [u8]>,
    /// Where it was.
    pub source: &'r KeySource,
}

/// The key from the first of `sources` that has one. An empty one is none.
pub fn secret<'r>(http: &'r HttpRequest, sources: &'r [KeySource]) -> Option<Found<'r>> {
    sources.iter().find_map(|source| {
        let secret = match source {
            KeySource::Header(name) => header(http, name.as_str()).map(Cow::Borrowed),
            KeySource::Bearer => bearer(http).map(Cow::Borrowed),
            KeySource::Query(name) => query_value(http, name),
        }?;
        (!secret.is_empty()).then_some(Found { secret, source })
    })
}

/// What stands behind `Bearer` in `Authorization`.
// Source: RFC 9110: the name of a scheme has no letter case.
pub fn bearer(http: &HttpRequest) -> Option<&[u8]> {
    let value = header(http, "authorization")?;
    let (scheme, rest) = value.split_at_checked(6)?;
    let parted = rest.first().is_some_and(u8::is_ascii_whitespace);
    (scheme.eq_ignore_ascii_case(b"bearer") && parted).then(|| rest.trim_ascii())
}

/// Whether the query has a parameter of that name.
pub fn has_parameter(http: &HttpRequest, name: &str) -> bool {
    parameters(http).any(|(key, _)| key == name)
}

fn header<'r>(http: &'r HttpRequest, name: &str) -> Option<&'r [u8]> {
    if let Some(value) = http.headers.get(name) {
        return Some(value.as_bytes());
    }
    // The other form that Envoy can be told to send (encode_raw_headers).
    let headers = &http.header_map.as_ref()?.headers;
    let found = headers.iter().find(|header| header.key == name)?;
    match found.raw_value.is_empty() {
        true => Some(found.value.as_bytes()),
        false => Some(&found.raw_value),
    }
}

/// The first value of that parameter. Names are compared as they are sent, since Envoy removes them so.
fn query_value<'r>(http: &'r HttpRequest, name: &str) -> Option<Cow<'r, [u8]>> {
    let (_, value) = parameters(http).find(|(key, _)| *key == name)?;
    Some(percent_decode_str(value).into())
}

fn parameters(http: &HttpRequest) -> impl Iterator<Item = (&str, &str)> {
    let path = http.path.split('#').next().unwrap_or_default();
    let query = path.split_once('?').map_or("", |(_, query)| query);
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(path: &str, headers: &[(&str, &str)]) -> HttpRequest {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        HttpRequest {
            path: path.to_owned(),
            headers: headers.collect(),
            ..HttpRequest::default()
        }
    }

    fn found(http: &HttpRequest, sources: &[&str]) -> Option<String> {
        let sources: Vec<KeySource> = sources.iter().map(|text| text.parse().unwrap()).collect();
        let found = secret(http, &sources)?;
        Some(String::from_utf8(found.secret.into_owned()).unwrap())
    }

    #[test]
    fn a_key_is_found_where_it_is_asked_for_and_nowhere_else() {
        let request = http(
            "/a?x=1&api_key=q%2Dkey&api_key=second#f",
            &[("x-api-key", "h-key"), ("authorization", "bearer  b-key ")],
        );
        let all = ["header:x-api-key", "bearer", "query:api_key"];
        assert_eq!(found(&request, &all).as_deref(), Some("h-key"));
        assert_eq!(found(&request, &all[1..]).as_deref(), Some("b-key"));
        assert_eq!(found(&request, &all[2..]).as_deref(), Some("q-key"));
        assert_eq!(found(&request, &["header:x-other", "query:key"]), None);
    }

    #[test]
    fn what_is_empty_or_of_another_scheme_is_no_key() {
        for (path, value) in [
            ("/?api_key=", "Basic abc"),
            ("/?api%5Fkey=k", "Bearer"),
            ("/api_key=k", "Bearer "),
        ] {
            let request = http(path, &[("x-api-key", ""), ("authorization", value)]);
            let all = ["header:x-api-key", "bearer", "query:api_key"];
            assert_eq!(found(&request, &all), None, "{path} {value}");
        }
    }
}
