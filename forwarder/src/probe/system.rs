//! What can be read where we are: limits, buffers, and who has our ports.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
};

use caps::{CapSet, Capability};
use nix::sys::{
    resource::{Resource, getrlimit},
    utsname::uname,
};
use weft_api::forwarder::DEFAULT_PORT;

use super::Check;
use crate::uplink::BUFFER;

/// Flannel's VXLAN port, the kernel's own default.
const FLANNEL_PORT: u16 = 8472;

/// Open files wanted: 110 pods (the usual most of a node) of up to 8 queues
/// each, and room for sockets.
const FILES: u64 = 1024;

pub fn check() -> Vec<Check> {
    vec![
        check_kernel(),
        check_port(DEFAULT_PORT, "weft's and Calico's"),
        check_port(FLANNEL_PORT, "flannel's"),
        check_buffer("rmem_max", "bursts from other nodes are lost sooner"),
        check_buffer("wmem_max", "bursts to other nodes are lost sooner"),
        check_files(),
    ]
}

fn check_kernel() -> Check {
    let finding = match uname() {
        Ok(name) => format!(
            "{} {} {}",
            name.sysname().display(),
            name.release().display(),
            name.machine().display()
        ),
        Err(fault) => format!("unknown: {fault}"),
    };
    Check::ok("kernel", finding)
}

/// Whether a forwarder could bind the port in this network namespace.
fn check_port(port: u16, whose: &str) -> Check {
    let name = format!("UDP port {port}");
    let families = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let faults = families.map(|address| UdpSocket::bind((address, port)).err());
    let taken = |fault: &io::Error| fault.kind() == ErrorKind::AddrInUse;
    if !faults.iter().flatten().any(taken) {
        return Check::ok(&name, format!("free ({whose} VXLAN port)"));
    }
    let holder = holder(port);
    if holder
        .as_deref()
        .is_some_and(|holder| holder.starts_with("weft"))
    {
        return Check::ok(&name, "held by a forwarder of weft");
    }
    let links = vxlan_links();
    let finding = match (holder, links.is_empty()) {
        (Some(holder), _) => format!("taken by the process {holder}"),
        (None, false) => format!(
            "taken; the kernel's VXLAN links here are {}",
            links.join(", ")
        ),
        (None, true) => "taken by somebody that cannot be seen from here".to_owned(),
    };
    let consequence = "another overlay owns it: a forwarder cannot listen there";
    let remedy = format!("stop the other, or set another uplink.port than {port} on every node");
    Check::warn(&name, finding, consequence, &remedy)
}

/// Links of the kernel's VXLAN driver in the namespace that /sys shows.
fn vxlan_links() -> Vec<String> {
    let Ok(links) = fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let is_vxlan = |path: &Path| {
        let event = fs::read_to_string(path.join("uevent")).unwrap_or_default();
        event.lines().any(|line| line == "DEVTYPE=vxlan")
    };
    let links = links.flatten().filter(|link| is_vxlan(&link.path()));
    links
        .map(|link| link.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The name of the process that has a UDP socket on the port, if it is one
/// that we may look into.
fn holder(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .flat_map(|table| sockets_on(&fs::read_to_string(table).unwrap_or_default(), port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let holds = |process: &Path| {
        let fds = fs::read_dir(process.join("fd")).ok();
        fds.into_iter().flatten().flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|target| inodes.iter().any(|inode| target == Path::new(inode)))
        })
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let process = processes
        .map(|entry| entry.path())
        .find(|path| holds(path))?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    Some(name.trim().to_owned())
}

/// The inodes of the sockets on a port, from a table as /proc/net/udp is.
fn sockets_on(table: &str, port: u16) -> Vec<String> {
    let local = format!(":{port:04X}");
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, inode) = (fields.get(1)?, fields.get(9)?);
        (address.ends_with(&local) && *inode != "0").then(|| (*inode).to_owned())
    };
    table.lines().skip(1).filter_map(row).collect()
}

fn check_buffer(limit: &str, consequence: &str) -> Check {
    let name = format!("net.core.{limit}");
    let path = format!("/proc/sys/net/core/{limit}");
    let Some(most) = fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
    else {
        return Check::ok(&name, "not to be read here");
    };
    let wanted = BUFFER;
    if most >= wanted {
        return Check::ok(&name, format!("{most} bytes, {wanted} are wanted"));
    }
    let force = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN);
    if limit == "rmem_max" && force.unwrap_or(false) {
        return Check::ok(
            &name,
            format!("{most} bytes, which CAP_NET_ADMIN may exceed"),
        );
    }
    let finding = format!("{most} bytes, {wanted} are wanted");
    Check::warn(
        &name,
        finding,
        consequence,
        &format!("sysctl {name}={wanted}"),
    )
}

fn check_files() -> Check {
    let name = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= FILES => Check::ok(name, format!("up to {hard}")),
        Ok((_, hard)) => {
            let finding = format!("up to {hard}");
            let consequence = "each queue of each port takes one: few pods fit";
            Check::warn(
                name,
                finding,
                consequence,
                "raise the hard limit: ulimit -Hn 65536",
            )
        }
        Err(fault) => {
            let consequence = "unknown how many ports fit";
            Check::warn(name, fault.to_string(), consequence, "look at ulimit -Hn")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::State;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
        77: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0000000000000000 0\n \
        78: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4343 2 0000000000000000 0\n \
        79: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000000000000000 0\n";

    #[test]
    fn sockets_are_found_by_their_port() {
        assert_eq!(sockets_on(TABLE, 4789), ["4242"]);
        assert_eq!(sockets_on(TABLE, 53), ["4343"]);
        assert_eq!(sockets_on(TABLE, 54), Vec::<String>::new());
        assert_eq!(
            sockets_on("garbage\nmore garbage", 53),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_taken_port_is_told_with_its_holder() {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
        let port = socket.local_addr().expect("bound").port();
        let own = fs::read_to_string("/proc/self/comm").expect("procfs");
        let check = check_port(port, "a test's");
        if own.starts_with("weft") {
            assert_eq!(check.state, State::Ok);
        } else {
            assert_eq!(check.state, State::Warn);
            assert_eq!(
                check.finding,
                format!("taken by the process {}", own.trim())
            );
        }
        drop(socket);
        assert_eq!(check_port(port, "a test's").state, State::Ok);
    }
}
