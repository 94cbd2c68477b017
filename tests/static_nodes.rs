//! Two machines whose nodes one file names, and no etcd: each in a namespace
//! of its own with its forwarder and its IPAM server, pods wired by CNI, and
//! flows that go on while the file changes under them.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd, unix::fs::symlink, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio, id},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_api::{
    forwarder::{Code, NodesFile, Reply, Request},
    ipam,
};
use weft_cni::{
    forwarder::{Client, ClientError},
    netns::Netns,
};
use weft_lab::{
    OWN_WORDS,
    exchange::Content,
    workshop::{self, run},
};
use weft_testkit::{
    cni::{Attachment, Runtime},
    needs_namespaces,
};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const LIMIT: Duration = Duration::from_secs(20);
const METRICS: &str = "127.0.0.1:9100";

/// What both machines read.
const NODES: &str = "\
[[node]]
name = 'n1'
underlay = ['192.0.2.1', '2001:db8::1']
vtep_mac = '02:00:00:00:01:01'
blocks = ['10.77.1.0/24', 'fd77::100/120']

[[node]]
name = 'n2'
underlay = ['192.0.2.2', '2001:db8::2']
vtep_mac = '02:00:00:00:01:02'
blocks = ['10.77.2.0/24', 'fd77::200/120']
";

const THIRD: &str = "
[[node]]
name = 'n3'
underlay = ['192.0.2.3']
vtep_mac = '02:00:00:00:01:03'
blocks = ['10.77.3.0/24']
";

#[test]
fn one_file_makes_two_machines_one_network_while_it_changes() {
    needs_namespaces!();
    let site = Site::new();
    let machines = site.machines();
    let pods = [0, 1].map(|place| Pod::on(&machines[place], place));
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        for address in to.addresses {
            ping(from, to, address, &AtomicBool::new(false));
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        let [first, second] = &pods;
        let pings = pods[1].addresses.map(|address| {
            let over = &over;
            scope.spawn(move || while_it_goes(over, || ping(first, second, address, over)))
        });
        let stream = scope.spawn(|| flow(first, second, second.addresses[0], &over));
        site.change_and_spoil(&machines);
        over.store(true, SeqCst);
        for each in pings {
            assert!(each.join().expect("no datagram is lost") > 100);
        }
        assert!(stream.join().expect("no byte is lost") > 1 << 20);
    });
    for machine in &machines {
        assert_eq!(machine.drops(), [""; 0], "{}", machine.name);
    }
}

impl Site {
    /// Everything that may be done to the file.
    fn change_and_spoil(&self, machines: &[Machine]) {
        let all = |check: &dyn Fn(&Machine)| machines.iter().for_each(check);
        let good = &|machine: &Machine| {
            machine.becomes("in force", |file| file.fault.is_none());
            assert_eq!(machine.metric(), "1");
        };
        self.by_rename(&format!("{NODES}{THIRD}"));
        all(&|machine| machine.knows(2));
        self.by_link(NODES);
        all(&|machine| machine.knows(1));
        let epochs: Vec<_> = machines.iter().map(Machine::epoch).collect();
        for (place, (bad, told)) in bad_files().into_iter().enumerate() {
            if place % 2 == 0 {
                self.by_rename(&bad);
            } else {
                self.by_link(&bad);
            }
            all(&|machine| {
                machine.becomes(told, |file| {
                    file.fault.as_ref().is_some_and(|f| f.contains(told))
                });
                assert_eq!(machine.metric(), "0");
                assert!(machine.page().contains(told), "{}", machine.page());
                assert!(machine.log().contains(told), "{}", machine.log());
                machine.knows(1);
            });
        }
        fs::remove_file(self.file()).expect("remove");
        let gone = "put a readable file there";
        all(&|machine| {
            machine.becomes(gone, |file| {
                file.fault.as_ref().is_some_and(|f| f.contains(gone))
            });
        });
        self.by_rename(NODES);
        all(good);
        let same: Vec<_> = machines.iter().map(Machine::epoch).collect();
        assert_eq!(epochs, same, "nothing of this has touched the tables");
        fs::write(self.file(), format!("{NODES}{THIRD}")).expect("write");
        all(&|machine| machine.knows(2));
        all(good);
    }
}

