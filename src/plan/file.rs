//! What a plan file holds, typed. The JSON Schema is made from these types; `read` fills them and checks them.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    authentication::{ErrorStyle, KeySource},
    beyond::{Mode, WarnAt},
    mistake::Place,
    rule::{Charge, Durable, OnStoreError},
};
use crate::limit::{Algorithm, Limit, Unit};

/// A plan file of Tollgate: the rules of one domain. Every configuration file of envoyproxy/ratelimit is one too.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(title = "Tollgate plan file", deny_unknown_fields)]
pub struct PlanFile {
    /// The further files of the domain that are put together in this one: which of the rules is the first of theirs, their
    /// names.
    #[schemars(skip)]
    pub further: Vec<(usize, Arc<str>)>,
    /// Name space of the rules; equals the domain that Envoy sends.
    pub domain: String,
    /// Rules for what Envoy sends first; each may have further ones below it.
    #[schemars(default)]
    pub descriptors: Option<Vec<RuleFile>>,
    /// Usage plans that API keys belong to, by name. Rules take their limits with `limits_from: tier`.
    #[schemars(default)]
    pub tiers: BTreeMap<String, TierFile>,
    /// The API keys, each with its tier.
    #[schemars(default)]
    pub api_keys: Option<Vec<ApiKeyFile>>,
    /// Where requests carry their API key, and what who has none is told. For Envoy's external authorization.
    #[schemars(default)]
    pub authentication: Option<AuthenticationFile>,
    /// Whose requests are refused before any limit is asked; wins over `allow`.
    #[schemars(default)]
    pub deny: Option<ListFile>,
    /// Whose requests pass whatever their limits, which are not charged.
    #[schemars(default)]
    pub allow: Option<ListFile>,
    /// What a request gets that meets no rule: `allow` (unless told), `deny`, or a limit that all such requests share.
    #[schemars(default)]
    pub unmatched: UnmatchedFile,
    /// What answers show beside the decision.
    #[schemars(default)]
    pub response: ResponseFile,
    /// What answers while the store does not; a rule may say otherwise for itself and the rules below it.
    #[schemars(default)]
    pub on_store_error: Option<OnStoreErrorFile>,
    /// How limits count that do not say it themselves: `rate_limit`, and plain `N/PERIOD`. A rule may say otherwise for itself and the rules
    /// below it.
    #[schemars(with = "Option<AlgorithmText>")]
    pub algorithm: Option<Algorithm>,
    /// When hits are charged: all of a request together if it passes; independently, each descriptor's whatever becomes of the
    /// others; or, when one is over, only what is over. A rule may say otherwise for itself and the rules
    /// below it.
    #[schemars(with = "Option<ChargeText>")]
    pub charge: Option<Charge>,
    /// Under `all_or_nothing`: hits that the descriptor itself tells are charged in full though they do not fit, into debt. A rule may say otherwise for itself and the rules
    /// below it.
    pub overdraw: Option<bool>,
}

