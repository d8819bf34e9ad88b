//! The commands that tell what a change will do, as they are run: no server, no network.

#[path = "../common/mod.rs"]
mod common;

mod coverage;
mod diff;
mod run;
mod simulate;
