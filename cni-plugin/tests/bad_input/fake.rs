//! Servers that say whatever a test wants, and the plugin called upon them.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::net::UnixListener},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_cni::{netlink::Netlink, netns::Netns};
use weft_testkit::cni::{Answer, Attachment, Runtime, answer, finish};

pub const PLUGIN: &str = env!("CARGO_BIN_EXE_weft-cni");

/// What comes back for a request.
#[derive(Clone)]
pub enum Reply {
    Json(Value),
    /// Some bytes, and the end.
    Bytes(&'static [u8]),
    Silence,
    /// A line that never ends.
    Endless,
}

pub type Manner = fn(&str) -> Option<Reply>;

/// A server that asks `manner` first and is honest where that has no answer.
pub struct Fake {
    pub path: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(path: PathBuf, manner: Manner) -> Self {
        let listener = UnixListener::bind(&path).expect("bind");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (noted, mut client) = (noted.clone(), client.expect("a client"));
                thread::spawn(move || {
                    let lines = BufReader::new(client.try_clone().expect("dup")).lines();
                    for line in lines.map_while(Result::ok) {
                        let request: Value = serde_json::from_str(&line).expect("a request");
                        let op = request["op"].as_str().expect("an operation").to_owned();
                        noted.lock().expect("no panic").push(op.clone());
                        let reply = manner(&op).unwrap_or_else(|| Reply::Json(honest(&op)));
                        if !say(&mut client, reply) {
                            return;
                        }
                    }
                });
            }
        });
        Self { path, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// Whether the server goes on.
fn say(client: &mut impl Write, reply: Reply) -> bool {
    match reply {
        Reply::Json(json) => writeln!(client, "{json}").is_ok(),
        Reply::Bytes(bytes) => {
            // The client may have hung up.
            let _ = client.write_all(bytes);
            false
        }
        Reply::Silence => true,
        Reply::Endless => {
            while client.write_all(&[b'x'; 1 << 16]).is_ok() {}
            false
        }
    }
}

pub fn honest(op: &str) -> Value {
    match op {
        // The forwarder's and the IPAM server's at once.
        "status" => json!({"ok": {"status": {"version": "0", "pid": 1, "node": "n1",
            "workers": 1, "epoch": 0, "underlay": [], "vni": 1, "port": 1, "gso": true,
            "gro": true, "ports": 0, "peers": 0, "store": "redb", "revision": 1,
            "pools": 1, "blocks": 0, "allocations": 0, "nodes": 1, "clients": 1}}}),
        "list" => json!({"ok": {"ports": []}}),
        "attach" | "detach" => json!({"ok": {"done": {"epoch": 1}}}),
        "allocate" | "probe" => allocated(&["10.9.0.7", "fd09::7"]),
        "release" => json!({"ok": {"released": {"released": [], "kept": [], "unallocated": []}}}),
        "allocations" => json!({"ok": {"allocations": []}}),
        "gc" => json!({"ok": {"report": {"pools": 0, "blocks": 0, "allocations": 0,
            "problems": []}}}),
        other => panic!("{other} is asked"),
    }
}

pub fn allocated(addresses: &[&str]) -> Value {
    let address = |address: &&str| {
        let block = if address.contains(':') {
            "fd09::/112"
        } else {
            "10.9.0.0/26"
        };
        json!({"address": address, "block": block, "pool": "p", "borrowed": false})
    };
    let addresses: Vec<_> = addresses.iter().map(address).collect();
    json!({"ok": {"allocated": {"addresses": addresses, "existing": false}}})
}

/// A pod, and the servers that its plugin finds.
pub struct Scene {
    pub dir: TempDir,
    node: Netns,
    pub pod: Netns,
    pub forwarder: Fake,
    pub ipam: Fake,
}

impl Scene {
    pub fn new(forwarder: Manner, ipam: Manner) -> Self {
        let make = |label| Netns::make(label).expect("a namespace; root or unshare -Urn");
        let dir = TempDir::new().expect("a directory");
        Self {
            node: make("node"),
            pod: make("pod"),
            forwarder: Fake::start(dir.path().join("forwarder.sock"), forwarder),
            ipam: Fake::start(dir.path().join("ipam.sock"), ipam),
            dir,
        }
    }

    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "weft-cni",
            "forwarder": self.forwarder.path,
            "ipam": {"socket": self.ipam.path, "families": ["v4", "v6"]},
            "cni.dev/valid-attachments": [],
        })
    }

    pub fn attachment(&self) -> Attachment {
        Attachment {
            container: "c1".to_owned(),
            netns: format!("/proc/{}/fd/{}", std::process::id(), self.pod.as_raw_fd()),
            interface: "eth0".to_owned(),
            ..Attachment::default()
        }
    }

    pub fn call(&self, verb: &str, change: &Value) -> Answer {
        let mut config = self.config();
        for (key, value) in change.as_object().expect("an object") {
            config[key] = value.clone();
        }
        self.call_with(verb, &self.attachment(), config.to_string().as_bytes())
    }

    pub fn call_with(&self, verb: &str, pod: &Attachment, stdin: &[u8]) -> Answer {
        let runtime = Runtime::new([self.dir.path().to_owned()]);
        let call = || {
            answer(&finish(
                runtime.start(PLUGIN.as_ref(), verb, Some(pod)),
                stdin,
            ))
        };
        self.node.run(call).expect("enter")
    }

    pub fn assert_no_link(&self, when: &str) {
        let pod = Netlink::open_in(&self.pod)
            .expect("enter")
            .expect("netlink");
        assert_eq!(pod.index("eth0").expect("an answer"), None, "{when}");
    }
}

pub fn silent(_: &str) -> Option<Reply> {
    Some(Reply::Silence)
}

pub fn honestly(_: &str) -> Option<Reply> {
    None
}
