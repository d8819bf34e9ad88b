//! Plans: policy files read, checked and compiled into one snapshot, and matched against what is asked.
//!
//! A file's way: `source` finds it, `tree` parses it, `read` turns it into the types of `file` and notes every mistake,
//! `compile` makes a [`Domain`] of it. [`Plans`] is all of them; `matching` finds the rules that a query meets.

pub mod diff;
pub mod file;
pub mod mistake;
pub mod reach;
pub mod reload;
pub mod rule;
pub mod schema;
pub mod shapes;
pub mod tree;

mod compile;
mod domain;
mod fields;
mod keys;
mod level;
mod matching;
mod plans;
mod read;
mod scalar;
mod source;
mod subject;

pub use self::{
    domain::Domain,
    keys::ApiKey,
    mistake::{LoadError, Mistake, Place},
    plans::Plans,
    reload::{ReloadStatus, SharedPlans},
    rule::{Allowance, Match, OnStoreError, ResponseOptions, Role, Rule, RuleCounters, RuleLimit},
    source::LARGEST_FILE,
};
