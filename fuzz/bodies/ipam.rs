//! What whoever speaks to the IPAM server, or gives it a dump, may send.
//! `fuzz_targets/ipam.rs` calls it with bytes that libFuzzer makes up,
//! `ipam-server/tests/corpus.rs` with the committed corpus.

use weft_api::ipam::Request;
use weft_ipam::{
    check::check,
    import::{calico, host_local},
    selector::Selector,
};

/// A request and a selector read back as they are written, and no dump is
/// too wild to be checked.
pub fn ipam(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let line = serde_json::to_vec(&request).expect("string keys and no fallible serializers");
        let again = serde_json::from_slice::<Request>(&line).expect("what was just written");
        assert_eq!(again, request);
    }
    if let Some(selector) = str::from_utf8(bytes)
        .ok()
        .and_then(|text| Selector::parse(text).ok())
    {
        assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
    }
    let file = ("10.0.0.1".to_owned(), bytes.to_vec());
    let name = (String::from_utf8_lossy(bytes).into_owned(), b"c1".to_vec());
    let directory = host_local([file, name].into_iter());
    for imported in calico(bytes).into_iter().chain([directory]) {
        check(
            imported.rows.iter().map(|(key, value)| (key, value)),
            None,
            0,
        );
    }
}
