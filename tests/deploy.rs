//! What stands in deploy/: the manifests agree with themselves and ask for no
//! right, and their containers, run here as processes without capabilities,
//! are a node that wires a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_cni::{
    netlink::{LinkChange, Netlink},
    netns::Netns,
};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const PATIENCE: Duration = Duration::from_secs(20);

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The objects of every manifest.
fn objects() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let entries = fs::read_dir(folder).expect("the folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let manifests = names.filter_map(|name| name.into_string().ok());
    let manifests = manifests.filter(|name| name.ends_with(".yaml"));
    let parse = |name: String| {
        serde_saphyr::from_multiple::<Value>(&file(&name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let objects: Vec<Value> = manifests.flat_map(parse).collect();
    assert!(!objects.is_empty(), "there are manifests");
    objects
}

fn of_kind(kind: &str) -> Value {
    let found = objects().into_iter().find(|one| one["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}"))
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn pod() -> Value {
    of_kind("DaemonSet")["spec"]["template"]["spec"].clone()
}

/// In the order of their start.
fn containers(pod: &Value) -> Vec<Value> {
    [list(&pod["initContainers"]), list(&pod["containers"])].concat()
}

fn names(values: &[Value]) -> BTreeSet<&str> {
    values.iter().map(|value| text(&value["name"])).collect()
}

#[test]
fn objects_are_whole_and_named_once() {
    let objects = objects();
    let mut seen = BTreeSet::new();
    for object in &objects {
        text(&object["apiVersion"]);
        let metadata = &object["metadata"];
        let name = (
            text(&object["kind"]),
            metadata["namespace"].as_str(),
            text(&metadata["name"]),
        );
        assert!(seen.insert(name), "{name:?} is there twice");
    }
    let spaces: BTreeSet<_> = seen.iter().filter(|name| name.0 == "Namespace").collect();
    for (kind, space, name) in seen.iter().filter(|name| name.0 != "Namespace") {
        let is_made = spaces.iter().any(|made| Some(made.2) == *space);
        assert!(is_made, "{kind} {name}: namespace {space:?} is not made");
    }
}

#[test]
fn names_that_are_used_are_there() {
    let set = of_kind("DaemonSet");
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
    let pod = pod();
    assert_eq!(
        pod["serviceAccountName"],
        of_kind("ServiceAccount")["metadata"]["name"]
    );
    let volumes = names(list(&pod["volumes"]));
    let mut used = BTreeSet::new();
    let containers = containers(&pod);
    assert_eq!(names(&containers).len(), containers.len());
    for container in &containers {
        let mounts = list(&container["volumeMounts"]);
        used.extend(names(mounts).into_iter().map(str::to_owned));
        let ports = names(list(&container["ports"]));
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            if let Some(port) = container[probe]["httpGet"]["port"].as_str() {
                assert!(
                    ports.contains(port),
                    "{}: {probe}: {port}",
                    container["name"]
                );
            }
        }
        // The plugin is told the sockets' paths as the node has them.
        let installs = container["name"] == "install";
        let on_node = |path: &str| {
            let paths = list(&pod["volumes"]).iter();
            let mut paths = paths.filter_map(|volume| volume["hostPath"]["path"].as_str());
            installs && paths.any(|folder| path.starts_with(folder))
        };
        for word in words(container) {
            let path = word.split_once('=').map_or(&*word, |(_, path)| path);
            let is_mounted = |mount: &Value| path.starts_with(text(&mount["mountPath"]));
            let is_path = path.starts_with('/') && !path.starts_with("/weft");
            assert!(
                !is_path || mounts.iter().any(is_mounted) || on_node(path),
                "{path} is not mounted"
            );
        }
    }
    let used: BTreeSet<_> = used.iter().map(String::as_str).collect();
    assert_eq!(used, volumes);
    let config = of_kind("ConfigMap");
    for volume in list(&pod["volumes"]) {
        if let Some(name) = volume["configMap"]["name"].as_str() {
            assert_eq!(config["metadata"]["name"], name);
        }
    }
}

#[test]
fn no_right_is_asked_for_but_one() {
    for object in objects() {
        let kind = text(&object["kind"]);
        assert!(
            !kind.contains("Role"),
            "{kind}: nothing speaks with the API"
        );
    }
    let pod = pod();
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["hostPID"], Value::Null);
    let profile = &pod["securityContext"]["seccompProfile"]["type"];
    assert_eq!(profile, "RuntimeDefault");
    for container in containers(&pod) {
        let mut expected = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "runAsUser": 0, "capabilities": {"drop": ["ALL"]},
        });
        if container["name"] == "host" {
            expected["capabilities"]["add"] = json!(["NET_ADMIN"]);
        }
        assert_eq!(
            container["securityContext"], expected,
            "{}",
            container["name"]
        );
    }
}

