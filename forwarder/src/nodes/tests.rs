use weft_api::forwarder::Way;

use super::*;

const TWO: &str = r#"# The whole network.
[[node]]
name = "n1"
underlay = ["192.0.2.1"]
vtep_mac = "02:00:00:00:01:01"
blocks = ["10.1.0.0/24", "fd00:1::/120"]

[[node]]
name = "n2"
underlay = ["192.0.2.2", "2001:db8::2"]
vtep_mac = "02:00:00:00:01:02"
vni = 7
port = 4790
blocks = ["10.2.0.0/24", "10.2.1.0/24"]
ways = { "10.2.1.0/24" = "ipip" }
"#;

#[test]
fn a_node_has_what_the_file_says_and_the_usual_otherwise() {
    let [first, second] = &parse(TWO).expect("two nodes")[..] else {
        panic!("two nodes");
    };
    assert_eq!((first.vni.value(), first.port), (4096, 4789));
    assert_eq!((second.vni.value(), second.port), (7, 4790));
    let net = "10.2.1.0/24".parse().expect("a net");
    assert_eq!(second.ways[&net], Way::Ipip);
    assert_eq!(parse("").expect("no node"), []);
}

#[test]
fn the_documented_file_is_taken() {
    let page = include_str!("../../../docs/static.md");
    let block = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let nodes = parse(block.expect("an example")).expect("it is right");
    assert_eq!(nodes.len(), 2);
}

/// What is changed in [`TWO`], the line that is told, and part of its flaw.
const FLAWS: &[(&str, &str, usize, &str)] = &[
    (
        "name = \"n2\"",
        "name = \"n1\"",
        8,
        "name n1 is node n1's, in line 2",
    ),
    ("name = \"n2\"", "name = \"n 2\"", 9, "character"),
    ("name = \"n2\"", "nane = \"n2\"", 9, "unknown field `nane`"),
    (
        "[[node]]\nname = \"n1\"",
        "[[nodes]]\nname = \"n1\"",
        2,
        "unknown field `nodes`",
    ),
    ("vni = 7", "vni = 16777216", 12, "24-bit"),
    ("vni = 7", "vni = ", 12, ""),
    ("port = 4790", "port = 0", 8, "port 0"),
    ("port = 4790", "port = 70000", 13, "expected u16"),
    (
        "\"192.0.2.2\"",
        "\"192.0.2.1\"",
        8,
        "underlay address 192.0.2.1 is node n1's",
    ),
    ("\"192.0.2.2\"", "\"192.0.2\"", 10, "IP address"),
    (
        "01:02",
        "01:01",
        8,
        "vtep_mac 02:00:00:00:01:01 is node n1's",
    ),
    (
        "\"10.2.0.0/24\"",
        "\"10.1.0.0/24\"",
        8,
        "10.1.0.0/24 overlaps 10.1.0.0/24 of node n1",
    ),
    (
        "\"10.2.0.0/24\"",
        "\"10.1.0.64/26\"",
        8,
        "10.1.0.64/26 overlaps 10.1.0.0/24 of node n1",
    ),
    (
        "\"10.2.0.0/24\"",
        "\"10.0.0.0/15\"",
        8,
        "10.0.0.0/15 overlaps 10.1.0.0/24 of node n1",
    ),
    (
        "\"10.1.0.0/24\"",
        "\"10.2.0.0/16\"",
        8,
        "overlaps 10.2.0.0/16 of node n1, in line 2",
    ),
    ("\"10.2.0.0/24\"", "\"10.2.0.1/24\"", 8, "write 10.2.0.0/24"),
    (
        "{ \"10.2.1.0/24\"",
        "{ \"10.9.1.0/24\"",
        8,
        "none of its blocks",
    ),
    ("\"ipip\"", "\"pigeon\"", 15, "unknown variant `pigeon`"),
];

#[test]
fn each_flaw_is_told_with_its_line() {
    for &(from, to, line, told) in FLAWS {
        assert!(TWO.contains(from), "{from}");
        let flaw = parse(&TWO.replacen(from, to, 1)).expect_err(to);
        assert_eq!(flaw.line, line, "{to}: {flaw:?}");
        assert!(flaw.problem.contains(told), "{told:?}: {flaw:?}");
        assert!(!flaw.remedy.is_empty() && !flaw.problem.contains('\n'));
    }
}

#[test]
fn a_version_is_cut_anywhere_and_never_panics() {
    for end in 0..TWO.len() {
        // What is left may be a whole file with fewer nodes.
        let _ = parse(&TWO[..end]);
    }
}

#[test]
fn what_is_no_file_with_this_node_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nodes.toml");
    let own = |name: &str| Name::new(name).expect("a name");
    let told = |name: &str| read_as(&path, &own(name)).expect_err("refused").to_string();
    assert!(told("n1").contains("No such file"), "{}", told("n1"));
    std::fs::create_dir(&path).expect("a folder");
    assert!(told("n1").contains("no plain file"), "{}", told("n1"));
    std::fs::remove_dir(&path).expect("remove");
    std::fs::write(&path, b"\xff").expect("write");
    assert!(told("n1").contains("UTF-8"), "{}", told("n1"));
    std::fs::write(&path, vec![b'#'; REQUEST_MAX + 1]).expect("write");
    assert!(
        told("n1").contains("more than 8388608 bytes"),
        "{}",
        told("n1")
    );
    std::fs::write(&path, TWO).expect("write");
    assert!(
        told("n3").contains("node n3 is not in it"),
        "{}",
        told("n3")
    );
    let nodes = read_as(&path, &own("n2")).expect("it is there");
    assert_eq!(nodes.node.name, own("n2"));
    assert_eq!(nodes.peers.len(), 1);
}
