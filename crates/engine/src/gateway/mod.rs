//! Frames that the gateway answers itself, and the errors it sends. All of
//! it is stateless: each function writes a whole Ethernet frame into `reply`
//! or says why it has none.

pub mod arp;
mod envelope;
pub mod icmp;
pub mod ndp;
pub mod probe;

#[cfg(test)]
mod tests;
