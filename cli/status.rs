//! `weft status`: who answers, what it carries, and whether its counts add
//! up.

mod host;
mod peers;

use std::process::ExitCode;

use serde::Serialize;
use weft_api::forwarder::{
    Counters, Driver, Ipam, Limit, NodesFile, Peer, Port, PortState, Reply, Request, Status,
    Traffic,
};

use crate::{
    ipam::words::joined,
    output::{bytes, counted, grouped, lines, show, show_json, table},
    target::{Target, ask},
};
use host::{around, host};
use peers::{paths_table, peers_table};

/// Show a running forwarder: its uplink, ports, peers and counts.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
struct Report {
    status: Status,
    ports: Vec<Port>,
    peers: Vec<Peer>,
    counters: Counters,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.target.connect()?;
    let report = Report {
        status: ask(&mut client, &Request::Status, |reply| match reply {
            Reply::Status(status) => Some(*status),
            _ => None,
        })?,
        ports: ask(&mut client, &Request::List, |reply| match reply {
            Reply::Ports(ports) => Some(ports),
            _ => None,
        })?,
        peers: ask(&mut client, &Request::Peers, |reply| match reply {
            Reply::Peers(peers) => Some(peers),
            _ => None,
        })?,
        counters: ask(&mut client, &Request::Counters, |reply| match reply {
            Reply::Counters(counters) => Some(*counters),
            _ => None,
        })?,
    };
    if args.json {
        show_json(&report)
    } else {
        show(&page(&report))
    }
}

fn page(report: &Report) -> String {
    let Report {
        status,
        ports,
        peers,
        counters,
    } = report;
    let mut page = head(status, ports, peers);
    if !ports.is_empty() {
        page += "\n";
        page += &ports_table(ports);
        page += &services(ports);
    }
    if !peers.is_empty() {
        page += "\n";
        page += &peers_table(peers);
        page += "\n";
        page += &paths_table(peers);
    }
    page += "\n";
    let mut totals = table(&["counter", ""]);
    for (name, &value) in &counters.values {
        totals.add_row([name.replace('_', " "), grouped(value)]);
    }
    page += &lines(&totals);
    page + "\n" + &balance(counters)
}

fn head(status: &Status, ports: &[Port], peers: &[Peer]) -> String {
    let on = |on| if on { "on" } else { "off" };
    let uplink = if status.underlay.is_empty() {
        "none: only pods of this node reach each other".to_owned()
    } else {
        format!(
            "{} port {}, VNI {}, GSO {}, GRO {}",
            joined(&status.underlay),
            status.port,
            status.vni.value(),
            on(status.gso),
            on(status.gro)
        )
    };
    let ipam = status.ipam.as_ref().map(source);
    let file = status.nodes_file.as_ref().map(file);
    let source = ipam.or(file).unwrap_or_default();
    let host = host(ports);
    let around = around(status, ports, peers);
    format!(
        "node    {}: weft {}, process {}, {}, epoch {}\nuplink  {uplink}\n{source}host    {host}\n{around}\
         carries {}, {}\n",
        status.node,
        status.version,
        status.pid,
        counted(status.workers, "worker"),
        status.epoch,
        counted(status.ports, "port"),
        counted(status.peers, "peer"),
    )
}

/// Where the nodes come from.
fn source(ipam: &Ipam) -> String {
    let socket = ipam.socket.display();
    let state = match (ipam.connected, ipam.revision) {
        (true, Some(revision)) => format!("connected, revision {revision} in force"),
        (true, None) => "connected, nothing in force yet".to_owned(),
        (false, Some(revision)) => format!("away, revision {revision} stays in force"),
        (false, None) => "away, no node is known".to_owned(),
    };
    format!("ipam    {socket}: {state}\n")
}

fn file(file: &NodesFile) -> String {
    let path = file.path.display();
    match &file.fault {
        None => format!("nodes   {path}: in force\n"),
        Some(fault) => {
            format!("nodes   {path}: an older version stays in force\n        {fault}\n")
        }
    }
}

fn ports_table(ports: &[Port]) -> String {
    let headings = [
        "port",
        "driver",
        "state",
        "mac",
        "addresses",
        "mtu",
        "queues",
        "from pod",
        "to pod",
    ];
    let mut rows = table(&headings);
    for port in ports {
        let driver = match port.driver {
            Driver::Tap if port.uso => "tap",
            Driver::Tap => "tap, no USO",
            Driver::Basic => "basic",
            Driver::Veth => "veth",
            Driver::Packets => "packets",
        };
        let state = match port.state {
            PortState::Up => "up",
            PortState::Gone => "gone",
        };
        rows.add_row([
            port.name.to_string(),
            driver.to_owned(),
            state.to_owned(),
            port.mac.to_string(),
            joined(&port.addresses),
            port.mtu.to_string(),
            port.queues.to_string(),
            traffic(port.from_pod),
            traffic(port.to_pod),
        ]);
    }
    lines(&rows)
}

/// What ports do besides carrying frames, where there are any such.
fn services(ports: &[Port]) -> String {
    let mut page = String::new();
    let limited = |port: &&Port| !port.capabilities.bandwidth.is_unlimited();
    if ports.iter().any(|port| limited(&port)) {
        let headings = [
            "port",
            "from pod at most",
            "too much",
            "to pod at most",
            "too much",
        ];
        let mut rows = table(&headings);
        for port in ports.iter().filter(limited) {
            let (bandwidth, over) = (&port.capabilities.bandwidth, &port.over_bandwidth);
            rows.add_row([
                port.name.to_string(),
                limit(bandwidth.from_pod),
                grouped(over.from_pod),
                limit(bandwidth.to_pod),
                grouped(over.to_pod),
            ]);
        }
        page += "\n";
        page += &lines(&rows);
    }
    if ports
        .iter()
        .any(|port| !port.capabilities.port_mappings.is_empty())
    {
        let mut rows = table(&["port", "published"]);
        for port in ports {
            for mapping in &port.capabilities.port_mappings {
                rows.add_row([port.name.to_string(), mapping.to_string()]);
            }
        }
        page += "\n";
        page += &lines(&rows);
    }
    page
}

