//! `weft lab`: what it makes, what it says of it, and that nothing stays.
//!
//! As root it makes its namespaces directly; as an ordinary user the lab does
//! so in a user namespace, and these tests prove that instead.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::Value;
use tempfile::TempDir;

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

#[test]
fn a_lab_is_there_until_it_is_ended() {
    let lab = TestLab::up(&["--nodes", "3", "--pods", "2"]);
    let status = lab.status();
    assert_eq!(status["keeper_runs"], true);
    assert_eq!(
        status["forwarder_runs"],
        serde_json::json!([true, true, true])
    );

    assert_eq!(status["ipam_runs"], true);

    let [v4, v6] = addresses(&status, 2, 1);
    let found = lab.exec("n3p2", &["cat", "/proc/net/fib_trie"]);
    assert!(found.contains(&format!("|-- {v4}\n")), "{found}");
    let IpAddr::V6(v6) = v6 else {
        panic!("{v6} is no IPv6 address")
    };
    let found = lab.exec("n3p2", &["cat", "/proc/net/if_inet6"]);
    assert!(found.contains(&format!("{:032x}", v6.to_bits())), "{found}");
    let readme = fs::read_to_string("README.md").expect("the README");
    let hint = format!("weft lab exec n1p1 -- ping {v4}\n");
    assert!(readme.contains(&hint), "the README does not say {hint}");
    let mtu = lab.exec("n3p2", &["cat", "/proc/sys/net/ipv6/conf/eth0/mtu"]);
    assert_eq!(mtu, "1450\n");
    let underlay = lab.exec("n2", &["cat", "/proc/net/fib_trie"]);
    assert!(underlay.contains("192.0.2.2"), "{underlay}");

    let namespaces = lab.namespaces();
    assert_eq!(namespaces.len(), 3 + 6);
    lab.down();
    assert_eq!(users_of(&namespaces), Vec::<PathBuf>::new());
    assert!(!run("status", &["--name", &lab.name]).status.success());
}

