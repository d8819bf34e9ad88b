//! Plans: what loads, what does not and what it is told, what a request meets.

#[path = "plans/away.rs"]
mod away;
#[path = "plans/counting.rs"]
mod counting;
#[path = "plans/files.rs"]
mod files;
#[path = "plans/matching.rs"]
mod matching;
#[path = "plans/model.rs"]
mod model;
#[path = "plans/reference.rs"]
mod reference;
#[path = "plans/reload.rs"]
mod reload;
#[path = "plans/schema.rs"]
mod schema;
#[path = "plans/sources.rs"]
mod sources;
#[path = "plans/words.rs"]
mod words;
