//! Pages that are made from the code stay as the code is. After a change,
//! `WEFT_BLESS=1 cargo test --test docs` writes them anew. Pages written by hand
//! leave out nothing that the code has.

use std::{collections::BTreeSet, env, fmt::Write, fs, path::Path};

use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_api::ipam::{Answer, Code, Event, Request};
use weft_engine::{Counters, DropReason, drops::Severity};

const MADE: &str = "<!-- Made from the code: WEFT_BLESS=1 cargo test --test docs -->\n";

fn compare(path: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("WEFT_BLESS").is_some() {
        fs::write(&path, expected).expect("write the page");
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{path:?} is not as the code is; run with WEFT_BLESS=1"
    );
}

#[test]
fn drops_are_documented() {
    let mut page = format!(
        "# Why packets are dropped\n\n{MADE}\n\
         Every packet that is lost is counted under one of these reasons: in\n\
         `weft_dropped_packets_total{{reason=\"…\"}}`, in `weft drops` and in the control\n\
         protocol's `drops`.\n"
    );
    for (severity, meaning) in [
        (
            Severity::Trouble,
            "Capacity or the machine's state costs packets: look into it.",
        ),
        (
            Severity::Suspect,
            "Somebody sends what they may not, or what nobody can use.",
        ),
        (Severity::Normal, "Happens on a healthy network."),
    ] {
        let name = severity.name();
        let (first, rest) = name.split_at(1);
        write!(page, "\n## {}{rest}\n\n{meaning}\n\n", first.to_uppercase()).expect("a string");
        page += "| reason | what happened |\n|---|---|\n";
        for reason in DropReason::ALL
            .iter()
            .filter(|reason| reason.severity() == severity)
        {
            writeln!(page, "| `{}` | {} |", reason.name(), reason.sentence()).expect("a string");
        }
    }
    compare("docs/drops.md", &page);
}

#[test]
fn counters_are_documented() {
    let mut page = format!(
        "# Metrics\n\n{MADE}\n\
         The forwarder serves them at `/metrics` of its `--metrics` address, in the\n\
         OpenMetrics text format. A super-frame counts as the packets that it would be\n\
         on a wire.\n\n\
         | counter | meaning |\n|---|---|\n"
    );
    for (name, meaning, _) in Counters::default().each() {
        writeln!(page, "| `weft_{name}_total` | {meaning} |").expect("a string");
    }
    page += "| `weft_dropped_packets_total{reason,severity}` | Packets lost; see \
             [drops.md](drops.md). |\n\
             | `weft_port_packets_total{port,direction}` | Packets `from_pod` and `to_pod`. |\n\
             | `weft_port_traffic_bytes_total{port,direction}` | Bytes of their Ethernet frames. |\n\
             | `weft_port_over_bandwidth_total{port,direction}` | Packets beyond the bandwidth of \
             a port that has one. |\n\
             | `weft_peer_packets_total{peer,direction}` | Packets `to_peer` and `from_peer`. |\n\
             | `weft_peer_traffic_bytes_total{peer,direction}` | Bytes of their inner Ethernet frames. |\n\
             | `weft_peer_probes_total{peer,result}` | Small probes of the peer, `answered` and `lost`. |\n\
             \n\
             The gauges are `weft_ports`, `weft_ports_gone`, `weft_peers`, `weft_workers`,\n\
             `weft_epoch`, `weft_uplink_gso` and `weft_uplink_gro`, and where an IPAM server\n\
             is followed `weft_ipam_connected` and `weft_ipam_revision`, where the nodes\n\
             come from a file `weft_nodes_file_in_force`, and where there are policies\n\
             `weft_connections` and `weft_policy_edition`; `weft_forwarder_info` bears the version.\n\
             Of each peer there are `weft_peer_path_mtu_bytes{peer}`,\n\
             `weft_peer_path_state{peer,state}`, 1 for the state that its path is in, and once it\n\
             has answered `weft_peer_round_trip_seconds{peer,statistic}` with `last`, `least`,\n\
             `mean` and `jitter`; [mtu.md](mtu.md) tells what they mean.\n";
    compare("docs/metrics.md", &page);
}

#[test]
fn the_egress_is_documented() {
    const PAGE: &str = include_str!("../docs/egress.md");
    for (name, meaning) in weft_egress::counters() {
        let row = format!("| `weft_egress_{name}_total` | {meaning} |\n");
        assert!(PAGE.contains(&row), "{row} is missing");
    }
}

const IPAM: &str = include_str!("../docs/ipam-protocol.md");

/// The names that serde knows for a type's variants: what it says when given
/// another.
fn names<T: DeserializeOwned>(other: &str) -> BTreeSet<String> {
    let told = serde_json::from_str::<T>(other).err().expect("no variant");
    let told = told.to_string();
    let (_, expected) = told.split_once("expected one of").expect("a list");
    let names = expected.split('`').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

#[test]
fn the_ipam_protocol_is_documented() {
    let (mut operations, mut events) = (BTreeSet::new(), BTreeSet::new());
    for block in IPAM.split("```json\n").skip(1) {
        let (lines, _) = block.split_once("\n```\n").expect("the block ends");
        for line in lines.lines() {
            let value: Value = serde_json::from_str(line).expect("each line is JSON");
            if let Some(op) = value["op"].as_str() {
                operations.insert(op.to_owned());
                let request = serde_json::from_str::<Request>(line);
                assert!(request.is_ok() || op == "reboot", "{line}: {request:?}");
                continue;
            }
            let answer = serde_json::from_str::<Answer>(line);
            let answer = answer.unwrap_or_else(|fault| panic!("{line}: {fault}"));
            let again = serde_json::to_value(&answer).expect("JSON");
            assert_eq!(again, value, "no more and no less than is sent");
            let event = value["event"].as_object();
            events.extend(event.into_iter().flat_map(|event| event.keys().cloned()));
        }
    }
    assert!(operations.remove("reboot"), "an error is shown");
    assert_eq!(operations, names::<Request>(r#"{"op":""}"#));
    assert_eq!(events, names::<Event>(r#"{"":{}}"#));
    for operation in operations {
        let heading = format!("## {operation}\n");
        assert!(IPAM.contains(&heading), "{operation} has no heading");
    }
    let (_, table) = IPAM.split_once("\n## Errors\n").expect("a table");
    for code in names::<Code>("\"\"") {
        assert!(
            table.contains(&format!("\n| `{code}` |")),
            "{code} is missing"
        );
    }
}
