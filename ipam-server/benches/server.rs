//! How many addresses the server hands out, durably, while 100 000 are live:
//! 32 clients at once, then one alone.

use std::{
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use weft_api::ipam::{Allocate, Attachment, Family, Pool, Release, Reply, Request, Use};
use weft_api::names::Name;
use weft_socket::ipam::Client;

const CLIENTS: usize = 32;
const LIVE: usize = 100_000;
const ROUNDS: usize = 2_000;

fn main() {
    // The folder must lie on the disk whose durability is measured.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let socket = folder.path().join("ipam.sock");
    let mut server = Server::start(&socket, &folder.path().join("ipam.redb"));
    let mut client = server.client(&socket);
    let pool: Pool = serde_json::from_str(r#"{"name":"p","cidr":"10.0.0.0/12"}"#).expect("a pool");
    client
        .request(&Request::PoolCreate(Box::new(pool)))
        .expect("a pool");
    let all = |from: &'static str, count: usize, keep: bool| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let mut client = Client::connect(&socket).expect("connect");
                thread::spawn(move || burst(&mut client, from, number, count, keep))
            })
            .collect();
        let times = clients.into_iter().map(|c| c.join().expect("a client"));
        times.flatten().collect::<Vec<Duration>>()
    };
    let start = Instant::now();
    let filled = all("live", LIVE / CLIENTS, true);
    report("fill, 32 clients", filled, start.elapsed());
    let start = Instant::now();
    let many = all("many", ROUNDS, true);
    report("100 000 live, 32 clients", many, start.elapsed());
    let start = Instant::now();
    let one = burst(&mut client, "one", 0, ROUNDS, false);
    report("100 000 live, 1 client", one, start.elapsed());
    server.0.kill().expect("it runs");
    server.0.wait().expect("it ends");
}

/// How long each allocation took.
fn burst(
    client: &mut Client,
    from: &str,
    number: usize,
    count: usize,
    keep: bool,
) -> Vec<Duration> {
    let name = |text: String| Name::new(text).expect("a name");
    let mut times = Vec::with_capacity(count);
    for round in 0..count {
        let attachment = Attachment {
            network: name("pods".into()),
            container: name(format!("{from}-{number}-{round}")),
            interface: name("eth0".into()),
        };
        let ask = Allocate {
            attachment: attachment.clone(),
            node: name(format!("node-{number}")),
            families: vec![Family::V4],
            purpose: Use::Workload,
            addresses: Vec::new(),
            pools: Vec::new(),
            identity: None,
            pod: None,
            namespace_labels: Default::default(),
        };
        let start = Instant::now();
        let reply = client.request(&Request::Allocate(Box::new(ask)));
        times.push(start.elapsed());
        assert!(matches!(reply, Ok(Reply::Allocated(_))), "{reply:?}");
        if !keep {
            let release = Request::Release(Release::Attachment(attachment));
            client.request(&release).expect("it is held");
        }
    }
    times
}

fn report(what: &str, mut times: Vec<Duration>, all: Duration) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what}: {:.0} allocations/s, p50 {:.2} ms, p99 {:.2} ms",
        times.len() as f64 / all.as_secs_f64(),
        at(50),
        at(99)
    );
}

struct Server(Child);

impl Server {
    fn start(socket: &Path, store: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_weft-ipam"))
            .args([Path::new("--socket"), socket, Path::new("--store"), store])
            .env("RUST_LOG", "warn")
            .spawn();
        Self(child.expect("start weft-ipam"))
    }

    fn client(&mut self, socket: &Path) -> Client {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match Client::connect(socket) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
