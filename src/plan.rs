//! Plans: policy files read, checked and compiled into one snapshot, and matched against what is asked.
//!
//! A file's way: `source` finds it, `tree` parses it (a resource of a control plane comes as a tree), `last_wins` settles what stands twice where that is tolerated, `read` turns it into the types of `file` and notes every mistake,
//! `compile` makes a [`Domain`] of it. [`Plans`] is all of them; `matching` finds the rules that a query meets.

pub mod diff;
pub(crate) mod fields;
pub mod file;
pub mod mistake;
pub mod reach;
pub mod reload;
pub mod rule;
pub(crate) mod scalar;
pub mod schema;
pub mod shapes;
pub mod tree;

mod authentication;
mod beyond;
mod compile;
mod document;
mod domain;
mod keys;
mod last_wins;
mod level;
mod lists;
mod matching;
mod merge;
mod options;
mod pacing;
mod plans;
mod read;
mod source;
mod stamp;
mod strangers;
mod subject;
mod words;

pub use self::{
    authentication::{Authentication, ErrorStyle, KeySource, UpstreamHeaders},
    beyond::{Mode, WarnAt, WarnAtError},
    document::{Document, domain_of},
    domain::Domain,
    keys::{ApiKey, KeyCheck, KnownKey},
    lists::{List, Lists},
    mistake::{LoadError, Mistake, Notes, Place},
    options::{LoadOptions, Modes, Sources},
    plans::Plans,
    reload::{ReloadStatus, SharedPlans, StreamStatus},
    rule::{
        Allowance, Charge, Counting, Durable, Lease, LimitHeaders, MOST_REPLICAS, Match,
        MetadataStyle, OnStoreError, ResponseOptions, Role, Rule, RuleCounters, RuleLimit,
    },
    source::{Content, LARGEST_FILE, Source},
    stamp::stamp,
};
