//! What is owed to one client, in order. Chunks are shared: what all watchers
//! are told is held once, however many have still to take it.
//!
//! Invariant: the first chunk is not empty behind `sent`, and `backlog` is
//! what is left of the chunks that count.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Write},
    sync::Arc,
};

/// Whole lines.
pub type Lines = Arc<Vec<u8>>;

/// Chunks of one system call.
const SLICES: usize = 64;
/// Bytes that leave before others have their turn.
const SHARE: usize = 1 << 20;

#[derive(Debug)]
struct Chunk {
    lines: Lines,
    end: usize,
    counts: bool,
}

#[derive(Debug, Default)]
pub struct Outgoing {
    chunks: VecDeque<Chunk>,
    /// Of the first chunk.
    sent: usize,
    backlog: usize,
}

/// How far the stream took what is owed.
#[derive(Debug, PartialEq)]
pub enum Flow {
    All,
    /// It takes no more now.
    Blocked,
    /// It would take more.
    Share,
}

impl Outgoing {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes that are owed and count.
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// What does not count is to arrive however long it is.
    pub fn push(&mut self, lines: Lines, counts: bool) {
        let end = lines.len();
        if end == 0 {
            return;
        }
        if counts {
            self.backlog += end;
        }
        self.chunks.push_back(Chunk { lines, end, counts });
    }

    /// Drops all but the line of which a part has left.
    pub fn cut(&mut self) {
        let first = self.chunks.pop_front();
        self.chunks.clear();
        self.backlog = 0;
        let Some(mut first) = first else { return };
        let (left, rest) = first.lines[..first.end].split_at(self.sent);
        let is_within = left.last().is_some_and(|&byte| byte != b'\n');
        let end = rest.iter().position(|&byte| byte == b'\n');
        match end.filter(|_| is_within) {
            Some(end) => {
                first.end = self.sent + end + 1;
                first.counts = false;
                self.chunks.push_back(first);
            }
            None => self.sent = 0,
        }
    }

    /// Writes what the stream takes; `moved` says whether that was any.
    pub fn write(&mut self, stream: &mut impl Write, moved: &mut bool) -> io::Result<Flow> {
        let mut share = SHARE;
        while !self.chunks.is_empty() {
            if share == 0 {
                return Ok(Flow::Share);
            }
            match stream.write_vectored(&self.slices(share)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    *moved = true;
                    share -= bytes.min(share);
                    self.advance(bytes);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Flow::Blocked),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Flow::All)
    }

    fn slices(&self, mut most: usize) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::new();
        let mut from = self.sent;
        for chunk in self.chunks.iter().take(SLICES) {
            let bytes = &chunk.lines[from..chunk.end];
            let bytes = &bytes[..bytes.len().min(most)];
            slices.push(IoSlice::new(bytes));
            (from, most) = (0, most - bytes.len());
            if most == 0 {
                break;
            }
        }
        slices
    }

    fn advance(&mut self, mut bytes: usize) {
        while let Some(first) = self.chunks.front() {
            let gone = bytes.min(first.end - self.sent);
            (bytes, self.sent) = (bytes - gone, self.sent + gone);
            if first.counts {
                self.backlog -= gone;
            }
            if self.sent < first.end {
                return;
            }
            self.chunks.pop_front();
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then no more.
    #[derive(Default)]
    struct Narrow(Vec<u8>, usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.1);
            if taken == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.0.extend_from_slice(&bytes[..taken]);
            self.1 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn push(outgoing: &mut Outgoing, text: &str, counts: bool) {
        outgoing.push(Arc::new(text.as_bytes().to_vec()), counts);
    }

    fn take(outgoing: &mut Outgoing, stream: &mut Narrow, bytes: usize) -> Flow {
        stream.1 = bytes;
        outgoing.write(stream, &mut false).expect("it takes")
    }

    #[test]
    fn what_counts_is_counted_and_all_leaves_in_order() {
        let (mut outgoing, mut stream) = (Outgoing::default(), Narrow::default());
        push(&mut outgoing, "whole\n", false);
        push(&mut outgoing, "", true);
        push(&mut outgoing, "one\ntwo\n", true);
        assert_eq!(outgoing.backlog(), 8);
        assert_eq!(take(&mut outgoing, &mut stream, 3), Flow::Blocked);
        assert_eq!(outgoing.backlog(), 8);
        assert_eq!(take(&mut outgoing, &mut stream, 5), Flow::Blocked);
        assert_eq!(outgoing.backlog(), 6);
        assert_eq!(take(&mut outgoing, &mut stream, 100), Flow::All);
        assert_eq!(stream.0, b"whole\none\ntwo\n");
        assert!(outgoing.is_empty() && outgoing.backlog() == 0);
    }

    #[test]
    fn a_cut_leaves_whole_lines() {
        for (sent, expected) in [
            (0, "new\n"),
            (2, "one\nnew\n"),
            (4, "one\nnew\n"),
            (5, "one\ntwo\nnew\n"),
            (9, "one\ntwo\nthree\nnew\n"),
        ] {
            let (mut outgoing, mut stream) = (Outgoing::default(), Narrow::default());
            push(&mut outgoing, "one\ntwo\n", true);
            push(&mut outgoing, "three\n", true);
            take(&mut outgoing, &mut stream, sent);
            outgoing.cut();
            push(&mut outgoing, "new\n", false);
            assert_eq!(outgoing.backlog(), 0);
            take(&mut outgoing, &mut stream, 100);
            assert_eq!(String::from_utf8_lossy(&stream.0), expected, "{sent}");
        }
    }

    #[test]
    fn others_have_their_turn() {
        let (mut outgoing, mut stream) = (Outgoing::default(), Narrow::default());
        outgoing.push(Arc::new(vec![b' '; SHARE + 1]), false);
        assert_eq!(take(&mut outgoing, &mut stream, 2 * SHARE), Flow::Share);
        assert_eq!(stream.0.len(), SHARE);
        assert_eq!(take(&mut outgoing, &mut stream, 2 * SHARE), Flow::All);
    }
}
