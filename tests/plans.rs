//! Plans: what loads, what does not and what it is told, what a request meets.

#[path = "plans/matching.rs"]
mod matching;
#[path = "plans/schema.rs"]
mod schema;
#[path = "plans/reload.rs"]
mod reload;
