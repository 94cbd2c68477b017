//! Packets as the Linux kernel sends them read as they read before.
//! `tests/fixtures/capture.sh` says how the captures were made.

use std::{fs, path::PathBuf};

use weft_testkit::golden;

fn captures() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let entries = fs::read_dir(folder).expect("tests/fixtures is there");
    let paths = entries.map(|entry| entry.expect("an entry of tests/fixtures").path());
    let mut captures: Vec<_> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "pcap")
        })
        .collect();
    captures.sort();
    captures
}

#[test]
fn captures_read_as_their_dissections_say() {
    let captures = captures();
    assert!(captures.len() >= 6, "captures are missing: {captures:?}");
    let differing: Vec<_> = captures
        .iter()
        .filter_map(|path| golden::check_capture(path).err())
        .map(|error| error.to_string())
        .collect();
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

#[test]
fn what_the_kernel_sends_is_sound() {
    for path in captures() {
        let bytes = fs::read(&path).expect("a capture");
        for frame in golden::read_pcap(&bytes).expect("a pcap file") {
            let line = weft_wire::describe(&frame);
            for fault in ["malformed", "checksum", "not understood"] {
                assert!(!line.contains(fault), "{}: {line}", path.display());
            }
        }
    }
}