#[test]
fn exec_is_the_command_itself() {
    let lab = TestLab::up(&["--nodes", "1", "--pods", "1"]);
    let code = |arguments: &[&str]| lab.run("exec", arguments).status.code();
    assert_eq!(code(&["n1p1", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["n1p1", "--", "/no/such/command"]), Some(127));
    assert_eq!(code(&["n1p1", "--", "/etc/passwd"]), Some(126));
    let nowhere = lab.run("exec", &["n7p1", "--", "true"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("no pod or node n7p1; it has n1, n1p1"));
    assert_eq!(
        lab.exec("n1p1", &["pwd"]).trim(),
        env!("CARGO_MANIFEST_DIR")
    );
}

#[test]
fn a_name_is_given_once_and_must_be_one() {
    let lab = TestLab::up(&["--nodes", "1", "--pods", "1"]);
    let again = lab.run("up", &[]);
    assert!(!again.status.success());
    assert!(
        text(&again.stderr).contains("already"),
        "{}",
        text(&again.stderr)
    );
    assert_eq!(
        lab.status()["keeper_runs"],
        true,
        "the first lab is unharmed"
    );

    for bad in [
        ["--name", "../x"],
        ["--name", ""],
        ["--nodes", "0"],
        ["--pods", "241"],
        ["--mtu", "1000"],
    ] {
        let name = unused_name();
        let mut arguments = vec!["--name", &name];
        arguments.extend(bad);
        if bad[0] == "--name" {
            arguments.drain(..2);
        }
        let refused = run("up", &arguments);
        assert_eq!(refused.status.code(), Some(1), "{bad:?}");
        assert!(text(&refused.stderr).starts_with("weft: "), "{bad:?}");
    }
    for verb in ["status", "down"] {
        assert_eq!(
            run(verb, &["--name", &unused_name()]).status.code(),
            Some(1)
        );
    }
}

#[test]
fn nothing_stays_after_the_keeper_was_killed() {
    let lab = TestLab::up(&[]);
    let (keeper, daemons) = lab.processes();
    let namespaces = lab.namespaces();
    // A guest that nobody waits for any more.
    lab.exec(
        "n1p1",
        &["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"],
    );
    kill(keeper, Signal::SIGKILL).expect("killed");
    eventually("the daemons die with the keeper", || {
        daemons.iter().all(|pid| !runs(*pid))
    });

    let status = lab.run("status", &["--json"]);
    assert_eq!(status.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["keeper_runs"], false);
    assert_eq!(status["forwarder_runs"], serde_json::json!([false, false]));
    assert_eq!(status["ipam_runs"], false);
    let dead = lab.run("exec", &["n1p1", "--", "true"]);
    assert!(
        text(&dead.stderr).contains("its keeper is gone"),
        "{}",
        text(&dead.stderr)
    );

    // The guest still holds its pod's namespace, until the lab is ended.
    assert_eq!(users_of(&namespaces).len(), 1);
    lab.down();
    eventually("the guest is ended too", || {
        users_of(&namespaces).is_empty()
    });
}

#[test]
fn a_guest_that_forgot_where_it_is_from_is_ended_too() {
    let sleep = "setsid sleep 601 >/dev/null 2>&1 & echo $!";
    for keeper_is_killed in [false, true] {
        let lab = TestLab::up(&["--nodes", "1", "--pods", "1"]);
        let (keeper, _) = lab.processes();
        let namespaces = lab.namespaces();
        let guest = lab.exec("n1p1", &["env", "-i", "sh", "-c", sleep]);
        let guest = Pid::from_raw(guest.trim().parse().expect("a pid"));
        // An ordinary user cannot look into a namespace whose keeper is gone.
        if keeper_is_killed && geteuid().is_root() {
            kill(keeper, Signal::SIGKILL).expect("killed");
            eventually("only the guest is left", || {
                users_of(&namespaces).len() == 1
            });
        }
        lab.down();
        assert!(!runs(guest));
        assert_eq!(users_of(&namespaces), Vec::<PathBuf>::new());
    }
}

#[test]
fn nothing_stays_after_a_forwarder_was_killed() {
    let lab = TestLab::up(&[]);
    let (_, daemons) = lab.processes();
    let namespaces = lab.namespaces();
    kill(daemons[1], Signal::SIGKILL).expect("killed");
    eventually("status sees it", || {
        let status = lab.run("status", &[]);
        status.status.code() == Some(1)
            && text(&status.stdout).contains("but the forwarder of n2 is dead")
    });
    assert_eq!(lab.exec("n1p1", &["echo", "alive"]), "alive\n");
    lab.down();
    assert!(!daemons.iter().any(|pid| runs(*pid)));
    assert_eq!(users_of(&namespaces), Vec::<PathBuf>::new());
}

#[test]
fn nothing_stays_after_the_ipam_server_was_killed() {
    let lab = TestLab::up(&[]);
    let status = lab.status();
    let namespaces = lab.namespaces();
    let [v4, v6] = addresses(&status, 1, 1);
    assert_eq!(lab.owner_of(v4), "lab/n2p2/eth0");
    assert_eq!(lab.owner_of(v6), "lab/n2p2/eth0");
    let (_, mut forwarders) = lab.processes();
    let ipam = forwarders.pop().expect("an IPAM server");
    kill(ipam, Signal::SIGKILL).expect("killed");
    eventually("status sees it", || {
        let status = lab.run("status", &[]);
        status.status.code() == Some(1)
            && text(&status.stdout).contains("but the IPAM server is dead")
    });
    assert_eq!(lab.exec("n1p1", &["echo", "alive"]), "alive\n");
    assert!(forwarders.iter().all(|pid| runs(*pid)));
    lab.down();
    assert!(!forwarders.iter().any(|pid| runs(*pid)));
    assert_eq!(users_of(&namespaces), Vec::<PathBuf>::new());
}

#[test]
fn a_lab_whose_state_cannot_be_read_is_ended_all_the_same() {
    // The first guest is in the lab's namespace, the second only remembers it.
    let guests = [
        vec![
            "env",
            "-i",
            "sh",
            "-c",
            "setsid sleep 602 >/dev/null 2>&1 & echo $!",
        ],
        vec!["sh", "-c", "setsid sleep 602 >/dev/null 2>&1 & echo $!"],
    ];
    for keeper_is_killed in [false, true] {
        let lab = TestLab::up(&[]);
        let other = TestLab::up(&["--nodes", "1"]);
        let status = lab.status();
        let dir = PathBuf::from(status["ipam"]["socket"].as_str().expect("a path"));
        let state = dir.with_file_name("state.json");
        let (keeper, mut parts) = lab.processes();
        parts.push(keeper);
        let namespaces = lab.namespaces();
        for guest in &guests[usize::from(keeper_is_killed)..] {
            let guest = lab.exec("n1p1", guest);
            parts.push(Pid::from_raw(guest.trim().parse().expect("a pid")));
        }
        if keeper_is_killed {
            kill(keeper, Signal::SIGKILL).expect("killed");
        }
        fs::write(&state, "{\"spec\": 7").expect("spoilt");
        let broken = lab.run("status", &[]);
        assert_eq!(broken.status.code(), Some(1));
        let said = text(&broken.stderr);
        assert!(said.contains("end it by weft lab down"), "{said}");

        let down = lab.run("down", &[]);
        let said = text(&down.stderr);
        assert!(down.status.success(), "{said}");
        assert!(said.contains("state.json\" is no lab's state"), "{said}");
        assert!(
            said.contains("lsns -t net shows it: end it by kill"),
            "{said}"
        );
        eventually("every part ends", || !parts.iter().any(|pid| runs(*pid)));
        assert_eq!(users_of(&namespaces), Vec::<PathBuf>::new());
        assert!(!state.exists());
        assert_eq!(
            other.status()["keeper_runs"],
            true,
            "another lab is unharmed"
        );
    }
}

#[test]
fn a_lab_that_cannot_come_up_leaves_nothing_and_says_why() {
    let lab = TestLab::unborn();
    let files = tempfile::tempdir().expect("a directory");
    for role in ["weft-lab-keeper", "weft-lab-ipam", "weft-lab-forwarder"] {
        symlink(WEFT, files.path().join(role)).expect("a link");
    }
    // Everything is well until the IPAM server, or the second node's forwarder.
    for (broken, part) in [("ipam", "weft-ipam ended"), ("n2", "node n2: ")] {
        let script = format!(
            "#!/bin/sh\ncd ${{0%/*}}\ncase \"$*\" in\n'') exec ./weft-lab-keeper ;;\n\
             */{broken}.toml*|*/{broken}.redb*) echo it cannot be >&2; exit 3 ;;\n\
             *.redb*) exec ./weft-lab-ipam \"$@\" ;;\n\
             *) exec ./weft-lab-forwarder \"$@\" ;;\nesac\n"
        );
        let half = files.path().join(broken);
        fs::write(&half, script).expect("a script");
        fs::set_permissions(&half, PermissionsExt::from_mode(0o755)).expect("it may run");
        let failed = lab.command("up", &[]).env("WEFT_BINARY", &half).output();
        let failed = failed.expect("weft runs");
        assert_eq!(failed.status.code(), Some(1));
        let said = text(&failed.stderr);
        assert!(
            said.contains(part) && said.contains("it cannot be"),
            "{said}"
        );
        assert_eq!(
            processes_about(&format!("lab-{}/", lab.name)),
            Vec::<PathBuf>::new()
        );
    }

    let silent = lab
        .command("up", &[])
        .env("WEFT_BINARY", "/bin/false")
        .output();
    let said = text(&silent.expect("weft runs").stderr);
    assert!(said.contains("ended without a word"), "{said}");

    assert_eq!(lab.run("status", &[]).status.code(), Some(1));
    let now = lab.run("up", &["--nodes", "1"]);
    assert!(now.status.success(), "the name is free");
}

#[test]
fn an_ordinary_user_brings_up_a_lab() {
    if !geteuid().is_root() {
        return a_lab_is_there_until_it_is_ended();
    }
    let user = OrdinaryUser::new();
    let lab = TestLab {
        name: unused_name(),
        prefix: user.prefix(),
    };
    let up = lab.run("up", &["--json"]);
    assert!(up.status.success(), "{}", text(&up.stderr));
    let state: Value = serde_json::from_slice(&up.stdout).expect("JSON");
    assert_eq!(state["rootless"], true);
    let (keeper, daemons) = lab.processes();
    for pid in daemons.iter().chain([&keeper]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        assert!(
            status.contains(&format!("\nUid:\t{UID}\t")),
            "root outside: {status}"
        );
    }
    assert_eq!(lab.exec("n1p1", &["id", "-u"]), "0\n", "root inside");
    let [v4, _] = addresses(&state, 0, 0);
    let found = lab.exec("n1p1", &["cat", "/proc/net/fib_trie"]);
    assert!(found.contains(&format!("|-- {v4}\n")), "{found}");
    assert_eq!(lab.owner_of(v4), "lab/n1p1/eth0");
    lab.down();
    assert!(!runs(keeper) && !daemons.iter().any(|pid| runs(*pid)));
    let left = fs::read_dir(user.runtime.join("weft")).expect("a directory");
    assert_eq!(left.count(), 0);
}

#[test]
fn an_ordinary_user_shows_the_demo() {
    let run = |demo: &mut Command| {
        let demo = demo.args(["demo", "--seconds", "0.2", "--json"]).output();
        demo.expect("weft runs")
    };
    let output = if geteuid().is_root() {
        let user = OrdinaryUser::new();
        let [program, arguments @ ..] = &user.prefix()[..] else {
            unreachable!("a prefix")
        };
        run(Command::new(program).args(arguments))
    } else {
        run(&mut Command::new(WEFT))
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&report["asked"], &report["answered"]),
        (&120.into(), &120.into())
    );
}

/// An ordinary user's id; the name behind it does not matter.
const UID: u32 = 65_533;

/// Somebody with a tun node as most machines have it, whatever this machine
/// has, and with a runtime directory.
struct OrdinaryUser {
    home: TempDir,
    runtime: PathBuf,
}

impl OrdinaryUser {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let runtime = home.path().join("run");
        fs::create_dir(&runtime).expect("a directory");
        for path in [home.path(), &runtime] {
            chown(path, Some(UID), Some(UID)).expect("given away");
        }
        // Where the user may run it.
        fs::copy(WEFT, home.path().join("weft")).expect("a copy");
        Self { home, runtime }
    }

    /// The words that run weft as this user.
    fn prefix(&self) -> Vec<String> {
        let script = format!(
            "mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 && \
             mount --bind /mnt/tun /dev/net/tun && export XDG_RUNTIME_DIR={} && \
             exec setpriv --reuid={UID} --regid={UID} --clear-groups -- \"$@\"",
            self.runtime.display()
        );
        let weft = self.home.path().join("weft").display().to_string();
        ["unshare", "-m", "sh", "-c", &script, "sh", &weft]
            .map(str::to_owned)
            .to_vec()
    }
}

