//! What the node's kernel translates for pods, in a table of nftables of its
//! own: who leaves the pools takes the node's address, and ports of the node
//! lead to pods.
//!
//! What is published is what the forwarder's ports publish, as long as weft0 is
//! one of them, and nobody writes down anything else: each change compares the
//! kernel's maps with that list and mends what differs, whoever left it. Two that do so at once cannot undo
//! each other's: the list is read after the ruleset's generation, and the
//! kernel takes the change only if that has stayed.

mod conntrack;
mod entry;
mod netfilter;
mod rule;
mod table;

use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant},
};

use ipnet::{Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use weft_api::forwarder::{Driver, Port, PortState};

use crate::forwarder::ClientError;
use entry::Map;
use netfilter::Netfilter;
use table::Table;

pub use entry::Entry;
pub use table::{NAME as TABLE, Ways};

/// For others, who change the ruleset too, to let one change through.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum NatError {
    #[error("open a netfilter socket: {0}; does this kernel have nftables (nf_tables)?")]
    Open(io::Error),
    /// The kernel's own answer.
    #[error("nftables: {what}: {error}{}", hint(.error))]
    Refused {
        what: &'static str,
        error: io::Error,
    },
    #[error("nftables: {what}: the kernel's answer makes no sense")]
    Confused { what: &'static str },
    #[error(
        "nftables: others have changed the ruleset all the time for {} s; try again",
        PATIENCE.as_secs()
    )]
    Overtaken,
    #[error(
        "there is no table inet {TABLE} in this network namespace, which has to lead ports of the \
         node to pods; run weft host up"
    )]
    NoTable,
    #[error(transparent)]
    Forwarder(#[from] ClientError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => "; it takes CAP_NET_ADMIN in this network namespace",
        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => {
            "; does this kernel have nf_tables, nft_nat, nft_masq, nft_fib_inet and nft_ct?"
        }
        _ => "",
    }
}

/// By what the node's ports lead to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// The node's kernel.
    Kernel,
    /// A process that is the forwarder's host port.
    User,
}

impl World {
    /// None without a host port.
    pub fn of(ports: &[Port]) -> Option<Self> {
        let is_up = |port: &&Port| port.host.is_some() && port.state == PortState::Up;
        let host = ports.iter().find(is_up)?;
        Some(match host.driver {
            Driver::Packets => Self::User,
            Driver::Tap | Driver::Basic | Driver::Veth => Self::Kernel,
        })
    }
}

/// Sees that the table is there and as `ways` and the forwarder's ports say.
/// Returns how much is published.
pub fn up(
    ways: &Ways,
    mut ports: impl FnMut() -> Result<Vec<Port>, ClientError>,
) -> Result<usize, NatError> {
    let mut netfilter = Netfilter::open()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let generation = netfilter.generation()?;
        let before = published_by(&mut netfilter)?.unwrap_or_default();
        let published = wanted(&ports()?);
        let changes = Table::WEFT.anew(ways, &published);
        match netfilter.commit("make the table", Some(generation), changes) {
            Err(NatError::Overtaken) if Instant::now() < until => {}
            done => {
                done?;
                conntrack::forget(&mut netfilter, before.symmetric_difference(&published))?;
                return Ok(published.len());
            }
        }
    }
}

/// Takes the table away. Returns whether there was one.
pub fn down() -> Result<bool, NatError> {
    let mut netfilter = Netfilter::open()?;
    match netfilter.commit("take the table away", None, vec![Table::WEFT.gone()]) {
        Err(NatError::Refused { error, .. }) if is(&error, Errno::ENOENT) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Sees that what the forwarder's ports publish is published, and nothing else.
pub fn publish(ports: impl FnMut() -> Result<Vec<Port>, ClientError>) -> Result<(), NatError> {
    let mut netfilter = Netfilter::open()?;
    match mend(&mut netfilter, ports, false)? {
        true => Ok(()),
        false => Err(NatError::NoTable),
    }
}

/// Sees that nothing is published but by the forwarder's ports. Where nothing
/// is published at all, the forwarder is not asked.
pub fn unpublish(ports: impl FnMut() -> Result<Vec<Port>, ClientError>) -> Result<(), NatError> {
    let looked = Netfilter::open().and_then(|mut netfilter| {
        netfilter.generation()?;
        Ok(netfilter)
    });
    let mut netfilter = match looked {
        // Who may not, or has no nf_tables, has published nothing.
        Err(NatError::Open(error) | NatError::Refused { error, .. })
            if [
                Errno::EPERM,
                Errno::EPROTONOSUPPORT,
                Errno::EOPNOTSUPP,
                Errno::EINVAL,
            ]
            .iter()
            .any(|errno| is(&error, *errno)) =>
        {
            return Ok(());
        }
        looked => looked?,
    };
    mend(&mut netfilter, ports, true).map(drop)
}

/// What the kernel publishes; none where there is no table.
pub fn published() -> Result<Option<BTreeSet<Entry>>, NatError> {
    published_by(&mut Netfilter::open()?)
}

/// Whether this kernel lets this user do all of it: a table is made and taken
/// away again in one transaction, which nobody sees.
pub fn probe() -> Result<(), NatError> {
    let mut netfilter = Netfilter::open()?;
    let both = vec![Ipv4Net::default().into(), Ipv6Net::default().into()];
    let ways = Ways {
        pools: both.clone(),
        masqueraded: both,
    };
    let mut changes = Table::TRIAL.anew(&ways, &BTreeSet::new());
    changes.push(Table::TRIAL.gone());
    netfilter.commit("try a table", None, changes)
}

/// Returns whether there is a table.
fn mend(
    netfilter: &mut Netfilter,
    mut ports: impl FnMut() -> Result<Vec<Port>, ClientError>,
    quiet: bool,
) -> Result<bool, NatError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let generation = netfilter.generation()?;
        let Some(before) = published_by(netfilter)? else {
            return Ok(false);
        };
        if quiet && before.is_empty() {
            return Ok(true);
        }
        let after = wanted(&ports()?);
        let changes = Table::WEFT.change(&before, &after);
        // What was read while others changed it may never have been so.
        if changes.is_empty() && netfilter.generation()? == generation {
            return Ok(true);
        }
        match netfilter.commit("change what is published", Some(generation), changes) {
            Err(NatError::Overtaken) if Instant::now() < until => {}
            done => {
                done?;
                conntrack::forget(netfilter, before.symmetric_difference(&after))?;
                return Ok(true);
            }
        }
    }
}

/// Nothing where the kernel does not lead to pods.
fn wanted(ports: &[Port]) -> BTreeSet<Entry> {
    match World::of(ports) {
        Some(World::Kernel) => Entry::all(ports),
        Some(World::User) | None => BTreeSet::new(),
    }
}

fn published_by(netfilter: &mut Netfilter) -> Result<Option<BTreeSet<Entry>>, NatError> {
    let mut published = BTreeSet::new();
    for map in Map::ALL {
        let Some(elements) = netfilter.elements(TABLE, map.name())? else {
            return Ok(None);
        };
        let entries = elements
            .iter()
            .filter_map(|(key, value)| Entry::parse(map, key, value));
        published.extend(entries);
    }
    Ok(Some(published))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
