//! flannel's VXLAN backend: the network's configuration, the leases that
//! nodes hold in etcd, the annotations that they hold in Kubernetes, and
//! `subnet.env`.
//!
//! A lease is one node. Where it has both families it has a device, and so a
//! tunnel, for each: to the forwarder it is two peers.

mod annotations;
mod config;
mod env;
mod lease;
mod peers;

pub use self::{
    annotations::{PREFIX, lease, update, write},
    config::{Backend, Config, Range, Vxlan},
    env::SubnetEnv,
    lease::{Endpoint, Lease, Record, SubnetKey, VXLAN},
    peers::{Peers, peers, record},
};

/// In errors.
const FLANNEL: &str = "flannel";
