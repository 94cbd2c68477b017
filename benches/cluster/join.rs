//! Nodes join one etcd at once, and forwarders watch.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use weft_api::{
    forwarder::{self, Peer},
    ipam::{Code, Reply, Request},
};
use weft_cni::netns::Netns;
use weft_lab::{
    Forwarder, Ipam,
    etcd::Etcd,
    workshop::{self, Workshop, run},
};
use weft_socket::ipam::{Client, ClientError};

use crate::{Arguments, percentile, resident};

/// For every forwarder to know all nodes.
const PATIENCE: Duration = Duration::from_secs(100);
/// Before a node asks again that was refused.
const PAUSE: Duration = Duration::from_millis(100);

pub fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let etcd = Etcd::start()?;
    let workshop = Workshop::open()?;
    let store = etcd.url();
    let servers: Vec<Ipam> = (0..arguments.servers.max(1))
        .map(|number| {
            workshop.ipam(
                &format!("ipam-{number}"),
                &store,
                "[limits]\nclients = 1024\n",
            )
        })
        .collect::<Result<_, _>>()?;
    let pool = json!({"op": "pool-create", "name": "pods", "cidr": "10.0.0.0/10"});
    servers[0]
        .client()?
        .request(&serde_json::from_value(pool)?)?;
    let watching: Vec<Watching> = (1..=arguments.forwarders)
        .map(|number| {
            let server = &servers[usize::from(number) % servers.len()];
            Watching::start(&workshop, number, server)
        })
        .collect::<Result<_, _>>()?;
    let before = Memory::of(&watching, &servers)?;

    let start = Instant::now();
    let (mut joined, converged) = thread::scope(|scope| {
        let watching: Vec<_> = watching
            .iter()
            .map(|one| scope.spawn(|| one.knows(usize::from(arguments.nodes), start)))
            .collect();
        let joining: Vec<_> = (0..arguments.nodes)
            .map(|node| {
                let server = &servers[usize::from(node) % servers.len()];
                scope.spawn(move || Joined::join(server, node))
            })
            .collect();
        let joined: Vec<Joined> = joining
            .into_iter()
            .map(|one| one.join().expect("a node does not panic"))
            .collect::<Result<_, _>>()?;
        let converged: Vec<Duration> = watching
            .into_iter()
            .map(|one| one.join().expect("a watcher does not panic"))
            .collect::<Result<_, _>>()?;
        anyhow::Ok((joined, converged))
    })?;
    let after = Memory::of(&watching, &servers)?;
    report(arguments, &mut joined, &converged, &before, &after);
    Ok(())
}

fn report(
    arguments: &Arguments,
    joined: &mut [Joined],
    converged: &[Duration],
    before: &Memory,
    after: &Memory,
) {
    let mut times: Vec<_> = joined.iter().map(|one| one.registered).collect();
    let refused: usize = joined.iter().map(|one| one.refused).sum();
    let last = joined.iter().map(|one| one.ended).max().unwrap_or_default();
    let seconds = |times: Option<&Duration>| times.map_or(0.0, Duration::as_secs_f64);
    println!("| nodes join | |");
    println!("|---|--:|");
    println!(
        "| nodes, IPAM servers on one etcd, forwarders that watch | {}, {}, {} |",
        arguments.nodes,
        arguments.servers,
        converged.len()
    );
    println!(
        "| registered: p50 / p99 of a node | {:.0} / {:.0} ms |",
        percentile(&mut times, 50),
        percentile(&mut times, 99)
    );
    println!("| asked again, since refused as contended | {refused} |");
    println!(
        "| the last node has its block | {:.2} s |",
        last.as_secs_f64()
    );
    println!(
        "| every node and block in the first / last forwarder's tables | {:.2} / {:.2} s |",
        seconds(converged.iter().min()),
        seconds(converged.iter().max())
    );
    println!(
        "| memory of a forwarder before / after | {:.1} / {:.1} MiB |",
        before.forwarder, after.forwarder
    );
    println!(
        "| memory of an IPAM server before / after | {:.1} / {:.1} MiB |",
        before.server, after.server
    );
}

/// VmRSS in MiB, the largest of each kind.
struct Memory {
    forwarder: f64,
    server: f64,
}

