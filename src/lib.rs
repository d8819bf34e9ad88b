//! Tollgate decides for Envoy whether a request may pass.
//!
//! A request travels `grpc/rls.rs` → `limiter.rs` → `store/` → `store/redis/take.lua` and back. `ARCHITECTURE.md` has the
//! map; each module uses only those listed above it here.

pub mod clock;
pub mod descriptor;
pub mod limit;

pub mod bucket;

pub mod plan;
pub mod store;

pub mod proto;

pub mod cli;
pub mod stats;
