//! The demo stats service.
