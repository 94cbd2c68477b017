//! The configuration of BIRD 2 for a node whose fabric routes the pods: it
//! announces the node's blocks by BGP, and puts those of the others into the
//! kernel.
//!
//! Invariant: whatever nodes there are, the text means what is meant: names
//! are of an alphabet without quotes, numbers and addresses are typed, and what
//! an operator gives as text is refused unless it is harmless.

use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use weft_api::{
    forwarder::{Node, Nodes},
    names::Name,
};

/// Longest password of a TCP session (TCP_MD5SIG_MAXKEYLEN of linux/tcp.h).
const PASSWORD_MAX: usize = 80;
/// Longest name of an interface, one less than IFNAMSIZ.
const DEVICE_MAX: usize = 15;

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The node's own autonomous system.
    pub asn: u32,
    /// Without one it is the node's IPv4 address.
    pub router_id: Option<Ipv4Addr>,
    /// Route reflectors or routers; without any, all nodes speak with all.
    pub neighbours: Vec<Neighbour>,
    /// What takes the packets to the node's own pods. Without one, packets to
    /// addresses that no more specific route has end here.
    pub device: Option<String>,
    pub password: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub address: IpAddr,
    pub asn: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BirdError {
    #[error("AS 0 is none; give the number of the node's autonomous system")]
    System,
    #[error("node {0} has no IPv4 address to be its router id; give one by --router-id")]
    RouterId(Name),
    #[error("neighbor {0}: {1}")]
    Neighbour(IpAddr, &'static str),
    #[error(
        "device {0:?} is no interface's name; give 1 to {DEVICE_MAX} letters, digits, '.', '-', '_'"
    )]
    Device(String),
    #[error(
        "the password does not fit: give 1 to {PASSWORD_MAX} visible ASCII characters but '\"'"
    )]
    Password,
}

/// The whole configuration. Only blocks within `pools` are taken from others,
/// and none that are the node's own.
pub fn render(nodes: &Nodes, pools: &[IpNet], options: &Options) -> Result<String, BirdError> {
    let own = &nodes.node;
    check(own, options)?;
    let first_v4 = own.underlay.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let router_id = options.router_id.or(first_v4);
    let router_id = router_id.ok_or_else(|| BirdError::RouterId(own.name.clone()))?;
    let mut text = format!(
        "# Made by weft bird for node {}: changes are lost.\n\nrouter id {router_id};\n\n\
         protocol device {{\n}}\n\n\
         # Next hops are looked up among the node's links and routes.\n\
         protocol direct weft_links {{\n\tipv4;\n\tipv6;\n}}\n",
        own.name
    );
    for family in [Family::V4, Family::V6] {
        text += &wanted(family, nodes, pools);
        text += &kernel(family, pools);
        text += &blocks(family, &own.blocks, options.device.as_deref());
        if let Some(local) = own.underlay.iter().find(|address| family.has(address)) {
            for session in sessions(family, nodes, options) {
                text += &bgp(family, *local, &session, options);
            }
        }
    }
    Ok(text)
}

