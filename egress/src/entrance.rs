//! The way in: which ports of the node are to stand for which of a pod, the
//! doors that do, and as whom those who come are shown to the pod.
//!
//! A door that cannot be opened keeps no other closed; it is tried again.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use slab::Slab;
use tracing::{info, warn};
use weft_api::names::Name;

use crate::{
    door::{Fault, Local, Place, Socket},
    metrics::Counters,
    target::is_outside,
    watch::Ports,
};

/// Between two tries to open what cannot be opened.
const RETRY: Duration = Duration::from_secs(2);

/// Who stands for a node that has no address of the family: one that no host
/// has (RFC 7600 section 4.8, RFC 6666).
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

#[derive(Debug)]
pub struct Entrance {
    pub doors: Slab<Door>,
    /// Those who called by a door of datagrams, and the slots of their flows.
    pub callers: HashMap<Call, usize>,
    /// Doors that have more than was taken.
    pub ready: Vec<usize>,
    /// Doors that have more than can be taken, and until when they rest.
    resting: Vec<(Instant, usize)>,
    open: BTreeMap<Place, usize>,
    wanted: BTreeMap<Place, Behind>,
    faults: BTreeMap<Place, Fault>,
    retry: Option<Instant>,
    pools: Vec<IpNet>,
    node: Vec<IpAddr>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
pub struct Door {
    pub place: Place,
    pub behind: Behind,
    pub socket: Socket,
}

/// Who is called by a door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    port: Name,
    /// None where the pod has no address of the family.
    pod: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call {
    pub door: usize,
    pub from: SocketAddr,
    pub to: Local,
}

impl Entrance {
    pub fn new(pools: Vec<IpNet>, counters: Arc<Counters>) -> Self {
        let closed = Self {
            doors: Slab::new(),
            callers: HashMap::new(),
            ready: Vec::new(),
            resting: Vec::new(),
            open: BTreeMap::new(),
            wanted: BTreeMap::new(),
            faults: BTreeMap::new(),
            retry: None,
            pools,
            node: Vec::new(),
            counters,
        };
        closed.tell();
        closed
    }

    /// Has these ports served from now on, once [`Entrance::open`] was called.
    /// Returns the doors that are to be closed.
    pub fn renew(&mut self, ports: &Ports) -> Vec<usize> {
        self.node.clone_from(&ports.node);
        self.wanted = wanted(ports);
        self.faults
            .retain(|place, _| self.wanted.contains_key(place));
        self.retry = Some(Instant::now());
        let stays = |place, door: usize| {
            let behind = self.doors.get(door).map(|door| &door.behind);
            behind.is_some() && self.wanted.get(place) == behind
        };
        let open = self.open.iter();
        open.filter(|(place, door)| !stays(place, **door))
            .map(|(_, door)| *door)
            .collect()
    }

    pub fn close(&mut self, door: usize) -> Option<Door> {
        let closed = self.doors.try_remove(door)?;
        info!("{} of {} is closed", closed.place, closed.behind.port);
        self.open.remove(&closed.place);
        self.ready.retain(|ready| *ready != door);
        self.resting.retain(|(_, resting)| *resting != door);
        self.tell();
        Some(closed)
    }

    pub fn rest(&mut self, door: usize, until: Instant) {
        self.resting.push((until, door));
    }

    /// When there is something to be opened, or a door has rested.
    pub fn due(&self) -> Option<Instant> {
        let resting = self.resting.iter().map(|(until, _)| *until);
        resting.chain(self.retry).min()
    }

    /// The doors that have rested.
    pub fn rested(&mut self, now: Instant) -> Vec<usize> {
        let rested = self.resting.extract_if(.., |(until, _)| *until <= now);
        rested.map(|(_, door)| door).collect()
    }

    pub fn is_to_open(&self, now: Instant) -> bool {
        self.retry.is_some_and(|retry| retry <= now)
    }

    /// Opens what can be opened, and returns the new doors.
    pub fn open(&mut self, now: Instant) -> Vec<usize> {
        self.retry = None;
        let mut opened = Vec::new();
        for (place, behind) in &self.wanted {
            if self.open.contains_key(place) {
                continue;
            }
            let socket = match behind.pod {
                Some(_) => Socket::open(*place),
                None => Err(Fault::Family),
            };
            match socket {
                Ok(socket) => {
                    info!("{place} leads to {}", behind.port);
                    self.faults.remove(place);
                    let door = self.doors.insert(Door {
                        place: *place,
                        behind: behind.clone(),
                        socket,
                    });
                    self.open.insert(*place, door);
                    opened.push(door);
                }
                Err(fault) => {
                    self.retry = Some(now + RETRY);
                    if self.faults.insert(*place, fault) != Some(fault) {
                        warn!("{place} cannot be served for {}: {fault}", behind.port);
                    }
                }
            }
        }
        self.tell();
        opened
    }

    fn tell(&self) {
        let open = self.open.len() as u64;
        self.counters.published.store(open, Relaxed);
        let not = self.faults.len() as u64;
        self.counters.unpublished.store(not, Relaxed);
    }

