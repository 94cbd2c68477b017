//! What the node's kernel has to be told for packets to pass weft0 (sysctl).
//! What cannot be set is told, with the command that sets it.

use std::{fs, io, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use weft_api::forwarder::HOST_LINK;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Knob {
    /// Below net, with dots.
    name: String,
    value: &'static str,
    /// What does not work without.
    need: &'static str,
}

const ANSWERS: &str = "packets whose way back leads elsewhere are lost";
const ERRORS: &str = "others hear no ICMP error about what comes by this node";
const FORWARDING: &str = "pods reach this node, and not what is behind it";
const ROUTERS: &str = "this node forgets its own routers";

/// Turns what packets of these pools need, and tells what that was.
/// `forwarding`: whether that may be turned too.
pub fn turn(pools: &[IpNet], underlay: &[IpAddr], forwarding: bool) -> String {
    let mut page = String::new();
    let links = links_of(underlay).unwrap_or_else(|fault| {
        page += &format!("warn: the links of the underlay are unknown: {fault}\n");
        Vec::new()
    });
    let by_link = path(&force_forwarding(HOST_LINK)).exists();
    for knob in knobs(pools, &links, by_link) {
        page += &told(&knob, forwarding);
    }
    page
}

/// `by_link`: IPv6 is forwarded for each link as it says (kernel 6.17).
fn knobs(pools: &[IpNet], underlay: &[String], by_link: bool) -> Vec<Knob> {
    let knob = |name: String, value, need| Knob { name, value, need };
    let has = |v4| pools.iter().any(|pool| pool.addr().is_ipv4() == v4);
    let all = || {
        [HOST_LINK]
            .into_iter()
            .chain(underlay.iter().map(String::as_str))
    };
    let mut knobs = Vec::new();
    if has(true) {
        let own = |name| format!("ipv4.conf.{HOST_LINK}.{name}");
        // The larger of this and that of all links counts; 2 is loose.
        knobs.push(knob(own("rp_filter"), "2", ANSWERS));
        // Errors about others' packets come from an address of the node.
        knobs.push(knob(own("accept_local"), "1", ERRORS));
        let forwarding = |link| format!("ipv4.conf.{link}.forwarding");
        knobs.extend(all().map(|link| knob(forwarding(link), "1", FORWARDING)));
    }
    if has(false) && by_link {
        knobs.extend(all().map(|link| knob(force_forwarding(link), "1", FORWARDING)));
    } else if has(false) {
        // Who forwards IPv6 is a router, and heeds other routers only if told.
        let accept = |link: &String| format!("ipv6.conf.{link}.accept_ra");
        knobs.extend(underlay.iter().map(|link| knob(accept(link), "2", ROUTERS)));
        knobs.push(knob("ipv6.conf.all.forwarding".to_owned(), "1", FORWARDING));
    }
    knobs
}

fn force_forwarding(link: &str) -> String {
    format!("ipv6.conf.{link}.force_forwarding")
}

fn told(knob: &Knob, may_forward: bool) -> String {
    let Knob { name, value, need } = knob;
    let before = fs::read_to_string(path(name));
    let before = before.as_deref().map(str::trim);
    let is_forwarding = *need == FORWARDING || *need == ROUTERS;
    let kept = is_forwarding && !may_forward;
    match before {
        Ok(before) if before == *value => format!("set net.{name} = {value} already\n"),
        // Without routers there are none to forget.
        Ok("0") if *need == ROUTERS => String::new(),
        Ok(before) if kept => format!("kept net.{name} = {before}: {need}\n"),
        Ok(before) => match fs::write(path(name), value) {
            Ok(()) => format!("set net.{name} = {value}, was {before}\n"),
            Err(fault) => warned(knob, &fault),
        },
        Err(fault) => warned(knob, fault),
    }
}

fn warned(knob: &Knob, fault: &io::Error) -> String {
    let Knob { name, value, need } = knob;
    let path = path(name);
    let path = path.display();
    format!("warn: net.{name} is not set: {fault}\n  so: {need}\n  do: echo {value} > {path}\n")
}

/// A link's name may hold dots, and stands between the third and the last.
fn path(name: &str) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys/net");
    let (head, last) = name.rsplit_once('.').unwrap_or(("", name));
    path.extend(head.splitn(3, '.'));
    path.join(last)
}

/// The links that hold these addresses.
fn links_of(addresses: &[IpAddr]) -> io::Result<Vec<String>> {
    let ip = |storage: SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or(storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    };
    let mut links: Vec<_> = getifaddrs()?
        .filter(|one| {
            one.address
                .and_then(ip)
                .is_some_and(|a| addresses.contains(&a))
        })
        .map(|one| one.interface_name)
        .collect();
    links.sort_unstable();
    links.dedup();
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pools: &[&str], by_link: bool) -> Vec<String> {
        let pools: Vec<_> = pools
            .iter()
            .map(|pool| pool.parse().expect("a pool"))
            .collect();
        let knobs = knobs(&pools, &["eth0.7".to_owned()], by_link);
        let name = |knob: Knob| format!("{}={}", knob.name, knob.value);
        knobs.into_iter().map(name).collect()
    }

    #[test]
    fn each_family_has_its_own_knobs() {
        assert_eq!(
            names(&["10.1.0.0/16"], true),
            [
                "ipv4.conf.weft0.rp_filter=2",
                "ipv4.conf.weft0.accept_local=1",
                "ipv4.conf.weft0.forwarding=1",
                "ipv4.conf.eth0.7.forwarding=1",
            ]
        );
        assert_eq!(
            names(&["fd00::/48"], true),
            [
                "ipv6.conf.weft0.force_forwarding=1",
                "ipv6.conf.eth0.7.force_forwarding=1",
            ]
        );
        assert_eq!(
            names(&["fd00::/48"], false),
            ["ipv6.conf.eth0.7.accept_ra=2", "ipv6.conf.all.forwarding=1"]
        );
        assert!(names(&[], true).is_empty());
    }

    #[test]
    fn a_links_dots_are_not_the_paths() {
        let path = path("ipv4.conf.eth0.7.forwarding");
        assert_eq!(
            path,
            PathBuf::from("/proc/sys/net/ipv4/conf/eth0.7/forwarding")
        );
    }
}
