//! What an Envoy configuration asks of a rate-limit service: filters, routes, their descriptors, the access log.
//!
//! Reads files, whole or as Envoy's admin page `/config_dump` gives them; knows nothing of plans. What is not about limits is
//! passed over: whether Envoy takes a file is Envoy's to say (`envoy --mode validate`).

pub mod access_log;
pub mod action;
pub mod matcher;
mod read;
pub mod route;

pub use self::{
    access_log::AccessLog,
    action::{Action, Ask, Facts, Found, Missing, Source},
    read::{EnvoyConfig, EnvoyError, Manager},
    route::{Asked, Filter, Route, VirtualHost},
};