#[test]
fn the_image_has_what_the_manifests_start() {
    let image = &pod()["containers"][0]["image"];
    let builds = file("image");
    assert!(builds.contains(text(image)), "deploy/image makes {image}");
    let version = concat!(":", env!("CARGO_PKG_VERSION"));
    let names: BTreeSet<_> = ["/weft", "/weft-forwarder", "/weft-ipam"].into();
    for container in containers(&pod()) {
        assert_eq!(&container["image"], image);
        assert!(text(image).ends_with(version), "{image} is of this version");
        let command = text(&container["command"][0]);
        assert!(names.contains(command), "{command}");
        assert!(
            command == "/weft" || builds.contains(&command[1..]),
            "{command}"
        );
    }
    assert!(file("Containerfile").contains("FROM scratch"));
}

#[test]
fn the_template_is_what_an_install_writes() {
    let root = tempfile::tempdir().expect("a folder");
    let [bin, conf] = ["bin", "conf"].map(|name| root.path().join(name));
    let status = Command::new(WEFT)
        .arg("install")
        .arg("--cni-bin-dir")
        .arg(bin)
        .arg("--cni-conf-dir")
        .arg(&conf)
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("weft").success());
    let written = fs::read_to_string(conf.join("10-weft.conflist")).expect("there");
    assert_eq!(file("10-weft.conflist"), written);
}

fn words(container: &Value) -> Vec<String> {
    let words = [list(&container["command"]), list(&container["args"])].concat();
    words.iter().map(|word| text(word).to_owned()).collect()
}

/// A node in a network namespace, whose folders are in a folder of the test.
struct Node {
    root: TempDir,
    netns: Netns,
    running: BTreeMap<String, Child>,
}

impl Node {
    fn new() -> Self {
        let netns = Netns::make("a node").expect("a namespace");
        let netlink = Netlink::open_in(&netns).expect("enter").expect("netlink");
        let loopback = netlink
            .index("lo")
            .expect("an answer")
            .expect("it is there");
        let up = LinkChange {
            up: true,
            ..LinkChange::default()
        };
        netlink.change(loopback, &up).expect("up");
        let root = tempfile::tempdir().expect("a folder");
        for folder in ["run/weft", "etc/weft"] {
            fs::create_dir_all(root.path().join(folder)).expect("made");
        }
        let node = Self {
            root,
            netns,
            running: BTreeMap::new(),
        };
        for (name, content) in of_kind("ConfigMap")["data"].as_object().expect("files") {
            // The one line that each cluster has to change.
            let store = "store = \"etcd://192.0.2.10:2379\"";
            let here = format!("store = \"{}\"", node.here("/run/weft/ipam.redb"));
            let content = text(content).replace(store, &here);
            fs::write(node.here(&format!("/etc/weft/{name}")), content).expect("written");
        }
        node
    }

    /// What the kubelet fills in, and the node's paths as the test has them.
    fn here(&self, word: &str) -> String {
        let mut word = word.replace("$(NODE_NAME)", "node-1");
        word = word.replace("$(NODE_IP)", "127.0.0.1");
        for path in ["/run/weft", "/etc/weft", "/host/"] {
            let here = format!("{}{path}", self.root.path().display());
            word = word.replace(path, &here);
        }
        word
    }

