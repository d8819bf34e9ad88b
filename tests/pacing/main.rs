//! What becomes of requests beyond a limit that says `delay` or `penalty`. Needs nothing.

#[path = "../common/mod.rs"]
mod common;

mod delay;
mod kept;
mod penalty;
mod shop;
