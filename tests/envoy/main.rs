//! What needs Envoy: a real one in front of the built binary, with the configuration that is shipped; here and there Redis.

#[path = "../common/certificates.rs"]
mod certificates;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/redis_server.rs"]
mod redis_server;

mod client;
mod stack;

mod admin;
mod answers;
mod authority;
mod beyond;
mod changes;
mod coverage;
mod demo;
mod keys;
mod lifecycle;
mod limits;
mod odd;
mod outages;
mod pacing;
mod reference;
mod replicas;
mod secrets;
mod tools;
mod usage;
mod usage_plans;
