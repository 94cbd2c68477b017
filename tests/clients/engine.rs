//! The runtimes, as far as tests need them: start a pod, run something in it,
//! end it.

use std::{
    net::IpAddr,
    process::{Child, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{image, node::Node};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// containerd and runc, by `ctr`.
    Ctr,
    Podman,
}

/// A pod that a runtime made.
pub struct Pod<'a> {
    pub node: &'a Node,
    pub name: String,
    engine: Engine,
    /// `ctr run`, which waits for the pod's end and then has it unwired.
    held: Option<Child>,
}

/// Without CRI and what it needs; pods are made by ctr.
const CONTAINERD: &str = "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n";

/// The CNI back end, with the network that weft installs.
const CONTAINERS: &str = "\
[network]
network_backend = 'cni'
cni_plugin_dirs = ['/opt/cni/bin']
network_config_dir = '/etc/cni/net.d'
default_network = 'weft'
[engine]
cgroup_manager = 'cgroupfs'
events_logger = 'file'
runtime = 'runc'
";

const ANY_IMAGE: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// vfs and native copy instead of mounting: they work on every file system.
const PODMAN: [&str; 11] = [
    "env",
    "CONTAINERS_CONF=/run/containers.conf",
    "podman",
    "--root",
    "/var/lib/podman",
    "--runroot",
    "/run/podman",
    "--tmpdir",
    "/run/podman-tmp",
    "--storage-driver",
    "vfs",
];

impl Engine {
    /// Starts what has to run, and loads the image.
    pub fn prepare(self, node: &Node) {
        match self {
            Self::Ctr => {
                node.write("/run/containerd.toml", CONTAINERD);
                node.sh("containerd -c /run/containerd.toml > /var/log/containerd 2>&1 &");
                until("containerd answers", || {
                    node.try_run(&["ctr", "version"]).status.success()
                });
                let import = ["ctr", "images", "import", "--snapshotter", "native"];
                node.run(&[&import[..], &[&node.image]].concat());
            }
            Self::Podman => {
                node.write("/run/containers.conf", CONTAINERS);
                node.write("/etc/containers/policy.json", ANY_IMAGE);
                podman(node, &["load", "--input", &node.image]);
            }
        }
    }

    /// One that is there already.
    pub fn pod<'a>(self, node: &'a Node, name: &str) -> Pod<'a> {
        Pod {
            node,
            name: name.to_owned(),
            engine: self,
            held: None,
        }
    }

    pub fn start<'a>(self, node: &'a Node, name: &str) -> Pod<'a> {
        let mut pod = self.pod(node, name);
        match self {
            Self::Ctr => pod.held = Some(spawn(node, name, &["--rm"])),
            Self::Podman => assert_eq!(podman_run(node, name, &[]), Ok(())),
        }
        until(&format!("{name} runs"), || pod.runs());
        pod
    }
}

/// What podman says against it is the error.
pub fn podman_run(node: &Node, name: &str, options: &[&str]) -> Result<(), String> {
    let parent = format!("--cgroup-parent={}", node.cgroup());
    let run = ["run", "--detach", "--name", name, &parent];
    let rest = [image::NAME, "sleep", "1000"];
    let output = node.try_run(&[&PODMAN[..], &run, options, &rest].concat());
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A pod of containerd that nobody waits for: its wiring outlives it.
pub fn start_detached(node: &Node, name: &str) {
    let mut child = spawn(node, name, &["--detach"]);
    let status = child.wait().expect("it ends");
    assert!(status.success(), "ctr run --detach: {status}");
}

/// Has containerd forget a pod whose program was killed.
pub fn remove_ended(node: &Node, name: &str) {
    until(&format!("{name} can be removed"), || {
        let removed = node.try_run(&["ctr", "containers", "rm", name]);
        removed.status.success()
    });
}

fn spawn(node: &Node, name: &str, options: &[&str]) -> Child {
    let run = ["ctr", "run", "--cni", "--snapshotter", "native"];
    // No cgroup, for machines whose cgroups are not ours to change.
    let rest = ["--cgroup", "", image::NAME, name, "sleep", "1000"];
    let mut command = node.command(&[&run[..], options, &rest].concat());
    command.stdout(Stdio::null()).spawn().expect("nsenter")
}

fn podman(node: &Node, words: &[&str]) -> String {
    node.run(&[&PODMAN[..], words].concat())
}

impl Pod<'_> {
    /// Once its network is set up.
    fn runs(&mut self) -> bool {
        if let Some(held) = &mut self.held
            && let Some(status) = held.try_wait().expect("ours")
        {
            panic!("ctr run {} ended: {status}", self.name);
        }
        let is_started = self.engine == Engine::Podman || self.task().is_some();
        let link = ["ip", "link", "show", "dev", "eth0"];
        is_started && self.try_exec(&link).status.success()
    }

    /// The process of containerd's task, once it runs: a task is CREATED while
    /// plugins wire it, and can be looked into already.
    fn task(&self) -> Option<String> {
        let tasks = self.node.run(&["ctr", "task", "ls"]);
        tasks.lines().find_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                [name, process, "RUNNING"] if name == self.name => Some(process.to_owned()),
                _ => None,
            }
        })
    }

    pub fn try_exec(&self, words: &[&str]) -> Output {
        match self.engine {
            // ctr's own exec may stop listening before it has heard everything.
            Engine::Ctr => {
                let task = self.task().expect("its task runs");
                let enter = ["nsenter", "--target", &task, "--all", "--root", "--wd"];
                self.node.try_run(&[&enter[..], words].concat())
            }
            Engine::Podman => {
                let exec = [&PODMAN[..], &["exec", &self.name]].concat();
                self.node.try_run(&[&exec[..], words].concat())
            }
        }
    }

    pub fn exec(&self, words: &[&str]) -> String {
        let output = self.try_exec(words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{}: {words:?}: {said}{told}",
            self.name
        );
        said
    }

    /// Lets a program run in the pod until its end.
    pub fn background(&self, words: &[&str]) {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);

        let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
        let exec: Vec<&str> = match self.engine {
            Engine::Ctr => vec!["ctr", "task", "exec", "--detach", "--exec-id", &number],
            Engine::Podman => [&PODMAN[..], &["exec", "--detach"]].concat(),
        };
        self.node.run(&[&exec[..], &[&self.name], words].concat());
    }

    /// Of `eth0`, without the link-local.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let told = self.exec(&["ip", "-o", "addr", "show", "dev", "eth0", "scope", "global"]);
        let mut words = told.split_whitespace();
        let mut addresses = Vec::new();
        while let Some(word) = words.next() {
            if word == "inet" || word == "inet6" {
                let address = words.next().and_then(|net| net.split('/').next());
                addresses.push(address.expect("one").parse().expect("an address"));
            }
        }
        addresses
    }

    /// Has the runtime take it away.
    pub fn end(mut self) {
        match self.engine {
            Engine::Ctr => {
                let kill = ["ctr", "task", "kill", "--signal", "SIGKILL", &self.name];
                self.node.run(&kill);
                // It tells the killed program's end by its own.
                let held = self.held.take();
                held.expect("held").wait().expect("it ends");
            }
            Engine::Podman => {
                podman(self.node, &["rm", "--force", "--time", "0", &self.name]);
            }
        }
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
