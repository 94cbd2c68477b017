//! Who comes by a published port of the node: he is shown to the pod as a flow
//! like any, found by the same key as if the pod had begun it.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    iter::once,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use mio::{Interest, Token, net::TcpStream, unix::SourceFd};
use nix::errno::Errno;
use weft_wire::{Key, protocol};

use super::{DOORS, Outlet, frames::is_want_of_descriptors, mtu};
use crate::{
    caller::Caller,
    datagrams,
    door::{self, Socket},
    entrance::Call,
    table::Kind,
    tcp::{self, Tcp},
};

/// Connections of one turn, after which others have theirs.
const TURN: usize = 32;

/// How long a door rests for which the kernel had no descriptor.
const REST: Duration = Duration::from_millis(100);

/// Other ports that are tried for one who has the same address and port as
/// somebody else. Ports below are well known.
const TRIES: u16 = 64;
const OTHER_PORTS: u16 = 32_768;

impl Outlet {
    pub(super) fn is_called(&self) -> bool {
        !self.entrance.ready.is_empty()
    }

    pub(super) fn knock(&mut self, door: usize) {
        if self.entrance.doors.contains(door) && !self.entrance.ready.contains(&door) {
            self.entrance.ready.push(door);
        }
    }

    /// Opens and closes doors, and takes who waits before them.
    pub(super) fn attend(&mut self, now: Instant) {
        if let Some(ports) = self.watch.news() {
            self.renew(&ports);
        }
        if self.entrance.is_to_open(now) {
            self.open_doors(now);
        }
        for door in self.entrance.rested(now) {
            self.knock(door);
        }
        for door in std::mem::take(&mut self.entrance.ready) {
            let more = match self.entrance.doors.get(door).map(|door| &door.socket) {
                Some(Socket::Tcp(_)) => self.take_connections(door, now),
                Some(Socket::Udp(socket)) => {
                    let socket = Rc::clone(socket);
                    self.take_datagrams(door, &socket, now)
                }
                None => false,
            };
            if more {
                self.knock(door);
            }
        }
    }

    fn renew(&mut self, ports: &crate::watch::Ports) {
        let mtus = ports.pods.values().flat_map(|pod| {
            let addresses = pod.addresses.iter();
            addresses.map(|address| (*address, pod.mtu))
        });
        let before = std::mem::replace(&mut self.mtus, mtus.collect());
        let gone: BTreeSet<IpAddr> = before
            .into_keys()
            .filter(|pod| !self.mtus.contains_key(pod))
            .collect();
        let closed: BTreeSet<usize> = self.entrance.renew(ports).into_iter().collect();
        if !gone.is_empty() || !closed.is_empty() {
            let orphans = self.table.slots(|flow| {
                let door = flow.kind.door();
                gone.contains(&flow.key.src) || door.is_some_and(|door| closed.contains(&door))
            });
            for slot in orphans {
                self.orphan(slot);
            }
        }
        for door in closed {
            // Closing the socket ends the watch.
            self.entrance.close(door);
        }
    }

    fn orphan(&mut self, slot: usize) {
        let Some(flow) = self.table.flow(slot) else {
            return;
        };
        self.counters.flows_orphaned.add(1);
        let key = flow.key;
        if let Kind::Tcp(tcp) = &mut flow.kind {
            let mut tools = tcp::Tools {
                stack: &mut self.stack,
                link: &mut self.link,
                counters: &self.counters,
                now: Instant::now(),
            };
            tcp.cut(&mut tools, &key);
        }
        self.remove(slot);
    }

    fn open_doors(&mut self, now: Instant) {
        for place in self.entrance.open(now) {
            let Some(door) = self.entrance.doors.get_mut(place) else {
                continue;
            };
            let (registry, token) = (self.poll.registry(), Token(DOORS + place));
            let watched = match &mut door.socket {
                Socket::Tcp(listener) => registry.register(listener, token, Interest::READABLE),
                Socket::Udp(socket) => {
                    let fd = socket.as_raw_fd();
                    registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
                }
            };
            if let Err(error) = watched {
                tracing::warn!("{} cannot be watched: {error}; it is closed", door.place);
                self.entrance.close(place);
            }
        }
    }

