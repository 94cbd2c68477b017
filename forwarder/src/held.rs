//! Frames that wait for their time, because their port's bandwidth puts them
//! off. Those of one port and direction keep their order. How many may wait
//! is for the engine to say.

use std::{collections::BTreeMap, time::Instant};

use weft_engine::{Batch, batch::Frame};

#[derive(Debug, Default)]
pub struct Held {
    /// By due time, then as they came. Each with its virtio-net header and
    /// Ethernet bytes.
    frames: BTreeMap<(Instant, u64), (Frame, Vec<u8>)>,
    /// How many there have ever been.
    count: u64,
}

impl Held {
    pub fn push(&mut self, due: Instant, frame: Frame, bytes: &[u8]) {
        self.frames
            .insert((due, self.count), (frame, bytes.to_vec()));
        self.count += 1;
    }

    /// When the first is due.
    pub fn due(&self) -> Option<Instant> {
        let (&(due, _), _) = self.frames.first_key_value()?;
        Some(due)
    }

    /// Moves to `batch` what is due, as far as there is room.
    pub fn take_due(&mut self, now: Instant, batch: &mut Batch) {
        while let Some(first) = self.frames.first_entry() {
            let (due, _) = *first.key();
            let (frame, bytes) = first.get();
            if due > now || !batch.restore(*frame, bytes) {
                return;
            }
            first.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_engine::{Verdict, batch::SLOT};
    use weft_wire::vnet;

    use super::*;

    fn frame(batch: &mut Batch, byte: u8) -> (Frame, Vec<u8>) {
        batch.clear();
        assert!(batch.push(&[byte; 60], Verdict::Answered));
        let frame = batch.frames()[0];
        (frame, batch.with_vnet(&frame).to_vec())
    }

    #[test]
    fn frames_come_back_in_order_when_they_are_due_and_not_before() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let (mut held, mut batch) = (Held::default(), Batch::new(SLOT));
        for (byte, due) in [(1, 5), (2, 9), (3, 5), (4, 7)] {
            let (frame, bytes) = frame(&mut batch, byte);
            held.push(at(due), frame, &bytes);
        }
        let mut take = |held: &mut Held, now| {
            batch.clear();
            held.take_due(now, &mut batch);
            let first = |frame: &Frame| {
                assert_eq!((frame.len, frame.verdict), (60, Verdict::Answered));
                batch.bytes(frame)[0]
            };
            batch.frames().iter().map(first).collect::<Vec<_>>()
        };
        assert_eq!(held.due(), Some(at(5)));
        assert_eq!(take(&mut held, at(4)), [0; 0]);
        assert_eq!(take(&mut held, at(7)), [1, 3, 4]);
        assert_eq!(held.due(), Some(at(9)));
        assert_eq!(take(&mut held, at(9)), [2]);
        assert_eq!(held.due(), None);
    }

    #[test]
    fn what_has_no_room_stays_first() {
        let now = Instant::now();
        let (mut held, mut batch) = (Held::default(), Batch::new(SLOT));
        let fit = SLOT / (vnet::LEN + 60);
        for _ in 0..=fit {
            let (frame, bytes) = frame(&mut batch, 7);
            held.push(now, frame, &bytes);
        }
        batch.clear();
        held.take_due(now, &mut batch);
        assert_eq!(batch.len(), fit);
        assert_eq!(held.due(), Some(now));
        batch.clear();
        held.take_due(now, &mut batch);
        assert_eq!(batch.len(), 1);
    }
}