fn check(own: &Node, options: &Options) -> Result<(), BirdError> {
    if options.asn == 0 {
        return Err(BirdError::System);
    }
    let mut seen = BTreeSet::new();
    for Neighbour { address, asn } in &options.neighbours {
        let refuse = |problem| Err(BirdError::Neighbour(*address, problem));
        let scoped = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() || scoped {
            return refuse("it is no address of another machine; give its global one");
        }
        if *asn == 0 {
            return refuse("AS 0 is none; give the number of its autonomous system");
        }
        if !seen.insert(address) {
            return refuse("it is named twice; name it once");
        }
        if own.underlay.contains(address) {
            return refuse("it is this node's own; name others");
        }
        if !own
            .underlay
            .iter()
            .any(|ours| ours.is_ipv4() == address.is_ipv4())
        {
            return refuse("the node has no address of its family; give the node one");
        }
    }
    if let Some(device) = &options.device {
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if device.is_empty() || device.len() > DEVICE_MAX || !device.chars().all(allowed) {
            return Err(BirdError::Device(device.clone()));
        }
    }
    if let Some(password) = &options.password {
        let allowed = |c: char| c.is_ascii_graphic() && c != '"';
        if password.is_empty() || password.len() > PASSWORD_MAX || !password.chars().all(allowed) {
            return Err(BirdError::Password);
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    fn of<'a>(self, nets: impl IntoIterator<Item = &'a IpNet>) -> BTreeSet<IpNet> {
        let nets = nets.into_iter().filter(|net| self.has(&net.addr()));
        nets.copied().collect()
    }
}

/// What is taken from neighbours.
fn wanted(family: Family, nodes: &Nodes, pools: &[IpNet]) -> String {
    let own = family.of(&nodes.node.blocks);
    let is_lent = |net: &&IpNet| {
        own.iter()
            .any(|block| block.contains(*net) && block != *net)
    };
    let others = nodes.peers.iter().flat_map(|peer| &peer.blocks);
    let lent = family.of(others.filter(is_lent));
    let mut text = format!("\nfunction weft_wanted{}()\n{{\n", family.digit());
    let mut line = |nets: BTreeSet<IpNet>, suffix: &str, verdict: bool| {
        if !nets.is_empty() {
            writeln!(
                text,
                "\tif net ~ {} then return {verdict};",
                set(&nets, suffix)
            )
            .ok();
        }
    };
    // Single addresses of an own block that another node holds.
    line(lent, "", true);
    line(own, "+", false);
    line(family.of(pools), "+", true);
    text + "\treturn false;\n}\n"
}

fn kernel(family: Family, pools: &[IpNet]) -> String {
    let digit = family.digit();
    let pools = family.of(pools);
    let import = match pools.is_empty() {
        true => "all".to_owned(),
        false => format!("where net !~ {}", set(&pools, "+")),
    };
    format!(
        "\nprotocol kernel weft_kernel{digit} {{\n\tlearn;\n\tipv{digit} {{\n\t\timport {import};\n\
         \t\texport where source = RTS_BGP || proto = \"weft_blocks{digit}\";\n\t}};\n}}\n"
    )
}

fn blocks(family: Family, blocks: &[IpNet], device: Option<&str>) -> String {
    let digit = family.digit();
    let mut text = format!("\nprotocol static weft_blocks{digit} {{\n\tipv{digit};\n");
    for net in family.of(blocks) {
        match device {
            Some(device) => writeln!(text, "\troute {net} via \"{device}\";"),
            None => writeln!(text, "\troute {net} blackhole;"),
        }
        .ok();
    }
    text + "}\n"
}

struct Session<'a> {
    neighbour: Neighbour,
    node: Option<&'a Name>,
}

fn sessions<'a>(family: Family, nodes: &'a Nodes, options: &Options) -> Vec<Session<'a>> {
    let asn = options.asn;
    let with = |node: &'a Node| {
        let address = node.underlay.iter().find(|address| family.has(address))?;
        let neighbour = Neighbour {
            address: *address,
            asn,
        };
        Some(Session {
            neighbour,
            node: Some(&node.name),
        })
    };
    if options.neighbours.is_empty() {
        return nodes.peers.iter().filter_map(with).collect();
    }
    let given = options.neighbours.iter().copied();
    let given = given.filter(|neighbour| family.has(&neighbour.address));
    given
        .map(|neighbour| Session {
            neighbour,
            node: None,
        })
        .collect()
}

/// Its name is made of the neighbour's address, so that a session outlives
/// what happens to others.
fn bgp(family: Family, local: IpAddr, session: &Session, options: &Options) -> String {
    let digit = family.digit();
    let Neighbour { address, asn } = session.neighbour;
    let symbol = address.to_string().replace(['.', ':'], "_");
    let mut text = format!("\nprotocol bgp weft_{symbol} {{\n");
    if let Some(node) = session.node {
        writeln!(text, "\tdescription \"node {node}\";").ok();
    }
    write!(
        text,
        "\tlocal {local} as {};\n\tneighbor {address} as {asn};\n",
        options.asn
    )
    .ok();
    if asn != options.asn {
        // Other nodes of this system are behind the neighbour.
        text += "\tallow local as 1;\n";
    }
    if let Some(password) = &options.password {
        writeln!(text, "\tpassword \"{password}\";").ok();
    }
    write!(
        text,
        "\tipv{digit} {{\n\t\timport where weft_wanted{digit}();\n\
         \t\texport where proto = \"weft_blocks{digit}\";\n\t}};\n}}\n"
    )
    .ok();
    text
}

/// As BIRD writes sets of prefixes.
fn set(nets: &BTreeSet<IpNet>, suffix: &str) -> String {
    let nets: Vec<_> = nets.iter().map(|net| format!("{net}{suffix}")).collect();
    format!("[ {} ]", nets.join(", "))
}
