//! Plans: policy files read, checked and compiled into one snapshot, and matched against what is asked.
//!
//! `file` reads YAML into typed files with every mistake's place; `compile` turns them into [`Plans`]; `matching` finds the
//! rules of a query; `reload` keeps the last good snapshot while files change.

pub mod rule;

pub use self::rule::{
    Allowance, Match, OnStoreError, ResponseOptions, Role, Rule, RuleCounters, RuleLimit,
};