/// A lab of a name of its own, ended with the test.
struct TestLab {
    name: String,
    /// What stands before weft's own arguments; empty is weft itself.
    prefix: Vec<String>,
}

impl TestLab {
    fn unborn() -> Self {
        Self {
            name: unused_name(),
            prefix: Vec::new(),
        }
    }

    fn up(arguments: &[&str]) -> Self {
        let lab = Self {
            name: unused_name(),
            prefix: Vec::new(),
        };
        let up = lab.run("up", arguments);
        assert!(up.status.success(), "{}", text(&up.stderr));
        lab
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut words = self.prefix.iter().map(String::as_str);
        let mut command = Command::new(words.next().unwrap_or(WEFT));
        command
            .args(words)
            .args(["lab", verb, "--name", &self.name])
            .args(arguments);
        command
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Output {
        self.command(verb, arguments).output().expect("weft runs")
    }

    /// What a command in the lab says.
    fn exec(&self, place: &str, command: &[&str]) -> String {
        let output = self.run("exec", &[&[place, "--"], command].concat());
        assert!(
            output.status.success(),
            "{command:?} in {place}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn status(&self) -> Value {
        let output = self.run("status", &["--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn down(&self) {
        let down = self.run("down", &[]);
        assert!(down.status.success(), "{}", text(&down.stderr));
    }

    /// The keeper; the forwarders and, last, the IPAM server.
    fn processes(&self) -> (Pid, Vec<Pid>) {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes");
        let daemons = nodes.iter().map(|node| &node["forwarder"]);
        let daemons = daemons.chain([&status["ipam"]]).map(pid).collect();
        (pid(&status["keeper"]), daemons)
    }

    /// Whom the IPAM server knows an address to be of.
    fn owner_of(&self, address: IpAddr) -> String {
        let mut words = self.prefix.iter().map(String::as_str);
        let output = Command::new(words.next().unwrap_or(WEFT))
            .args(words)
            .args(["ipam", "show", "--json", "--lab", &self.name])
            .args(["--ip", &address.to_string()])
            .output()
            .expect("weft runs");
        let info: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let handle = info["allocation"]["handle"].as_str();
        handle.unwrap_or_default().to_owned()
    }

    /// All namespaces of the lab, as their links read.
    fn namespaces(&self) -> Vec<PathBuf> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes");
        let fds = nodes.iter().flat_map(|node| {
            let pods = node["pod_netns"].as_array().expect("pods").iter();
            pods.chain([&node["netns"]])
        });
        let keeper = &status["keeper"]["pid"];
        fds.map(|fd| fs::read_link(format!("/proc/{keeper}/fd/{fd}")).expect("a namespace"))
            .collect()
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        // Already down, unless the test failed.
        self.run("down", &[]);
    }
}

fn run(verb: &str, arguments: &[&str]) -> Output {
    Command::new(WEFT)
        .args(["lab", verb])
        .args(arguments)
        .output()
        .expect("weft runs")
}

fn pid(process: &Value) -> Pid {
    let pid = process["pid"].as_i64().expect("a pid");
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// A pod's, as the state has them; nodes and pods from 0.
fn addresses(state: &Value, node: usize, pod: usize) -> [IpAddr; 2] {
    let pod = &state["nodes"][node]["pods"][pod];
    ["v4", "v6"].map(|family| {
        let address = pod[family].as_str().expect("an address");
        address.parse().expect("an address")
    })
}

fn unused_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "test-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The processes that are in one of the namespaces or hold it open.
fn users_of(namespaces: &[PathBuf]) -> Vec<PathBuf> {
    let uses = |path: &Path| fs::read_link(path).is_ok_and(|link| namespaces.contains(&link));
    let processes = fs::read_dir("/proc")
        .expect("procfs")
        .flatten()
        .map(|entry| entry.path());
    let held = |process: &PathBuf| {
        let fds = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        uses(&process.join("ns/net")) || fds.into_iter().any(|fd| uses(&fd.path()))
    };
    processes.filter(held).collect()
}

/// The processes that have the text among their arguments.
fn processes_about(text: &str) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc")
        .expect("procfs")
        .flatten()
        .map(|entry| entry.path());
    let about = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    processes.filter(about).collect()
}

fn runs(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "not in 10 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
