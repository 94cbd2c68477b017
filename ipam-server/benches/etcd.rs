//! How long 5 000 nodes take to claim their first blocks on one etcd, asked
//! through several servers at once, and that no address is given twice.

use std::{
    collections::HashSet,
    fs::File,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use weft_api::ipam::{Allocate, Attachment, Family, Reply, Request, Use};
use weft_api::names::Name;
use weft_socket::ipam::Client;

const NODES: usize = 5_000;
const SERVERS: usize = 4;
const CLIENTS: usize = 8;

fn main() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let client = format!("http://127.0.0.1:{}", free_port());
    let _etcd = etcd(folder.path(), &client);
    let store = client.replace("http", "etcd");
    let sockets: Vec<_> = (0..SERVERS)
        .map(|number| folder.path().join(format!("ipam-{number}.sock")))
        .collect();
    thread::sleep(Duration::from_secs(2));
    let _servers: Vec<_> = sockets
        .iter()
        .map(|socket| server(socket, &store))
        .collect();
    let pool = r#"{"op":"pool-create","name":"p","cidr":"10.0.0.0/10"}"#;
    let pool = serde_json::from_str(pool).expect("a request");
    connect(&sockets[0]).request(&pool).expect("a pool");

    let start = Instant::now();
    let workers: Vec<_> = (0..SERVERS * CLIENTS)
        .map(|worker| {
            let mut client = connect(&sockets[worker % SERVERS]);
            thread::spawn(move || {
                let nodes = (worker..NODES).step_by(SERVERS * CLIENTS);
                nodes
                    .map(|node| claim(&mut client, node))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let claims = workers
        .into_iter()
        .map(|worker| worker.join().expect("a worker"));
    let claims: Vec<_> = claims.flatten().collect();
    let all = start.elapsed();

    let blocks: HashSet<_> = claims.iter().map(|(block, _)| block).collect();
    assert_eq!(blocks.len(), NODES, "a block has two owners");
    let mut times: Vec<_> = claims.iter().map(|(_, time)| *time).collect();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{NODES} nodes claim a block each through {SERVERS} servers on one etcd: {:.1} s, \
         {:.0} claims/s, p50 {:.1} ms, p99 {:.1} ms",
        all.as_secs_f64(),
        NODES as f64 / all.as_secs_f64(),
        at(50),
        at(99)
    );
}

fn claim(client: &mut Client, node: usize) -> (String, Duration) {
    let name = |text: String| Name::new(text).expect("a name");
    let ask = Request::Allocate(Box::new(Allocate {
        attachment: Attachment {
            network: name("pods".into()),
            container: name(format!("first-{node}")),
            interface: name("eth0".into()),
        },
        node: name(format!("node-{node}")),
        families: vec![Family::V4],
        purpose: Use::Workload,
        addresses: Vec::new(),
        pools: Vec::new(),
        identity: None,
        pod: None,
        namespace_labels: Default::default(),
    }));
    let start = Instant::now();
    match client.request(&ask) {
        Ok(Reply::Allocated(given)) => (given.addresses[0].block.to_string(), start.elapsed()),
        other => panic!("{other:?}"),
    }
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn etcd(folder: &Path, client: &str) -> Guard {
    let peer = format!("http://127.0.0.1:{}", free_port());
    let log = File::create(folder.join("etcd.log")).expect("a log");
    let child = Command::new("etcd")
        .args(["--listen-client-urls", client])
        .args(["--advertise-client-urls", client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args([
            "--initial-cluster",
            &format!("default={peer}"),
            "--data-dir",
        ])
        .arg(folder.join("etcd"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    Guard(child.expect("start etcd; Debian has it as etcd-server"))
}

fn server(socket: &Path, store: &str) -> Guard {
    let child = Command::new(env!("CARGO_BIN_EXE_weft-ipam"))
        .args(["--store", store, "--socket"])
        .arg(socket)
        .env("RUST_LOG", "warn")
        .spawn();
    Guard(child.expect("start weft-ipam"))
}

fn connect(socket: &Path) -> Client {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match Client::connect(socket) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}