fn limit(limit: Option<Limit>) -> String {
    match limit {
        None => "no limit".to_owned(),
        Some(Limit { rate, burst }) => format!(
            "{} bit/s, {} bits at once",
            grouped(rate.get()),
            grouped(burst.get())
        ),
    }
}

fn balance(counters: &Counters) -> String {
    let Counters { came, went, .. } = counters;
    let verdict = if came == went {
        "no packet is lost without a reason".to_owned()
    } else {
        format!(
            "{} are under way, or lost without a reason",
            grouped(came.abs_diff(*went))
        )
    };
    format!(
        "balance: {} came, {} went; {verdict}\n",
        grouped(*came),
        grouped(*went)
    )
}

fn traffic(traffic: Traffic) -> String {
    format!("{} ({})", grouped(traffic.packets), bytes(traffic.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        serde_json::from_value(serde_json::json!({
            "status": {
                "version": "0.1.0", "pid": 7, "node": "n1", "workers": 2, "epoch": 3,
                "underlay": ["192.0.2.1"], "vni": 4096, "port": 4789, "gso": true, "gro": false,
                "ports": 1, "peers": 1,
                "ipam": {"socket": "/run/ipam.sock", "connected": false, "revision": 7}
            },
            "ports": [{
                "name": "n1p1", "driver": "tap", "state": "up", "mac": "02:00:00:00:00:01",
                "addresses": ["10.1.0.1", "fd00::1"], "mtu": 1450, "queues": 2, "uso": true,
                "age_ms": 1200,
                "capabilities": {
                    "bandwidth": {"to_pod": {"rate": 50_000_000, "burst": 800_000}},
                    "port_mappings": [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}]
                },
                "over_bandwidth": {"from_pod": 0, "to_pod": 17},
                "from_pod": {"packets": 1234, "bytes": 2048}, "to_pod": {"packets": 0, "bytes": 0}
            }],
            "peers": [{
                "name": "n2", "underlay": ["192.0.2.2"], "vtep_mac": "02:00:00:00:00:02",
                "vni": 4096, "port": 4789, "blocks": ["10.2.0.0/24", "10.3.0.0/24"],
                "ways": {"10.3.0.0/24": "direct"}, "tunnel": [],
                "to_peer": {"packets": 3, "bytes": 300}, "from_peer": {"packets": 0, "bytes": 0}
            }],
            "counters": {"came": 1234, "went": 1230, "values": {"sent_to_ports": 1230}}
        }))
        .expect("a report")
    }

    #[test]
    fn a_page_shows_each_part() {
        let page = page(&report());
        for part in [
            "node    n1: weft 0.1.0, process 7, 2 workers, epoch 3\n",
            "uplink  192.0.2.1 port 4789, VNI 4096, GSO on, GRO off\n",
            "ipam    /run/ipam.sock: away, revision 7 stays in force\n",
            "carries 1 port, 1 peer\n",
            "10.1.0.1, fd00::1",
            "1 234 (2.0 KiB)",
            "50 000 000 bit/s, 800 000 bits at once",
            "17",
            "*:8080/tcp to 80",
            "10.2.0.0/24, 10.3.0.0/24 (direct)",
            "host    none: node and pods do not reach each other before weft host up\n",
            "sent to ports",
            "balance: 1 234 came, 1 230 went; 4 are under way, or lost without a reason\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in:\n{page}");
        }
        assert!(page.lines().all(|line| line == line.trim_end()), "{page}");
    }

    #[test]
    fn the_host_port_is_told_apart() {
        let mut ports = report().ports;
        ports[0].host = serde_json::from_str(r#"{"pools": ["10.0.0.0/8"]}"#).expect("a host");
        assert_eq!(
            host(&ports),
            "n1p1 with 10.1.0.1, fd00::1, for the pods of 10.0.0.0/8"
        );
        ports[0].state = PortState::Gone;
        assert!(host(&ports).contains("weft host up"));
    }

    #[test]
    fn a_nodes_file_says_what_is_wrong_with_it() {
        let mut status = report().status;
        status.ipam = None;
        status.nodes_file = Some(NodesFile {
            path: "/etc/weft/nodes.toml".into(),
            fault: None,
        });
        let told = head(&status, &[], &[]);
        let line = "nodes   /etc/weft/nodes.toml: in force\n";
        assert!(told.contains(line), "{told}");
        let fault = "/etc/weft/nodes.toml:3: no name; give one".to_owned();
        let file = status.nodes_file.as_mut().expect("just set");
        file.fault = Some(fault.clone());
        let told = head(&status, &[], &[]);
        let lines = format!(": an older version stays in force\n        {fault}\n");
        assert!(told.contains(&lines), "{told}");
    }

    #[test]
    fn a_balance_that_holds_says_so() {
        let counters = Counters {
            came: 5,
            went: 5,
            ..Counters::default()
        };
        assert_eq!(
            balance(&counters),
            "balance: 5 came, 5 went; no packet is lost without a reason\n"
        );
    }
}
