//! Who has which address: pools cut into blocks, blocks owned by nodes,
//! addresses held by handles.
//!
//! The way of a request: `server` reads it, `plan` decides it on the book and
//! says which rows change, the store makes the change durable, and only then
//! the answer goes out.
//!
//! Pure, without I/O, clock or thread: `model`, `selector`, `range`, `pool`,
//! `block`, `book`, `draft`, `claim`, `allocate`, `release`, `sweep`, `admin`,
//! `node`, `tunnel`, `show`, `check`, `import`, `plan`, `routes`. The rest is the shell.

#![forbid(unsafe_code)]

mod admin;
mod allocate;
pub mod block;
pub mod book;
pub mod check;
mod claim;
pub mod cli;
pub mod config;
mod draft;
pub mod import;
pub mod model;
mod node;
pub mod plan;
pub mod pool;
pub mod range;
mod release;
pub mod routes;
pub mod selector;
pub mod server;
mod show;
pub mod store;
pub mod sweep;
mod tunnel;
pub mod writer;
