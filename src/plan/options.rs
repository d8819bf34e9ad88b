//! How plans are read, and what holds for all of them unless a file says otherwise.

use std::path::PathBuf;

use super::rule::{Counting, ResponseOptions};

/// Where plans come from, and how they are read.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Plan files and folders.
    pub paths: Vec<PathBuf>,
    /// How they are read.
    pub options: LoadOptions,
}

impl From<Vec<PathBuf>> for Sources {
    fn from(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            options: LoadOptions::default(),
        }
    }
}

/// How plans are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// A folder's files are all plan files, whatever their names end in, and those of the folders below it too; it may be
    /// empty, or not be there yet. Else they are its `*.yaml` and `*.yml`, and there is at least one.
    pub every_file: bool,
    /// Of a field that stands twice in a map the last one counts, with a warning, and what `<<` merges goes over what stands
    /// before it, as envoyproxy/ratelimit has it. Else the first is a mistake, and what is written counts whatever is merged.
    pub last_wins: bool,
    /// Files of one domain are put together, in the order of their names. Else a second one is a mistake.
    pub merge_domains: bool,
    /// What answers show where a file says nothing of it.
    pub response: ResponseOptions,
    /// How limits count and are charged where a file says nothing of it.
    pub counting: Counting,
    /// What holds for all rules, whatever they say.
    pub modes: Modes,
    /// Buckets' names begin with it, so that services with the same domains can share a Redis; empty for nothing.
    pub key_prefix: Box<str>,
}

/// Switches over all rules.
// Source: envoyproxy/ratelimit, SHADOW_MODE and QUOTA_MODE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// Every request passes. Its statuses tell what would have been, and a decision that it would have been refused.
    pub shadow: bool,
    /// Every rule counts as one in quota mode, and what no rule matches as a quota rule that passes. A rule of several limits
    /// stays what it is.
    pub quota: bool,
}
