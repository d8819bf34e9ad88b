//! How plans are read, and what holds for all of them unless a file says otherwise.

use std::path::PathBuf;

use super::rule::{ResponseOptions, Role};

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
    /// empty or not there. Else they are its `*.yaml` and `*.yml`, and there is at least one.
    pub every_file: bool,
    /// Files of one domain are put together, in the order of their names. Else a second one is a mistake.
    pub merge_domains: bool,
    /// What answers show where a file says nothing of it.
    pub response: ResponseOptions,
    /// What holds for all rules, whatever they say.
    pub modes: Modes,
}

/// Switches over all rules.
// Source: envoyproxy/ratelimit, SHADOW_MODE and QUOTA_MODE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// No request is refused; statuses still say what their rules say.
    pub shadow: bool,
    /// Every rule is in quota mode, and a descriptor that no rule limits counts as one whose quota is never used up.
    pub quota: bool,
}

impl Modes {
    /// How a rule of that role takes part in decisions.
    pub fn role(self, role: Role) -> Role {
        match role {
            Role::Enforced if self.quota => Role::Quota,
            role => role,
        }
    }
}
