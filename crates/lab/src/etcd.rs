//! A real etcd of one member on loopback, for IPAM servers to share. It ends
//! with its guard, and its data with it.

use std::{
    fs::File,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use crate::throwaway::ThrowAwayDir;

/// For it to answer; a busy machine's disk is slow.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Etcd {
    port: u16,
    peer: u16,
    child: Child,
    directory: ThrowAwayDir,
}

impl Etcd {
    pub fn start() -> anyhow::Result<Self> {
        // Both at once, so that they differ.
        let listeners = [
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        ];
        let [port, peer] = [
            listeners[0].local_addr()?.port(),
            listeners[1].local_addr()?.port(),
        ];
        drop(listeners);
        let directory = ThrowAwayDir::make()?;
        let etcd = Self {
            port,
            peer,
            child: spawn(directory.path(), port, peer)?,
            directory,
        };
        etcd.wait_ready()?;
        Ok(etcd)
    }

    /// Kills it and starts it again on what it has written.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.child = spawn(self.directory.path(), self.port, self.peer)?;
        self.wait_ready()
    }

    /// As the IPAM server's `store` has it.
    pub fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }

    /// What `etcdctl` says.
    pub fn control(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=127.0.0.1:{}", self.port))
            .args(arguments)
            .output()
            .context("run etcdctl; Debian has it as etcd-client")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {arguments:?}: {words}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Forgets what its keys were before now.
    pub fn compact(&self) -> anyhow::Result<()> {
        let status = self.control(&["endpoint", "status", "-w", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let revision = &status[0]["Status"]["header"]["revision"];
        self.control(&["compact", &revision.to_string()]).map(drop)
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.control(&["endpoint", "status"]) {
            ensure!(
                Instant::now() < until,
                "etcd does not answer in {} s: {error:#}",
                PATIENCE.as_secs()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// As a crash does; it does not answer until it is restarted.
    pub fn kill(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &Path, port: u16, peer: u16) -> anyhow::Result<Child> {
    let log = File::create(directory.join("log"))?;
    let (client, peer) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer}"),
    );
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .arg(format!("--initial-cluster=default={peer}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("start etcd; Debian has it as etcd-server")
}