/// One rule: what an entry must be, and what is allowed if it is the last one of its descriptor.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(rename = "Rule", deny_unknown_fields)]
pub struct RuleFile {
    /// Where it stands.
    #[schemars(skip)]
    pub place: Option<Place>,
    /// Key of the entry.
    #[schemars(with = "Text")]
    pub key: String,
    /// Value of the entry. Without it any value matches and each has its own bucket; `*` stands for any characters.
    #[schemars(with = "Option<Text>")]
    pub value: Option<String>,
    /// Network that the value, an address, must lie in; each address has its own bucket. Comes after the exact value and
    /// before wildcards; the longest prefix wins.
    #[schemars(with = "Option<String>")]
    pub cidr: Option<IpNet>,
    /// Rules for the descriptor's next entry.
    pub descriptors: Option<Vec<RuleFile>>,
    /// One limit, in the form of envoyproxy/ratelimit.
    pub rate_limit: Option<RateLimitFile>,
    /// Limits that all hold at once.
    pub limits: Option<Vec<LimitFile>>,
    /// `tier`: the entry's value is an API key, and its tier's limits hold; each key has its own buckets.
    pub limits_from: Option<LimitsFromFile>,
    /// With `limits_from`, what a key that nobody knows gets: `deny` (unless told), or the tier of that name.
    pub unknown_key: Option<String>,
    /// With `limits_from`: `secret` for an entry that comes straight from a client, so that a key's public id opens nothing.
    pub api_key_is: Option<ApiKeyIsFile>,
    /// Name of a rule with `limits` or `limits_from`; answers show it, `replaces` refers to it.
    pub name: Option<String>,
    /// With `limits` or `limits_from`: rules that do not count in a request which this rule matches.
    pub replaces: Option<Vec<ReplacesFile>>,
    /// What becomes of requests that do not fit its limits, where these say nothing themselves: `enforce` (unless told) refuses
    /// them; `shadow` counts and lets pass; `soft` lets pass, marks the answer and counts the overage.
    #[schemars(with = "Option<Mode>")]
    pub mode: Option<Mode>,
    /// Counts and measures, and never refuses.
    pub shadow_mode: Option<bool>,
    /// Refuses only together with all other rules in quota mode that the request meets. Goes with one limit.
    pub quota_mode: Option<bool>,
    /// All values that the `*` of this rule stands for share one bucket.
    pub share_threshold: Option<bool>,
    /// In envoyproxy/ratelimit's statistics this rule counts apart for each list of values; goes with a limit.
    pub detailed_metric: Option<bool>,
    /// In envoyproxy/ratelimit's statistics this rule and those below it count apart for each value of this entry.
    pub value_to_metric: Option<bool>,
    /// Copied to the answer's `dynamic_metadata` when the rule lets a request pass.
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// What answers for this rule and those below it while the store does not.
    pub on_store_error: Option<OnStoreErrorFile>,
    /// A request is answered only once so many replicas of Redis have what this rule charged, or the time is over.
    pub durable: Option<DurableFile>,
    /// How limits count that do not say it themselves: `rate_limit`, and plain `N/PERIOD`. Holds for the
    /// rules below too.
    #[schemars(with = "Option<AlgorithmText>")]
    pub algorithm: Option<Algorithm>,
    /// When hits are charged: all of a request together if it passes; independently, each descriptor's whatever becomes of the
    /// others; or, when one is over, only what is over. Holds for the
    /// rules below too.
    #[schemars(with = "Option<ChargeText>")]
    pub charge: Option<Charge>,
    /// Under `all_or_nothing`: hits that the descriptor itself tells are charged in full though they do not fit, into debt. Holds for the
    /// rules below too.
    pub overdraw: Option<bool>,
    /// Replicas take tokens of hot buckets ahead, and spend them without asking Redis.
    pub lease: Option<LeaseFile>,
}

/// How replicas take tokens ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "Lease", deny_unknown_fields)]
pub struct LeaseFile {
    /// Most tokens that one replica takes of one bucket, in percent of its burst or count: from `1%` to `50%`, `5%` unless told.
    #[schemars(rename = "portion", with = "Option<Percent>")]
    pub percent: u32,
    /// How long they may be spent: from `50ms` to `10s`, `200ms` unless told.
    #[schemars(rename = "for", with = "Option<String>")]
    pub life_ms: u32,
}

impl Default for LeaseFile {
    fn default() -> Self {
        Self {
            percent: 5,
            life_ms: 200,
        }
    }
}

/// How far what a rule charges must be handed on before a request is answered.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(rename = "Durable", deny_unknown_fields)]
pub struct DurableFile {
    /// Replicas of Redis that must have it.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: u8,
    /// Longest wait for them, from 1ms to 1s. The store timeout holds, too.
    #[schemars(rename = "within", with = "String")]
    pub within_ms: u16,
}

impl From<DurableFile> for Durable {
    fn from(file: DurableFile) -> Self {
        Self {
            replicas: file.replicas,
            within_ms: file.within_ms,
        }
    }
}

/// One limit, in the form of envoyproxy/ratelimit: `requests_per_unit` per `unit`, counted as `algorithm` says.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(rename = "RateLimit", deny_unknown_fields)]
pub struct RateLimitFile {
    /// Length of time; a month counts 30 days and a year 365.
    #[schemars(with = "Option<UnitText>")]
    pub unit: Option<Unit>,
    /// Requests per unit; 0 blocks.
    #[schemars(default)]
    pub requests_per_unit: u32,
    /// No limit at all; then there is no `unit`.
    #[schemars(default)]
    pub unlimited: bool,
    /// Name of the rule; answers show it, `replaces` refers to it.
    pub name: Option<String>,
    /// Rules that do not count in a request which this rule matches.
    pub replaces: Option<Vec<ReplacesFile>>,
}

/// A limit: `N/PERIOD`, then `burst B`, `sliding`, `calendar` or `fixed`, or nothing. As text, or as an object where more is
/// said.
#[derive(Debug, Clone)]
pub struct LimitFile {
    /// The limit.
    pub limit: Limit,
    /// Whether its text leaves it to `algorithm` how to count.
    pub plain: bool,
    /// Its name in answers.
    pub name: Option<String>,
    /// What becomes of requests that do not fit; else as the rule says.
    pub mode: Option<Mode>,
    /// From how much use on answers warn; else as `response` says for calendar limits, and never for others.
    pub warn_at: Option<WarnAt>,
}

/// A usage plan.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(rename = "Tier", deny_unknown_fields)]
pub struct TierFile {
    /// Limits that all hold at once, for each key of the tier; none for an unlimited tier.
    pub limits: Vec<LimitFile>,
}

