//! Pods of an ordinary user: the runtime is root of a user namespace with a
//! network of its own, the forwarder runs outside of it as the same user, and
//! the pods' taps cross over as file descriptors.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::UdpSocket,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_api::{forwarder, ipam};

/// An ordinary user's id; the name behind it does not matter.
const UID: u32 = 65_533;

/// A tun node as most machines have it, whatever this one has.
const TUN_NODE: &str = "\
    mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 &&
    mount --bind /mnt/tun /dev/net/tun && exec \"$@\"";

/// A process that ends with its standard input.
const KEEPER: &str = "echo ready; read forever";

/// A user's daemons, and the user namespace in which their runtime is root.
struct User {
    home: TempDir,
    daemons: Vec<Child>,
    /// The first process of the user namespace.
    runtime: Keeper,
}

struct Keeper {
    child: Child,
    input: Option<ChildStdin>,
}

impl Keeper {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("util-linux");
        let input = child.stdin.take();
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n");
        Self { child, input }
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.child.id())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn as_user(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={UID}"), format!("--regid={UID}")])
        .args(["--clear-groups", "--"])
        .args(words);
    command
}

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        chown(home.path(), Some(UID), Some(UID)).expect("given away");
        let weft = home.path().join("weft");
        fs::copy(env!("CARGO_BIN_EXE_weft"), &weft).expect("a copy");
        fs::set_permissions(&weft, fs::Permissions::from_mode(0o755)).expect("allowed");
        for name in ["weft-forwarder", "weft-ipam", "weft-cni"] {
            std::os::unix::fs::symlink("weft", home.path().join(name)).expect("a link");
        }
        let unshare = ["unshare", "--map-root-user", "--mount", "--net"];
        let setpriv = as_user(&[&unshare[..], &["sh", "-c", KEEPER]].concat());
        let mut runtime = Command::new("unshare");
        runtime
            .args(["--mount", "sh", "-c", TUN_NODE, "sh"])
            .arg(setpriv.get_program())
            .args(setpriv.get_args());
        let mut user = Self {
            home,
            daemons: Vec::new(),
            runtime: Keeper::start(runtime),
        };
        user.start_daemons();
        user
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().expect("letters").to_owned()
    }

    fn start_daemons(&mut self) {
        // A port that is free a moment before it is needed.
        let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let config = format!(
            "node = 'n1'\n[uplink]\naddresses = ['127.0.0.1']\nport = {}\n",
            port.expect("a port").port()
        );
        fs::write(self.at("forwarder.toml"), config).expect("written");
        let ipam = ["weft-ipam", "--socket", "ipam.sock", "--store", "ipam.redb"];
        let forwarder = [
            "weft-forwarder",
            "--control",
            "forwarder.sock",
            "--config",
            "forwarder.toml",
        ];
        for words in [ipam, forwarder] {
            let words = words.map(|word| match word.starts_with("--") {
                true => word.to_owned(),
                false => self.text(word),
            });
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let daemon = as_user(&words).process_group(0).spawn();
            self.daemons.push(daemon.expect("util-linux"));
        }
        let until = Instant::now() + Duration::from_secs(20);
        while !(self.at("ipam.sock").exists() && self.at("forwarder.sock").exists()) {
            assert!(Instant::now() < until, "the daemons listen");
            thread::sleep(Duration::from_millis(20));
        }
        let mut client = weft_socket::ipam::Client::connect(&self.at("ipam.sock")).expect("up");
        for (name, cidr) in [("pods", "10.76.0.0/24"), ("pods6", "fd76::/112")] {
            let pool = json!({"op": "pool-create", "name": name, "cidr": cidr});
            let request = serde_json::from_value(pool).expect("a request");
            client.request(&request).expect("a pool");
        }
    }

    /// A command as root of the user namespace.
    fn inside(&self, words: &[&str]) -> Command {
        let target = self.runtime.child.id().to_string();
        let enter = ["nsenter", "--target", &target, "--mount", "--user", "--net"];
        let enter = [&enter[..], &["--preserve-credentials", "--"], words].concat();
        as_user(&enter)
    }

    fn pod(&self) -> Keeper {
        Keeper::start(self.inside(&["unshare", "--net", "sh", "-c", KEEPER]))
    }

    fn call(&self, verb: &str, container: &str, pod: &Keeper) -> Output {
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "weft-cni",
            "forwarder": self.at("forwarder.sock"),
            "ipam": {"socket": self.at("ipam.sock"), "families": ["v4", "v6"]},
        });
        let mut child = self
            .inside(&[&self.text("weft-cni")])
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", pod.namespace())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nonexistent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux");
        let mut stdin = child.stdin.take().expect("piped");
        let written = stdin.write_all(config.to_string().as_bytes());
        written.expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{verb} {container}: {output:?}");
        output
    }

    fn add(&self, container: &str, pod: &Keeper) -> Vec<String> {
        let output = self.call("ADD", container, pod);
        let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let ips = result["ips"].as_array().expect("a list").iter();
        let addresses = ips.map(|ip| ip["address"].as_str().expect("a string"));
        let host = |net: &str| net.split('/').next().expect("an address").to_owned();
        addresses.map(host).collect()
    }

    fn ping(&self, from: &Keeper, to: &str) {
        let net = format!("--net={}", from.namespace());
        let ping = ["busybox", "ping", "-c", "2", "-W", "5", to];
        let mut command = self.inside(&[&["nsenter", &net][..], &ping].concat());
        let output = command.output().expect("util-linux");
        assert!(output.status.success(), "ping {to}: {output:?}");
    }

    /// The namespace in which the runtime is root is the node, as it were.
    fn reaches_pods_and_they_it(&self, pod: &Keeper, addresses: &[String]) {
        const OWN: [&str; 2] = ["10.77.0.1", "fd77::1"];
        let client = weft_cni::forwarder::Client::connect(&self.at("forwarder.sock"));
        let mut client = client.expect("up");
        let status = client.status().expect("a status");
        let apply = json!({"op": "apply", "node": {"name": "n1", "underlay": status.underlay,
            "port": status.port, "vtep_mac": "02:00:00:00:00:01", "tunnel": OWN}});
        let apply = serde_json::from_value(apply).expect("a request");
        client.request(&apply).expect("applied");
        let (weft, control) = (self.text("weft"), self.text("forwarder.sock"));
        let up = [&weft, "host", "up", "--control", &control];
        let pools = [
            "--pool",
            "10.76.0.0/15",
            "--pool",
            "fd76::/15",
            "--nat-outgoing",
        ];
        for told in ["weft0 is up: 10.77.0.1, fd77::1", "weft0 is up already"] {
            let output = self.inside(&[&up[..], &pools].concat()).output();
            let output = output.expect("util-linux");
            let page = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && page.starts_with(told),
                "{output:?}"
            );
            let masquerades = "masquerade 10.76.0.0/15 outside the pools\nmasquerade fd76::/15";
            assert!(page.contains(masquerades), "{page}");
            // The underlay stays outside with the forwarder, and that is told.
            let mut warnings = page.lines().filter(|line| line.starts_with("warn"));
            assert!(
                warnings.all(|line| line.contains("no link here holds 127.0.0.1")),
                "{page}"
            );
        }
        for address in addresses {
            let ping = ["busybox", "ping", "-c", "2", "-W", "5", address];
            let output = self.inside(&ping).output().expect("util-linux");
            assert!(output.status.success(), "ping {address}: {output:?}");
        }
        for address in OWN {
            self.ping(pod, address);
        }
        let down = [&weft, "host", "down", "--control", &control];
        let output = self.inside(&down).output().expect("util-linux");
        assert!(output.status.success(), "{output:?}");
    }

    fn ports(&self) -> Vec<forwarder::Port> {
        let client = weft_cni::forwarder::Client::connect(&self.at("forwarder.sock"));
        match client.expect("up").request(&forwarder::Request::List) {
            Ok(forwarder::Reply::Ports(ports)) => ports,
            other => panic!("{other:?}"),
        }
    }

    fn held_addresses(&self) -> usize {
        let request = ipam::Request::Allocations {
            node: None,
            borrowed: false,
        };
        let client = weft_socket::ipam::Client::connect(&self.at("ipam.sock"));
        match client.expect("up").request(&request) {
            Ok(ipam::Reply::Allocations(all)) => {
                all.iter().filter(|one| one.handle.is_some()).count()
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The real and effective ids and the effective capabilities.
fn rights(pid: u32) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let lines = status.lines();
    let told = lines.filter(|line| line.starts_with("Uid:") || line.starts_with("CapEff:"));
    told.map(str::to_owned).collect()
}

#[test]
fn an_ordinary_users_pods_are_wired_from_inside_a_user_namespace() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/setpriv").exists() {
        let reason = "only root becomes another user";
        weft_testkit::rights::skipped("an_ordinary_users_pods", reason);
        return;
    }
    let user = User::new();
    for daemon in &user.daemons {
        let expected = [
            format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}"),
            format!("CapEff:\t{:016x}", 0),
        ];
        assert_eq!(rights(daemon.id()), expected);
    }
    let (one, two) = (user.pod(), user.pod());
    let first = user.add("one", &one);
    let second = user.add("two", &two);
    let ports = user.ports();
    assert_eq!(ports.len(), 2);
    assert!(
        ports
            .iter()
            .all(|port| port.driver == forwarder::Driver::Tap),
        "{ports:?}"
    );
    user.ping(&one, "169.254.1.1");
    user.reaches_pods_and_they_it(&one, &first);
    for (from, addresses) in [(&one, &second), (&two, &first)] {
        assert_eq!(addresses.len(), 2, "one of each family");
        for address in addresses {
            user.ping(from, address);
        }
    }
    for (container, pod) in [("one", &one), ("two", &two)] {
        user.call("DEL", container, pod);
    }
    assert_eq!((user.ports().len(), user.held_addresses()), (0, 0));
}
