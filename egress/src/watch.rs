//! What the forwarder says of its ports, asked again and again by a thread of
//! its own, so that no flow waits for the answer.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use mio::Waker;
use weft_api::{
    forwarder::{PortMapping, PortState, Reply, Request},
    names::Name,
};
use weft_socket::line::Connection;

use crate::attach::{AttachError, DEADLINE, ask};

/// Between two questions. An answer of 1 000 ports takes a few milliseconds.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// The pods' that are up.
    pub pods: BTreeMap<Name, Pod>,
    /// The node's own addresses.
    pub node: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub addresses: Vec<IpAddr>,
    pub mtu: u16,
    pub mappings: Vec<PortMapping>,
}

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    news: Receiver<Ports>,
    _end: Sender<()>,
}

impl Watch {
    /// `waker` wakes whoever is to look for [`Watch::news`].
    pub fn start(control: &Path, waker: Waker) -> std::io::Result<Self> {
        let (tell, news) = channel();
        let (end, ended) = channel();
        let control = control.to_owned();
        let run = move || follow(&control, &tell, &ended, &waker);
        thread::Builder::new()
            .name("weft-watch".to_owned())
            .spawn(run)?;
        Ok(Self { news, _end: end })
    }

    /// The newest, if there is something new.
    pub fn news(&self) -> Option<Ports> {
        self.news.try_iter().last()
    }
}

fn follow(control: &Path, tell: &Sender<Ports>, ended: &Receiver<()>, waker: &Waker) {
    let mut forwarder = None;
    let mut known = Ports::default();
    loop {
        match ports(control, &mut forwarder) {
            Ok(ports) if ports != known => {
                known = ports.clone();
                if tell.send(ports).is_err() || waker.wake().is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!("ask for the ports: {error}");
                forwarder = None;
            }
        }
        if ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

fn ports(control: &Path, open: &mut Option<Connection>) -> Result<Ports, AttachError> {
    let forwarder = match open {
        Some(forwarder) => forwarder,
        None => open.insert(Connection::open(control, DEADLINE)?),
    };
    let Reply::Ports(ports) = ask(forwarder, &Request::List)? else {
        return Err(AttachError::Confused);
    };
    let Reply::Status(status) = ask(forwarder, &Request::Status)? else {
        return Err(AttachError::Confused);
    };
    let pods = ports
        .into_iter()
        .filter(|port| port.host.is_none() && port.state == PortState::Up)
        .map(|port| {
            let pod = Pod {
                addresses: port.addresses,
                mtu: port.mtu,
                mappings: port.capabilities.port_mappings,
            };
            (port.name, pod)
        });
    Ok(Ports {
        pods: pods.collect(),
        node: [status.underlay, status.tunnel].concat(),
    })
}
