//! The commands of `tollgate`, one module each. Printing stays here.

pub mod bench;
