//! `weft doctor` on this machine, whatever it finds.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    process::{Command, Output},
};

use weft_cni::netns::Netns;
use weft_forwarder::probe::{Check, State};

fn doctor() -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .args(["doctor", "--json"])
        .output()
        .expect("run weft")
}

fn checks(output: &Output) -> Vec<Check> {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn every_finding_that_is_not_fine_has_a_consequence_and_a_remedy() {
    let output = doctor();
    let checks = checks(&output);
    for check in &checks {
        assert!(!check.finding.is_empty(), "{check:?}");
        let told = check.consequence.is_some() && check.remedy.is_some();
        assert_eq!(told, check.state != State::Ok, "{check:?}");
    }
    let names: BTreeSet<&str> = checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(names.len(), checks.len(), "each name once");
    for name in [
        "kernel",
        "UDP port 4789",
        "UDP port 8472",
        "net.core.rmem_max",
        "net.core.wmem_max",
        "open files",
        "host port",
        "address translation",
        "user namespaces",
        "tun node",
        "tap",
        "packet sockets",
        "UDP GSO",
        "veth and bridge",
    ] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    let failed = checks.iter().any(|check| check.state == State::Fail);
    assert_eq!(output.status.code(), Some(i32::from(failed)));
}

#[test]
fn a_taken_port_is_found_in_the_namespace_it_is_taken_in() {
    weft_testkit::needs_namespaces!();
    let netns = Netns::make("a node").expect("a network namespace: root, or unshare -Urn");
    let output = netns
        .run(|| {
            let _taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4789)).expect("a new namespace");
            doctor()
        })
        .expect("enter");
    let checks = checks(&output);
    let port = |name: &str| {
        checks
            .iter()
            .find(|check| check.name == name)
            .expect("checked")
    };
    assert_eq!(port("UDP port 4789").state, State::Warn);
    assert!(
        port("UDP port 4789")
            .finding
            .starts_with("taken by the process ")
    );
    assert_eq!(port("UDP port 8472").state, State::Ok);
}
