//! Tollgate decides for Envoy whether a request may pass.
//!
//! A request travels `grpc/rls.rs` → `limiter.rs` → `store/` → `store/redis/take.lua` and back. `ARCHITECTURE.md` has the
//! map; each module uses only those listed above it here.

pub mod cli;
pub mod http_probe;
pub mod proto;
pub mod stats;
