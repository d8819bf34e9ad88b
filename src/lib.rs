//! Tollgate decides for Envoy whether a request may pass.
//!
//! A request travels `grpc/rls.rs` → `limiter.rs` → `store/` → `store/redis/take.lua` and back. `ARCHITECTURE.md` has the
//! map; each module uses only those listed above it here.

pub mod causes;
pub mod clock;
pub mod descriptor;
pub mod limit;
pub mod small_file;
pub mod tls;
pub mod watch;

pub mod bucket;

pub mod histogram;
pub mod keys;
pub mod statistics;

pub mod plan;

pub mod store;

pub mod home;
pub mod key_store;
pub mod plan_store;

pub mod usage;

pub mod decision;
pub mod limiter;

pub mod bucket_admin;
pub mod explain;
pub mod export;
pub mod metrics;
pub mod proto;

pub mod traces;
pub mod xds;

pub mod settings;

pub mod admin;
pub mod admin_api;
pub mod grpc;

pub mod envoy;

pub mod coverage;
pub mod replay;

pub mod server;

pub mod http_probe;
pub mod migrate;
pub mod stats;

pub mod cli;
