//! What is known of a lab outside the process that holds it: a directory a
//! lab, and in it one JSON file.

use std::{
    env, fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use nix::unistd::{AccessFlags, Uid, access, geteuid};
use serde::{Deserialize, Serialize};
use weft_cni::netns::Netns;

use crate::{
    lab::{Lab, Node},
    process::Process,
    spec::{NodePlan, Spec},
};

pub(crate) const FILE: &str = "state.json";

/// Marks the processes that were started in a lab.
pub const MARK: &str = "WEFT_LAB";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub spec: Spec,
    pub keeper: Process,
    /// The keeper is in a user namespace of its own.
    pub rootless: bool,
    /// Empty until the lab is up.
    pub nodes: Vec<NodeState>,
    /// None where the kernel carries the packets.
    pub ipam: Option<IpamState>,
    /// Of all nodes and pods.
    pub namespaces: Vec<NamespaceState>,
}

/// By what a namespace is known from outside.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NamespaceState {
    /// Its own while the lab holds it.
    pub inode: u64,
    /// Its own for ever.
    pub cookie: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    #[serde(flatten)]
    pub plan: NodePlan,
    /// The keeper's fd of the node's namespace, then of its pods'.
    pub netns: i32,
    pub pod_netns: Vec<i32>,
    pub forwarder: Option<ForwarderState>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForwarderState {
    #[serde(flatten)]
    pub process: Process,
    pub control: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IpamState {
    #[serde(flatten)]
    pub process: Process,
    pub socket: PathBuf,
}

impl State {
    /// A lab that is about to come up.
    pub fn starting(spec: &Spec, rootless: bool) -> anyhow::Result<Self> {
        let keeper = Process::current()?;
        Ok(Self {
            spec: spec.clone(),
            keeper,
            rootless,
            nodes: Vec::new(),
            ipam: None,
            namespaces: Vec::new(),
        })
    }

    pub fn up(self, lab: &Lab) -> anyhow::Result<Self> {
        let node_state = |(at, node): (usize, &Node)| {
            let pods = lab.pods.iter().filter(|pod| pod.node == at);
            let forwarder = node.forwarder.as_ref().map(|forwarder| {
                let process = Process::of(forwarder.pid())
                    .with_context(|| format!("the forwarder of {} ended", node.plan.name))?;
                anyhow::Ok(ForwarderState {
                    process,
                    control: forwarder.control.clone(),
                })
            });
            anyhow::Ok(NodeState {
                plan: node.plan.clone(),
                netns: node.netns.as_raw_fd(),
                pod_netns: pods.map(|pod| pod.netns.as_raw_fd()).collect(),
                forwarder: forwarder.transpose()?,
            })
        };
        let nodes = lab
            .nodes
            .iter()
            .enumerate()
            .map(node_state)
            .collect::<Result<_, _>>()?;
        let ipam = lab.ipam.as_ref().map(|ipam| {
            let process = Process::of(ipam.pid()).context("the IPAM server ended")?;
            let socket = ipam.socket.clone();
            anyhow::Ok(IpamState { process, socket })
        });
        let held = lab.nodes.iter().map(|node| &node.netns);
        let namespaces = held
            .chain(lab.pods.iter().map(|pod| &pod.netns))
            .map(NamespaceState::of)
            .collect::<io::Result<_>>()?;
        Ok(Self {
            nodes,
            ipam: ipam.transpose()?,
            namespaces,
            ..self
        })
    }

    /// The environment entry that every process started in the lab has. It
    /// is of this keeper's lab only, not of the next of that name.
    pub fn mark(&self) -> String {
        format!("{} {}", self.spec.name, self.keeper)
    }

    /// The namespace of a node or pod, as a path.
    pub fn netns(&self, place: &str) -> Option<PathBuf> {
        let pods = self.nodes.iter().flat_map(|node| {
            node.plan
                .pods
                .iter()
                .map(|pod| pod.name.as_str())
                .zip(node.pod_netns.iter().copied())
        });
        let nodes = self
            .nodes
            .iter()
            .map(|node| (node.plan.name.as_str(), node.netns));
        let (_, fd) = pods.chain(nodes).find(|(name, _)| *name == place)?;
        Some(format!("/proc/{}/fd/{fd}", self.keeper.pid).into())
    }

    pub fn places(&self) -> Vec<&str> {
        let mut places = Vec::new();
        for NodeState { plan, .. } in &self.nodes {
            places.push(plan.name.as_str());
            places.extend(plan.pods.iter().map(|pod| pod.name.as_str()));
        }
        places
    }

    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let text = fs::read(&path).with_context(|| format!("read {path:?}"))?;
        serde_json::from_slice(&text).with_context(|| format!("{path:?} is no lab's state"))
    }

    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FILE);
        let fresh = dir.join("state.json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("write {path:?}"))
    }
}

