//! `weft join flannel`: read the network's configuration in etcd, check that
//! the forwarder fits it, and be a member until a signal.

mod lease;
mod member;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, bail, ensure};
use weft_api::{
    forwarder::{Node, Status},
    names::Mac,
};
use weft_cni::{forwarder::Client, netlink::Netlink};
use weft_etcd::{
    Cluster, below,
    message::{RANGE, RangeRequest, RangeResponse},
};
use weft_interop::{
    calico::derived_mac,
    flannel::{Backend, Config, Vxlan},
};
use weft_socket::{Signals, log};

use self::member::Member;
use super::{
    fabric,
    forwarder::{self, Forwarder},
    inbox::Inbox,
    life::live,
};
use crate::target::Target;

/// Of flannel's keys, where flannel is told no other.
const PREFIX: &str = "/coreos.com/network";

/// Be a node of a flannel network with the VXLAN backend, whose leases etcd
/// holds: take a subnet, keep its lease, and tell the forwarder of the others.
/// The subnet stays this node's for a day after the command ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Where etcd is: etcd://HOST:PORT/PREFIX, or etcds:// for TLS. More of
    /// HOST:PORT stand behind a comma; without a prefix it is
    /// /coreos.com/network.
    #[arg(long, value_name = "URL")]
    etcd: String,
    /// The address that other nodes reach this one by, one of each family
    /// that the network has; the forwarder's uplink listens on it.
    #[arg(long, value_name = "ADDRESS", required = true)]
    public_ip: Vec<IpAddr>,
    /// The MAC of this node's tunnel; the default follows from the node's
    /// name.
    #[arg(long, value_name = "MAC")]
    vtep_mac: Option<Mac>,
    /// Write the subnet to this file as flannel does, for its CNI plugin, and
    /// take the subnet that stands there if it is free.
    #[arg(long, value_name = "PATH")]
    subnet_env: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Before any thread starts.
    let signals = Signals::block().context("take the signals over")?;
    log::start(log::Format::Text);
    let etcd = weft_etcd::Config::parse(&args.etcd, PREFIX)?;
    let prefix = etcd.prefix.clone();
    let cluster = Arc::new(Cluster::new(etcd)?);
    let config = configuration(&cluster, &prefix)?;
    let control = args.target.path()?;
    let mut forwarder = Client::connect(&control)?;
    let (node, vxlan) = this_node(args, &config, &forwarder.status()?)?;
    let links = match vxlan.direct_routing {
        true => Some(links(&mut forwarder)?),
        false => None,
    };
    let mut member = Member {
        cluster,
        prefix,
        config,
        vxlan,
        links,
        node,
        subnet_env: args.subnet_env.clone(),
        own: None,
        rows: BTreeMap::new(),
    };
    live(
        &mut member,
        &mut Forwarder::at(control)?,
        &Inbox::open(signals)?,
    )?;
    Ok(ExitCode::SUCCESS)
}

fn configuration(cluster: &Cluster, prefix: &str) -> anyhow::Result<Config> {
    let query = RangeRequest {
        key: below(prefix, "config"),
        ..RangeRequest::default()
    };
    let found: RangeResponse = cluster.read(RANGE, &query)?;
    let key = format!("{prefix}/config");
    let Some(row) = found.kvs.first() else {
        bail!("{key}: it is missing; write flannel's network configuration there");
    };
    Ok(Config::parse(&key, &row.value.0)?)
}

/// By which to tell what nodes are near, once they can be reached.
fn links(forwarder: &mut Client) -> anyhow::Result<Netlink> {
    fabric::check(forwarder).context(
        "the network has DirectRouting: nodes on this node's links take and send packets for pods \
         without a tunnel",
    )?;
    Ok(Netlink::open()?)
}

/// What this node is but for its subnets, once all that the network asks is
/// there.
fn this_node(args: &Args, config: &Config, status: &Status) -> anyhow::Result<(Node, Vxlan)> {
    let vxlan = match &config.backend {
        Backend::Vxlan(vxlan) => *vxlan,
        Backend::Other(kind) => {
            bail!("the network's backend is {kind}; weft joins those of vxlan")
        }
    };
    forwarder::check_port(status, vxlan.port)?;
    for range in config.ranges() {
        let v4 = range.network.addr().is_ipv4();
        let found = args
            .public_ip
            .iter()
            .filter(|ip| ip.is_ipv4() == v4)
            .count();
        ensure!(
            found == 1,
            "the network has {}; give one --public-ip of that family, not {found}",
            range.network
        );
    }
    for &address in &args.public_ip {
        forwarder::check_address(status, address)?;
    }
    let usual = || derived_mac(status.node.as_str(), false);
    let node = Node {
        name: status.node.clone(),
        underlay: args.public_ip.clone(),
        vtep_mac: args.vtep_mac.unwrap_or_else(usual),
        vni: vxlan.vni,
        port: vxlan.port,
        blocks: Vec::new(),
        ways: BTreeMap::new(),
        tunnel: Vec::new(),
    };
    Ok((node, vxlan))
}