/// An API key. Of its secret only the SHA-256 is known.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(rename = "ApiKey", deny_unknown_fields)]
pub struct ApiKeyFile {
    /// Public name of the key.
    #[schemars(with = "Text")]
    pub id: String,
    /// SHA-256 of the secret, as 64 hexadecimal digits.
    #[schemars(with = "String", regex(pattern = r"^[0-9a-fA-F]{64}$"))]
    pub sha256: [u8; 32],
    /// The tier it belongs to.
    pub tier: String,
    /// Whose it is; for people.
    #[schemars(with = "Option<Text>")]
    pub owner: Option<String>,
}

/// Clients by address and API key.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(rename = "List", deny_unknown_fields)]
pub struct ListFile {
    /// Networks. Looked for in entries of the keys `remote_address` and `ip`, and of the keys of rules with a `cidr`.
    #[schemars(with = "Vec<String>", default)]
    pub cidr: Vec<IpNet>,
    /// Ids of API keys, in a file or not. Looked for in entries of rules with `limits_from: tier`.
    #[schemars(with = "Vec<Text>", default)]
    pub api_key: Vec<String>,
    /// The file and the place in it where `api_key` stands.
    #[schemars(skip)]
    pub api_key_at: Option<(Arc<str>, Option<Place>)>,
}

/// Where requests carry their API key, and what who has none is told.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(rename = "Authentication", deny_unknown_fields)]
pub struct AuthenticationFile {
    /// Places to look at, in order. `header:x-api-key` and `bearer` unless told.
    pub key_from: Option<Vec<KeySource>>,
    /// How refusals look. `aws` unless told.
    pub error_style: Option<ErrorStyle>,
    /// Whether the key is taken out of the request before it goes to the upstream. It is unless told.
    pub hide_key: Option<bool>,
    /// Headers that tell the upstream whose request it is. None unless told.
    pub upstream_headers: Option<UpstreamHeadersFile>,
}

/// Names of headers that tell the upstream whose request it is.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(rename = "UpstreamHeaders", deny_unknown_fields)]
pub struct UpstreamHeadersFile {
    /// Carries the key's id.
    pub api_key_id: Option<String>,
    /// Carries the key's tier.
    pub tier: Option<String>,
    /// Carries the key's owner.
    pub owner: Option<String>,
}

/// A rule that is put aside.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(rename = "Replaces", deny_unknown_fields)]
pub struct ReplacesFile {
    /// Its name.
    pub name: String,
}

