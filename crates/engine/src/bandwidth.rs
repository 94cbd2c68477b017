//! Is a port within its bandwidth? A token bucket a direction, which all
//! workers share; the time is handed in.
//!
//! A packet passes while a token is left, and takes as many as it has bytes:
//! what is larger than the bucket leaves a debt that the next must wait for.
//! So in any time `t` at most `burst + rate · t` and one frame pass, and a
//! sender who never rests gets the whole rate, however small the burst.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use weft_wire::Packet;

use crate::{DropReason, Port};

/// Above every rate that a port reaches, and low enough for 46 years of it
/// to fit 64 bits of bytes.
const RATE_MAX: u64 = 100_000_000_000;

#[derive(Debug)]
pub struct Policer {
    /// Bits per second.
    rate: u64,
    /// Bytes.
    burst: u64,
    since: Instant,
    /// Bytes that have passed, and those that could have while the bucket
    /// was full.
    spent: AtomicU64,
    refused: AtomicU64,
}

impl Policer {
    /// Begins full. `rate` is in bits per second, `burst` in bits.
    pub fn new(rate: u64, burst: u64, now: Instant) -> Self {
        Self {
            rate: rate.min(RATE_MAX),
            burst: burst.div_ceil(8).max(1),
            since: now,
            spent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes the bytes of a frame that counts as `packets`, if it may pass.
    pub fn passes(&self, bytes: u64, packets: u64, now: Instant) -> bool {
        let earned = self.earned(now);
        let full = earned - self.burst;
        let taken = self.spent.fetch_update(Relaxed, Relaxed, |spent| {
            let spent = spent.max(full);
            (spent < earned).then(|| spent.saturating_add(bytes))
        });
        if taken.is_err() {
            self.refused.fetch_add(packets, Relaxed);
        }
        taken.is_ok()
    }

    /// Packets that did not pass.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Bytes that may have passed up to now, had the bucket never been full.
    fn earned(&self, now: Instant) -> u64 {
        const BIT_NANOSECONDS_PER_BYTE: u128 = 8 * 1_000_000_000;

        let elapsed = now.saturating_duration_since(self.since).as_nanos();
        let grown = u128::from(self.rate) * elapsed / BIT_NANOSECONDS_PER_BYTE;
        self.burst
            .saturating_add(u64::try_from(grown).unwrap_or(u64::MAX))
    }
}

/// May a frame that counts as `packets` leave the pod behind `port`?
pub fn from_pod(
    port: &Port,
    packet: &Packet,
    packets: u64,
    now: Instant,
) -> Result<(), DropReason> {
    let reason = DropReason::BandwidthFromPod;
    within(port.from_pod_limit.as_ref(), packet, packets, now, reason)
}

/// May a frame that counts as `packets` go to the pod behind `port`?
pub fn to_pod(port: &Port, packet: &Packet, packets: u64, now: Instant) -> Result<(), DropReason> {
    let reason = DropReason::BandwidthToPod;
    within(port.to_pod_limit.as_ref(), packet, packets, now, reason)
}

fn within(
    limit: Option<&Policer>,
    packet: &Packet,
    packets: u64,
    now: Instant,
    reason: DropReason,
) -> Result<(), DropReason> {
    let Some(limit) = limit else {
        return Ok(());
    };
    // On a wire each packet of a super-frame has the headers.
    let more_headers = packets.saturating_sub(1) * packet.payload as u64;
    let bytes = packet.end as u64 + more_headers;
    if limit.passes(bytes, packets, now) {
        Ok(())
    } else {
        Err(reason)
    }
}
