//! Who has which address: pools cut into blocks, blocks owned by nodes,
//! addresses held by handles.
//!
//! The way of a request: `server` reads it, `plan` decides it on the book and
//! says which rows change, the store makes the change durable, and only then
//! the answer goes out.
//!
//! Pure, without I/O, clock or thread: `model`, `selector`, `pool`, `book`,
//! `claim`, `sweep`, `check`, `plan`, `routes`. The rest is the shell.

#![forbid(unsafe_code)]

pub mod check;
pub mod import;
pub mod model;
pub mod plan;
pub mod selector;
pub mod store;