/// What answers show beside the decision.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "Response", deny_unknown_fields)]
pub struct ResponseFile {
    /// `Retry-After` on refusals. On unless told.
    pub retry_after: Option<bool>,
    /// `RateLimit` and `RateLimit-Policy`, naming every limit. On unless told.
    pub ratelimit: Option<bool>,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`. Off unless told, since Envoy writes its own.
    pub x_ratelimit: Option<bool>,
    /// `X-Tollgate-Degraded: true` on what was decided without the store. On unless told.
    pub degraded: Option<bool>,
    /// `dynamic_metadata` naming the rule that decided, and on a refusal its domain and limit. On unless told.
    pub metadata: Option<bool>,
    /// Body of a refusal; empty for none. `{"message":"Too Many Requests"}` unless told.
    pub body: Option<String>,
    /// Body of a refusal that a calendar limit decides, a quota. As `body` if that is told; else `{"message":"Limit Exceeded"}`.
    pub quota_body: Option<String>,
    /// `content-type` of these bodies. `application/json` unless told.
    pub content_type: Option<String>,
    /// Name of the header that warns of a limit that is nearly used up; empty for none. `x-ratelimit-warning` unless told.
    pub warning_header: Option<String>,
    /// From how much use of a calendar limit on it does: a percentage, or `never`. `80%` unless told.
    pub warn_at: Option<WarnAt>,
    /// Name of the header that tells which soft limits a request is beyond; empty for none. `x-ratelimit-overage` unless told.
    pub overage_header: Option<String>,
}

/// What a request gets that meets no rule.
#[derive(Debug, Clone, Default)]
pub enum UnmatchedFile {
    /// It passes.
    #[default]
    Allow,
    /// It is refused.
    Deny,
    /// All such requests share this limit.
    Limit(LimitFile),
}

impl UnmatchedFile {
    /// Whether it says other than what holds unless told.
    pub fn is_told(&self) -> bool {
        !matches!(self, Self::Allow)
    }
}

/// Where a rule's limits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "LimitsFrom", rename_all = "lowercase")]
pub enum LimitsFromFile {
    /// The tier of the API key.
    Tier,
}

/// What an `api_key` entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "ApiKeyIs", rename_all = "lowercase")]
pub enum ApiKeyIsFile {
    /// Only the secret itself.
    Secret,
}

/// What answers while the store does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "OnStoreError", rename_all = "lowercase")]
pub enum OnStoreErrorFile {
    /// A bucket in this process, at the limit divided by the live replicas.
    Local,
    /// The request passes.
    Allow,
    /// The request is refused.
    Deny,
    /// The call fails with UNAVAILABLE; Envoy's `failure_mode_deny` decides.
    Error,
}

impl From<OnStoreErrorFile> for OnStoreError {
    fn from(file: OnStoreErrorFile) -> Self {
        match file {
            OnStoreErrorFile::Local => Self::Local,
            OnStoreErrorFile::Allow => Self::Allow,
            OnStoreErrorFile::Deny => Self::Deny,
            OnStoreErrorFile::Error => Self::Error,
        }
    }
}

/// Text that YAML may take for a number or a truth value.
struct Text;

impl JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// The reference's units, in any letter case.
struct UnitText;

impl JsonSchema for UnitText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Unit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = Unit::ALL.map(Unit::name);
        let upper = names.map(str::to_uppercase);
        let all: Vec<_> = names.map(str::to_owned).into_iter().chain(upper).collect();
        json_schema!({ "enum": all })
    }
}

/// A share of a leased limit.
struct Percent;

impl JsonSchema for Percent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([1-9]|[1-4][0-9]|50)%$" })
    }
}

/// The names of ways to count.
struct AlgorithmText;

impl JsonSchema for AlgorithmText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Algorithm".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": Algorithm::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>() })
    }
}

/// The names of ways to charge.
struct ChargeText;

impl JsonSchema for ChargeText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Charge".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": Charge::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>() })
    }
}

const LIMIT_PATTERN: &str = r"^\s*[0-9_]+\s*/\s*[0-9]*\s*[A-Za-z]+(\s+burst\s+[0-9_]+|\s+sliding|\s+calendar|\s+fixed)?\s*$";

const DELAY_PATTERN: &str = r"^\s*(up to\s)?\s*[0-9]";
const LENGTH_PATTERN: &str = r"^\s*[0-9]";

impl JsonSchema for LimitFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A limit: `N/PERIOD`, then `burst B`, `sliding`, `calendar` or `fixed`, or nothing. A period is a unit or a number of them.",
            "examples": ["10/second burst 100", "50/minute sliding", "1000000/month", "100/10s"],
            "anyOf": [
                { "type": "string", "pattern": LIMIT_PATTERN },
                {
                    "type": "object",
                    "properties": {
                        "limit": { "type": "string", "pattern": LIMIT_PATTERN },
                        "name": { "description": "Its name in answers.", "type": "string" },
                        "mode": generator.subschema_for::<Mode>(),
                        "warn_at": generator.subschema_for::<WarnAt>(),
                        "time_zone": {
                            "description": "The zone whose calendar a calendar limit follows, by its IANA name; UTC unless told.",
                            "examples": ["Europe/Berlin"],
                            "type": "string"
                        },
                        "offset": {
                            "description": "How long after the zone's midnights the periods of a calendar limit begin.",
                            "examples": ["6h", "1d 12h"],
                            "type": "string"
                        },
                        "delay": {
                            "description": "Of a token bucket: the answer waits for its tokens, at most so long, instead of refusing.",
                            "type": "string",
                            "pattern": DELAY_PATTERN,
                            "examples": ["up to 500ms"]
                        },
                        "penalty": {
                            "description": "Who runs into the limit again and again is refused for a while: for so long at first, as a text or as `for`.",
                            "anyOf": [
                                { "type": "string", "pattern": LENGTH_PATTERN },
                                {
                                    "type": "object",
                                    "properties": {
                                        "for": { "description": "Length of the first penalty; each further one is twice as long.", "type": "string", "pattern": LENGTH_PATTERN },
                                        "after": { "description": "Refusals that bring it. 10 unless told.", "type": "integer", "minimum": 1 },
                                        "within": { "description": "How long after the first of them the others must come. 1m unless told.", "type": "string", "pattern": LENGTH_PATTERN },
                                        "longest": { "description": "Longest penalty; also how long after its end the last one is forgotten. 1h unless told.", "type": "string", "pattern": LENGTH_PATTERN }
                                    },
                                    "required": ["for"],
                                    "additionalProperties": false
                                }
                            ],
                            "examples": ["60s"]
                        }
                    },
                    "required": ["limit"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

impl JsonSchema for UnmatchedFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Unmatched".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "`allow`, `deny`, or a limit that all such requests share.",
            "anyOf": [
                { "enum": ["allow", "deny"] },
                { "type": "string", "pattern": LIMIT_PATTERN }
            ]
        })
    }
}
