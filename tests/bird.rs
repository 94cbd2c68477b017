//! Three nodes whose fabric routes their pods: real BIRD daemons in
//! namespaces, each told by `weft bird`, and each kernel's routes.

use std::{
    fs,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio, id},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use weft_cni::netns::Netns;
use weft_lab::workshop::{self, run};
use weft_testkit::needs_namespaces;

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
/// A session that met a neighbour before it listened waits for some seconds.
const LIMIT: Duration = Duration::from_secs(60);

fn block(number: usize) -> [String; 2] {
    [
        format!("10.77.{number}.0/24"),
        format!("fd77::{number}00/120"),
    ]
}

/// The file of all nodes, the second with these blocks beside its own.
fn file(more: &[&str]) -> String {
    let node = |number: usize| {
        let mut blocks = block(number).to_vec();
        if number == 2 {
            blocks.extend(more.iter().map(|block| (*block).to_owned()));
        }
        format!(
            "[[node]]\nname = 'n{number}'\nunderlay = ['192.0.2.{number}', '2001:db8::{number}']\n\
             vtep_mac = '02:00:00:00:01:0{number}'\nblocks = {blocks:?}\n"
        )
    };
    (1..=3).map(node).collect()
}

#[test]
fn bird_reads_what_is_rendered() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/interop/tests/golden");
    let mut read = 0;
    for entry in fs::read_dir(golden).expect("golden files") {
        let path = entry.expect("an entry").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "conf")
        {
            let output = Command::new("bird").arg("-p").arg("-c").arg(&path).output();
            let output = output.expect("Debian's bird2 is installed");
            assert!(output.status.success(), "{path:?}: {output:?}");
            read += 1;
        }
    }
    assert_eq!(read, 3);
}

#[test]
fn each_kernel_has_the_blocks_of_the_others() {
    needs_namespaces!();
    let fabric = Fabric::new();
    let own = |place: usize| fabric.routers[place].routes(&["proto", "bird", "type", "blackhole"]);
    let all: Vec<_> = (1..=3).map(block).collect();
    let others = |place: usize| {
        let others = (0..3).filter(|other| *other != place);
        others
            .flat_map(|other| all[other].clone())
            .collect::<Vec<_>>()
    };
    for (place, blocks) in all.iter().enumerate() {
        fabric.becomes(place, &others(place));
        assert_eq!(own(place), blocks, "its own end there");
    }

    // A block more, and a file that changes nothing for BIRD.
    fabric.write(&file(&["10.77.9.0/24"]));
    let with_more = |place: usize| {
        let mut expected = others(place);
        expected.extend((place != 1).then(|| "10.77.9.0/24".to_owned()));
        expected
    };
    for place in 0..3 {
        fabric.becomes(place, &with_more(place));
    }
    let written = fabric.routers[0].written();
    fabric.write(&format!("{}# as before\n", file(&["10.77.9.0/24"])));
    thread::sleep(Duration::from_secs(2));
    assert_eq!(fabric.routers[0].written(), written, "nothing is new");

    // A node that is no name stops nothing.
    let hostile = file(&[]).replace("'n2'", "'n2\"; } protocol bgp x {'");
    fabric.write(&hostile);
    fabric.routers[0].says("protocol bgp x");
    assert_eq!(fabric.routers[0].written(), written);
    fabric.becomes(0, &with_more(0));

    // The third withdraws all that it announced, and stays a neighbour.
    fabric.routers[2].birdc(&["disable", "weft_blocks4"]);
    fabric.routers[2].birdc(&["disable", "weft_blocks6"]);
    let left: Vec<_> = block(2)
        .into_iter()
        .chain(["10.77.9.0/24".to_owned()])
        .collect();
    fabric.becomes(0, &left);
    fabric.becomes(1, &block(1));
    let sessions = fabric.routers[0].birdc(&["show", "protocols"]);
    assert_eq!(sessions.matches("Established").count(), 4, "{sessions}");
}

