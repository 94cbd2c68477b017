//! Newline-framed JSON: cut a stream of bytes into lines of bounded length.

use serde::Serialize;

/// Collects bytes until a line is whole.
///
/// A line longer than the limit is reported once and swallowed to its end,
/// so that the stream stays in step.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    bytes: Vec<u8>,
    /// Bytes known to hold no newline.
    scanned: usize,
    swallowing: bool,
    taken: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Whole(Vec<u8>),
    /// A line passed the limit; its bytes are gone.
    TooLong,
}

impl Lines {
    /// `limit` counts the newline.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
            scanned: 0,
            swallowing: false,
            taken: 0,
        }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// How many bytes of the stream have been popped or swallowed.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next line, without its newline.
    pub fn pop(&mut self) -> Option<Line> {
        loop {
            let newline = self.bytes[self.scanned..].iter().position(|&b| b == b'\n');
            let Some(at) = newline.map(|at| at + self.scanned) else {
                self.scanned = self.bytes.len();
                if self.bytes.len() < self.limit {
                    return None;
                }
                self.taken += self.bytes.len() as u64;
                self.bytes.clear();
                self.scanned = 0;
                if std::mem::replace(&mut self.swallowing, true) {
                    return None;
                }
                return Some(Line::TooLong);
            };
            let rest = self.bytes.split_off(at + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.scanned = 0;
            self.taken += line.len() as u64;
            if std::mem::take(&mut self.swallowing) {
                continue;
            }
            if line.len() > self.limit {
                return Some(Line::TooLong);
            }
            line.pop();
            return Some(Line::Whole(line));
        }
    }

    /// Whether a line has begun and not ended.
    pub fn has_begun(&self) -> bool {
        !self.bytes.is_empty() && !self.swallowing
    }

    /// Gives up the line that has begun, after the stream's end. Whether
    /// there was one that was not told of before.
    pub fn abandon(&mut self) -> bool {
        let begun = self.has_begun();
        self.taken += self.bytes.len() as u64;
        self.bytes.clear();
        self.scanned = 0;
        begun
    }
}

/// One message as a line, newline included.
pub fn encode(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_went_in() {
        let mut lines = Lines::new(16);
        for byte in b"one\ntwo\n" {
            lines.push(&[*byte]);
        }
        lines.push(b"three");
        assert_eq!(lines.pop(), Some(Line::Whole(b"one".to_vec())));
        assert_eq!(lines.pop(), Some(Line::Whole(b"two".to_vec())));
        assert_eq!(lines.pop(), None);
        assert_eq!(lines.taken(), 8);
        lines.push(b"\n");
        assert_eq!(lines.pop(), Some(Line::Whole(b"three".to_vec())));
        assert_eq!(lines.taken(), 14);
        assert!(!lines.abandon());
        lines.push(b"fo");
        assert!(lines.abandon());
        assert!(!lines.abandon());
        assert_eq!((lines.pop(), lines.taken()), (None, 16));
    }

    #[test]
    fn a_line_over_the_limit_is_told_once_and_the_next_is_whole() {
        let mut lines = Lines::new(8);
        lines.push(b"0123456789");
        assert_eq!(lines.pop(), Some(Line::TooLong));
        lines.push(b"0123456789");
        assert_eq!(lines.pop(), None);
        lines.push(b"tail\nnext\n");
        assert_eq!(lines.pop(), Some(Line::Whole(b"next".to_vec())));
        lines.push(b"01234567890123\nlast\n");
        assert_eq!(lines.pop(), Some(Line::TooLong));
        assert_eq!(lines.pop(), Some(Line::Whole(b"last".to_vec())));
        assert_eq!(lines.taken(), 50);
        lines.push(b"0123456789");
        assert_eq!(lines.pop(), Some(Line::TooLong));
        lines.push(b"rest");
        assert!(!lines.abandon(), "it was told of before");
    }
}
