//! What needs a redis-server: the Redis store against real processes.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/redis_server.rs"]
mod redis_server;

mod ask;
mod auth;
mod cluster;
mod exact;
mod faults;
mod keys;
mod model;
mod per_second;
mod same_answers;
mod sentinel;
mod tls;
mod usage;
