//! How the egress becomes the forwarder's host port.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use ipnet::IpNet;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use weft_api::{
    forwarder::{
        Answer, Attach, Capabilities, Driver, Error as Refusal, Host, PortState, Reply, Request,
        Status,
    },
    ipam,
    names::{Name, NameError},
};
use weft_socket::line::{Connection, LineError};

use crate::link::MAC;

const NAME: &str = "egress";
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Packets of any size go by the port: it is the pods' links that limit them.
const MTU: u16 = u16::MAX;

/// Bytes that may wait for the forwarder. The kernel gives as much as its
/// `net.core.wmem_max` allows, twice.
const WAITING: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("weft-forwarder: {0}")]
    Line(#[from] LineError),
    #[error("the forwarder refused: {0}")]
    Refused(Refusal),
    #[error("the forwarder gave an answer of another kind; do both have the same version?")]
    Confused,
    #[error("another weft-egress is this forwarder's host port; end it first")]
    Another,
    #[error("the forwarder follows no IPAM server that knows the pools; name them by --pool")]
    NoPools,
    #[error("ask for the pools: {0}")]
    Pools(#[from] weft_socket::ipam::ClientError),
    #[error("make the link to the forwarder: {0}")]
    Link(#[from] nix::Error),
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The egress is the host port.
#[derive(Debug)]
pub struct Attached {
    /// The port's other end.
    pub link: OwnedFd,
    pub pools: Vec<IpNet>,
}

/// Attaches. A port that an egress left behind is taken away first.
pub fn attach(control: &Path, pools: &[IpNet]) -> Result<Attached, AttachError> {
    let mut forwarder = Connection::open(control, DEADLINE)?;
    let pools = match pools {
        [] => told_pools(&mut forwarder)?,
        pools => pools.to_vec(),
    };
    let name = Name::new(NAME)?;
    let Reply::Ports(ports) = ask(&mut forwarder, &Request::List)? else {
        return Err(AttachError::Confused);
    };
    let left = ports
        .iter()
        .find(|port| port.driver == Driver::Packets && port.name == name);
    match left.map(|port| port.state) {
        Some(PortState::Up) => return Err(AttachError::Another),
        Some(PortState::Gone) => detach_by(&mut forwarder)?,
        None => {}
    }
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    setsockopt(&ours, sockopt::SndBuf, &WAITING)?;
    let request = Request::Attach(Attach {
        name,
        driver: Driver::Packets,
        mac: MAC,
        addresses: Vec::new(),
        mtu: MTU,
        capabilities: Capabilities::default(),
        host: Some(Host {
            pools: pools.clone(),
        }),
    });
    match forwarder.ask(&request, &[theirs.as_fd()])? {
        Answer::Ok(_) => Ok(Attached { link: ours, pools }),
        Answer::Error(refusal) => Err(AttachError::Refused(refusal)),
    }
}

/// Takes the port away.
pub fn detach(control: &Path) -> Result<(), AttachError> {
    detach_by(&mut Connection::open(control, DEADLINE)?)
}

fn detach_by(forwarder: &mut Connection) -> Result<(), AttachError> {
    let name = Name::new(NAME)?;
    ask(forwarder, &Request::Detach { name }).map(drop)
}

fn told_pools(forwarder: &mut Connection) -> Result<Vec<IpNet>, AttachError> {
    let Reply::Status(status) = ask(forwarder, &Request::Status)? else {
        return Err(AttachError::Confused);
    };
    let Status {
        ipam: Some(source), ..
    } = *status
    else {
        return Err(AttachError::NoPools);
    };
    let mut server = weft_socket::ipam::Client::connect(&source.socket)?;
    let ipam::Reply::Pools(pools) = server.request(&ipam::Request::Pools)? else {
        return Err(AttachError::Confused);
    };
    let pools: Vec<_> = pools.iter().map(|usage| usage.pool.cidr).collect();
    if pools.is_empty() {
        return Err(AttachError::NoPools);
    }
    Ok(pools)
}

pub fn ask(forwarder: &mut Connection, request: &Request) -> Result<Reply, AttachError> {
    match forwarder.ask(request, &[])? {
        Answer::Ok(reply) => Ok(reply),
        Answer::Error(refusal) => Err(AttachError::Refused(refusal)),
    }
}
