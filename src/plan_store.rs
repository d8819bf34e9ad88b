//! Plans that are put in the place of a domain's files while the service runs: documents with versions, kept where API keys
//! made at run time are.
//!
//! A document is checked as files are, together with all the other plans, before it is kept. Each change of a domain is a new
//! version of it, that it goes back to its files too; some versions of before are kept, and can be put in force again.

mod admin;
mod record;

pub use self::{
    admin::{PlanAdmin, PlanError, Put},
    record::{KEPT_VERSIONS, LARGEST_DOCUMENT, PlanRecord, PlanTable, PlanView},
};
