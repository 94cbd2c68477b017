//! `weft host`: the node's own port. By weft0 the node and the pods reach each
//! other, and the pods whatever the node is the way to.
//!
//! weft0 lives as long as its forwarder. What is done here can be done again:
//! what is there already stays.

mod knobs;
mod plan;

use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Subcommand;
use ipnet::IpNet;
use weft_api::{
    forwarder::{Capabilities, Driver, HOST_LINK, Host, Port, PortState},
    names::Name,
};
use weft_cni::{
    forwarder::Client,
    link::{self, Attach, Role, Wiring},
    netns::Netns,
    wire_pod,
};

use crate::{ipam::words::joined, output::show, target::Target};

/// Let the node and the pods reach each other.
#[derive(Debug, Subcommand)]
pub enum Command {
    Up(Up),
    Down(Down),
}

/// Make weft0 in this network namespace, which takes CAP_NET_ADMIN, and hand it
/// to the forwarder. Again after the forwarder has started anew, and after a
/// pool was made.
#[derive(Debug, clap::Args)]
pub struct Up {
    #[command(flatten)]
    target: Target,
    /// What pods' addresses come from [default: the pools of the IPAM server
    /// that the forwarder follows].
    #[arg(long = "pool", value_name = "CIDR")]
    pools: Vec<IpNet>,
    /// Bytes of the largest IP packet that weft0 takes [default: what fits the
    /// tunnel, and where blocks are reached without one, the underlay's MTU].
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// Leave it as it is whether the kernel forwards packets.
    #[arg(long)]
    keep_forwarding: bool,
}

/// Take weft0 away, and with it its addresses and routes.
#[derive(Debug, clap::Args)]
pub struct Down {
    #[command(flatten)]
    target: Target,
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up(args),
        Command::Down(args) => down(&args.target),
    }
}

fn up(args: Up) -> anyhow::Result<ExitCode> {
    let mut forwarder = args.target.connect()?;
    let status = plan::settled(&mut forwarder)?;
    let wiring = plan::wiring(&mut forwarder, &status, args.pools, args.mtu)?;
    let done = raise(&Netns::current()?, &wiring, &mut forwarder)?;
    let mut page = format!("{HOST_LINK} {done}: {}\n", told(&wiring));
    if wiring.addresses.is_empty() {
        page += &format!(
            "note: node {} has no address of its own in the pod network, and speaks to pods from \
             its others\n",
            status.node
        );
    }
    let pools = pools(&wiring);
    for pool in pools {
        page += &format!("route {pool} by {HOST_LINK}\n");
    }
    page += &knobs::turn(pools, &status.underlay, !args.keep_forwarding);
    show(&page)
}

fn down(target: &Target) -> anyhow::Result<ExitCode> {
    let mut forwarder = target.connect()?;
    let Some(port) = host_port(&mut forwarder)? else {
        return show("there is no host port\n");
    };
    lower(&Netns::current()?, &port, &mut forwarder)?;
    show(&format!(
        "{HOST_LINK} is gone, with its addresses and routes; forwarding stays as it is\n"
    ))
}

fn host_port(forwarder: &mut Client) -> anyhow::Result<Option<Port>> {
    let mut ports = forwarder.ports()?.into_iter();
    Ok(ports.find(|port| port.host.is_some()))
}

/// Sees that weft0 is as `wiring` says, and tells what that took.
fn raise(here: &Netns, wiring: &Wiring, forwarder: &mut Client) -> anyhow::Result<&'static str> {
    let port = host_port(forwarder)?;
    let link = link::ours(here, HOST_LINK)?;
    let done = match (&port, link) {
        (Some(port), Some(_)) if is_as(port, wiring) => {
            link::renew(here, wiring)?;
            return Ok("is up already");
        }
        (Some(port), None) if port.state == PortState::Up => bail!(
            "{HOST_LINK} of this forwarder is up in another network namespace; run weft host up \
             there, or weft host down first"
        ),
        (None, Some(_)) => bail!(
            "{HOST_LINK} is there, and is no port of this forwarder; take it away by weft host \
             down with the --control of the one that has it"
        ),
        (Some(port), _) => {
            lower(here, port, forwarder)?;
            "is made anew"
        }
        (None, None) => "is up",
    };
    let name = Name::new(HOST_LINK)?;
    wire_pod::attach_pod(here, &name, wiring, Capabilities::default(), forwarder)?;
    Ok(done)
}

fn lower(here: &Netns, port: &Port, forwarder: &mut Client) -> anyhow::Result<()> {
    let (name, link) = (&port.name, HOST_LINK);
    let (faults, ()) = wire_pod::detach_pod(Some(here), name, link, Some(forwarder), || ());
    ensure!(faults.is_empty(), "{}", joined(&faults));
    Ok(())
}

fn is_as(port: &Port, wiring: &Wiring) -> bool {
    let host = Host {
        pools: pools(wiring).to_vec(),
    };
    let queues = match (port.driver, wiring.attach) {
        (Driver::Tap, Attach::Tap { queues }) => queues,
        _ => 1,
    };
    port.state == PortState::Up
        && port.mac == wiring.mac
        && port.addresses == wiring.addresses
        && port.mtu == wiring.mtu
        && port.queues == queues
        && port.host == Some(host)
}

fn pools(wiring: &Wiring) -> &[IpNet] {
    match &wiring.role {
        Role::Host { pools } => pools,
        Role::Pod => &[],
    }
}

fn told(wiring: &Wiring) -> String {
    let addresses = match wiring.addresses.is_empty() {
        true => "no address".to_owned(),
        false => joined(&wiring.addresses),
    };
    format!("{addresses}, MTU {}", wiring.mtu)
}
