//! The committed fuzz corpus does no harm, on the stable compiler too.

use std::{fs, path::Path};

use weft_api::ipam::Request;

#[path = "../../fuzz/bodies/ipam.rs"]
mod body;

/// A corpus stays readable by people: few files.
const FILES_MAX: usize = 60;

#[test]
fn ipam() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/ipam");
    let mut replayed = 0;
    for entry in fs::read_dir(&folder).expect("the target has a corpus") {
        let path = entry.expect("an entry of the corpus").path();
        println!("{}", path.display());
        let bytes = fs::read(&path).expect("a file of the corpus");
        let named = path.file_name().and_then(|name| name.to_str());
        if named.is_some_and(|name| name.starts_with("request-")) {
            serde_json::from_slice::<Request>(&bytes).expect("a request of today's protocol");
        }
        body::ipam(&bytes);
        replayed += 1;
    }
    assert!((1..=FILES_MAX).contains(&replayed), "{replayed} files");
}
