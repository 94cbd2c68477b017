//! One member or three, in a directory of their own, killed when dropped.

use std::{
    fs::File,
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use weft_ipam::store::{
    Store,
    etcd::{Config, Etcd, PREFIX, Times},
};

use super::eventually;

pub struct Member {
    pub client: u16,
    arguments: Vec<String>,
    directory: TempDir,
    child: Child,
}

impl Member {
    /// With a server certificate; not waited for.
    pub fn start_tls(more: &[&str]) -> Self {
        let [client, peer] = free_ports(2)[..] else {
            unreachable!("two were asked for")
        };
        let directory = TempDir::new().expect("a temporary directory");
        let data = directory.path().join("data").display().to_string();
        let url = format!("https://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let arguments = [
            ["--data-dir", &data],
            ["--listen-client-urls", &url],
            ["--advertise-client-urls", &url],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &format!("default={peer}")],
        ];
        let arguments = arguments.concat().into_iter().chain(more.iter().copied());
        Self::launch(arguments.map(str::to_owned).collect(), directory, client)
    }

    pub fn start(more: &[&str]) -> Self {
        let member = cluster(1, more).remove(0);
        member.wait_ready();
        member
    }

    fn launch(arguments: Vec<String>, directory: TempDir, client: u16) -> Self {
        let child = spawn(&arguments, &directory);
        Self {
            client,
            arguments,
            directory,
            child,
        }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("the child lives");
    }

    pub fn kill(&mut self) {
        // A stopped process is killed too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.arguments, &self.directory);
        self.wait_ready();
    }

    pub fn wait_ready(&self) {
        eventually("etcd answers", || {
            self.control(&["endpoint", "status"]).status.success()
        });
    }

    pub fn control(&self, arguments: &[&str]) -> Output {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg("--dial-timeout=1s")
            .arg("--command-timeout=2s")
            .arg(format!("--endpoints=127.0.0.1:{}", self.client))
            .args(arguments)
            .output()
            .expect("etcdctl is installed")
    }

    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.control(arguments);
        assert!(output.status.success(), "etcdctl {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Members of one cluster; not waited for.
pub fn cluster(count: usize, more: &[&str]) -> Vec<Member> {
    let ports = free_ports(2 * count);
    let (clients, peers) = ports.split_at(count);
    let initial: Vec<_> = peers
        .iter()
        .map(|port| format!("m{port}=http://127.0.0.1:{port}"))
        .collect();
    clients
        .iter()
        .zip(peers)
        .map(|(client, peer)| {
            let directory = TempDir::new().expect("a temporary directory");
            let data = directory.path().join("data").display().to_string();
            let (client_url, peer_url) = (
                format!("http://127.0.0.1:{client}"),
                format!("http://127.0.0.1:{peer}"),
            );
            let name = format!("m{peer}");
            let initial = initial.join(",");
            let arguments: Vec<String> = [
                ["--name", &name],
                ["--data-dir", &data],
                ["--listen-client-urls", &client_url],
                ["--advertise-client-urls", &client_url],
                ["--listen-peer-urls", &peer_url],
                ["--initial-advertise-peer-urls", &peer_url],
                ["--initial-cluster", &initial],
            ]
            .concat()
            .into_iter()
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
            Member::launch(arguments, directory, *client)
        })
        .collect()
}

/// Short times, so that failures are seen soon.
pub fn config(ports: &[u16]) -> Config {
    let hosts: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let mut config =
        Config::parse(&format!("etcd://{}", hosts.join(",")), PREFIX).expect("a valid URL");
    config.times = Times {
        connect: Duration::from_millis(500),
        request: Duration::from_millis(1500),
        deadline: Duration::from_secs(4),
        pulse: Duration::from_millis(500),
        ..Times::default()
    };
    config
}

pub fn store(ports: &[u16]) -> Etcd {
    Etcd::new(config(ports)).expect("a valid configuration")
}

/// A store whose marker stands, so that a commit is one request.
pub fn ready(ports: &[u16]) -> Etcd {
    let mut store = store(ports);
    store.load().expect("etcd runs");
    store.frontier().expect("etcd runs");
    store
}

pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("bound").port())
        .collect()
}

fn spawn(arguments: &[String], directory: &TempDir) -> Child {
    let log = File::create(directory.path().join("log")).expect("a log file");
    Command::new("etcd")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("Debian's etcd-server is installed")
}
