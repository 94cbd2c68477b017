//! `weft host`: the node's own port. By weft0 the node and the pods reach each
//! other, and the pods whatever the node is the way to.
//!
//! weft0 lives as long as its forwarder. What is done here can be done again:
//! what is there already stays.

mod check;
mod keep;
mod knobs;
mod nat;
pub mod plan;
mod underlay;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use ipnet::IpNet;
use weft_api::{
    forwarder::{Capabilities, Code, Driver, HOST_LINK, Host, Port, PortState},
    names::Name,
};
use weft_cni::{
    forwarder::{Client, ClientError},
    link::{self, Attach, Role, Wiring},
    nat::Ways,
    netlink::LinkState,
    netns::Netns,
    wire_pod,
};

use crate::{ipam::words::joined, output::show, target::Target};
use knobs::Scene;
use plan::{PATIENCE, Plan};
use underlay::Underlay;

pub use check::check;
pub use nat::check as check_nat;

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
    /// Pods of the pools that --pool names take the node's address outside the
    /// pools. Pools of the IPAM server say so themselves.
    #[arg(long, requires = "pools")]
    nat_outgoing: bool,
    /// Bytes of the largest IP packet that weft0 takes [default: what fits the
    /// tunnel, and where blocks are reached without one, the underlay's MTU].
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// Leave it as it is whether the kernel forwards packets, and what other
    /// links than weft0 take.
    #[arg(long)]
    keep_forwarding: bool,
    /// Go on until a signal, and make weft0 anew whenever it is not as it has
    /// to be: the forwarder has started anew, pools or addresses are others.
    #[arg(long)]
    keep: bool,
}

/// Take weft0 away, and with it its addresses and routes.
#[derive(Debug, clap::Args)]
pub struct Down {
    #[command(flatten)]
    target: Target,
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) if args.keep => keep::keep(&args),
        Command::Up(args) => show(&up(&args, &mut None)?),
        Command::Down(args) => down(&args.target),
    }
}

/// `kept`: what an earlier call has made. Without it, weft0 is given again what
/// it may have lost.
fn up(args: &Up, kept: &mut Option<nat::Kept>) -> anyhow::Result<String> {
    let mut forwarder = plan::connect(&args.target)?;
    let status = plan::settled(&mut forwarder)?;
    let underlay = Underlay::look(&status.underlay)?;
    let own = &underlay.addresses;
    let behind = plan::behind(&status, &args.pools, args.nat_outgoing)?;
    let port = host_port(&mut forwarder)?;
    let mac = port
        .as_ref()
        .map_or_else(plan::any_mac, |port| Ok(port.mac))?;
    let plan = plan::wiring(&mut forwarder, &status, own, behind, args.mtu, mac)?;
    let Plan {
        wiring,
        masqueraded,
        around,
    } = plan;
    let here = Netns::current()?;
    let done = raise(&here, &wiring, port, kept.is_none(), &mut forwarder)?;
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
    for held in &around {
        page += &held.warning();
    }
    let ways = Ways {
        pools: pools.to_vec(),
        masqueraded,
    };
    page += &nat::keep(ways, kept, &mut forwarder)?;
    page += &underlay.missing();
    let has = |v4| pools.iter().any(|pool| pool.addr().is_ipv4() == v4);
    let scene = Scene::look(has(true), has(false), underlay.links);
    page += &knobs::turn(&scene, !args.keep_forwarding);
    Ok(page)
}

fn down(target: &Target) -> anyhow::Result<ExitCode> {
    let mut forwarder = target.connect()?;
    let here = Netns::current()?;
    let mut page = match host_port(&mut forwarder)? {
        Some(port) => {
            lower(&here, &port, &mut forwarder)?;
            format!(
                "{HOST_LINK} is gone, with its addresses and routes; forwarding stays as it is\n"
            )
        }
        None => "there is no host port\n".to_owned(),
    };
    // Of another forwarder's weft0 it stays.
    if link::ours(&here, HOST_LINK)?.is_none() {
        page += &nat::down();
    }
    show(&page)
}

fn host_port(forwarder: &mut Client) -> anyhow::Result<Option<Port>> {
    let mut ports = forwarder.ports()?.into_iter();
    Ok(ports.find(|port| port.host.is_some()))
}

/// Sees that weft0, by now `port`, is as `wiring` says, and tells what that
/// took. `renew`: what costs to compare, too.
fn raise(
    here: &Netns,
    wiring: &Wiring,
    port: Option<Port>,
    renew: bool,
    forwarder: &mut Client,
) -> anyhow::Result<&'static str> {
    let link = link::ours(here, HOST_LINK)?;
    if let (Some(port), Some(link)) = (&port, &link) {
        refuse_foreign(port, link)?;
    }
    let done = match (&port, link) {
        (Some(port), Some(_)) if is_as(port, wiring) => {
            let whole = link::is_whole(here, wiring)?;
            if renew || !whole {
                link::renew(here, wiring)?;
            }
            return Ok(if whole {
                "is up already"
            } else {
                "is whole again"
            });
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
    let attached = wire_pod::attach_pod(here, &name, wiring, Capabilities::default(), forwarder);
    attached.with_context(|| match port {
        Some(_) => format!("the former {HOST_LINK} is gone, and there is no other yet"),
        None => format!("{HOST_LINK} is not made"),
    })?;
    Ok(done)
}

/// Each link has a MAC of its own, by which the forwarder's port is known.
fn refuse_foreign(port: &Port, link: &LinkState) -> anyhow::Result<()> {
    ensure!(
        link.mac == Some(port.mac),
        "the {HOST_LINK} of this network namespace is not this forwarder's, whose port {} is a \
         link at {}; name the forwarder that has it by --control, or run weft host up in the \
         network namespace of this one's",
        port.name,
        port.mac
    );
    Ok(())
}

/// Takes the port away; its link leaves with the forwarder's fds. One that
/// stays is not this forwarder's, and is left alone.
fn lower(here: &Netns, port: &Port, forwarder: &mut Client) -> anyhow::Result<()> {
    match forwarder.detach(port.name.clone()) {
        Err(ClientError::Refused(refusal)) if refusal.code == Code::NotFound => {}
        detached => detached?,
    }
    let until = Instant::now() + PATIENCE;
    while !link::has_left(here, HOST_LINK, || ()).0 {
        ensure!(
            Instant::now() < until,
            "port {} of this forwarder is detached, but the {HOST_LINK} of this network namespace \
             has stayed: it is another forwarder's (weft host down with the --control of that \
             one), or somebody else's (ip link del {HOST_LINK})",
            port.name
        );
    }
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
        Role::Host { pools, .. } => pools,
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
