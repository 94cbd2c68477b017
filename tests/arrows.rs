//! What the workspace's parts may know of each other, and what must not
//! stand in their sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

const WIRE: &str = "weft-wire";
const API: &str = "weft-api";
const CONNTRACK: &str = "weft-conntrack";
const ETCD: &str = "weft-etcd";
const ENGINE: &str = "weft-engine";
const POLICY: &str = "weft-policy";
const TESTKIT: &str = "weft-testkit";
const SOCKET: &str = "weft-socket";
const CNI: &str = "weft-cni";
const INTEROP: &str = "weft-interop";
const ROOT: &str = "weft";

/// Whom each member may depend on. All may use the testkit in their tests,
/// and the root may use everything.
const ARROWS: &[(&str, &[&str])] = &[
    (WIRE, &[]),
    (API, &[]),
    (CONNTRACK, &[WIRE]),
    (ENGINE, &[CONNTRACK, POLICY, WIRE]),
    (POLICY, &[]),
    (TESTKIT, &[CONNTRACK, ENGINE, POLICY, WIRE]),
    ("weft-egress", &[API, SOCKET, WIRE]),
    (
        "weft-forwarder",
        &[CONNTRACK, ENGINE, POLICY, WIRE, API, SOCKET],
    ),
    (CNI, &[API, SOCKET]),
    (ETCD, &[]),
    (INTEROP, &[API]),
    (SOCKET, &[API]),
    ("weft-ipam", &[API, ETCD, INTEROP, SOCKET]),
    ("weft-lab", &[API, CNI, SOCKET]),
];

const LINES_MAX: usize = 400;
const TEST_LINES_MAX: usize = 800;

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata")
}

#[test]
fn arrows_point_down() {
    let metadata = metadata();
    let members: BTreeSet<_> = metadata
        .packages
        .iter()
        .map(|p| p.name.to_string())
        .collect();
    let mut wrong = Vec::new();
    for package in metadata
        .packages
        .iter()
        .filter(|package| package.name != ROOT)
    {
        let name = package.name.as_str();
        let Some((_, allowed)) = ARROWS.iter().find(|(member, _)| *member == name) else {
            wrong.push(format!("{name} has no line in ARROWS"));
            continue;
        };
        for edge in package
            .dependencies
            .iter()
            .filter(|d| members.contains(&d.name))
        {
            let for_tests = edge.kind == DependencyKind::Development && edge.name == TESTKIT;
            if !for_tests && !allowed.contains(&edge.name.as_str()) {
                wrong.push(format!("{name} depends on {}", edge.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nobody_speaks_grpc() {
    for manifest in manifests() {
        let text = fs::read_to_string(&manifest).expect("a manifest");
        for word in ["tonic", "prost"] {
            assert!(
                !text.contains(word),
                "{} mentions {word}",
                manifest.display()
            );
        }
    }
}

fn manifests() -> Vec<PathBuf> {
    let metadata = metadata();
    let members = metadata
        .packages
        .iter()
        .map(|p| p.manifest_path.clone().into_std_path_buf());
    members.chain([root().join("fuzz/Cargo.toml")]).collect()
}

#[test]
fn the_core_has_no_descriptor_clock_thread_or_log() {
    const FORBIDDEN: &[&str] = &[
        "unsafe",
        "std::fs",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "UdpSocket",
        "TcpStream",
        "tracing",
        "print!",
        "println!",
        "eprintln!",
        "dbg!",
    ];
    let mut wrong = Vec::new();
    for source in sources(&[
        "crates/wire/src",
        "crates/conntrack/src",
        "crates/engine/src",
        "crates/policy/src",
        "crates/interop/src",
    ]) {
        let text = fs::read_to_string(&source).expect("a source file");
        for (place, line) in text.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let is_ban = line.trim() == "#![forbid(unsafe_code)]";
            let found = FORBIDDEN.iter().find(|word| line.contains(**word));
            if let Some(word) = found.filter(|_| !is_comment && !is_ban) {
                wrong.push(format!("{}:{}: {word}", source.display(), place + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for root in ["wire", "conntrack", "engine", "policy", "interop"] {
        let path = format!("{}/crates/{root}/src/lib.rs", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).expect("a crate root");
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{root} permits unsafe"
        );
    }
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for source in sources(&[
        "crates",
        "egress",
        "forwarder",
        "ipam-server",
        "cni-plugin",
        "cli",
        "benches",
        "tests",
    ]) {
        let text = fs::read_to_string(&source).expect("a source file");
        let is_test = source
            .iter()
            .any(|part| part == "tests" || part == "tests.rs");
        let most = if is_test { TEST_LINES_MAX } else { LINES_MAX };
        let lines = text.lines().count();
        if lines > most {
            wrong.push(format!(
                "{} has {lines} lines, of at most {most}",
                source.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under the folders, of which those that are not there yet
/// are left out.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut left: Vec<_> = folders.iter().map(|folder| root().join(folder)).collect();
    left.retain(|folder| folder.exists());
    let mut sources = Vec::new();
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry of a folder").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(path);
            }
        }
    }
    assert!(!sources.is_empty(), "there is no source under {folders:?}");
    sources
}
