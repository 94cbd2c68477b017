//! The CNI plugin as a runtime calls it, rule by rule (docs/cni-rules.md
//! says which test holds which), with a real forwarder, a real IPAM server,
//! real namespaces and other people's plugins.

mod capabilities;
mod chain;
mod check;
mod gc;
mod killed;
mod life;
mod node;
mod page;
mod proxy;
