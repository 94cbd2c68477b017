//! How soon may a packet go, within its port's bandwidth and its packets per
//! second? A token bucket of each a direction, which all workers share; the time
//! is handed in.
//!
//! A packet goes while a token is left, and takes as many as it has bytes:
//! what is larger than the bucket leaves a debt. A packet that comes while
//! there is a debt is put off until it is paid, or lost if that takes too
//! long. So in any time `t` at most `burst + rate · t` and one frame go, and
//! a sender who never rests gets the whole rate, however small the burst.
//!
//! Packets are put off because TCP, which sends a super-frame at once, gets
//! a tenth to four fifths of a rate that is kept by loss alone.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use weft_wire::Packet;

use crate::{DropReason, Port};

/// Above every rate that a port reaches, and low enough for 46 years of it
/// to fit 64 bits of bytes.
const RATE_MAX: u64 = 100_000_000_000;

/// Parts of a second that a packet is put off at most: 1/20 is 50 ms.
const PATIENCE: u64 = 20;

/// Bytes that wait for one port and direction at most, and one frame. It
/// rules from 168 Mbit/s on.
const BACKLOG_MAX: u64 = 1 << 20;

const NANOSECONDS: u128 = 1_000_000_000;

#[derive(Debug)]
pub struct Shaper {
    /// Bits per second.
    rate: u64,
    /// Bytes.
    burst: u64,
    /// Bytes of debt with which a packet is still taken.
    backlog: u64,
    since: Instant,
    /// Bytes that were taken, and those that could have been while the
    /// bucket was full.
    spent: AtomicU64,
    refused: AtomicU64,
}

impl Shaper {
    /// Begins full. `rate` is in bits per second, `burst` in bits.
    pub fn new(rate: u64, burst: u64, now: Instant) -> Self {
        let rate = rate.clamp(1, RATE_MAX);
        Self {
            rate,
            burst: burst.div_ceil(8).max(1),
            backlog: (rate / 8 / PATIENCE).min(BACKLOG_MAX),
            since: now,
            spent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// One that counts packets: so many per second, and so many at once. It
    /// holds a packet for a byte.
    pub fn of_packets(rate: u32, burst: u32, now: Instant) -> Self {
        Self::new(u64::from(rate) * 8, u64::from(burst) * 8, now)
    }

    /// When a frame of `bytes` that counts as `packets` may go; none if it
    /// is to be lost. Frames that come later never go earlier.
    pub fn departure(&self, bytes: u64, packets: u64, now: Instant) -> Option<Instant> {
        let earned = self.earned(now);
        let full = earned - self.burst;
        let latest = earned.saturating_add(self.backlog);
        let taken = self.spent.fetch_update(Relaxed, Relaxed, |spent| {
            let spent = spent.max(full);
            (spent < latest).then(|| spent.saturating_add(bytes))
        });
        match taken {
            Ok(spent) => Some(self.since + self.time_for(spent.saturating_sub(self.burst))),
            Err(_) => {
                self.refused.fetch_add(packets, Relaxed);
                None
            }
        }
    }

    /// Packets that were to be lost.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Bytes that may have gone up to now, had the bucket never been full.
    fn earned(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since).as_nanos();
        let grown = u128::from(self.rate) * elapsed / (8 * NANOSECONDS);
        self.burst
            .saturating_add(u64::try_from(grown).unwrap_or(u64::MAX))
    }

    /// In which so many bytes grow.
    fn time_for(&self, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * (8 * NANOSECONDS) / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// When a frame that counts as `packets` may leave the pod behind `port`, if
/// it has to wait.
pub fn from_pod(
    port: &Port,
    packet: &Packet,
    packets: u64,
    now: Instant,
) -> Result<Option<Instant>, DropReason> {
    let counter = port.from_pod_packets.as_ref();
    let counted = counted(counter, packets, now).ok_or(DropReason::PacketsFromPod)?;
    let shaper = port.from_pod_shaper.as_ref();
    let shaped = shaped(shaper, packet, packets, now).ok_or(DropReason::BandwidthFromPod)?;
    Ok(counted.max(shaped))
}

/// When a frame that counts as `packets` may go to the pod behind `port`, if
/// it has to wait.
pub fn to_pod(
    port: &Port,
    packet: &Packet,
    packets: u64,
    now: Instant,
) -> Result<Option<Instant>, DropReason> {
    let counter = port.to_pod_packets.as_ref();
    let counted = counted(counter, packets, now).ok_or(DropReason::PacketsToPod)?;
    let shaper = port.to_pod_shaper.as_ref();
    let shaped = shaped(shaper, packet, packets, now).ok_or(DropReason::BandwidthToPod)?;
    Ok(counted.max(shaped))
}

/// None if the frame is to be lost; else when it may go, if it has to wait.
fn counted(counter: Option<&Shaper>, packets: u64, now: Instant) -> Option<Option<Instant>> {
    let Some(counter) = counter else {
        return Some(None);
    };
    let departure = counter.departure(packets, packets, now)?;
    Some(Some(departure).filter(|departure| *departure > now))
}

fn shaped(
    shaper: Option<&Shaper>,
    packet: &Packet,
    packets: u64,
    now: Instant,
) -> Option<Option<Instant>> {
    let Some(shaper) = shaper else {
        return Some(None);
    };
    // On a wire each packet of a super-frame has the headers.
    let more_headers = packets.saturating_sub(1) * packet.payload as u64;
    let bytes = packet.end as u64 + more_headers;
    let departure = shaper.departure(bytes, packets, now)?;
    Some(Some(departure).filter(|departure| *departure > now))
}
