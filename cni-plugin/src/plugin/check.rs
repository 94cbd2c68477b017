//! CHECK: the kernel, the forwarder and the IPAM server against prevResult.
//! All differences are told at once.

use std::{net::IpAddr, path::Path};

use ipnet::IpNet;
use weft_api::{
    forwarder::PortState,
    ipam::{Reply as IpamReply, Request as IpamRequest},
};
use weft_socket::ipam::Client as IpamClient;

use super::{Order, add, capabilities, delegate, port, publish, server};
use crate::{
    forwarder::Client,
    netlink::Netlink,
    netns::Netns,
    protocol::{Failure, Interface, Ipam, Outcome, Pod, code},
};

pub(super) fn check(order: &Order, pod: &Pod, netns: &Path) -> Result<(), Failure> {
    let previous = order.config.previous.as_ref().ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            "CHECK has no prevResult; pass the result of ADD",
        )
    })?;
    let sandbox = netns.display().to_string();
    let ours = previous.interfaces.iter().position(|interface| {
        interface.name == pod.interface.as_str() && interface.sandbox.as_ref() == Some(&sandbox)
    });
    let ours = ours
        .ok_or_else(|| differs(&[format!("prevResult has no {} in {sandbox}", pod.interface)]))?;
    let on_ours = |ip: &&crate::protocol::Ip| ip.interface == Some(ours);
    let ips: Vec<IpNet> = previous
        .ips
        .iter()
        .filter(on_ours)
        .map(|ip| ip.address)
        .collect();
    let interface = &previous.interfaces[ours];
    let mut found = kernel(order, netns, interface, &ips, previous)?;
    found.extend(forwarder(order, pod, interface, &ips)?);
    match &order.config.ipam {
        Ipam::Delegate(name) => drop(delegate::run(order, name, "CHECK")?),
        Ipam::Weft(_) => found.extend(leases(order, pod, &ips)?),
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(differs(&found))
    }
}

fn differs(found: &[String]) -> Failure {
    Failure::new(
        code::DIFFERS,
        format!("{}; DEL and ADD the pod again", found.join("; ")),
    )
}

fn kernel(
    order: &Order,
    netns: &Path,
    interface: &Interface,
    ips: &[IpNet],
    previous: &Outcome,
) -> Result<Vec<String>, Failure> {
    let refused = |error: crate::netlink::NetlinkError| Failure::new(code::LINK, error.to_string());
    let pod = Netns::open(netns).map_err(|error| add::of_netns(&error))?;
    let pod = Netlink::open_in(&pod)
        .map_err(|error| add::of_netns(&error))?
        .map_err(refused)?;
    let name = &interface.name;
    let Some(link) = pod.link(name).map_err(refused)? else {
        return Ok(vec![format!("{name} is not in {netns:?}")]);
    };
    let mut found = Vec::new();
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let differs = |wanted: &&String| !wanted.eq_ignore_ascii_case(&mac);
    if let Some(wanted) = interface.mac.as_ref().filter(differs) {
        found.push(format!("{name} has MAC {mac}, not {wanted}"));
    }
    if !link.up {
        found.push(format!("{name} is down"));
    }
    let mtu = interface
        .other
        .get("mtu")
        .and_then(serde_json::Value::as_u64);
    let mtu = mtu.unwrap_or(u64::from(order.config.mtu));
    // A plugin later in the chain may have made it smaller.
    if let Some(found_mtu) = link.mtu.map(u64::from).filter(|found| *found > mtu) {
        found.push(format!("{name} has MTU {found_mtu}, more than {mtu}"));
    }
    let addresses = pod.addresses(link.index).map_err(refused)?;
    let gateways = pod.default_gateways(link.index).map_err(refused)?;
    for ip in ips {
        if !addresses.contains(ip) {
            found.push(format!("{name} lacks address {ip}"));
        }
        let gateway = add::gateway(ip.addr());
        let ours = |route: &crate::protocol::Route| route.gw == Some(gateway);
        if previous.routes.iter().any(ours) && !gateways.contains(&gateway) {
            found.push(format!("{name} lacks the default route by {gateway}"));
        }
    }
    Ok(found)
}

fn forwarder(
    order: &Order,
    pod: &Pod,
    interface: &Interface,
    ips: &[IpNet],
) -> Result<Vec<String>, Failure> {
    let name = port(&order.attachment(pod))?;
    let mut client =
        Client::connect(&order.config.forwarder).map_err(|error| server::of_forwarder(&error))?;
    let ports = client
        .ports()
        .map_err(|error| server::of_forwarder(&error))?;
    let Some(port) = ports.iter().find(|port| port.name == name) else {
        return Ok(vec![format!("the forwarder has no port {name}")]);
    };
    let mut found = Vec::new();
    if port.state != PortState::Up {
        found.push(format!("the forwarder's port {name} is gone"));
    }
    let mac = port.mac.to_string();
    if interface
        .mac
        .as_ref()
        .is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&mac))
    {
        found.push(format!(
            "the forwarder takes frames of {name} from {mac} only"
        ));
    }
    found.extend(capabilities::differences(&order.config.runtime, port));
    found.extend(publish::differences(port, &ports)?);
    for ip in ips.iter().map(IpNet::addr) {
        if !port.addresses.contains(&ip) {
            found.push(format!("the forwarder's port {name} lacks {ip}"));
        }
    }
    Ok(found)
}

fn leases(order: &Order, pod: &Pod, ips: &[IpNet]) -> Result<Vec<String>, Failure> {
    let Ipam::Weft(weft) = &order.config.ipam else {
        return Ok(Vec::new());
    };
    let handle = order.handle(pod);
    let mut client = IpamClient::connect(&weft.socket).map_err(|error| server::of_ipam(&error))?;
    let mut found = Vec::new();
    for address in ips.iter().map(IpNet::addr) {
        let reply = client.request(&IpamRequest::Address { address });
        match reply.map_err(|error| server::of_ipam(&error))? {
            IpamReply::Address(info) => {
                let holder = info.allocation.and_then(|allocation| allocation.handle);
                if holder.as_ref() != Some(&handle) {
                    found.push(not_held(address, holder.as_ref().map(|h| h.as_str())));
                }
            }
            _ => {
                return Err(Failure::new(
                    code::DECODE,
                    "the IPAM server answered no address",
                ));
            }
        }
    }
    Ok(found)
}

fn not_held(address: IpAddr, holder: Option<&str>) -> String {
    format!("{address} belongs to {}", holder.unwrap_or("nobody"))
}

/// For the IPAM plugin, whose prevResult is that of its caller.
pub(super) fn check_leases(order: &Order, pod: &Pod) -> Result<(), Failure> {
    let handle = order.handle(pod);
    let Ipam::Weft(weft) = &order.config.ipam else {
        return Ok(());
    };
    let mut client = IpamClient::connect(&weft.socket).map_err(|error| server::of_ipam(&error))?;
    let request = IpamRequest::Allocations {
        node: None,
        borrowed: false,
    };
    match client
        .request(&request)
        .map_err(|error| server::of_ipam(&error))?
    {
        IpamReply::Allocations(all)
            if all.iter().any(|one| one.handle.as_ref() == Some(&handle)) =>
        {
            Ok(())
        }
        _ => Err(differs(&[format!("{handle} holds no address")])),
    }
}