    /// Says whether there may be more.
    fn take_connections(&mut self, place: usize, now: Instant) -> bool {
        for _ in 0..TURN {
            let Some(door) = self.entrance.doors.get(place) else {
                return false;
            };
            let (Socket::Tcp(listener), Some(pod)) = (&door.socket, door.pod()) else {
                return false;
            };
            match listener.accept() {
                Ok((stream, from)) => self.welcome(place, stream, from, pod, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if is_want_of_descriptors(error.raw_os_error()) => {
                    self.want_descriptors(now);
                    self.entrance.rest(place, now + REST);
                    return false;
                }
                // It was gone before it was taken.
                Err(_) => {}
            }
        }
        true
    }

    fn welcome(
        &mut self,
        door: usize,
        stream: TcpStream,
        from: SocketAddr,
        pod: SocketAddr,
        now: Instant,
    ) {
        let room = self.key_for(protocol::TCP, from, pod);
        let Some(key) = room.filter(|key| self.make_room(key)) else {
            return tcp::reset(&stream);
        };
        let shown = SocketAddr::new(key.dst, key.dst_port);
        let Some(end) = self.stack.call(shown, pod) else {
            return tcp::reset(&stream);
        };
        self.counters.tcp_accepted.add(1);
        let tcp = Tcp::call(stream, end, door);
        self.admit(key, Kind::Tcp(Box::new(tcp)), now);
    }

    /// Says whether there may be more.
    fn take_datagrams(&mut self, place: usize, socket: &Rc<door::Datagrams>, now: Instant) -> bool {
        let pod = self.entrance.doors.get(place).and_then(|door| door.pod());
        let Some(pod) = pod else {
            return false;
        };
        for _ in 0..datagrams::TURN {
            let came = match socket.receive(&mut self.buffer) {
                Ok(Some(came)) => came,
                Err(Errno::EAGAIN) => return false,
                // What has no sender cannot be answered.
                Ok(None) | Err(_) => continue,
            };
            let call = Call {
                door: place,
                from: came.from,
                to: came.to,
            };
            let known = self.entrance.callers.get(&call).copied();
            let Some(slot) = known.or_else(|| self.take_call(call, socket, pod, now)) else {
                continue;
            };
            let Some(flow) = self.table.flow(slot) else {
                continue;
            };
            let Kind::Caller(caller) = &mut flow.kind else {
                continue;
            };
            let mut tools = datagrams::Tools {
                link: &mut self.link,
                counters: &self.counters,
                now,
                buffer: &mut self.buffer,
                mtu: mtu(&self.mtus, flow.key.src),
            };
            caller.hear(&mut tools, &flow.key, came.bytes, came.size);
        }
        true
    }

    fn take_call(
        &mut self,
        call: Call,
        socket: &Rc<door::Datagrams>,
        pod: SocketAddr,
        now: Instant,
    ) -> Option<usize> {
        let key = self.key_for(protocol::UDP, call.from, pod)?;
        if !self.make_room(&key) {
            return None;
        }
        self.counters.udp_accepted.add(1);
        let caller = Caller::new(call, Rc::clone(socket), now);
        self.admit(key, Kind::Caller(caller), now);
        let slot = self.table.find(&key)?;
        self.entrance.callers.insert(call, slot);
        Some(slot)
    }

    /// By which the pod's answers are known. Whose address and port stand for
    /// somebody else with this pod gets another port.
    fn key_for(&mut self, protocol: u8, from: SocketAddr, pod: SocketAddr) -> Option<Key> {
        let dst = self.entrance.shown(from.ip());
        let key = |dst_port| Key {
            src: pod.ip(),
            dst,
            protocol,
            src_port: pod.port(),
            dst_port,
        };
        let first = from.port().max(1);
        let others = (0..TRIES).map(|step| OTHER_PORTS | first.wrapping_add(step * 509));
        let mut ports = once(first).chain(others);
        let free = ports.find(|port| self.table.find(&key(*port)).is_none());
        if free.is_none() {
            self.counters.refused_limit.add(1);
        }
        free.map(key)
    }
}