    /// As root whose capabilities are dropped.
    fn command(&self, words: &[String], rights: &str) -> Command {
        let name = words[0].trim_start_matches('/');
        // setpriv starts a program by its own name only.
        let link = self.root.path().join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(WEFT, &link).expect("a link");
        }
        let mut command = Command::new("setpriv");
        command
            .args([
                &format!("--bounding-set={rights}"),
                &format!("--inh-caps={rights}"),
                "--no-new-privs",
                "--",
            ])
            .arg(link)
            .args(words[1..].iter().map(|word| self.here(word)))
            .stdin(Stdio::null());
        command
    }

    fn output(&self, words: &[String]) -> Output {
        let mut command = self.command(words, "-all");
        let output = self.netns.run(|| command.output()).expect("enter");
        output.expect("setpriv (util-linux)")
    }

    /// Does what the kubelet does: waits for what ends, and lets go on what
    /// is to go on, once its probe says that it has started.
    fn start(&mut self, container: &Value) {
        let name = text(&container["name"]);
        let words = words(container);
        let goes_on =
            container["restartPolicy"] == "Always" || ["forwarder", "host"].contains(&name);
        if !goes_on {
            let output = self.output(&words);
            assert!(output.status.success(), "{name}: {output:?}");
            return;
        }
        let added = list(&container["securityContext"]["capabilities"]["add"]).iter();
        let added = added.map(|right| format!(",+{}", text(right).to_lowercase()));
        let mut command = self.command(&words, &format!("-all{}", added.collect::<String>()));
        command.process_group(0);
        let child = self.netns.run(|| command.spawn()).expect("enter");
        self.running
            .insert(name.to_owned(), child.expect("setpriv"));
        let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
        let mut probed = 0;
        for probe in probes.iter().filter(|probe| !container[**probe].is_null()) {
            self.until_it_passes(container, &container[*probe]);
            probed += 1;
        }
        assert!(probed > 0 || name == "host", "{name} has a probe");
    }

    fn until_it_passes(&self, container: &Value, probe: &Value) {
        let until = Instant::now() + PATIENCE;
        while !self.passes(container, probe) {
            assert!(
                Instant::now() < until,
                "{} does not pass {probe}",
                container["name"]
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn passes(&self, container: &Value, probe: &Value) -> bool {
        let command = list(&probe["exec"]["command"]);
        if !command.is_empty() {
            let words: Vec<_> = command.iter().map(|word| text(word).to_owned()).collect();
            return self.output(&words).status.success();
        }
        let get = &probe["httpGet"];
        let ports = list(&container["ports"]);
        let port = ports.iter().find(|port| port["name"] == get["port"]);
        let number = port.expect("it is named")["containerPort"].as_u64();
        let number = u16::try_from(number.expect("a number")).expect("a port");
        let path = text(&get["path"]);
        let asked = self.netns.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", number))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node-1\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let answer = asked.expect("enter").unwrap_or_default();
        answer.starts_with("HTTP/1.1 200 ")
    }

    /// As a runtime calls what was installed.
    fn plugin(&self, verb: &str, netns: &Netns) -> Value {
        let list = self.here("/host/cni-conf/10-weft.conflist");
        let list: Value =
            serde_json::from_str(&fs::read_to_string(list).expect("installed")).expect("JSON");
        let mut config = list["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            config[key] = list[key].clone();
        }
        let mut command = Command::new(self.here("/host/cni-bin/weft-cni"));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.here("/host/cni-bin"))
            .env(
                "CNI_NETNS",
                format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let child = self.netns.run(|| command.spawn()).expect("enter");
        let mut child = child.expect("the plugin");
        let mut stdin = child.stdin.take().expect("piped");
        let written = stdin.write_all(config.to_string().as_bytes());
        written.expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{verb}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_containers_without_capabilities_are_a_node_that_wires_pods() {
    weft_testkit::needs_namespaces!();
    let mut node = Node::new();
    for container in containers(&pod()) {
        node.start(&container);
    }
    let without = node.running.iter().filter(|(name, _)| *name != "host");
    for (_, child) in without {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.expect("it runs");
        assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
    }
    let known = node.output(&[
        "/weft".to_owned(),
        "ipam".to_owned(),
        "--socket=/run/weft/ipam.sock".to_owned(),
        "node".to_owned(),
        "list".to_owned(),
    ]);
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    assert!(
        known.contains("node-1") && known.contains("127.0.0.1"),
        "{known}"
    );
    // It has registered, and weft0 has what it was given.
    let (before, first) = weft0(&node, |_| true);
    assert!(first.to_string().starts_with("10.244."), "{first}");
    assert!(known_as(&node, &first.addr().to_string()));
    let netns = Netns::make("a pod").expect("a namespace");
    let result = node.plugin("ADD", &netns);
    let address = text(&result["ips"][0]["address"]);
    assert!(address.starts_with("10.244."), "{result}");
    node.plugin("DEL", &netns);

    // A forwarder that starts anew takes weft0 along, and gets another.
    let mut forwarder = node.running.remove("forwarder").expect("it runs");
    forwarder.kill().expect("it runs");
    forwarder.wait().expect("it ends");
    let all = containers(&pod());
    let again = all
        .iter()
        .find(|container| container["name"] == "forwarder");
    node.start(again.expect("there is one"));
    weft0(&node, |now| now.0 != before && now.1 == first);
}

/// Waits for a weft0 with an address that is as it has to be.
fn weft0(node: &Node, is_it: impl Fn((u32, IpNet)) -> bool) -> (u32, IpNet) {
    let netlink = Netlink::open_in(&node.netns)
        .expect("enter")
        .expect("netlink");
    let until = Instant::now() + PATIENCE;
    loop {
        let index = netlink.index("weft0").expect("an answer");
        let held = index.map(|index| (index, netlink.addresses(index).unwrap_or_default()));
        if let Some((index, addresses)) = held
            && let Some(own) = addresses.first()
            && is_it((index, *own))
        {
            return (index, *own);
        }
        assert!(Instant::now() < until, "weft0 did not come");
        thread::sleep(Duration::from_millis(20));
    }
}

fn known_as(node: &Node, address: &str) -> bool {
    let words = ["/weft", "node", "--socket=/run/weft/ipam.sock", "list"];
    let known = node.output(&words.map(str::to_owned));
    String::from_utf8_lossy(&known.stdout).contains(address)
}
