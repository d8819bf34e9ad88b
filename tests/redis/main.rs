//! What needs a redis-server: the Redis store against real processes.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/control_plane.rs"]
mod control_plane;
#[path = "../common/redis_server.rs"]
mod redis_server;
#[path = "../common/zones.rs"]
mod zones;

mod ask;
mod auth;
mod beyond;
mod checks;
mod clocks;
mod cluster;
mod delays;
mod exact;
mod fake;
mod faults;
mod keys;
mod lease;
mod model;
mod outages;
mod penalties;
mod per_second;
mod plans;
mod replicated;
mod same_answers;
mod sentinel;
mod tls;
mod usage;
