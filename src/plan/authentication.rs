//! How API keys are asked for: where a request carries one, and what who has none is told.

use std::{collections::BTreeSet, fmt, str::FromStr};

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    fields::{Fields, Reader},
    file::{AuthenticationFile, UpstreamHeadersFile},
    mistake::Path,
    shapes::{AUTHENTICATION, UPSTREAM_HEADERS},
};

/// How API keys are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// Where a request may carry a key; the first place that has one counts.
    pub key_from: Vec<KeySource>,
    /// How refusals look.
    pub error_style: ErrorStyle,
    /// Whether the key is taken out of the request before it goes to the upstream.
    pub hide_key: bool,
    /// Headers that tell the upstream whose request it is.
    pub upstream_headers: UpstreamHeaders,
}

/// Names of headers that tell the upstream whose request it is; none to not tell. What a client sends under these names
/// never gets there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamHeaders {
    /// Carries the key's id.
    pub api_key_id: Option<HeaderName>,
    /// Carries the key's tier.
    pub tier: Option<HeaderName>,
    /// Carries the key's owner.
    pub owner: Option<HeaderName>,
}

/// A place where a request may carry a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A header's whole value.
    Header(HeaderName),
    /// `Authorization: Bearer KEY`.
    Bearer,
    /// A parameter of the query.
    Query(String),
}

/// How refusals look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
pub enum ErrorStyle {
    /// As API Gateway: 403 and `{"message":"Forbidden"}`, whatever is wrong.
    #[default]
    #[schemars(rename = "aws")]
    Aws,
    /// RFC 9457: 401 where there is no key and 403 where it opens nothing, as `application/problem+json`.
    #[schemars(rename = "problem+json")]
    ProblemJson,
    /// The same statuses, and a line of text.
    #[schemars(rename = "plain")]
    Plain,
}

const ERROR_STYLES: &[(&str, ErrorStyle)] = &[
    (ErrorStyle::Aws.name(), ErrorStyle::Aws),
    (ErrorStyle::ProblemJson.name(), ErrorStyle::ProblemJson),
    (ErrorStyle::Plain.name(), ErrorStyle::Plain),
];

impl ErrorStyle {
    /// As plans have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::ProblemJson => "problem+json",
            Self::Plain => "plain",
        }
    }
}

impl Default for Authentication {
    fn default() -> Self {
        AuthenticationFile::default().into()
    }
}

impl From<AuthenticationFile> for Authentication {
    fn from(file: AuthenticationFile) -> Self {
        let usual = || {
            let header = HeaderName::from_static("x-api-key");
            vec![KeySource::Header(header), KeySource::Bearer]
        };
        let names = file.upstream_headers.unwrap_or_default();
        let name = |name: Option<String>| name.and_then(|name| name.parse().ok());
        Self {
            key_from: file.key_from.unwrap_or_else(usual),
            error_style: file.error_style.unwrap_or_default(),
            hide_key: file.hide_key.unwrap_or(true),
            upstream_headers: UpstreamHeaders {
                api_key_id: name(names.api_key_id),
                tier: name(names.tier),
                owner: name(names.owner),
            },
        }
    }
}

/// The text names no place of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no place of a key; write `header:NAME`, `bearer` or `query:NAME`")]
pub struct KeySourceError(String);

impl FromStr for KeySource {
    type Err = KeySourceError;

    fn from_str(text: &str) -> Result<Self, KeySourceError> {
        let error = || KeySourceError(text.to_owned());
        // What a query has to escape would not be found: names are compared as they are sent.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
        match text.split_once(':') {
            None if text == "bearer" => Ok(Self::Bearer),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| error()),
            Some(("query", name)) if !name.is_empty() && name.chars().all(plain) => {
                Ok(Self::Query(name.to_owned()))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "the header {name}"),
            Self::Bearer => f.write_str("Authorization: Bearer"),
            Self::Query(name) => write!(f, "the query parameter {name}"),
        }
    }
}

impl JsonSchema for KeySource {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KeySource".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A place where a request may carry a key: `header:NAME`, `bearer` or `query:NAME`.",
            "type": "string",
            "pattern": r"^(bearer|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+|query:[0-9A-Za-z._~-]+)$"
        })
    }
}

impl Reader<'_> {
    /// Reads `authentication`.
    pub fn authentication(
        &mut self,
        fields: &Fields<'_>,
        top: &Path<'_>,
    ) -> Option<AuthenticationFile> {
        let path = top.field("authentication");
        let fields = self.fields(fields.get("authentication")?, &path, &AUTHENTICATION)?;
        Some(AuthenticationFile {
            key_from: self.key_from(&fields, &path),
            error_style: self.choice(&fields, &path, "error_style", ERROR_STYLES),
            hide_key: self.flag(&fields, &path, "hide_key"),
            upstream_headers: self.upstream_headers(&fields, &path),
        })
    }

    fn key_from(&mut self, fields: &Fields<'_>, path: &Path<'_>) -> Option<Vec<KeySource>> {
        let node = fields.get("key_from")?;
        let path = path.field("key_from");
        let items = self.list(node, &path, "places");
        if items.is_empty() {
            self.error(node.place, &path, "needs a place: `header:x-api-key`, say");
        }
        let mut sources = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = path.item(index);
            match self.text(item, &path).map(str::parse::<KeySource>) {
                Some(Ok(source)) if sources.contains(&source) => {
                    self.error(item.place, &path, "stands here twice");
                }
                Some(Ok(source)) => sources.push(source),
                Some(Err(error)) => self.error(item.place, &path, error.to_string()),
                None => {}
            }
        }
        Some(sources)
    }

    fn upstream_headers(
        &mut self,
        fields: &Fields<'_>,
        path: &Path<'_>,
    ) -> Option<UpstreamHeadersFile> {
        let path = path.field("upstream_headers");
        let fields = self.fields(fields.get("upstream_headers")?, &path, &UPSTREAM_HEADERS)?;
        let mut taken = BTreeSet::new();
        let [api_key_id, tier, owner] = ["api_key_id", "tier", "owner"].map(|field| {
            let node = fields.get(field)?;
            let path = path.field(field);
            let text = self.text(node, &path)?;
            let name = text.parse::<HeaderName>();
            let ours = name.as_ref().is_ok_and(|name| *name != "host");
            if !ours {
                self.error(
                    node.place,
                    &path,
                    format!("`{text}` is no name of a header that may be set"),
                );
            } else if !taken.insert(text.to_lowercase()) {
                self.error(node.place, &path, format!("`{text}` stands here twice"));
            }
            Some(text.to_owned())
        });
        Some(UpstreamHeadersFile {
            api_key_id,
            tier,
            owner,
        })
    }
}
