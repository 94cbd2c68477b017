//! Two nodes for runtimes: a lab's namespaces, forwarders and IPAM server,
//! and in each node process and mount namespaces of its own, whose folders
//! for runtimes' configuration and state are empty. Nothing is written on the
//! machine, and the end of a node is the end of every process in it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use weft_api::{forwarder, ipam};
use weft_lab::{Forwarder, Lab, Spec, use_executable};

use crate::{WEFT, image};

/// The network that `weft install` makes.
pub const NETWORK: &str = "weft";

pub struct Cluster {
    // Processes before the namespaces they are in.
    pub nodes: Vec<Node>,
    pub lab: Lab,
    _dir: TempDir,
}

pub struct Node {
    /// The first process of the namespaces; it ends with its standard input.
    keeper: Child,
    init: String,
    control: PathBuf,
    pub image: String,
}

impl Cluster {
    /// Two nodes on which weft is installed with these options.
    pub fn up(options: &[&str]) -> Self {
        use_executable(WEFT);
        let spec = Spec {
            pods: 1,
            gc_grace_seconds: Some(1),
            ..Spec::default()
        };
        let lab = Lab::up(&spec).expect("a lab");
        let dir = tempfile::tempdir().expect("a folder");
        let image = image::pack(dir.path()).display().to_string();
        let nodes = (0..2).map(|number| Node::start(&lab, number, &image));
        let cluster = Self {
            nodes: nodes.collect(),
            lab,
            _dir: dir,
        };
        for (number, node) in cluster.nodes.iter().enumerate() {
            let (forwarder, ipam) = (cluster.forwarder(number), cluster.ipam_socket());
            let forwarder = forwarder.control.display().to_string();
            let mut words = vec![WEFT, "install", "--forwarder", &forwarder, "--ipam", &ipam];
            words.extend(["--families", "v4,v6"].iter().chain(options));
            node.run(&words);
        }
        cluster
    }

    pub fn forwarder(&self, number: usize) -> &Forwarder {
        let node = &self.lab.nodes[number];
        node.forwarder.as_ref().expect("a forwarder")
    }

    pub fn ipam_socket(&self) -> String {
        let ipam = self.lab.ipam.as_ref().expect("an IPAM server");
        ipam.socket.display().to_string()
    }

    /// Handles that hold addresses of a runtime's pods; the lab's own pods
    /// are of another network.
    pub fn holders(&self) -> Vec<String> {
        let handles = self.allocations().into_iter();
        let handles = handles.filter_map(|one| one.handle);
        let handles = handles.map(|handle| handle.as_str().to_owned());
        handles
            .filter(|handle| !handle.starts_with("lab/"))
            .collect()
    }