#[test]
fn only_what_the_fabric_carries_is_announced() {
    let mut ipam = Ipam::start();
    for number in 1..=2 {
        ipam.ask(&node(number));
        for pool in ["plain", "tunnelled"] {
            ipam.ask(&format!(
                r#"{{"op":"allocate","node":"n{number}","families":["v4"],"pools":["{pool}"],
                "attachment":{{"network":"x","container":"{pool}{number}","interface":"e"}}}}"#
            ));
        }
    }
    let text = ipam.bird(&["--node", "n1"]).expect("a configuration");
    let routes: Vec<_> = text
        .lines()
        .filter(|line| line.contains("route "))
        .collect();
    assert_eq!(routes.len(), 1, "{text}");
    assert!(routes[0].contains("10.1."), "{text}");
    assert!(text.contains("[ 10.1.0.0/16+ ] then return true") && !text.contains("10.2."));
    assert!(text.contains("neighbor 192.0.2.2 as 64512"), "{text}");

    let router = ["--node", "n1", "--neighbor", "192.0.2.254=65000"];
    let text = ipam.bird(&router).expect("a configuration");
    assert_eq!(text.matches("protocol bgp").count(), 1, "{text}");
    assert!(text.contains("neighbor 192.0.2.254 as 65000"), "{text}");

    let told = ipam.bird(&["--node", "n7"]).expect_err("refused");
    assert!(told.contains("node n7 is unknown"), "{told}");
}

