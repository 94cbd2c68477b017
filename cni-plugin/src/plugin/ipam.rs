//! The IPAM server as an IPAM plugin: others delegate to it. Its result has
//! addresses and no interface.

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
    let outcome = Outcome {
        ips: allocated
            .addresses
            .iter()
            .map(|given| ip(weft, given))
            .collect(),
        dns: config.dns.clone(),
        ..Outcome::default()
    };
    Ok(outcome.to_json(config.version))
}

fn ip(weft: &Weft, given: &Assigned) -> Ip {
    let host = IpNet::from(given.address);
    let in_block = IpNet::new(given.address, given.block.prefix_len()).unwrap_or(host);
    Ip {
        interface: None,
        address: if weft.whole_block { in_block } else { host },
        // Who shares a block's link chooses its own.
        gateway: (!weft.whole_block).then(|| add::gateway(given.address)),
        other: Map::new(),
    }
}
