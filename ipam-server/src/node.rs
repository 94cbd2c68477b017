//! Nodes come, change and go.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use weft_api::{
    ipam::{Code, Error, Family, Node, Registered, Released, Reply, Time, Use},
    names::Name,
};

use crate::{
    book::Book,
    claim,
    draft::Draft,
    model::{Key, Taken, Value},
    plan::Plan,
    release, tunnel,
};

/// Addresses named in a refusal.
const NAMED_MOST: usize = 5;

pub fn put(book: &Book, node: &Node, now: Time) -> Result<Plan, Error> {
    sound(node)?;
    unregistered(node)?;
    unique(book, node)?;
    outside_pools(book, node)?;
    let known = book.node(&node.name);
    if known == Some(node) {
        return Ok(Plan::answer(Reply::Done));
    }
    let mut draft = Draft::new(book, now);
    take(&mut draft, known, node);
    write(&mut draft, node.clone());
    tunnel::keep_named(&mut draft, node);
    Ok(draft.plan(Reply::Done))
}

/// By the node itself, which may come again, also with other details. One that
/// has no underlay address of the known one is another node of that name.
pub fn register(book: &Book, node: &Node, now: Time) -> Result<Plan, Error> {
    sound(node)?;
    unregistered(node)?;
    let known = book.node(&node.name);
    if let Some(known) = known {
        if known.registered.is_none() {
            return by_hand(known, node);
        }
        if !node.underlay.iter().any(|net| has(known, net.addr())) {
            return Err(Error::new(
                Code::Taken,
                format!(
                    "node {}: the node at {} has registered that name, and this one is at {}",
                    node.name,
                    listed(&known.underlay),
                    listed(&node.underlay)
                ),
                "give one of the two another name, or wait until the other is withdrawn",
            ));
        }
    }
    unique(book, node)?;
    outside_pools(book, node)?;
    let mut draft = Draft::new(book, now);
    take(&mut draft, known, node);
    let since = known.and_then(|known| known.registered).unwrap_or(now);
    let node = Node {
        registered: Some(since),
        ..node.clone()
    };
    // Also where nothing changes: from now on this server's lease keeps it.
    write(&mut draft, node.clone());
    if node.tunnel.is_empty() {
        // By its labels, which stand in the draft, pools select it.
        let tunnel = tunnel::give(&mut draft, &node.name);
        write(&mut draft, Node { tunnel, ..node });
    } else {
        tunnel::keep_named(&mut draft, &node);
    }
    Ok(draft.plan(Reply::Registered(Registered { by_hand: false })))
}

/// Gives a registered node what it lacks of addresses of its own; none where
/// there is no more for it.
pub fn complete(book: &Book, name: &Name, now: Time) -> Option<Plan> {
    let node = book.node(name)?;
    let mut draft = Draft::new(book, now);
    let tunnel = tunnel::give(&mut draft, name);
    let stands = |address: &IpAddr| tunnel::stands(book, node, *address);
    if tunnel == node.tunnel && tunnel.iter().all(stands) {
        return None;
    }
    let node = node.clone();
    write(&mut draft, Node { tunnel, ..node });
    Some(draft.plan(Reply::Done))
}

fn write(draft: &mut Draft, node: Node) {
    draft.put(Key::Node(node.name.clone()), Some(Value::Node(node)));
}

/// Takes a registered node's record away; its blocks and addresses stay its own.
pub fn withdraw(book: &Book, name: &Name, now: Time) -> Plan {
    let mut draft = Draft::new(book, now);
    if let Some(node) = book.node(name).filter(|node| node.registered.is_some()) {
        forget(&mut draft, node);
    }
    draft.plan(Reply::Done)
}

/// Writes the row of each address that the node comes to have. Nodes that keep
/// what they have do not wait for each other, nor do those that share nothing.
fn take(draft: &mut Draft, known: Option<&Node>, node: &Node) {
    let (had, has) = (known.map(unshared).unwrap_or_default(), unshared(node));
    for key in had.iter().filter(|key| !has.contains(key)) {
        draft.put(key.clone(), None);
    }
    for key in has.into_iter().filter(|key| !had.contains(key)) {
        let by = node.name.clone();
        draft.put(key, Some(Value::Taken(Taken { by })));
    }
}

/// Deletes the node's row and those of its addresses.
fn forget(draft: &mut Draft, node: &Node) {
    for key in unshared(node) {
        draft.put(key, None);
    }
    draft.put(Key::Node(node.name.clone()), None);
}

/// What no other node may have.
fn unshared(node: &Node) -> Vec<Key> {
    let underlay = node.underlay.iter().map(|net| Key::Underlay(net.addr()));
    underlay.chain([Key::Vtep(node.vtep_mac)]).collect()
}

fn by_hand(known: &Node, node: &Node) -> Result<Plan, Error> {
    let same = (known.vtep_mac, known.vni, known.port) == (node.vtep_mac, node.vni, node.port)
        && known.underlay.len() == node.underlay.len()
        && node.underlay.iter().all(|net| has(known, net.addr()));
    if same {
        return Ok(Plan::answer(Reply::Registered(Registered {
            by_hand: true,
        })));
    }
    let told = |node: &Node| {
        let Node {
            vtep_mac,
            vni,
            port,
            ..
        } = node;
        let underlay = listed(&node.underlay);
        format!(
            "{underlay}, MAC {vtep_mac}, VNI {}, port {port}",
            vni.value()
        )
    };
    Err(Error::new(
        Code::Taken,
        format!(
            "node {}: an operator made it known with {}, and it registers with {}",
            node.name,
            told(known),
            told(node)
        ),
        "correct that record by weft ipam node put, or delete it",
    ))
}

