//! ADD: plan, lease, link, attach, result. A failure undoes what was done,
//! in reverse, and tells the first cause.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use serde_json::{Map, Value};
use weft_api::{
    forwarder::{GATEWAY_V4, GATEWAY_V6},
    ipam::Attachment,
    names::{Mac, Name},
};
use weft_socket::{ipam::ClientError, line::LineError};

use super::{Order, delegate, port, publish, server};
use crate::{
    forwarder::Client,
    gso::Gso,
    link::{self, LinkError, Role, Wiring},
    nat::World,
    netns::{Netns, NetnsError},
    protocol::{Attach, Config, Dns, Failure, Interface, Ip, Ipam, Outcome, Pod, Route, code},
    wire_pod::{self, WireError},
};

/// What an ADD works on.
struct Plan<'a> {
    order: &'a Order,
    pod: &'a Pod,
    attachment: Attachment,
    port: Name,
    netns: Netns,
    forwarder: Client,
    /// Who leads ports of the node to the pod, if any do.
    world: Option<World>,
    node: Name,
    mac: Mac,
}

struct Lease {
    addresses: Vec<IpAddr>,
    dns: Dns,
}

pub(super) fn add(order: &Order, pod: &Pod, netns: &Path) -> Result<Value, Failure> {
    let mut plan = Plan::make(order, pod, netns)?;
    let lease = plan.lease()?;
    let wired = plan.wiring(&lease).and_then(|wiring| {
        let capabilities = order.config.runtime.capabilities.clone();
        let (netns, port) = (&plan.netns, &plan.port);
        wire_pod::attach_pod(netns, port, &wiring, capabilities, &mut plan.forwarder)
            .map_err(|error| of_wiring(&error))
    });
    match wired.and_then(|_| plan.publish()) {
        Ok(()) => Ok(plan.outcome(netns, &lease).to_json(order.config.version)),
        Err(failure) => Err(undone(failure, plan.give_back())),
    }
}

/// The first cause, with what could not be undone as its details.
pub(super) fn undone(failure: Failure, undo: Result<(), Failure>) -> Failure {
    match undo {
        Ok(()) => failure,
        Err(undo) => failure.with_details(format!("giving the address back failed too: {undo}")),
    }
}

impl<'a> Plan<'a> {
    /// Looks at everything that can be looked at before anything is changed.
    fn make(order: &'a Order, pod: &'a Pod, path: &Path) -> Result<Self, Failure> {
        let config = &order.config;
        let attachment = order.attachment(pod);
        let port = port(&attachment)?;
        let netns = Netns::open(path).map_err(|error| of_netns(&error))?;
        let interface = pod.interface.as_str();
        let taken = link::is_there(&netns, interface).map_err(|error| match error {
            LinkError::Netns(error) => of_netns(&error),
            error => Failure::new(code::LINK, error.to_string()),
        })?;
        if taken {
            return Err(Failure::new(
                code::EXISTS,
                format!(
                    "{interface} exists in {path:?}; DEL it first, or choose another CNI_IFNAME"
                ),
            ));
        }
        let mut forwarder =
            Client::connect(&config.forwarder).map_err(|error| server::of_forwarder(&error))?;
        let status = forwarder.status();
        let status = status.map_err(|error| server::of_forwarder(&error))?;
        let world = publish::foresee(order, &status, &mut forwarder)?;
        let plan = Self {
            order,
            pod,
            attachment,
            port,
            netns,
            forwarder,
            world,
            node: config.node.clone().unwrap_or(status.node),
            mac: config.runtime.mac.map_or_else(any_mac, Ok)?,
        };
        Ok(plan)
    }

    fn lease(&mut self) -> Result<Lease, Failure> {
        let config = &self.order.config;
        let name = match &config.ipam {
            Ipam::Delegate(name) => name.clone(),
            Ipam::Weft(weft) => {
                let (node, attachment) = (self.node.clone(), self.attachment.clone());
                return match server::allocate(weft, config, node, attachment, &self.pod.args) {
                    Ok(allocated) if allocated.existing => Err(self.exists()),
                    Ok(allocated) => Ok(Lease {
                        addresses: allocated
                            .addresses
                            .iter()
                            .map(|given| given.address)
                            .collect(),
                        dns: Dns::default(),
                    }),
                    Err(
                        error @ (ClientError::Refused(_)
                        | ClientError::Line(LineError::Connect { .. })),
                    ) => Err(server::of_ipam(&error)),
                    // It may have been given all the same, and be in use.
                    Err(error) if self.is_attached().unwrap_or(true) => {
                        Err(server::of_ipam(&error))
                    }
                    Err(error) => Err(undone(server::of_ipam(&error), self.give_back())),
                };
            }
        };
        // Its undo would take the first attachment's address.
        if self.is_attached()? {
            return Err(self.exists());
        }
        let said = match delegate::run(self.order, &name, "ADD") {
            Ok(said) => said.unwrap_or_default(),
            // It may have got half-way.
            Err(failure) => return Err(undone(failure, self.give_back())),
        };
        let what = format!("the result of IPAM plugin {name}");
        match Outcome::parse(&what, said, config.version) {
            Ok(outcome) if !outcome.ips.is_empty() => Ok(Lease {
                addresses: outcome.ips.iter().map(|ip| ip.address.addr()).collect(),
                dns: outcome.dns,
            }),
            Ok(_) => {
                let failure = Failure::new(code::DECODE, format!("{what} has no address"));
                Err(undone(failure, self.give_back()))
            }
            Err(failure) => Err(undone(failure, self.give_back())),
        }
    }

