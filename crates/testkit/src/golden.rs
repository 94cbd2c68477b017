//! Golden captures: packets as others sent them, in classic pcap files, each
//! with its dissection in a text file beside it.
//!
//! With `WEFT_BLESS=1` in the environment a text that differs is written
//! anew instead of refused; look at the difference before you commit it.

use std::{fmt::Write, fs, io, path::Path, path::PathBuf};

use weft_wire::describe;

#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    Capture { path: PathBuf, error: PcapError },
    #[error("{path} is not what was found; WEFT_BLESS=1 writes it anew\n{difference}")]
    Differs { path: PathBuf, difference: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PcapError {
    #[error("no classic pcap file; write one with tcpdump -w")]
    Magic,
    #[error("link type {0} is not Ethernet; capture on an Ethernet device")]
    LinkType(u32),
    #[error("the record at byte {0} is cut short")]
    Truncated(usize),
}

/// Compares the dissection of a capture with the text beside it.
pub fn check_capture(pcap: &Path) -> Result<(), GoldenError> {
    let bytes = fs::read(pcap).map_err(|error| GoldenError::File {
        path: pcap.to_owned(),
        error,
    })?;
    let frames = read_pcap(&bytes).map_err(|error| GoldenError::Capture {
        path: pcap.to_owned(),
        error,
    })?;
    check_text(&pcap.with_extension("txt"), &dissect(&frames))
}

/// One line for each frame.
pub fn dissect<F: AsRef<[u8]>>(frames: &[F]) -> String {
    let line = |frame: &F| describe(frame.as_ref()) + "\n";
    frames.iter().map(line).collect()
}

/// Compares a text with the file that holds what it should be.
pub fn check_text(path: &Path, found: &str) -> Result<(), GoldenError> {
    let bless = std::env::var_os("WEFT_BLESS").is_some_and(|value| value == "1");
    check(path, found, bless)
}

fn check(path: &Path, found: &str, bless: bool) -> Result<(), GoldenError> {
    let file_error = |error| GoldenError::File {
        path: path.to_owned(),
        error,
    };
    let expected = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && bless => String::new(),
        read => read.map_err(file_error)?,
    };
    if expected == found {
        return Ok(());
    }
    if bless {
        return fs::write(path, found).map_err(file_error);
    }
    Err(GoldenError::Differs {
        path: path.to_owned(),
        difference: difference(&expected, found),
    })
}

/// The lines that differ, by their place: a frame that is missing moves all
/// behind it.
fn difference(expected: &str, found: &str) -> String {
    let mut text = String::new();
    let (expected, found) = (expected.lines(), found.lines());
    let places = expected.clone().count().max(found.clone().count());
    let pad = |lines: std::str::Lines| -> Vec<_> {
        let lines = lines.map(|line| Some(line.to_owned()));
        lines.chain(std::iter::repeat(None)).take(places).collect()
    };
    for (place, (old, new)) in pad(expected).iter().zip(&pad(found)).enumerate() {
        if old == new {
            continue;
        }
        for (sign, line) in [('-', old), ('+', new)] {
            if let Some(line) = line {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{:>5} {sign} {line}", place + 1);
            }
        }
    }
    text
}

const FILE_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
/// The first word of the file, as its writer's endianness has it; the second
/// kind counts nanoseconds (pcap-savefile(5)).
const MAGIC: [u32; 2] = [0xa1b2_c3d4, 0xa1b2_3c4d];
const LINKTYPE_ETHERNET: u32 = 1;

/// The frames of a classic pcap file of either endianness.
pub fn read_pcap(bytes: &[u8]) -> Result<Vec<Vec<u8>>, PcapError> {
    let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let magic = word(0).ok_or(PcapError::Magic)?;
    let number: fn([u8; 4]) -> u32 = if MAGIC.contains(&u32::from_le_bytes(magic)) {
        u32::from_le_bytes
    } else if MAGIC.contains(&u32::from_be_bytes(magic)) {
        u32::from_be_bytes
    } else {
        return Err(PcapError::Magic);
    };
    match number(word(20).ok_or(PcapError::Truncated(0))?) {
        LINKTYPE_ETHERNET => {}
        other => return Err(PcapError::LinkType(other)),
    }
    let mut frames = Vec::new();
    let mut at = FILE_HEADER_LEN;
    while at < bytes.len() {
        let record = || {
            let len = usize::try_from(number(word(at + 8)?)).ok()?;
            let start = at + RECORD_HEADER_LEN;
            bytes.get(start..start.checked_add(len)?)
        };
        let frame = record().ok_or(PcapError::Truncated(at))?;
        frames.push(frame.to_vec());
        at += RECORD_HEADER_LEN + frame.len();
    }
    Ok(frames)
}

/// A classic pcap file of the frames, all at time zero.
pub fn write_pcap<F: AsRef<[u8]>>(frames: &[F]) -> Vec<u8> {
    /// Version 2.4 in the two halves.
    const VERSION: u32 = 4 << 16 | 2;
    const SNAP_LEN: u32 = 262_144;
    let header = [MAGIC[0], VERSION, 0, 0, SNAP_LEN, LINKTYPE_ETHERNET];
    let mut bytes = header.map(u32::to_le_bytes).concat();
    for frame in frames {
        let frame = frame.as_ref();
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&[0, 0, len, len].map(u32::to_le_bytes).concat());
        bytes.extend_from_slice(frame);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let frames = [vec![1; 60], vec![], vec![3; 1514]];
        assert_eq!(read_pcap(&write_pcap(&frames)), Ok(frames.to_vec()));
    }

    #[test]
    fn big_endian_files_of_nanoseconds_are_read() {
        let mut bytes = [MAGIC[1], 0x0002_0004, 0, 0, 96, 1]
            .map(u32::to_be_bytes)
            .concat();
        bytes.extend_from_slice(&[5, 6, 3, 90].map(u32::to_be_bytes).concat());
        bytes.extend_from_slice(b"abc");
        assert_eq!(read_pcap(&bytes), Ok(vec![b"abc".to_vec()]));
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        let whole = write_pcap(&[[7; 9]]);
        for len in 0..4 {
            assert_eq!(read_pcap(&whole[..len]), Err(PcapError::Magic));
        }
        for len in 4..24 {
            assert_eq!(read_pcap(&whole[..len]), Err(PcapError::Truncated(0)));
        }
        for len in 25..whole.len() {
            assert_eq!(read_pcap(&whole[..len]), Err(PcapError::Truncated(24)));
        }
        let mut lies = whole.clone();
        lies[32..36].fill(0xff);
        assert_eq!(read_pcap(&lies), Err(PcapError::Truncated(24)));
        let mut cooked = whole;
        cooked[20] = 113;
        assert_eq!(read_pcap(&cooked), Err(PcapError::LinkType(113)));
    }

    #[test]
    fn a_text_that_differs_is_refused_or_written_anew() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("story.txt");
        let missing = check(&path, "one\n", false);
        assert!(matches!(missing, Err(GoldenError::File { .. })));
        check(&path, "one\ntwo\n", true).expect("blessed");
        check(&path, "one\ntwo\n", false).expect("equal");
        let error = check(&path, "one\n2\nthree\n", false).expect_err("different");
        let text = error.to_string();
        let lines: Vec<_> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["2 - two", "2 + 2", "3 + three"]);
    }
}
