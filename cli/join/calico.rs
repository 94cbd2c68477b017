//! `weft join calico`: read the network's settings in etcd, check that the
//! forwarder fits them, and be a member until a signal.

mod address;
mod claim;
mod leave;
mod member;
mod records;
mod store;

use std::{collections::BTreeMap, net::IpAddr, process::ExitCode, str::FromStr, sync::Arc};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use weft_api::{
    forwarder::{Node, Status},
    names::{Mac, Name, NameError},
};
use weft_cni::forwarder::Client;
use weft_etcd::Cluster;
use weft_forwarder::links;
use weft_interop::calico::{PREFIX, Wire, derived_mac};
use weft_socket::{Signals, log};

use self::{member::Member, records::Records};
use super::{
    forwarder::{self, Forwarder},
    inbox::Inbox,
    life::live,
};
use crate::target::Target;

/// Be a node of a Calico network whose pools have VXLAN and whose datastore is
/// etcd: claim blocks, take tunnel addresses, publish this node, and tell the
/// forwarder of the others.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Where etcd is: etcd://HOST:PORT, or etcds:// for TLS. More of HOST:PORT
    /// stand behind a comma.
    #[arg(long, value_name = "URL")]
    etcd: String,
    /// This node's name among Calico's; the default is the forwarder's.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: Option<Name>,
    /// The address that other nodes reach this one by, at most one of each
    /// family; the forwarder's uplink listens on it. Its length says which
    /// nodes are in the same subnet; the default is its link's.
    #[arg(long, value_name = "ADDRESS[/LEN]", required = true)]
    public_ip: Vec<Public>,
    /// The MAC of this node's tunnels; the default follows from the node's
    /// name, as Calico has it.
    #[arg(long, value_name = "MAC")]
    vtep_mac: Option<Mac>,
}

#[derive(Debug, Clone, Copy)]
struct Public {
    address: IpAddr,
    len: Option<u8>,
}

impl FromStr for Public {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text
            .parse::<IpNet>()
            .map(|net| (net.addr(), Some(net.prefix_len())));
        let (address, len) = net
            .or_else(|_| text.parse().map(|address| (address, None)))
            .map_err(|_| format!("{text:?} is no address; write ADDRESS or ADDRESS/LEN"))?;
        Ok(Self { address, len })
    }
}

fn parse_name(text: &str) -> Result<Name, NameError> {
    Name::new(text)
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Before any thread starts.
    let signals = Signals::block().context("take the signals over")?;
    log::start(log::Format::Text);
    let etcd = weft_etcd::Config::parse(&args.etcd, PREFIX)?;
    ensure!(
        etcd.prefix == PREFIX,
        "--etcd {}: Calico's keys are below {PREFIX}; write the URL without a prefix",
        args.etcd
    );
    let cluster = Arc::new(Cluster::new(etcd)?);
    let control = args.target.path()?;
    let status = Client::connect(&control)?.status()?;
    let name = args.name.clone().unwrap_or_else(|| status.node.clone());
    let wire = Records::load(&cluster)?.wire(name.as_str());
    let lens = check(args, &status, &wire)?;
    let node = Node {
        underlay: args.public_ip.iter().map(|public| public.address).collect(),
        vtep_mac: args
            .vtep_mac
            .unwrap_or_else(|| derived_mac(name.as_str(), false)),
        vni: wire.vni,
        port: wire.port,
        blocks: Vec::new(),
        ways: BTreeMap::new(),
        tunnel: Vec::new(),
        name,
    };
    let mut member = Member::new(cluster, node, lens);
    live(
        &mut member,
        &mut Forwarder::at(control)?,
        &Inbox::open(signals)?,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// That the forwarder fits; returns the lengths of the addresses' subnets, by
/// family.
fn check(args: &Args, status: &Status, wire: &Wire) -> anyhow::Result<[u8; 2]> {
    forwarder::check_port(status, wire.port)?;
    let mut lens = [32, 128];
    for (place, public) in args.public_ip.iter().enumerate() {
        let address = public.address;
        forwarder::check_address(status, address)?;
        let same = |other: &Public| other.address.is_ipv4() == address.is_ipv4();
        ensure!(
            !args.public_ip[..place].iter().any(same),
            "--public-ip {address}: it is the second of its family; give one"
        );
        let len = &mut lens[usize::from(address.is_ipv6())];
        *len = public.len.or_else(|| link_len(address)).unwrap_or(*len);
    }
    Ok(lens)
}

/// Of the link that has the address here.
fn link_len(address: IpAddr) -> Option<u8> {
    let subnets = links::subnets_of(&[address]).ok()?;
    subnets.first().map(IpNet::prefix_len)
}
