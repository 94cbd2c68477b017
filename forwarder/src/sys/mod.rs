//! System calls that no safe crate offers, behind safe functions.

pub mod link;
pub mod passing;
