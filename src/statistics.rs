//! The statistics of envoyproxy/ratelimit: what each of its rules would have counted, under the names its users know.
//!
//! [`Statistics`] holds the counters; a rule remembers its own, so that a decision finds them without a look at any table.
//! Nothing of this runs unless someone asks for it. `export/` writes them down.

pub mod counts;
pub mod key;
pub mod rule;
pub mod sum;
pub mod table;

pub use self::{
    counts::{Counter, Counts, Judged},
    key::StatKey,
    rule::{KeyLevel, RuleStatistics},
    sum::{HitSum, MOST_HITS, counted},
    table::Statistics,
};
