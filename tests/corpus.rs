//! The committed fuzz corpus does no harm, on the stable compiler too.

use std::{fs, path::Path};

use weft_testkit::fuzz;

#[path = "../fuzz/bodies/cni.rs"]
mod body;
#[path = "../fuzz/bodies/interop.rs"]
mod interop_body;

/// A corpus stays readable by people: few files.
const FILES_MAX: usize = 60;

fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let entries = fs::read_dir(&folder).expect("the target has a corpus");
    let mut replayed = 0;
    for entry in entries {
        let path = entry.expect("an entry of the corpus").path();
        println!("{}", path.display());
        body(&fs::read(path).expect("a file of the corpus"));
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", folder.display());
    assert!(
        replayed <= FILES_MAX,
        "{} has grown too large",
        folder.display()
    );
}

#[test]
fn parse() {
    replay("parse", fuzz::parse);
}

#[test]
fn vxlan() {
    replay("vxlan", fuzz::vxlan);
}

#[test]
fn gateway() {
    replay("gateway", fuzz::gateway);
}

#[test]
fn way() {
    replay("way", fuzz::way);
}

#[test]
fn policy() {
    replay("policy", fuzz::policy);
}

#[test]
fn cni() {
    replay("cni", body::cni);
}

#[test]
fn interop() {
    replay("interop", interop_body::interop);
}
