//! Whatever the number of queues and workers, and whatever is sent beside
//! it, a flow's packets arrive in the order they were sent and as they were
//! sent.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use weft_lab::{
    Attach, Lab, Ledger, Pod, Spec,
    exchange::{self, Content},
    probe::{DEADLINE, Family, patiently},
    use_executable,
};
use weft_testkit::needs_namespaces;

#[path = "support/pin.rs"]
mod pin;
use pin::pin_workers;

const LONG: Duration = Duration::from_millis(1500);

#[test]
fn across_nodes_through_taps() {
    needs_namespaces!();
    check(&lab(2, Attach::Tap), "n2p1", "n2p2");
}

#[test]
fn across_nodes_through_veths() {
    needs_namespaces!();
    check(&lab(2, Attach::Veth), "n2p1", "n2p2");
}

#[test]
fn on_one_node() {
    needs_namespaces!();
    check(&lab(1, Attach::Tap), "n1p2", "n1p3");
}

/// Numbered datagrams and TCP streams, all at once and both ways.
fn check(lab: &Lab, to: &str, or: &str) {
    let from = lab.pod("n1p1").expect("a pod");
    let [to, or] = [to, or].map(|name| lab.pod(name).expect("a pod"));
    for node in &lab.nodes {
        let forwarder = node.forwarder.as_ref().expect("a forwarder");
        assert_eq!(pin_workers(forwarder), 2);
    }
    let mut flows = Vec::new();
    for family in Family::ALL {
        for (from, to) in [(from, to), (to, from), (from, or), (or, from)] {
            flows.extend([false, true].map(|both| Flow::new(from, to, family, both)));
        }
    }
    let until = Instant::now() + LONG;
    thread::scope(|scope| {
        let run = |flow: Flow| scope.spawn(move || flow.run(until));
        let flows: Vec<_> = flows.into_iter().map(run).collect();
        for (from, to) in [(from, to), (or, from), (from, or)] {
            scope.spawn(move || {
                let mut family = Family::ALL.iter().cycle();
                while Instant::now() < until {
                    let family = *family.next().expect("endless");
                    exchange::bulk(from, to, family, 1 << 20).expect("every byte");
                }
            });
        }
        for flow in flows {
            let (sent, arrived) = flow.join().expect("in order");
            // A busy machine loses some on the way, in queues of the kernel's.
            assert!(arrived * 2 > sent, "of {sent} datagrams {arrived} arrived");
        }
    });
    for node in &lab.nodes {
        Ledger::of(node.forwarder.as_ref().expect("a forwarder")).expect("balanced");
    }
}

/// Datagrams from one socket to another. Each is of another size and bears
/// its number, from which the rest of it follows.
struct Flow {
    asking: UdpSocket,
    answering: UdpSocket,
    /// Whether each datagram is answered.
    both_ways: bool,
    largest: usize,
    arrived: AtomicU64,
    /// The last number, once it is known.
    last: AtomicU64,
}

/// Datagrams on the way: few enough for every buffer.
const WINDOW: u64 = 48;

impl Flow {
    fn new(from: &Pod, to: &Pod, family: Family, both_ways: bool) -> Self {
        let (asking, answering) = exchange::sockets(from, to, family).expect("sockets");
        if both_ways {
            shake_hands(&asking, &answering);
        }
        answering
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        asking.set_nonblocking(true).expect("non-blocking");
        Self {
            asking,
            answering,
            both_ways,
            largest: 1450 - if family == Family::V4 { 28 } else { 48 },
            arrived: AtomicU64::new(0),
            last: AtomicU64::new(u64::MAX),
        }
    }

    /// How many were sent, and how many arrived.
    fn run(&self, until: Instant) -> (u64, u64) {
        thread::scope(|scope| {
            let receiving = scope.spawn(|| self.receive());
            let (mut sent, mut answered) = (0, 0);
            while Instant::now() < until {
                sent += 1;
                self.asking.send(&self.datagram(sent)).expect("sent");
                self.wait_for_room(sent);
                answered = self.read_answers(answered);
            }
            self.last.store(sent, Relaxed);
            let arrived = receiving.join().expect("in order");
            (sent, arrived)
        })
    }

    /// Goes on after a while: what is lost makes no room.
    fn wait_for_room(&self, sent: u64) {
        let until = Instant::now() + Duration::from_millis(20);
        while sent - self.arrived.load(Relaxed) >= WINDOW && Instant::now() < until {
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn read_answers(&self, mut newest: u64) -> u64 {
        let mut bytes = [0; 8];
        while let Ok(8) = self.asking.recv(&mut bytes) {
            let number = u64::from_le_bytes(bytes);
            assert!(number > newest, "answer {number} came after {newest}");
            newest = number;
        }
        newest
    }

    /// Ends with the last datagram, or with silence where that is lost.
    fn receive(&self) -> u64 {
        let (mut bytes, mut count, mut newest) = ([0; 2048], 0, 0);
        let mut heard = Instant::now();
        while newest < self.last.load(Relaxed) && heard.elapsed() < DEADLINE {
            let Ok((len, asking)) = self.answering.recv_from(&mut bytes) else {
                continue;
            };
            heard = Instant::now();
            let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            assert!(number > newest, "{number} came after {newest}");
            assert!(
                bytes[..len] == *self.datagram(number),
                "{number} came changed"
            );
            newest = number;
            count += 1;
            if self.both_ways {
                let answer = self.answering.send_to(&bytes[..8], asking);
                answer.expect("answered");
            }
            self.arrived.store(number, Relaxed);
        }
        count
    }

    /// Mostly full, as streams are, with smaller ones in between.
    fn datagram(&self, number: u64) -> Vec<u8> {
        let full = number % 8 < 5;
        let spread = usize::try_from(number.wrapping_mul(0x9e37_79b9) % 1400).expect("small");
        let size = if full {
            self.largest
        } else {
            8 + spread % (self.largest - 8)
        };
        let mut bytes = vec![0; size];
        Content::new(number).fill(&mut bytes);
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    }
}

/// The first of a flow waits until it is answered, as in most protocols. With
/// the answer the flow comes to the queue that both ways share from then on.
fn shake_hands(asking: &UdpSocket, answering: &UdpSocket) {
    let mut bytes = [0; 8];
    asking.send(b"hello").expect("sent");
    let (len, from) = patiently(|| answering.recv_from(&mut bytes)).expect("it arrives");
    answering.send_to(&bytes[..len], from).expect("answered");
    patiently(|| asking.recv(&mut bytes)).expect("the answer arrives");
}

fn lab(nodes: usize, attach: Attach) -> Lab {
    use_executable(env!("CARGO_BIN_EXE_weft"));
    Lab::up(&Spec {
        nodes,
        pods: 3,
        attach,
        workers: Some(2),
        ..Spec::default()
    })
    .expect("a lab")
}
