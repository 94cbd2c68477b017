//! Several servers, each a process of its own, on one etcd: no address is
//! given twice, whoever is asked and whoever dies.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use weft_api::{
    ipam::{Allocate, Attachment, Code, Family, Release, Reply, Report, Request, Use},
    names::Name,
};
use weft_socket::ipam::{Client, ClientError};

use crate::support::{etcd::Member, eventually};

const SERVERS: usize = 4;
const CLIENTS: usize = 4;
const ROUNDS: usize = 60;

/// A server that is killed with its guard.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(directory: &Path, number: usize, store: &str) -> Self {
        Self::start_with(directory, number, store, "")
    }

    /// With a configuration file.
    fn start_with(directory: &Path, number: usize, store: &str, config: &str) -> Self {
        let file = directory.join(format!("ipam-{number}.toml"));
        std::fs::write(&file, config).expect("write the configuration");
        let socket = directory.join(format!("ipam-{number}.sock"));
        let child = Command::new(env!("CARGO_BIN_EXE_weft-ipam"))
            .args(["--store", store, "--socket"])
            .arg(&socket)
            .arg("--config")
            .arg(&file)
            .env("RUST_LOG", "warn")
            .spawn()
            .expect("start weft-ipam");
        let server = Self { child, socket };
        let until = Instant::now() + Duration::from_secs(20);
        while let Err(error) = Client::connect(&server.socket) {
            assert!(Instant::now() < until, "{error}");
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        Client::connect(&self.socket)?.request(request)
    }

    fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn name(text: String) -> Name {
    Name::new(text).expect("a name")
}

fn attachment(container: String) -> Attachment {
    Attachment {
        network: name("pods".into()),
        container: name(container),
        interface: name("eth0".into()),
    }
}

fn allocate(attachment: &Attachment, node: usize) -> Request {
    Request::Allocate(Box::new(Allocate {
        attachment: attachment.clone(),
        node: name(format!("n{node}")),
        families: vec![Family::V4],
        purpose: Use::Workload,
        addresses: Vec::new(),
        pools: Vec::new(),
        identity: None,
        pod: None,
        namespace_labels: HashMap::new().into_iter().collect(),
    }))
}

fn world() -> (TempDir, Member, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let member = Member::start(&[]);
    let store = format!("etcd://127.0.0.1:{}/weft/many", member.client);
    (directory, member, store)
}

fn make_pool(server: &Server, cidr: &str) {
    let pool = format!(r#"{{"op":"pool-create","name":"p","cidr":"{cidr}","block_size":28}}"#);
    let pool = serde_json::from_str(&pool).expect("a request");
    server.ask(&pool).expect("a pool");
}

fn assert_clean(server: &Server) {
    let report = report(server);
    assert_eq!(report.problems, [], "of {report:?}");
}

fn report(server: &Server) -> Report {
    match server.ask(&Request::Check { in_use: None }) {
        Ok(Reply::Report(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// Who holds what, as far as answers told.
type Held = Mutex<HashMap<IpAddr, String>>;

/// Allocates and gives back half; an address that is given must be free.
fn hammer(socket: &Path, node: usize, client: usize, held: &Held) {
    let mut connection = Client::connect(socket).expect("it runs");
    for round in 0..ROUNDS {
        let container = format!("c-{node}-{client}-{round}");
        let attachment = attachment(container.clone());
        let address = loop {
            match connection.request(&allocate(&attachment, node)) {
                Ok(Reply::Allocated(given)) => break given.addresses[0].address,
                Err(ClientError::Refused(refusal)) if refusal.code == Code::Contended => {}
                other => panic!("{other:?}"),
            }
        };
        let former = held.lock().expect("sound").insert(address, container);
        assert_eq!(former, None, "{address} was given twice");
        if round % 2 == 0 {
            held.lock().expect("sound").remove(&address);
            let release = Request::Release(Release::Attachment(attachment));
            loop {
                match connection.request(&release) {
                    Ok(_) => break,
                    Err(ClientError::Refused(refusal)) if refusal.code == Code::Contended => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

#[test]
fn no_address_is_given_twice_by_several_servers() {
    let (directory, _member, store) = world();
    let servers: Vec<_> = (0..SERVERS)
        .map(|number| Server::start(directory.path(), number, &store))
        .collect();
    // So few blocks that the servers claim, lend and run into each other.
    make_pool(&servers[0], "10.7.0.0/22");
    let held = Held::default();
    thread::scope(|scope| {
        for (node, server) in servers.iter().enumerate() {
            for client in 0..CLIENTS {
                let held = &held;
                scope.spawn(move || hammer(&server.socket, node, client, held));
            }
        }
    });
    let held = held.into_inner().expect("sound");
    assert_eq!(held.len(), SERVERS * CLIENTS * ROUNDS / 2);
    for server in &servers {
        assert_clean(server);
        for (address, container) in &held {
            match server.ask(&Request::Address { address: *address }) {
                Ok(Reply::Address(info)) => {
                    let handle = info.allocation.and_then(|held| held.handle);
                    let expected = attachment(container.clone()).handle();
                    assert_eq!(handle, Some(expected), "{address}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn what_was_answered_outlives_the_server_and_etcd() {
    let (directory, mut member, store) = world();
    let mut first = Server::start(directory.path(), 1, &store);
    make_pool(&first, "10.7.0.0/22");
    let mine = attachment("kept".into());
    let given = first.ask(&allocate(&mine, 1)).expect("an address");
    first.kill();
    member.kill();
    member.restart();
    let second = Server::start(directory.path(), 2, &store);
    let again = second.ask(&allocate(&mine, 1)).expect("the same");
    match (given, again) {
        (Reply::Allocated(given), Reply::Allocated(again)) => {
            assert_eq!(given.addresses, again.addresses);
            assert!(again.existing);
        }
        other => panic!("{other:?}"),
    }
    assert_clean(&second);
}

#[test]
fn a_server_that_is_there_before_etcd_serves_once_it_is_up() {
    let (directory, mut member, store) = world();
    member.kill();
    let pools = "[[pool]]\nname = 'p'\ncidr = '10.7.0.0/22'\n";
    let server = Server::start_with(directory.path(), 1, &store, pools);
    let mine = attachment("early".into());
    let refused = server.ask(&allocate(&mine, 1));
    let Err(ClientError::Refused(refusal)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        matches!(refusal.code, Code::Unavailable | Code::Deadline),
        "{refusal}"
    );
    member.restart();
    eventually(
        "it gives addresses from the pool of its configuration",
        || server.ask(&allocate(&mine, 1)).is_ok(),
    );
    assert_clean(&server);
}

#[test]
fn of_two_pools_that_overlap_one_is_made() {
    let (directory, _member, store) = world();
    let servers: Vec<_> = (0..2)
        .map(|number| Server::start(directory.path(), number, &store))
        .collect();
    for round in 0..20 {
        let pool = |server: usize, cidr: String| -> Request {
            let pool =
                format!(r#"{{"op":"pool-create","name":"p{round}-{server}","cidr":"{cidr}"}}"#);
            serde_json::from_str(&pool).expect("a request")
        };
        let requests = [
            pool(0, format!("10.{round}.0.0/16")),
            pool(1, format!("10.{round}.128.0/17")),
        ];
        one_is_granted(&servers, &requests);
    }
    for server in &servers {
        assert_clean(server);
    }
}

#[test]
fn of_two_nodes_with_one_underlay_address_one_is_put() {
    let (directory, _member, store) = world();
    let servers: Vec<_> = (0..2)
        .map(|number| Server::start(directory.path(), number, &store))
        .collect();
    for round in 0..20 {
        // In turn they share an underlay address and a VTEP MAC address.
        let shared = round % 2;
        let node = |server: usize| -> Request {
            let address = server * shared;
            let mac = server * (1 - shared);
            let node = format!(
                r#"{{"op":"node-put","name":"n{round}-{server}","port":8472,"vni":1,
                "underlay":["192.0.{round}.{}/16"],"vtep_mac":"02:00:00:00:{round:02x}:0{mac}"}}"#,
                address + 1,
            );
            serde_json::from_str(&node).expect("a request")
        };
        one_is_granted(&servers, &[node(0), node(1)]);
    }
    for server in &servers {
        assert_clean(server);
    }
}

/// Asks each server one thing at the same moment: the others hear that it is
/// taken.
fn one_is_granted(servers: &[Server], requests: &[Request]) {
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = servers
            .iter()
            .zip(requests)
            .map(|(server, request)| scope.spawn(|| server.ask(request)))
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().expect("no panic"))
            .collect()
    });
    let made = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(made, 1, "{answers:?}");
    for refused in answers.into_iter().filter_map(Result::err) {
        let ClientError::Refused(refusal) = refused else {
            panic!("{refused}");
        };
        assert_eq!(refusal.code, Code::Taken, "{refusal}");
    }
}

#[test]
fn a_foreign_row_stops_no_server_and_check_tells_it() {
    let (directory, member, store) = world();
    let server = Server::start(directory.path(), 1, &store);
    make_pool(&server, "10.7.0.0/22");
    for (name, bytes) in [("zebra/1", "{}"), ("reservation/r", "rubbish")] {
        member.must(&["put", &format!("/weft/many/{name}"), bytes]);
    }
    let problems = || format!("{:?}", report(&server).problems);
    eventually("check tells it", || problems().contains("reservation/r"));
    let given = server.ask(&allocate(&attachment("c1".into()), 1));
    given.expect("an address");
    member.must(&["del", "/weft/many/reservation/r"]);
    eventually("all is well again", || report(&server).problems.is_empty());
}
