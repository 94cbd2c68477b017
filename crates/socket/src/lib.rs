//! Both ends of the Unix sockets that weft's processes speak over.
//!
//! A daemon's end is a file with an owner, a mode and a list of who may
//! connect ([`guard`]), the signals that end it ([`Signals`]), its log
//! ([`mod@log`]) and what it gives up ([`mod@confine`]). The other end is
//! blocking, and each of its calls ends by a deadline ([`mod@line`]; [`ipam`]
//! speaks with the IPAM server).

#![forbid(unsafe_code)]

pub mod confine;
pub mod guard;
pub mod ipam;
pub mod line;
pub mod log;
mod signals;

pub use signals::Signals;
