//! What weft's processes say to each other: plain data, its JSON shape and
//! its framing. Nothing here opens a file, a socket or a packet.

#![forbid(unsafe_code)]

mod error;
pub mod forwarder;
pub mod framing;
pub mod ipam;
pub mod names;
pub mod unique;

pub use error::Error;
