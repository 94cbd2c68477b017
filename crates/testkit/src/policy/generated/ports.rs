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

/// Each protocol alone, its ports, their names, and ranges that hold one or
/// both of them.
fn of_protocols() -> Vec<Ports> {
    let one = |protocol: &str, rest: Value| {
        let mut port = rest;
        port["protocol"] = json!(protocol);
        json!([port])
    };
    let named = |name: &str| json!({"port": name});
    let to = |last: u16| json!({"port": 53, "endPort": last});
    vec![
        ("TCP", one("TCP", json!({})), TCP),
        ("80 of TCP", one("TCP", json!({"port": 80})), &[Tcp(80)]),
        ("81 of TCP", one("TCP", json!({"port": 81})), &[Tcp(81)]),
        (
            "name of 80 of TCP",
            one("TCP", named("serve-80-tcp")),
            &[Tcp(80)],
        ),
        (
            "name of 81 of TCP",
            one("TCP", named("serve-81-tcp")),
            &[Tcp(81)],
        ),
        ("53 to 80 of TCP", one("TCP", to(80)), &[Tcp(80)]),
        ("53 to 84 of TCP", one("TCP", to(84)), TCP),
        ("UDP", one("UDP", json!({})), UDP),
        ("80 of UDP", one("UDP", json!({"port": 80})), &[Udp(80)]),
        ("81 of UDP", one("UDP", json!({"port": 81})), &[Udp(81)]),
        (
            "name of 80 of UDP",
            one("UDP", named("serve-80-udp")),
            &[Udp(80)],
        ),
        (
            "name of 81 of UDP",
            one("UDP", named("serve-81-udp")),
            &[Udp(81)],
        ),
        ("53 to 80 of UDP", one("UDP", to(80)), &[Udp(80)]),
        ("53 to 84 of UDP", one("UDP", to(84)), UDP),
        ("SCTP", one("SCTP", json!({})), SCTP),
        ("80 of SCTP", one("SCTP", json!({"port": 80})), &[Sctp(80)]),
        ("81 of SCTP", one("SCTP", json!({"port": 81})), &[Sctp(81)]),
        (
            "name of 80 of SCTP",
            one("SCTP", named("serve-80-sctp")),
            &[Sctp(80)],
        ),
        (
            "name of 81 of SCTP",
            one("SCTP", named("serve-81-sctp")),
            &[Sctp(81)],
        ),
        ("53 to 80 of SCTP", one("SCTP", to(80)), &[Sctp(80)]),
        ("53 to 84 of SCTP", one("SCTP", to(84)), SCTP),
    ]
}

/// TCP where no protocol is said, and what fits nothing.
fn others() -> Vec<Ports> {
    let unserved = json!([{"protocol": "TCP", "port": 7981}]);
    let unnamed = json!([{"protocol": "TCP", "port": "serve-7981-tcp"}]);
    let mixed_up = json!([{"protocol": "TCP", "port": "serve-81-udp"}]);
    vec![
        ("none", json!([]), &SIX_PORTS),
        ("TCP unsaid", json!([{}]), TCP),
        ("80 of TCP unsaid", json!([{"port": 80}]), &[Tcp(80)]),
        ("81 of TCP unsaid", json!([{"port": 81}]), &[Tcp(81)]),
        ("name of another protocol", mixed_up, &[]),
        ("name that nobody has", unnamed, &[]),
        ("number that nobody serves", unserved, &[]),
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
    let all = [of_protocols(), others(), pairs()].concat();
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
