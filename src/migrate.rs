//! Files of other rate-limit services: what they become here, and what will behave differently. Only tells; changes nothing.

pub mod envoyproxy;
pub mod limitador;