    /// Ports of the node lead to the pod afterwards, or it is not wired.
    fn publish(&mut self) -> Result<(), Failure> {
        let Err(failure) = publish::add(self.world, &mut self.forwarder) else {
            return Ok(());
        };
        let mut failures = vec![failure];
        let interface = self.pod.interface.as_str();
        let (errors, mended) = wire_pod::detach_pod(
            Some(&self.netns),
            &self.port,
            interface,
            Some(&mut self.forwarder),
            || publish::mend(self.order),
        );
        failures.extend(errors.iter().map(of_wiring));
        failures.extend(mended.err());
        Failure::all(failures).map_or(Ok(()), Err)
    }

    fn exists(&self) -> Failure {
        Failure::new(
            code::EXISTS,
            format!("{} is attached already; DEL it first", self.port),
        )
    }

    fn is_attached(&mut self) -> Result<bool, Failure> {
        let ports = self.forwarder.ports();
        let ports = ports.map_err(|error| server::of_forwarder(&error))?;
        Ok(ports.iter().any(|port| port.name == self.port))
    }

    fn give_back(&self) -> Result<(), Failure> {
        match &self.order.config.ipam {
            Ipam::Delegate(name) => delegate::run(self.order, name, "DEL").map(drop),
            Ipam::Weft(weft) => server::release(weft, self.attachment.clone())
                .map_err(|error| server::of_ipam(&error)),
        }
    }

    fn wiring(&self, lease: &Lease) -> Result<Wiring, Failure> {
        /// What every IPv6 link carries (RFC 8200 section 5).
        const MTU_MIN_V6: u16 = 1280;

        let config = &self.order.config;
        if config.mtu < MTU_MIN_V6 && lease.addresses.iter().any(IpAddr::is_ipv6) {
            return Err(Failure::new(
                code::CONFIG,
                format!("mtu is {}; IPv6 needs {MTU_MIN_V6}", config.mtu),
            ));
        }
        Ok(Wiring {
            interface: self.pod.interface.to_string(),
            mac: self.mac,
            addresses: lease.addresses.clone(),
            mtu: config.mtu,
            attach: match config.attach {
                Attach::Tap => link::Attach::Tap {
                    queues: config.queues,
                },
                Attach::Veth => link::Attach::Veth,
            },
            gso: Some(Gso::one_send(config.mtu)),
            role: Role::Pod,
        })
    }

    /// What the plugins before said, and this pod's part.
    fn outcome(&self, netns: &Path, lease: &Lease) -> Outcome {
        let config = &self.order.config;
        let mut outcome = config.previous.clone().unwrap_or_default();
        if config.attach == Attach::Veth {
            outcome.interfaces.push(Interface {
                name: link::host_end(&self.port),
                ..Interface::default()
            });
        }
        let interface = outcome.interfaces.len();
        let mtu = ("mtu".to_owned(), Value::from(config.mtu));
        outcome.interfaces.push(Interface {
            name: self.pod.interface.to_string(),
            mac: Some(self.mac.to_string()),
            sandbox: Some(netns.display().to_string()),
            other: Map::from_iter([mtu]),
        });
        for &address in &lease.addresses {
            let gateway = gateway(address);
            outcome.ips.push(Ip {
                interface: Some(interface),
                address: IpNet::from(address),
                gateway: Some(gateway),
                other: Map::new(),
            });
            let dst = any(address);
            if !outcome
                .routes
                .iter()
                .any(|r| r.dst == dst && r.gw == Some(gateway))
            {
                outcome.routes.push(Route {
                    dst,
                    gw: Some(gateway),
                    other: Map::new(),
                });
            }
        }
        if let Some(dns) = dns(config, lease) {
            outcome.dns = dns;
        }
        outcome
    }
}

/// The runtime's, else the configuration's, else the IPAM plugin's.
fn dns(config: &Config, lease: &Lease) -> Option<Dns> {
    let all = [
        config.runtime.dns.as_ref(),
        Some(&config.dns),
        Some(&lease.dns),
    ];
    all.into_iter()
        .flatten()
        .find(|dns| !dns.is_empty())
        .cloned()
}

pub(super) fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

fn any(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => ipnet::Ipv4Net::default().into(),
        IpAddr::V6(_) => ipnet::Ipv6Net::default().into(),
    }
}

/// A unicast address of nobody's making (IEEE 802, locally administered).
fn any_mac() -> Result<Mac, Failure> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(|error| Failure::new(code::IO, format!("read /dev/urandom: {error}")))?;
    bytes[0] = bytes[0] & 0xfc | 2;
    Ok(Mac(bytes))
}

pub(super) fn of_netns(error: &NetnsError) -> Failure {
    let number = match error {
        // To runtimes it means that nothing needs deleting.
        NetnsError::Open { error, .. } if error.kind() == ErrorKind::NotFound => {
            code::UNKNOWN_CONTAINER
        }
        NetnsError::NotNetns { .. } => code::ENVIRONMENT,
        _ => code::IO,
    };
    Failure::new(number, error.to_string())
}

pub(super) fn of_wiring(error: &WireError) -> Failure {
    let number = match error {
        WireError::Link {
            error: LinkError::Exists { .. },
            ..
        } => code::EXISTS,
        WireError::Link { .. } => code::LINK,
        WireError::Attach { error, .. }
        | WireError::Undo { error, .. }
        | WireError::Detach { error, .. } => server::of_forwarder(error).code,
    };
    Failure::new(number, error.to_string())
}
