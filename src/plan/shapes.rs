//! The kinds of maps in a plan file, and the fields of each.

/// The field names of envoyproxy/ratelimit. Source: its loader knows one list for all levels, so that a known name at the
/// wrong place loads and is ignored.
pub const REFERENCE: &[&str] = &[
    "domain",
    "key",
    "value",
    "descriptors",
    "rate_limit",
    "unit",
    "requests_per_unit",
    "unlimited",
    "shadow_mode",
    "quota_mode",
    "name",
    "replaces",
    "detailed_metric",
    "value_to_metric",
    "share_threshold",
    "metadata",
];

/// A kind of map: what it is called, which fields it has.
#[derive(Debug)]
pub struct Shape {
    /// For messages: `a rule`.
    pub what: &'static str,
    /// Its fields.
    pub fields: &'static [&'static str],
    /// Whether envoyproxy/ratelimit has such maps too, whose misplaced fields it ignores.
    pub reference: bool,
}

/// The whole file.
pub const PLAN: Shape = Shape {
    what: "a plan file",
    fields: &[
        "domain",
        "descriptors",
        "tiers",
        "api_keys",
        "authentication",
        "deny",
        "allow",
        "unmatched",
        "response",
        "on_store_error",
        "algorithm",
        "charge",
        "overdraw",
    ],
    reference: true,
};

/// An item of `descriptors`.
pub const RULE: Shape = Shape {
    what: "a rule",
    fields: &[
        "key",
        "value",
        "cidr",
        "descriptors",
        "rate_limit",
        "limits",
        "limits_from",
        "unknown_key",
        "api_key_is",
        "name",
        "replaces",
        "mode",
        "shadow_mode",
        "quota_mode",
        "share_threshold",
        "detailed_metric",
        "value_to_metric",
        "metadata",
        "on_store_error",
        "durable",
        "algorithm",
        "charge",
        "overdraw",
        "lease",
    ],
    reference: true,
};

/// `durable`.
pub const DURABLE: Shape = Shape {
    what: "durable",
    fields: &["replicas", "within"],
    reference: false,
};

/// `lease`.
pub const LEASE: Shape = Shape {
    what: "a lease",
    fields: &["portion", "for"],
    reference: false,
};

/// `rate_limit`.
pub const RATE_LIMIT: Shape = Shape {
    what: "a rate_limit",
    fields: &["unit", "requests_per_unit", "unlimited", "name", "replaces"],
    reference: true,
};

/// An item of `replaces`.
pub const REPLACES: Shape = Shape {
    what: "an item of replaces",
    fields: &["name"],
    reference: true,
};

/// A tier.
pub const TIER: Shape = Shape {
    what: "a tier",
    fields: &["limits"],
    reference: false,
};

/// A limit as an object.
pub const LIMIT: Shape = Shape {
    what: "a limit",
    fields: &[
        "limit",
        "name",
        "time_zone",
        "offset",
        "delay",
        "penalty",
        "mode",
        "warn_at",
    ],
    reference: false,
};

/// `penalty`, as an object.
pub const PENALTY: Shape = Shape {
    what: "a penalty",
    fields: &["for", "after", "within", "longest"],
    reference: false,
};

/// An item of `api_keys`.
pub const API_KEY: Shape = Shape {
    what: "an API key",
    fields: &["id", "sha256", "tier", "owner"],
    reference: false,
};

/// `allow` or `deny`.
pub const LIST: Shape = Shape {
    what: "a list of clients",
    fields: &["cidr", "api_key"],
    reference: false,
};

/// `authentication`.
pub const AUTHENTICATION: Shape = Shape {
    what: "authentication",
    fields: &["key_from", "error_style", "hide_key", "upstream_headers"],
    reference: false,
};

/// `upstream_headers`.
pub const UPSTREAM_HEADERS: Shape = Shape {
    what: "upstream_headers",
    fields: &["api_key_id", "tier", "owner"],
    reference: false,
};

/// `response`.
pub const RESPONSE: Shape = Shape {
    what: "response",
    fields: &[
        "retry_after",
        "ratelimit",
        "x_ratelimit",
        "degraded",
        "metadata",
        "body",
        "quota_body",
        "content_type",
        "warning_header",
        "warn_at",
        "overage_header",
    ],
    reference: false,
};

/// All kinds of maps.
pub const SHAPES: [&Shape; 14] = [
    &PLAN,
    &RULE,
    &DURABLE,
    &RATE_LIMIT,
    &REPLACES,
    &TIER,
    &LIMIT,
    &PENALTY,
    &API_KEY,
    &LIST,
    &AUTHENTICATION,
    &UPSTREAM_HEADERS,
    &RESPONSE,
    &LEASE,
];