    /// Until GC may free what is allocated.
    pub fn wait_until_old(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.has_young() {
            assert!(Instant::now() < until, "the mark is raised");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn has_young(&self) -> bool {
        let ipam::Reply::Status(status) = self.ask(&ipam::Request::Status) else {
            panic!("no status");
        };
        let all = self.allocations();
        let mut handled = all.iter().filter(|one| one.handle.is_some());
        handled.any(|one| ipam::is_young(one.mark, status.mark))
    }

    fn allocations(&self) -> Vec<ipam::Allocation> {
        let request = ipam::Request::Allocations {
            node: None,
            borrowed: false,
        };
        match self.ask(&request) {
            ipam::Reply::Allocations(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, request: &ipam::Request) -> ipam::Reply {
        let mut client = self.lab.ipam.as_ref().expect("one").client().expect("up");
        client.request(request).expect("an answer")
    }

    /// Nothing is left of any pod of a runtime.
    pub fn assert_bare(&self) {
        assert_eq!(self.holders(), Vec::<String>::new());
        for node in &self.nodes {
            assert_eq!(node.ports(), Vec::<String>::new());
            let links = node.sh("ip -o link | cut -d: -f2 | cut -d@ -f1");
            let links: Vec<_> = links.split_whitespace().collect();
            assert_eq!(links, ["lo", "eth0"]);
            let namespaces = node.sh(
                "readlink /proc/[0-9]*/ns/net | sort -u | wc -l; grep -c 'net:' \
                 /proc/self/mountinfo || true",
            );
            assert_eq!(namespaces, "1\n0\n");
        }
        let check = Command::new(WEFT)
            .args(["ipam", "check", "--socket", &self.ipam_socket()])
            .output()
            .expect("weft");
        assert!(check.status.success(), "{check:?}");
    }
}

// The namespaces that the machine has mounted are none of the node's.
const SCRIPT: &str = "\
    umount --all --types nsfs || exit 1
    for folder in /run /var/lib /var/log /opt /etc/cni /etc/containers; do
        [ -d $folder ] || continue
        mount -t tmpfs none $folder || exit 1
    done
    mkdir -p /opt/cni/bin /etc/cni/net.d
    [ ! -d /usr/lib/cni ] || cp /usr/lib/cni/* /opt/cni/bin
    echo ready
    read forever";

impl Node {
    fn start(lab: &Lab, number: usize, image: &str) -> Self {
        let place = &lab.nodes[number];
        let spawn = || {
            Command::new("unshare")
                .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
                .args(["sh", "-c", SCRIPT])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
        };
        let spawned = place.netns.run(spawn).expect("enter");
        let mut keeper = spawned.expect("unshare (util-linux)");
        let mut line = String::new();
        let stdout = keeper.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        assert_eq!(line, "ready\n", "the node's folders are mounted");
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let init = fs::read_to_string(children).expect("it runs");
        Self {
            keeper,
            init: init.trim().to_owned(),
            control: place.forwarder.as_ref().expect("one").control.clone(),
            image: image.to_owned(),
        }
    }

    /// For runtimes that cannot do without.
    pub fn cgroup(&self) -> String {
        format!("/weft-test-{}", self.init)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init, "--mount", "--net", "--pid", "--"])
            .args(words)
            .stdin(Stdio::null());
        command
    }

    pub fn try_run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("nsenter (util-linux)")
    }

    pub fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        assert!(
            output.status.success(),
            "{words:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-c", script])
    }

    pub fn write(&self, path: &str, text: &str) {
        self.run(&["sh", "-c", "printf %s \"$1\" > \"$0\"", path, text]);
    }

    /// Names at the forwarder, of pods that a runtime made.
    pub fn ports(&self) -> Vec<String> {
        let mut client = weft_cni::forwarder::Client::connect(&self.control).expect("up");
        let Ok(forwarder::Reply::Ports(ports)) = client.request(&forwarder::Request::List) else {
            panic!("no ports");
        };
        let names = ports.iter().map(|port| port.name.as_str().to_owned());
        names.filter(|name| name.contains('/')).collect()
    }

    pub fn conflist(&self) -> Value {
        let list = self.run(&["cat", "/etc/cni/net.d/10-weft.conflist"]);
        serde_json::from_str(&list).expect("JSON")
    }

    /// Puts another list of plugins in the place of weft's. `weft` stands for
    /// what weft's own entry is.
    pub fn chain(&self, plugins: impl FnOnce(Value) -> Vec<Value>) {
        let mut list = self.conflist();
        list["plugins"] = plugins(list["plugins"][0].clone()).into();
        self.write("/etc/cni/net.d/10-weft.conflist", &list.to_string());
    }

    /// What a runtime gives weft's plugin on its standard input.
    pub fn config(&self) -> Value {
        let list = self.conflist();
        let plugins = list["plugins"].as_array().expect("a list");
        let ours = plugins.iter().find(|plugin| plugin["type"] == "weft-cni");
        let mut config = ours.expect("one").clone();
        for key in ["name", "cniVersion"] {
            config[key] = list[key].clone();
        }
        config
    }

    /// Calls weft's plugin as a runtime does, with a changed configuration.
    pub fn plugin(&self, environment: &[(&str, &str)], change: &Value) -> Output {
        let mut config = self.config();
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        let mut child = self
            .command(&["/opt/cni/bin/weft-cni"])
            .envs(environment.iter().copied())
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the plugin");
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(config.to_string().as_bytes())
            .expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        remove_cgroups(&self.cgroup());
    }
}

/// The folders of that name, one in each hierarchy: once their last process
/// is gone, which the kernel may take a moment for.
fn remove_cgroups(name: &str) {
    let folders = format!("find /sys/fs/cgroup -depth -path '*{name}*' -type d");
    let script = format!(
        "for again in $(seq 50); do {folders} -exec rmdir {{}} + 2> /dev/null && break; \
         sleep 0.1; done"
    );
    let _ = Command::new("sh").args(["-c", &script]).status();
}