/// What each machine is to say of a bad version.
fn bad_files() -> [(String, &'static str); 9] {
    let with = |from: &str, to: &str| {
        assert!(NODES.contains(from), "{from}");
        NODES.replacen(from, to, 1)
    };
    [
        (with("[[node]]", "[[node]"), "nodes.toml:1: "),
        (with("vtep_mac", "vtep_mak"), ":4: unknown field `vtep_mak`"),
        (
            with("'n2'", "'n1'"),
            ":7: node n1: name n1 is node n1's, in line 1",
        ),
        (
            with("192.0.2.2", "192.0.2.1"),
            ":7: node n2: underlay address 192.0.2.1",
        ),
        (
            with("01:02", "01:01"),
            ":7: node n2: vtep_mac 02:00:00:00:01:01",
        ),
        (
            with("10.77.2.0/24", "10.77.1.0/25"),
            ":7: node n2: 10.77.1.0/25 overlaps",
        ),
        (String::new(), "is not in it; add it"),
        (
            with("'192.0.2.1', '2001:db8::1'", "'192.0.2.9'").replacen(
                "'192.0.2.2', '2001:db8::2'",
                "'192.0.2.8'",
                1,
            ),
            "the uplink does not listen on 192.0.2.",
        ),
        (
            NODES.replace("/120']\n", "/120']\nport = 4790\n"),
            "the uplink listens on port 4789, not 4790",
        ),
    ]
}

#[test]
fn the_file_alone_says_what_nodes_there_are() {
    needs_namespaces!();
    let site = Site::new();
    let [machine, _] = site.machines();
    let node = json!({"name": "n1", "underlay": [], "vtep_mac": "02:00:00:00:01:01"});
    let apply = serde_json::from_value(json!({"op": "apply", "node": node}));
    match machine.client().request(&apply.expect("a request")) {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.code, Code::Ruled);
            assert!(error.message.contains("nodes.toml"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    machine.knows(1);
}

#[test]
fn what_stands_in_the_way_of_a_version_may_leave() {
    needs_namespaces!();
    let site = Site::new();
    let [machine, _other] = site.machines();
    let pod = Pod::on(&machine, 0);
    let tunnel = format!("name = 'n1'\ntunnel = ['{}']", pod.addresses[0]);
    site.by_rename(&NODES.replacen("name = 'n1'", &tunnel, 1));
    machine.becomes("the pod has its address", |file| {
        let fault = file.fault.as_ref();
        fault.is_some_and(|fault| fault.contains(&pod.addresses[0].to_string()))
    });
    let mut client = machine.client();
    let port = client.ports().expect("a list").remove(0);
    client.detach(port.name).expect("detached");
    machine.becomes("in force without a touch", |file| file.fault.is_none());
}

#[test]
fn a_start_without_a_good_file_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = folder.path().join("nodes.toml");
    let start = |more: &[&str]| {
        let output: Output = Command::new(WEFT)
            .arg0("weft-forwarder")
            .args(["--node", "n1", "--nodes"])
            .arg(&nodes)
            .arg("--control")
            .arg(folder.path().join("control.sock"))
            .args(more)
            .output()
            .expect("run");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{told}");
        told
    };
    let told = start(&[]);
    assert!(told.contains("nodes.toml: No such file"), "{told}");
    fs::write(&nodes, NODES.replace("'n1'", "'n7'")).expect("write");
    let told = start(&[]);
    assert!(told.contains("node n1 is not in it"), "{told}");
    fs::write(&nodes, format!("{NODES}color = 'red'")).expect("write");
    let told = start(&[]);
    assert!(
        told.contains("nodes.toml:12: unknown field `color`"),
        "{told}"
    );
    let local = "[[node]]\nname = 'n1'\nunderlay = []\nvtep_mac = '02:00:00:00:01:01'\n";
    fs::write(&nodes, local).expect("write");
    let told = start(&["--ipam", "/nowhere"]);
    assert!(
        told.contains("both the file") && told.contains("name one of them"),
        "{told}"
    );
    fs::write(&nodes, NODES).expect("write");
    let told = start(&["--underlay", "127.0.0.1"]);
    assert!(
        told.contains("the uplink does not listen on 192.0.2.1"),
        "{told}"
    );
}

/// The file that both machines read, and the wire between them.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let site = Self { folder };
        site.by_link(NODES);
        site
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("nodes.toml")
    }

    fn fresh(&self, name: &str, make: impl Fn(&Path)) {
        let fresh = self.folder.path().join(name);
        make(&fresh);
        fs::rename(fresh, self.file()).expect("rename");
    }

    fn by_rename(&self, text: &str) {
        self.fresh("new", |path| fs::write(path, text).expect("write"));
    }

    /// As a ConfigMap changes: the link's target is a version of its own.
    fn by_link(&self, text: &str) {
        let versions = fs::read_dir(self.folder.path()).expect("a folder").count();
        let version = self.folder.path().join(format!("version-{versions}"));
        fs::write(&version, text).expect("write");
        self.fresh("link", |path| symlink(&version, path).expect("a link"));
    }

    fn machines(&self) -> [Machine; 2] {
        let spaces = ["n1", "n2"].map(|name| workshop::node(name).expect("a namespace"));
        let other = format!("/proc/{}/fd/{}", id(), spaces[1].as_raw_fd());
        let wire = format!("ip link add eth0 type veth peer name eth0 netns {other}");
        run(&spaces[0], &wire).expect("a wire");
        for (number, space) in (1..).zip(&spaces) {
            for command in [
                "ip link set lo up".to_owned(),
                "ip link set eth0 up".to_owned(),
                format!("ip address add 192.0.2.{number}/24 dev eth0"),
                format!("ip address add 2001:db8::{number}/64 dev eth0 nodad"),
            ] {
                run(space, &command).expect("an interface");
            }
        }
        let [first, second] = spaces;
        [Machine::new(self, 1, first), Machine::new(self, 2, second)]
    }
}