impl Memory {
    fn of(watching: &[Watching], servers: &[Ipam]) -> anyhow::Result<Self> {
        let most = |pids: Vec<u32>| {
            let sizes: Vec<f64> = pids.into_iter().map(resident).collect::<Result<_, _>>()?;
            anyhow::Ok(sizes.into_iter().fold(0.0, f64::max))
        };
        Ok(Self {
            forwarder: most(watching.iter().map(|one| one.forwarder.pid()).collect())?,
            server: most(servers.iter().map(Ipam::pid).collect())?,
        })
    }
}

/// A simulated node: known as long as its connection lives.
struct Joined {
    _connection: Client,
    registered: Duration,
    refused: usize,
    /// From its start until it had its block.
    ended: Duration,
}

impl Joined {
    fn join(server: &Ipam, node: u16) -> anyhow::Result<Self> {
        let start = Instant::now();
        let mut connection = server.client()?;
        let [high, low] = node.to_be_bytes();
        let register = serde_json::from_value(json!({
            "op": "node-register",
            "name": format!("node-{node}"),
            "underlay": [format!("{}/16", Ipv4Addr::new(198, 18, high, low))],
            "vtep_mac": format!("02:00:00:01:{high:02x}:{low:02x}"),
        }))?;
        let mut refused = 0;
        ask(&mut connection, &register, &mut refused)?;
        let registered = start.elapsed();
        let attachment =
            json!({"network": "pods", "container": format!("node-{node}"), "interface": "tunnel"});
        let allocate = serde_json::from_value(json!({
            "op": "allocate", "attachment": attachment, "node": format!("node-{node}"),
            "families": ["v4"], "use": "tunnel",
        }))?;
        ask(&mut connection, &allocate, &mut refused)?;
        Ok(Self {
            _connection: connection,
            registered,
            refused,
            ended: start.elapsed(),
        })
    }
}

/// As a forwarder does, again until it is granted.
fn ask(client: &mut Client, request: &Request, refused: &mut usize) -> anyhow::Result<Reply> {
    loop {
        match client.request(request) {
            Err(ClientError::Refused(error)) if error.code == Code::Contended => {
                *refused += 1;
                thread::sleep(PAUSE);
            }
            answer => return Ok(answer?),
        }
    }
}

/// A real forwarder, which registers too.
struct Watching {
    forwarder: Forwarder,
    _node: Netns,
}

impl Watching {
    fn start(workshop: &Workshop, number: u8, server: &Ipam) -> anyhow::Result<Self> {
        let name = format!("watching-{number}");
        let node = workshop::node(&name)?;
        run(&node, "ip link set lo up")?;
        run(
            &node,
            &format!("ip address add 198.51.100.{number}/32 dev lo"),
        )?;
        let configuration = format!(
            "node = '{name}'\nworkers = 1\n[uplink]\naddresses = ['198.51.100.{number}']\n\
             [ipam]\nsocket = '{}'\nregister = true\n",
            server.socket.display()
        );
        let forwarder = workshop.forwarder(&name, &configuration, &node)?;
        Ok(Self {
            forwarder,
            _node: node,
        })
    }

    /// How long after `start` its tables hold `nodes` nodes with a block each.
    fn knows(&self, nodes: usize, start: Instant) -> anyhow::Result<Duration> {
        let mut client = self.forwarder.client()?;
        loop {
            let forwarder::Reply::Peers(peers) = client.request(&forwarder::Request::Peers)? else {
                bail!("peers answers with peers");
            };
            let with_block = peers.iter().filter(|peer| !peer.node.blocks.is_empty());
            if with_block.clone().count() == nodes {
                check(with_block).context("the tables of a forwarder")?;
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "a forwarder knows {} of {nodes} nodes with their blocks after {} s",
                with_block.count(),
                PATIENCE.as_secs()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// No two nodes may have one block.
fn check<'a>(peers: impl Iterator<Item = &'a Peer>) -> anyhow::Result<()> {
    let mut blocks = BTreeSet::new();
    for block in peers.flat_map(|peer| &peer.node.blocks) {
        ensure!(blocks.insert(block), "two nodes have {block}");
    }
    Ok(())
}