    /// As whom a pod sees who comes from there: himself, if he is nobody that
    /// the forwarder knows better. Who only looks like one is never shown as the
    /// node, whom no policy stops.
    pub fn shown(&self, from: IpAddr) -> IpAddr {
        let in_pools = self.pools.iter().any(|pool| pool.contains(&from));
        if is_outside(from) && !in_pools {
            return from;
        }
        let is_node = from.is_loopback() || self.node.contains(&from);
        let mut node = self.node.iter().copied().filter(|_| is_node);
        let own = node.find(|own| own.is_ipv4() == from.is_ipv4() && is_outside(*own));
        own.unwrap_or(match from {
            IpAddr::V4(_) => NOBODY_V4.into(),
            IpAddr::V6(_) => NOBODY_V6.into(),
        })
    }
}

impl Door {
    /// The pod's end. Only doors that lead somewhere are opened.
    pub fn pod(&self) -> Option<SocketAddr> {
        self.behind.pod
    }
}

fn wanted(ports: &Ports) -> BTreeMap<Place, Behind> {
    let mut wanted = BTreeMap::new();
    for (name, pod) in &ports.pods {
        let of_family = |v4| pod.addresses.iter().find(|one| one.is_ipv4() == v4);
        for mapping in &pod.mappings {
            let addresses = match mapping.host_ip {
                Some(address) => vec![address],
                None => {
                    let both = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
                    let held = |address: &IpAddr| of_family(address.is_ipv4()).is_some();
                    both.into_iter().filter(held).collect()
                }
            };
            for address in addresses {
                let inner = of_family(address.is_ipv4());
                let behind = Behind {
                    port: name.clone(),
                    pod: inner.map(|pod| SocketAddr::new(*pod, mapping.container_port.get())),
                };
                let place = Place {
                    protocol: mapping.protocol,
                    address: SocketAddr::new(address, mapping.host_port.get()),
                };
                wanted.insert(place, behind);
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use weft_api::forwarder::PortMapping;

    use super::*;
    use crate::watch::Pod;

    fn ports(addresses: &[&str], mapping: &str) -> Ports {
        let mapping: PortMapping = serde_json::from_str(mapping).expect("a mapping");
        let addresses = addresses.iter().map(|text| text.parse().expect("one"));
        let pod = Pod {
            addresses: addresses.collect(),
            mtu: 1500,
            mappings: vec![mapping],
        };
        let name = Name::new("n1p1").expect("a name");
        Ports {
            pods: [(name, pod)].into(),
            node: ["192.0.2.1", "fe80::1"]
                .map(|text| text.parse().expect("one"))
                .into(),
        }
    }

    fn places(ports: &Ports) -> Vec<(String, Option<String>)> {
        let wanted = wanted(ports).into_iter();
        wanted
            .map(|(place, behind)| (place.to_string(), behind.pod.map(|pod| pod.to_string())))
            .collect()
    }

    #[test]
    fn a_mapping_is_served_for_the_families_that_node_and_pod_share() {
        const ALL: &str = r#"{"host_port":80,"container_port":8080,"protocol":"tcp"}"#;
        let place = |text: &str, pod: &str| (text.to_owned(), Some(pod.to_owned()));
        assert_eq!(
            places(&ports(&["10.1.0.1", "fd00::1"], ALL)),
            [
                place("0.0.0.0:80/tcp", "10.1.0.1:8080"),
                place("[::]:80/tcp", "[fd00::1]:8080"),
            ]
        );
        assert_eq!(
            places(&ports(&["10.1.0.1"], ALL)),
            [place("0.0.0.0:80/tcp", "10.1.0.1:8080")]
        );
        const ONE: &str =
            r#"{"host_port":80,"container_port":53,"protocol":"udp","host_ip":"2001:db8::1"}"#;
        assert_eq!(
            places(&ports(&["10.1.0.1"], ONE)),
            [("[2001:db8::1]:80/udp".to_owned(), None)]
        );
    }

    #[test]
    fn who_is_known_better_is_shown_as_the_node() {
        const ALL: &str = r#"{"host_port":80,"container_port":8080,"protocol":"sctp"}"#;
        let pools = ["10.1.0.0/16", "fd00::/16"].map(|text| text.parse().expect("a pool"));
        let mut entrance = Entrance::new(pools.into(), Arc::default());
        entrance.renew(&ports(&["10.1.0.1"], ALL));
        for (from, shown) in [
            ("198.51.100.1", "198.51.100.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("127.0.0.1", "192.0.2.1"),
            ("10.1.9.9", "192.0.0.8"),
            ("169.254.3.3", "192.0.0.8"),
            ("2001:db8::9", "2001:db8::9"),
            ("::1", "100::1"),
            ("fd00::9", "100::1"),
        ] {
            let shown: IpAddr = shown.parse().expect("an address");
            assert_eq!(entrance.shown(from.parse().expect("an address")), shown);
        }
        assert!(
            entrance.open(Instant::now()).is_empty(),
            "SCTP is not served"
        );
        assert_eq!(entrance.counters.unpublished.load(Relaxed), 1);
    }
}
