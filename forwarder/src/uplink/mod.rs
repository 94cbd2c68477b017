//! The UDP side: datagrams to and from peers.

use std::net::IpAddr;

#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// The node's underlay addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// Sockets, and so source ports, over which flows are spread.
    pub entropy_ports: usize,
    /// Try UDP_SEGMENT and UDP_GRO.
    pub gso: bool,
    pub gro: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("bind {address} port {port}: {source}")]
    Bind { address: IpAddr, port: u16, source: std::io::Error },
}
