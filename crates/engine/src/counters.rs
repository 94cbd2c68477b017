//! What a worker counts. `received + originated = sent + answered +
//! fragmented + dropped` holds at any quiet moment; all in packets, where a
//! super-frame is as many as it carries segments.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::DropReason;

/// A count with one writer: reading it from elsewhere costs that writer
/// nothing.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Packets and the bytes of their inner Ethernet frames, one direction of a
/// port or peer. Any worker may add.
#[derive(Debug, Default)]
pub struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    pub fn add(&self, packets: u64, bytes: usize) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub fn packets(&self) -> u64 {
        self.packets.load(Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

macro_rules! counters {
    ($($field:ident $text:literal;)*) => {
        /// One worker's counters; only that worker adds.
        #[derive(Debug)]
        pub struct Counters {
            $(#[doc = $text] pub $field: Counter,)*
            drops: [Counter; DropReason::ALL.len()],
        }

        impl Default for Counters {
            fn default() -> Self {
                Self {
                    $($field: Counter::default(),)*
                    drops: std::array::from_fn(|_| Counter::default()),
                }
            }
        }

        impl Counters {
            /// Name, meaning and value of each, drops left out.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($field), $text, self.$field.value()),)*].into_iter()
            }
        }
    };
}

counters! {
    received_from_ports "Packets that pods and the node sent.";
    received_from_peers "Packets that came out of the tunnel, or tried to.";
    originated "Packets that the gateway made.";
    sent_to_ports "Packets delivered to pods and to the node.";
    sent_to_peers "Packets sent into the tunnel.";
    answered "Packets that the gateway consumed and answered.";
    fragmented "Packets too big for their way that went on in fragments, each of which is originated.";
    port_reads "Frames read from ports, super-frames whole.";
    port_writes "Writes to ports, super-frames whole.";
    uplink_reads "Reads from the uplink that yielded datagrams.";
    uplink_writes "Sends on the uplink, each of one or more datagrams.";
    flow_hits "Frames whose way was found in the flow cache.";
    flow_misses "Frames whose way had to be looked up.";
    icmp_suppressed "ICMP errors not sent because of their rate limit.";
}

impl Counters {
    pub fn lose(&self, reason: DropReason, packets: u64) {
        self.drops[reason as usize].add(packets);
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].value()
    }

    /// What came in, and what became of it; equal at any quiet moment.
    pub fn balance(&self) -> (u64, u64) {
        let dropped: u64 = self.drops.iter().map(Counter::value).sum();
        let came = self.received_from_ports.value()
            + self.received_from_peers.value()
            + self.originated.value();
        let went = self.sent_to_ports.value()
            + self.sent_to_peers.value()
            + self.answered.value()
            + self.fragmented.value()
            + dropped;
        (came, went)
    }
}
