//! The way in and out by the node's kernel: pods take the node's address where
//! nobody knows theirs, and ports of the node lead to pods.

mod life;
mod out;
mod portmap;
mod ports;
mod talk;
mod world;