#[test]
fn what_the_server_tells_is_written_anew() {
    let mut ipam = Ipam::start();
    (1..=2).for_each(|number| ipam.ask(&node(number)));
    let file = ipam.folder.path().join("bird.conf");
    let mut command = ipam.command(&["--node", "n1", "--watch", "--out"]);
    let _watch = Daemon(command.arg(&file).spawn().expect("it starts"));
    let written = |words: &str| {
        let until = Instant::now() + LIMIT;
        while !fs::read_to_string(&file).is_ok_and(|text| text.contains(words)) {
            assert!(Instant::now() < until, "{words}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    written("neighbor 192.0.2.2 as");
    ipam.ask(&node(3));
    written("neighbor 192.0.2.3 as");
}

fn node(number: usize) -> String {
    format!(
        r#"{{"op":"node-put","name":"n{number}","underlay":["192.0.2.{number}/24"],
        "vtep_mac":"02:00:00:00:00:0{number}"}}"#
    )
}

/// A server with a pool of each kind.
struct Ipam {
    _daemon: Daemon,
    client: weft_socket::ipam::Client,
    folder: TempDir,
}

impl Ipam {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let pools = "[[pool]]\nname = 'plain'\ncidr = '10.1.0.0/16'\nencapsulation = 'none'\n\
                     [[pool]]\nname = 'tunnelled'\ncidr = '10.2.0.0/16'\n";
        fs::write(at("ipam.toml"), pools).expect("write");
        let mut command = Command::new(WEFT);
        command
            .arg0("weft-ipam")
            .arg("--config")
            .arg(at("ipam.toml"));
        command.arg("--store").arg(at("ipam.redb"));
        command.arg("--socket").arg(at("ipam.sock"));
        let daemon = Daemon(command.spawn().expect("it starts"));
        let until = Instant::now() + LIMIT;
        let client = loop {
            match weft_socket::ipam::Client::connect(&at("ipam.sock")) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        Self {
            _daemon: daemon,
            client,
            folder,
        }
    }

    fn ask(&mut self, request: &str) {
        let request = serde_json::from_str(request).expect("a request");
        self.client.request(&request).expect("granted");
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(WEFT);
        command.args(["bird", "--as", "64512", "--socket"]);
        command.arg(self.folder.path().join("ipam.sock")).args(more);
        command
    }

    /// What it prints, or says of a failure.
    fn bird(&self, more: &[&str]) -> Result<String, String> {
        let output: Output = self.command(more).output().expect("run");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        match output.status.success() {
            true => Ok(text(output.stdout)),
            false => Err(text(output.stderr)),
        }
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; the wait tells nothing more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Fabric {
    folder: TempDir,
    routers: Vec<Router>,
    _switch: Netns,
}

impl Fabric {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let switch = workshop::node("switch").expect("a switch");
        run(&switch, "ip link add br0 type bridge mcast_snooping 0").expect("a bridge");
        run(&switch, "ip link set br0 up").expect("up");
        let mut fabric = Self {
            folder,
            routers: Vec::new(),
            _switch: switch,
        };
        fabric.write(&file(&[]));
        for number in 1..=3 {
            let router = Router::new(&fabric, number);
            fabric.routers.push(router);
        }
        fabric
    }

    fn nodes(&self) -> PathBuf {
        self.folder.path().join("nodes.toml")
    }

    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).expect("write");
        fs::rename(new, self.nodes()).expect("rename");
    }

    /// Its kernel comes to have these routes of others, and no more.
    fn becomes(&self, place: usize, expected: &[String]) {
        let router = &self.routers[place];
        let mut expected = expected.to_vec();
        expected.sort();
        let until = Instant::now() + LIMIT;
        loop {
            let mut found = router.routes(&["proto", "bird", "type", "unicast"]);
            found.sort();
            if found == expected {
                return;
            }
            assert!(
                Instant::now() < until,
                "n{}: {found:?}, not {expected:?}: {}",
                place + 1,
                router.told()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

struct Router {
    netns: Netns,
    folder: TempDir,
    /// `weft bird --watch`, and BIRD.
    _daemons: [Daemon; 2],
}

impl Router {
    fn new(fabric: &Fabric, number: usize) -> Self {
        let netns = workshop::node(&format!("n{number}")).expect("a namespace");
        let switch = format!("/proc/{}/fd/{}", id(), fabric._switch.as_raw_fd());
        for command in [
            "ip link set lo up".to_owned(),
            format!("ip link add eth0 type veth peer name n{number} netns {switch}"),
            "ip link set eth0 up".to_owned(),
            format!("ip address add 192.0.2.{number}/24 dev eth0"),
            format!("ip address add 2001:db8::{number}/64 dev eth0 nodad"),
        ] {
            run(&netns, &command).expect("an interface");
        }
        let port = format!("ip link set n{number} master br0 up");
        run(&fabric._switch, &port).expect("plugged in");
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let mut weft = Command::new(WEFT);
        weft.args([
            "bird",
            "--as",
            "64512",
            "--watch",
            "--node",
            &format!("n{number}"),
        ]);
        weft.arg("--nodes").arg(fabric.nodes());
        weft.arg("--out")
            .arg(at("bird.conf"))
            .arg("--reload")
            .arg(at("bird.ctl"));
        weft.stderr(fs::File::create(at("weft.log")).expect("a log"));
        let weft = Daemon(weft.spawn().expect("it starts"));
        let until = Instant::now() + LIMIT;
        while !at("bird.conf").exists() {
            assert!(Instant::now() < until, "no configuration");
            thread::sleep(Duration::from_millis(10));
        }
        let mut bird = Command::new("bird");
        bird.arg("-f")
            .arg("-c")
            .arg(at("bird.conf"))
            .arg("-s")
            .arg(at("bird.ctl"));
        bird.arg("-P").arg(at("bird.pid")).stderr(Stdio::null());
        let bird = netns.run(|| bird.spawn()).expect("enter");
        let bird = Daemon(bird.expect("Debian's bird2 is installed"));
        Self {
            netns,
            folder,
            _daemons: [weft, bird],
        }
    }

    /// Of both families, IPv4 first.
    fn routes(&self, which: &[&str]) -> Vec<String> {
        let of = |family: &str| {
            let command = format!("ip {family} route show {}", which.join(" "));
            let text = run(&self.netns, &command).expect("routes");
            let net = |line: &str| {
                let line = line.strip_prefix("blackhole ").unwrap_or(line);
                line.split(' ').next().map(str::to_owned)
            };
            text.lines().filter_map(net).collect::<Vec<_>>()
        };
        [of("-4"), of("-6")].concat()
    }

    fn birdc(&self, words: &[&str]) -> String {
        let mut command = Command::new("birdc");
        let socket = self.folder.path().join("bird.ctl");
        let output = command.arg("-s").arg(socket).args(words).output();
        String::from_utf8_lossy(&output.expect("birdc runs").stdout).into_owned()
    }

    /// When the configuration was written.
    fn written(&self) -> std::time::SystemTime {
        let file = fs::metadata(self.folder.path().join("bird.conf"));
        file.and_then(|file| file.modified()).expect("it is there")
    }

    /// What there is to a failure.
    fn told(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("weft.log"));
        let sessions = self.birdc(&["show", "protocols"]);
        let routes = self.birdc(&["show", "route", "all"]);
        format!("{}\n{sessions}\n{routes}", log.unwrap_or_default())
    }

    fn says(&self, words: &str) {
        let log = self.folder.path().join("weft.log");
        let until = Instant::now() + LIMIT;
        while !fs::read_to_string(&log).unwrap_or_default().contains(words) {
            assert!(Instant::now() < until, "it does not say {words:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}
