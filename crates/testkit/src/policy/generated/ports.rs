//! Ports and protocols: none, each alone, pairs, and what fits nothing.

use serde_json::{Value, json};
use weft_policy::{
    Transport,
    Transport::{Sctp, Tcp, Udp},
};

use super::{Case, Isolation, Opening, SIX_PORTS, Way, one_step, pod_a};

/// Ports as a rule names them, and what of the six they mean.
type Ports = (&'static str, Value, &'static [Transport]);

const TCP: &[Transport] = &[Tcp(80), Tcp(81)];
const UDP: &[Transport] = &[Udp(80), Udp(81)];
const SCTP: &[Transport] = &[Sctp(80), Sctp(81)];

fn alone() -> Vec<Ports> {
    let port = |protocol: &str, port: Value| json!([{"protocol": protocol, "port": port}]);
    let range =
        |protocol: &str, last: u16| json!([{"protocol": protocol, "port": 53, "endPort": last}]);
    vec![
        ("none", json!([]), &SIX_PORTS),
        ("TCP unsaid", json!([{}]), TCP),
        ("80 of TCP unsaid", json!([{"port": 80}]), &[Tcp(80)]),
        ("81 of TCP unsaid", json!([{"port": 81}]), &[Tcp(81)]),
        ("TCP", json!([{"protocol": "TCP"}]), TCP),
        ("80 of TCP", port("TCP", json!(80)), &[Tcp(80)]),
        ("81 of TCP", port("TCP", json!(81)), &[Tcp(81)]),
        ("UDP", json!([{"protocol": "UDP"}]), UDP),
        ("80 of UDP", port("UDP", json!(80)), &[Udp(80)]),
        ("81 of UDP", port("UDP", json!(81)), &[Udp(81)]),
        ("SCTP", json!([{"protocol": "SCTP"}]), SCTP),
        ("80 of SCTP", port("SCTP", json!(80)), &[Sctp(80)]),
        ("81 of SCTP", port("SCTP", json!(81)), &[Sctp(81)]),
        (
            "name of 80 of TCP",
            port("TCP", json!("serve-80-tcp")),
            &[Tcp(80)],
        ),
        (
            "name of 81 of TCP",
            port("TCP", json!("serve-81-tcp")),
            &[Tcp(81)],
        ),
        (
            "name of 80 of UDP",
            port("UDP", json!("serve-80-udp")),
            &[Udp(80)],
        ),
        (
            "name of 81 of UDP",
            port("UDP", json!("serve-81-udp")),
            &[Udp(81)],
        ),
        (
            "name of 80 of SCTP",
            port("SCTP", json!("serve-80-sctp")),
            &[Sctp(80)],
        ),
        (
            "name of 81 of SCTP",
            port("SCTP", json!("serve-81-sctp")),
            &[Sctp(81)],
        ),
        ("53 to 80 of TCP", range("TCP", 80), &[Tcp(80)]),
        ("53 to 84 of TCP", range("TCP", 84), TCP),
        ("53 to 80 of UDP", range("UDP", 80), &[Udp(80)]),
        ("53 to 84 of UDP", range("UDP", 84), UDP),
        ("53 to 80 of SCTP", range("SCTP", 80), &[Sctp(80)]),
        ("53 to 84 of SCTP", range("SCTP", 84), SCTP),
        (
            "name of another protocol",
            port("TCP", json!("serve-81-udp")),
            &[],
        ),
        (
            "name that nobody has",
            port("TCP", json!("serve-7981-tcp")),
            &[],
        ),
        ("number that nobody serves", port("TCP", json!(7981)), &[]),
    ]
}

fn pairs() -> Vec<Ports> {
    vec![
        ("TCP, or 80 of it", json!([{}, {"port": 80}]), TCP),
        (
            "TCP, or the name of 80",
            json!([{}, {"port": "serve-80-tcp"}]),
            TCP,
        ),
        (
            "TCP or UDP",
            json!([{}, {"protocol": "UDP"}]),
            &[Tcp(80), Tcp(81), Udp(80), Udp(81)],
        ),
        ("80 or 81", json!([{"port": 80}, {"port": 81}]), TCP),
        (
            "80 or the name of 81",
            json!([{"port": 80}, {"port": "serve-81-tcp"}]),
            TCP,
        ),
        (
            "80 or the name of 81 of UDP",
            json!([{"port": 80}, {"protocol": "UDP", "port": "serve-81-udp"}]),
            &[Tcp(80), Udp(81)],
        ),
        (
            "80 of UDP or the name of 81 of UDP",
            json!([{"protocol": "UDP", "port": 80}, {"protocol": "UDP", "port": "serve-81-udp"}]),
            UDP,
        ),
    ]
}

pub fn cases() -> Vec<Case> {
    let all: Vec<_> = alone().into_iter().chain(pairs()).collect();
    let both = Way::BOTH.into_iter();
    both.flat_map(|way| all.iter().map(move |ports| case(way, ports)))
        .collect()
}

fn case(way: Way, (name, text, means): &Ports) -> Case {
    let spec = way.spec(&pod_a(), &json!([way.rule(&json!([]), text)]));
    let isolation = Isolation {
        way,
        subject: "x/a",
        openings: vec![Opening {
            pods: &["*"],
            ports: Some(means),
        }],
    };
    let name = format!("ports, {}: {name}", way.name());
    one_step(name, &[("x/ports", spec)], &[isolation])
}