struct Machine {
    name: String,
    netns: Netns,
    folder: TempDir,
    daemons: Vec<Child>,
}

impl Machine {
    /// As docs/static.md says.
    fn new(site: &Site, number: u8, netns: Netns) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let name = format!("n{number}");
        let mut machine = Self {
            name: name.clone(),
            netns,
            folder,
            daemons: Vec::new(),
        };
        let [control, socket, store] =
            ["control.sock", "ipam.sock", "ipam.redb"].map(|name| machine.at(name));
        let nodes = site.file();
        let paths = [nodes.as_path(), &control].map(|path| path.to_str().expect("text"));
        let options = ["--nodes", paths[0], "--control", paths[1], "--node", &name];
        machine.start(
            "weft-forwarder",
            &[&options[..], &["--metrics", METRICS]].concat(),
        );
        let paths = [&socket, &store].map(|path| path.to_str().expect("text"));
        machine.start("weft-ipam", &["--socket", paths[0], "--store", paths[1]]);
        for (pool, block, size) in [
            ("pods-v4", format!("10.77.{number}.0/24"), "24"),
            ("pods-v6", format!("fd77::{number}00/120"), "120"),
        ] {
            let create = ["ipam", "--socket", paths[0], "pool", "create", pool, &block];
            let made = Command::new(WEFT)
                .args(create)
                .args(["--block-size", size])
                .output();
            let made = made.expect("run");
            assert!(made.status.success(), "{made:?}");
        }
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&mut self, program: &str, options: &[&str]) {
        let log = fs::File::create(self.at(&format!("{program}.log"))).expect("a log");
        let mut command = Command::new(WEFT);
        command
            .arg0(program)
            .args(options)
            .stdin(Stdio::null())
            .stderr(log);
        let child = self.netns.run(|| command.spawn()).expect("enter");
        self.daemons.push(child.expect("it starts"));
        let until = Instant::now() + LIMIT;
        let answers = |machine: &Self| match program {
            "weft-ipam" => weft_socket::ipam::Client::connect(&machine.at("ipam.sock"))
                .is_ok_and(|mut client| client.request(&ipam::Request::Status).is_ok()),
            _ => Client::connect(&machine.at("control.sock"))
                .is_ok_and(|mut client| client.request(&Request::Status).is_ok()),
        };
        while !answers(self) {
            assert!(Instant::now() < until, "{program}: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.at("control.sock")).expect("it runs")
    }

    fn status(&self) -> weft_api::forwarder::Status {
        match self.client().request(&Request::Status) {
            Ok(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn epoch(&self) -> u64 {
        self.status().epoch
    }

    fn becomes(&self, what: &str, holds: impl Fn(&NodesFile) -> bool) {
        let until = Instant::now() + LIMIT;
        loop {
            let file = self.status().nodes_file.expect("it keeps to a file");
            if holds(&file) {
                return;
            }
            assert!(Instant::now() < until, "{}, {what}: {file:?}", self.name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn knows(&self, peers: usize) {
        let until = Instant::now() + LIMIT;
        while self.status().peers != peers {
            assert!(Instant::now() < until, "{} peers: {}", peers, self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What an operator sees.
    fn page(&self) -> String {
        let control = self.at("control.sock");
        let output = Command::new(WEFT)
            .args(["status", "--control"])
            .arg(control)
            .output();
        String::from_utf8(output.expect("run").stdout).expect("text")
    }

    fn log(&self) -> String {
        let log = |name: &str| fs::read_to_string(self.at(name)).unwrap_or_default();
        log("weft-forwarder.log") + &log("weft-ipam.log")
    }

    /// The value of weft_nodes_file_in_force.
    fn metric(&self) -> String {
        let visit = || {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        let text = self.netns.run(visit).expect("enter").expect("metrics");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("weft_nodes_file_in_force "));
        value.expect("the gauge").to_owned()
    }

    /// Reasons for which packets were lost, without what the pods' kernels say
    /// of themselves.
    fn drops(&self) -> Vec<String> {
        match self.client().request(&Request::Drops) {
            Ok(Reply::Drops(drops)) => drops
                .into_iter()
                .filter(|drop| drop.packets > 0)
                .map(|drop| drop.reason)
                .filter(|reason| !OWN_WORDS.contains(&reason.as_str()))
                .collect(),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have ended by itself; the wait tells nothing more.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

struct Pod {
    netns: Netns,
    /// One of each family.
    addresses: [IpAddr; 2],
}

impl Pod {
    fn on(machine: &Machine, place: usize) -> Self {
        let container = format!("pod{place}");
        let netns = Netns::make(&container).expect("a namespace");
        let plugins = machine.at("bin");
        fs::create_dir(&plugins).expect("a folder");
        symlink(WEFT, plugins.join("weft-cni")).expect("a link");
        let plugin = json!({
            "type": "weft-cni",
            "forwarder": machine.at("control.sock"),
            "ipam": {"socket": machine.at("ipam.sock"), "families": ["v4", "v6"]},
        });
        let list = json!({"cniVersion": "1.1.0", "name": "pods", "plugins": [plugin]});
        let attachment = Attachment {
            container,
            netns: format!("/proc/{}/fd/{}", id(), netns.as_raw_fd()),
            interface: "eth0".to_owned(),
            ..Attachment::default()
        };
        let added = machine
            .netns
            .run(|| Runtime::new([plugins]).add(&list, &attachment));
        let result = added.expect("enter").expect("wired");
        Self {
            netns,
            addresses: [0, 1].map(|place| address(&result, place)),
        }
    }
}

fn address(result: &Value, place: usize) -> IpAddr {
    let text = result["ips"][place]["address"]
        .as_str()
        .expect("an address");
    let address = text.split('/').next().expect("one part");
    address.parse().expect("an address")
}

/// Ends the flows however the test ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn while_it_goes(over: &AtomicBool, step: impl Fn() -> usize) -> usize {
    let mut done = 0;
    while !over.load(SeqCst) {
        done += step();
    }
    done
}

/// Datagrams there and back, one after the other: none may be lost.
fn ping(from: &Pod, to: &Pod, at: IpAddr, over: &AtomicBool) -> usize {
    const ROUNDS: u32 = 50;
    let bind = |pod: &Pod, at: IpAddr| {
        let socket = pod.netns.run(|| UdpSocket::bind((at, 0)));
        let socket = socket.expect("enter").expect("bind");
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
        socket
    };
    let answering = bind(to, at);
    let any = if at.is_ipv4() { "0.0.0.0" } else { "::" };
    let asking = bind(from, any.parse().expect("valid"));
    asking
        .connect(answering.local_addr().expect("bound"))
        .expect("connect");
    for round in 0..ROUNDS {
        if over.load(SeqCst) {
            return round as usize;
        }
        asking.send(&round.to_be_bytes()).expect("sent");
        let mut bytes = [0; 4];
        let (_, sender) = answering.recv_from(&mut bytes).expect("it arrives");
        answering.send_to(&bytes, sender).expect("sent");
        asking.recv(&mut bytes).expect("it comes back");
        assert_eq!(u32::from_be_bytes(bytes), round);
        thread::sleep(Duration::from_millis(2));
    }
    ROUNDS as usize
}

/// One TCP connection whose bytes are checked. Returns how many they were.
fn flow(from: &Pod, to: &Pod, at: IpAddr, over: &AtomicBool) -> usize {
    const CHUNK: usize = 16 << 10;
    let listener = to.netns.run(|| TcpListener::bind((at, 0)));
    let listener = listener.expect("enter").expect("bind");
    let server = listener.local_addr().expect("bound");
    let asking = from.netns.run(|| TcpStream::connect(server));
    let mut asking = asking.expect("enter").expect("connect");
    let (mut answering, _) = listener.accept().expect("accept");
    answering.set_read_timeout(Some(LIMIT)).expect("a timeout");
    thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let (mut content, mut expected) = (Content::new(1), [0; CHUNK]);
            let (mut arrived, mut count) = ([0; CHUNK], 0);
            while answering.read_exact(&mut arrived).is_ok() {
                content.fill(&mut expected);
                assert!(arrived == expected, "changed after {count} bytes");
                count += CHUNK;
            }
            count
        });
        let (mut content, mut chunk, mut sent) = (Content::new(1), [0; CHUNK], 0);
        while !over.load(SeqCst) {
            content.fill(&mut chunk);
            asking.write_all(&chunk).expect("sent");
            sent += CHUNK;
            thread::sleep(Duration::from_millis(5));
        }
        drop(asking);
        assert_eq!(receiving.join().expect("the same bytes"), sent);
        sent
    })
}
