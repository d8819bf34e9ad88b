//! What a limit does beyond itself, and near it: whether it refuses, and from when on answers warn.

use std::{fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// What becomes of requests that do not fit a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// They are refused.
    #[default]
    Enforce,
    /// They pass, as if the limit were not there; it is counted and measured.
    Shadow,
    /// They pass, marked as beyond the limit, and their hits are counted as overage.
    Soft,
}

impl Mode {
    /// All of them, by name.
    pub const NAMES: &[(&str, Self)] = &[
        ("enforce", Self::Enforce),
        ("shadow", Self::Shadow),
        ("soft", Self::Soft),
    ];

    /// As plans say it.
    pub fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, mode)| *mode == self);
        found.expect("all are named").0
    }
}

/// From how much use of a limit on answers warn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WarnAt {
    /// They never do.
    Never,
    /// From so many percent on, 1 to 100.
    Percent(u8),
}

impl Default for WarnAt {
    fn default() -> Self {
        Self::Percent(80)
    }
}

impl WarnAt {
    /// Hits in use from which answers warn, of a limit of that capacity. None if they never do.
    pub fn hits(self, capacity: u32) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Percent(percent) => {
                let share = u64::from(capacity) * u64::from(percent);
                Some(share.div_ceil(100).max(1))
            }
        }
    }
}

/// The text is no share of a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no share of a limit; write a percentage from `1%` to `100%`, or `never`")]
pub struct WarnAtError(String);

impl FromStr for WarnAt {
    type Err = WarnAtError;

    fn from_str(text: &str) -> Result<Self, WarnAtError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let percent = text
            .strip_suffix('%')
            .and_then(|digits| digits.parse().ok());
        percent
            .filter(|percent| (1..=100).contains(percent))
            .map(Self::Percent)
            .ok_or_else(|| WarnAtError(text.to_owned()))
    }
}

impl fmt::Display for WarnAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl JsonSchema for Mode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": Self::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>() })
    }
}

impl JsonSchema for WarnAt {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "WarnAt".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([1-9][0-9]?%|100%|never)$" })
    }
}

/// What a rule says of its limits, where a limit says nothing itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beyond {
    pub mode: Mode,
    /// For calendar limits; others warn only if they say so.
    pub warn_at: WarnAt,
}
