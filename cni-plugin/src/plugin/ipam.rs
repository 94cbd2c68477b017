//! The IPAM server as an IPAM plugin: others delegate to it. Its result has
//! addresses and no interface.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};
use weft_api::ipam::Assigned;

use super::{Order, add, check, gc, server, status};
use crate::protocol::{Failure, Ip, Ipam, Outcome, Pod, Verb, Weft, code};

pub(super) fn answer(order: &Order) -> Result<Option<Value>, Failure> {
    let Ipam::Weft(weft) = &order.config.ipam else {
        return Err(Failure::new(
            code::CONFIG,
            "ipam.type names another plugin; write \"weft-ipam-cni\"",
        ));
    };
    match &order.call.verb {
        Verb::Add(pod, _) => add(order, weft, pod).map(Some),
        Verb::Del(pod, _) => server::release(weft, order.attachment(pod))
            .map_err(|error| server::of_ipam(&error))
            .map(|()| None),
        Verb::Check(pod, _) => check::check_leases(order, pod).map(|()| None),
        Verb::Gc => {
            let before = server::now();
            let (node, valid) = (server::host(&order.config)?, gc::valid(order)?.to_vec());
            gc::release_stale(order, weft, node, before, valid).map(|()| None)
        }
        Verb::Status => {
            let node = server::host(&order.config)?;
            status::gives_addresses(order, weft, node).map(|()| None)
        }
        Verb::Version => Ok(None),
    }
}

fn add(order: &Order, weft: &Weft, pod: &Pod) -> Result<Value, Failure> {
    let config = &order.config;
    let node = server::host(config)?;
    // Where the answer is lost, who delegates calls DEL.
    let allocated = server::allocate(weft, config, node, order.attachment(pod), &pod.args)
        .map_err(|error| server::of_ipam(&error))?;
    if allocated.existing {
        return Err(Failure::new(
            code::EXISTS,
            format!(
                "{} holds an address already; DEL it first",
                order.handle(pod)
            ),
        ));
    }
    let given = allocated.addresses.iter();
    let ips = given.map(|given| ip(weft, given)).collect::<Result<_, _>>();
    let ips = ips.map_err(|failure| {
        let released = server::release(weft, order.attachment(pod));
        add::undone(failure, released.map_err(|error| server::of_ipam(&error)))
    })?;
    let outcome = Outcome {
        ips,
        routes: weft.routes.clone(),
        dns: config.dns.clone(),
        ..Outcome::default()
    };
    Ok(outcome.to_json(config.version))
}

fn ip(weft: &Weft, given: &Assigned) -> Result<Ip, Failure> {
    let host = IpNet::from(given.address);
    let in_block = IpNet::new(given.address, given.block.prefix_len()).unwrap_or(host);
    if weft.gateways.contains(&given.address) {
        return Err(Failure::new(
            code::CONFIG,
            format!(
                "ipam.gateways holds {}, which pods are given; keep it from them with \
                 weft ipam reserve",
                given.address
            ),
        ));
    }
    let in_block_too = |gateway: &&IpAddr| given.block.contains(*gateway);
    Ok(Ip {
        interface: None,
        address: if weft.whole_block { in_block } else { host },
        gateway: if weft.whole_block {
            weft.gateways.iter().find(in_block_too).copied()
        } else {
            Some(add::gateway(given.address))
        },
        other: Map::new(),
    })
}