/// The keeper that a mark of lab `name` speaks of.
pub(crate) fn marked_keeper(name: &str, mark: &str) -> Option<Process> {
    Process::parse(mark.strip_prefix(name)?.strip_prefix(' ')?)
}

impl NamespaceState {
    fn of(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            inode: netns.inode()?,
            cookie: netns.cookie(),
        })
    }
}

/// Where lab `name` of this user is, whether or not it is.
pub fn dir_of(name: &str) -> anyhow::Result<PathBuf> {
    // The rules of names keep a name from being a path.
    Spec {
        name: name.to_owned(),
        ..Spec::default()
    }
    .check()?;
    let dir = home()?.join(format!("lab-{name}"));
    check_belongs(&dir, geteuid())?;
    Ok(dir)
}

/// Takes the name: makes its directory, which only this user may enter.
pub fn make_dir(name: &str) -> anyhow::Result<PathBuf> {
    let home = home()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&home)
        .with_context(|| format!("make {home:?}"))?;
    let dir = dir_of(name)?;
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => Ok(fs::canonicalize(dir)?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!(
                "there is a lab {name} already; see weft lab status --name {name}, or end it by weft lab down --name {name}"
            )
        }
        Err(error) => Err(error).with_context(|| format!("make {dir:?}")),
    }
}

/// Where this user's labs are, once there are any. What stands there is
/// believed: processes are signalled by it. So it must be nobody else's.
fn home() -> anyhow::Result<PathBuf> {
    let home = home_path();
    check_belongs(&home, geteuid())?;
    Ok(home)
}

/// Checks a directory that others might have made, or may write to.
fn check_belongs(dir: &Path, user: Uid) -> anyhow::Result<()> {
    const REMEDY: &str = "remove it, or set XDG_RUNTIME_DIR to a directory of yours";
    let found = match fs::symlink_metadata(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {dir:?}")),
    };
    ensure!(found.is_dir(), "{dir:?} is no directory; {REMEDY}");
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    ensure!(
        owner == user.as_raw(),
        "{dir:?} belongs to user {owner}; {REMEDY}"
    );
    ensure!(
        mode & 0o022 == 0,
        "{dir:?} has the mode {mode:04o}, so others may write to it; {REMEDY}"
    );
    Ok(())
}

fn home_path() -> PathBuf {
    let system = Path::new("/run");
    // The root of a user namespace may not write there.
    if geteuid().is_root() && access(system, AccessFlags::W_OK).is_ok() {
        return system.join("weft");
    }
    match env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => Path::new(&dir).join("weft"),
        None => env::temp_dir().join(format!("weft-{}", geteuid())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_that_others_could_fill_is_not_believed() {
        let me = geteuid();
        let check_own = |dir: &Path| check_belongs(dir, me);
        let place = tempfile::tempdir().expect("a directory");
        let dir = place.path().join("weft-1000");
        check_own(&dir).expect("nothing is there yet");
        fs::create_dir(&dir).expect("made");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("a mode");
        check_own(&dir).expect("it is ours");
        for mode in [0o775, 0o757, 0o1777] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("a mode");
            let error = check_own(&dir).expect_err("others may write");
            assert!(error.to_string().contains("set XDG_RUNTIME_DIR"), "{error}");
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("a mode");
        let other = Uid::from_raw(me.as_raw() + 1);
        let error = check_belongs(&dir, other).expect_err("it is not theirs");
        assert!(error.to_string().contains("belongs to user"), "{error}");
        let link = place.path().join("link");
        symlink(&dir, &link).expect("a link");
        let error = check_own(&link).expect_err("a link may be turned");
        assert!(error.to_string().contains("no directory"), "{error}");
    }
}
