//! Ports of the node that lead to pods. Who serves them is said by the
//! forwarder's host port: the kernel behind weft0, by a table that is
//! programmed here, or a process, which reads of them at the forwarder.

use weft_api::forwarder::{Port, PortMapping, Protocol, Status};

use super::{Order, server};
use crate::{
    forwarder::{Client, ClientError},
    nat::{self, Entry, NatError, World},
    protocol::{Failure, code},
};

/// Who will serve what the runtime asks to publish; nobody if it asks nothing.
pub(super) fn foresee(
    order: &Order,
    status: &Status,
    forwarder: &mut Client,
) -> Result<Option<World>, Failure> {
    let Some(first) = asked(order).first() else {
        return Ok(None);
    };
    let tunnel =
        |one: &&PortMapping| one.protocol == Protocol::Udp && one.host_port.get() == status.port;
    if let Some(tunnel) = asked(order).iter().find(tunnel) {
        return Err(Failure::new(
            code::CONFIG,
            format!(
                "{} is the port of the tunnel between nodes; publish another",
                tunnel.published()
            ),
        ));
    }
    let ports = forwarder.ports();
    let ports = ports.map_err(|error| server::of_forwarder(&error))?;
    match World::of(&ports) {
        Some(world) => Ok(Some(world)),
        None => Err(Failure::new(
            code::TRY_AGAIN,
            format!(
                "nothing leads {} to the pod: the forwarder has no host port; run weft host up, or \
                 weft egress, or leave portMappings out of capabilities and have the portmap \
                 plugin after this one",
                first.published()
            ),
        )),
    }
}

pub(super) fn add(world: Option<World>, forwarder: &mut Client) -> Result<(), Failure> {
    match world {
        Some(World::Kernel) => nat::publish(|| forwarder.ports()).map_err(|error| of_nat(&error)),
        Some(World::User) | None => Ok(()),
    }
}

/// Takes away what no port of the forwarder publishes, whoever has left it.
pub(super) fn mend(order: &Order) -> Result<(), Failure> {
    let mut client = None;
    let ports = || match &mut client {
        Some(client) => Client::ports(client),
        none => none
            .insert(Client::connect(&order.config.forwarder)?)
            .ports(),
    };
    match nat::unpublish(ports) {
        Err(NatError::Forwarder(ClientError::Line(error))) if error.is_absent() => {
            eprintln!("weft-cni: {error}; weft host up will take away what was published");
            Ok(())
        }
        mended => mended.map_err(|error| of_nat(&error)),
    }
}

/// What the kernel publishes for the port otherwise than the port says: a
/// sentence for each.
pub(super) fn differences(port: &Port, all: &[Port]) -> Result<Vec<String>, Failure> {
    if World::of(all) != Some(World::Kernel) {
        return Ok(Vec::new());
    }
    let wanted = Entry::of(port);
    let published = match nat::published() {
        // Who may not look has published nothing.
        Err(error) if wanted.is_empty() => {
            eprintln!("weft-cni: CHECK: {error}");
            return Ok(Vec::new());
        }
        published => published.map_err(|error| of_nat(&error))?,
    };
    let published = published.unwrap_or_default();
    let missing = wanted.iter().filter(|entry| !published.contains(entry));
    let missing =
        missing.map(|entry| format!("the kernel does not lead {entry}; run weft host up"));
    let stale = published
        .iter()
        .filter(|entry| port.addresses.contains(&entry.to.ip()) && !wanted.contains(entry))
        .map(|entry| format!("the kernel leads {entry}, which is not asked for"));
    Ok(missing.chain(stale).collect())
}

fn asked(order: &Order) -> &[PortMapping] {
    &order.config.runtime.capabilities.port_mappings
}

fn of_nat(error: &NatError) -> Failure {
    let number = match error {
        NatError::Forwarder(error) => server::of_forwarder(error).code,
        NatError::NoTable | NatError::Overtaken => code::TRY_AGAIN,
        NatError::Open(_) | NatError::Refused { .. } | NatError::Confused { .. } => code::LINK,
    };
    Failure::new(number, error.to_string())
}
