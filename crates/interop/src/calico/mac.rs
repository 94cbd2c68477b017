//! The MAC of a node that has been given none.

use sha1_smol::Sha1;
use weft_api::names::Mac;

/// Of a node's tunnel over IPv4, or over IPv6: a byte 0x66, which marks a
/// unicast address that is administered locally, and the start of a hash of
/// the node's name.
pub fn derived_mac(node: &str, v6: bool) -> Mac {
    let mut hash = Sha1::from(node);
    if v6 {
        hash.update(b"-v6");
    }
    let [a, b, c, d, e, ..] = hash.digest().bytes();
    Mac([0x66, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `printf %s NAME | sha1sum`.
    #[test]
    fn macs_follow_from_names() {
        let long = "n".repeat(253);
        for (name, v4, v6) in [
            ("node-1", "66:b3:68:28:39:8e", "66:24:ac:63:df:6c"),
            (
                "ip-10-0-0-1.ec2.internal",
                "66:81:72:62:16:f1",
                "66:1b:61:de:5f:be",
            ),
            ("knoten-ä-節点", "66:a2:0b:c1:aa:26", "66:8a:6c:d4:7d:1b"),
            (&long, "66:ea:9f:e0:8e:6d", "66:35:bb:5f:f3:c1"),
            ("", "66:da:39:a3:ee:5e", "66:43:32:7c:42:0f"),
        ] {
            assert_eq!(derived_mac(name, false).to_string(), v4, "{name}");
            assert_eq!(derived_mac(name, true).to_string(), v6, "{name}");
        }
    }
}