fn unregistered(node: &Node) -> Result<(), Error> {
    if node.registered.is_none() {
        return Ok(());
    }
    Err(Error::new(
        Code::Invalid,
        format!("node {}: registered is for the server to set", node.name),
        "leave it out",
    ))
}

fn listed(underlay: &[IpNet]) -> String {
    let addresses: Vec<_> = underlay.iter().map(|net| net.addr().to_string()).collect();
    addresses.join(" and ")
}

fn has(node: &Node, address: IpAddr) -> bool {
    node.underlay.iter().any(|net| net.addr() == address)
}

pub fn delete(book: &Book, name: &Name, now: Time) -> Result<Plan, Error> {
    let share = book.share(name);
    if book.node(name).is_none() && share.is_none() {
        return Err(Error::new(
            Code::NotFound,
            format!("there is no node {name}"),
            "name one that `weft ipam node list` shows",
        ));
    }
    if book
        .node(name)
        .is_some_and(|node| node.registered.is_some())
    {
        return Err(Error::new(
            Code::InUse,
            format!("node {name} is registered, and would register again"),
            "stop its forwarder first",
        ));
    }
    let of_use = |tunnel: bool| {
        let held = move |address: &&IpAddr| {
            let held = book.allocation(**address).filter(|held| held.is_held());
            held.is_some_and(|held| (held.purpose == Use::Tunnel) == tunnel)
        };
        let addresses = share.into_iter().flat_map(|share| &share.addresses);
        addresses.filter(held).copied().collect::<Vec<_>>()
    };
    let live = of_use(false);
    if !live.is_empty() {
        let named: Vec<_> = live
            .iter()
            .take(NAMED_MOST)
            .map(IpAddr::to_string)
            .collect();
        return Err(Error::new(
            Code::InUse,
            format!(
                "node {name} has {} live addresses: {}",
                live.len(),
                named.join(", ")
            ),
            "release them, or collect them with gc, first",
        ));
    }
    let mut draft = Draft::new(book, now);
    // If it comes back meanwhile, it has what is freed here.
    draft.guard(Key::Node(name.clone()));
    release::give_back(&mut draft, &of_use(true), false, &mut Released::default());
    for cidr in share.into_iter().flat_map(|share| &share.claims) {
        let owns = (draft.block(cidr)).is_some_and(|block| block.owner.as_ref() == Some(name));
        if owns || draft.affinity(name, cidr).is_some() {
            claim::disown(&mut draft, name, *cidr);
        }
    }
    if let Some(node) = book.node(name) {
        forget(&mut draft, node);
    }
    Ok(draft.plan(Reply::Done))
}

/// Whether a node is well formed in itself.
pub fn sound(node: &Node) -> Result<(), Error> {
    let refuse = |reason: String, hint: &str| {
        let message = format!("node {}: {reason}", node.name);
        Err(Error::new(Code::Invalid, message, hint))
    };
    if node.underlay.is_empty() {
        return refuse(
            "it has no underlay address".to_owned(),
            "give the address by which other nodes reach it, with its prefix",
        );
    }
    for net in &node.underlay {
        let address = net.addr();
        let same = |one: &&ipnet::IpNet| Family::of(one.addr()) == Family::of(address);
        if node.underlay.iter().filter(same).count() > 1 {
            return refuse(
                format!("{net} is not its only underlay address of that family"),
                "give at most one of each family",
            );
        }
        let broadcast = address == IpAddr::from(Ipv4Addr::BROADCAST);
        if address.is_unspecified() || address.is_multicast() || broadcast {
            return refuse(
                format!("{address} is no address of one machine"),
                "give the address by which other nodes reach it",
            );
        }
    }
    if node.vtep_mac.0[0] & 1 == 1 || node.vtep_mac.0 == [0; 6] {
        return refuse(
            format!("{} is no MAC address of one station", node.vtep_mac),
            "choose a unicast address, for example one that begins with 02",
        );
    }
    if node.port == 0 {
        return refuse(
            "no datagram can be sent to port 0".to_owned(),
            "give the UDP port it takes VXLAN at, for example 4789",
        );
    }
    Ok(())
}

/// Whether nothing of it is another node's.
fn unique(book: &Book, node: &Node) -> Result<(), Error> {
    let refuse = |reason: String, hint: &str| {
        let message = format!("node {}: {reason}", node.name);
        Err(Error::new(Code::Taken, message, hint))
    };
    let another = |owner: &&Name| **owner != node.name;
    for net in &node.underlay {
        if let Some(other) = book.node_with_underlay(net.addr()).filter(another) {
            return refuse(
                format!("{} is node {other}'s underlay address", net.addr()),
                "delete that node first, or correct the address",
            );
        }
    }
    if let Some(other) = book.node_with_mac(node.vtep_mac).filter(another) {
        return refuse(
            format!("{} is node {other}'s VTEP MAC address", node.vtep_mac),
            "choose another",
        );
    }
    Ok(())
}

/// Else packets for it would be taken for a pod's.
fn outside_pools(book: &Book, node: &Node) -> Result<(), Error> {
    for net in &node.underlay {
        if let Some(pool) = book.pool_of(&IpNet::from(net.addr())) {
            return Err(Error::new(
                Code::Taken,
                format!(
                    "node {}: its underlay address {} lies in pool {}, {}",
                    node.name,
                    net.addr(),
                    pool.name(),
                    pool.pool.cidr
                ),
                "give it an address outside the pods' network, or delete that pool",
            ));
        }
    }
    Ok(())
}
