//! `weft install` and `weft uninstall`: what they make, what they spare, and
//! that they can be run again.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A machine's two folders, which are not there yet.
struct Machine {
    root: TempDir,
}

impl Machine {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().expect("a folder"),
        }
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.root.path().join("opt/cni/bin").join(name)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.root.path().join("etc/cni/net.d").join(name)
    }

    fn conflist(&self) -> PathBuf {
        self.conf("10-weft.conflist")
    }

    fn command(&self, verb: &str, options: &[&str]) -> Command {
        let mut command = Command::new(WEFT);
        command
            .arg(verb)
            .arg("--cni-bin-dir")
            .arg(self.bin(""))
            .arg("--cni-conf-dir")
            .arg(self.conf(""))
            .args(options);
        command
    }

    fn run(&self, verb: &str, options: &[&str]) -> Output {
        self.command(verb, options).output().expect("run weft")
    }

    fn succeeds(&self, verb: &str, options: &[&str]) -> String {
        let output = self.run(verb, options);
        assert!(output.status.success(), "{verb}: {}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    fn fails(&self, verb: &str, options: &[&str]) -> String {
        let output = self.run(verb, options);
        assert!(!output.status.success(), "{verb} {options:?} succeeded");
        said(&output)
    }

    /// Everything in it.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.root.path().to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.is_symlink() {
                    left.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn version_of(plugin: &Path) -> String {
    let output = Command::new(plugin).arg("--version").output();
    String::from_utf8(output.expect("it starts").stdout).expect("text")
}

#[test]
fn a_first_install_makes_plugins_and_a_network() {
    let machine = Machine::new();
    let told = machine.succeeds("install", &["--mtu", "1400", "--attach", "veth"]);
    for path in [
        machine.bin("weft-cni"),
        machine.bin("weft-ipam-cni"),
        machine.conflist(),
    ] {
        assert!(told.contains(&format!("made {}", path.display())), "{told}");
    }
    let version = env!("CARGO_PKG_VERSION");
    for plugin in ["weft-cni", "weft-ipam-cni"] {
        assert_eq!(
            version_of(&machine.bin(plugin)),
            format!("{plugin} {version}\n")
        );
    }
    let mode = |path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(machine.bin("weft-cni")), 0o755);
    assert_eq!(mode(machine.conflist()), 0o644);
    let list = fs::read(machine.conflist()).expect("there");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list["plugins"][0]["mtu"], 1400);
    assert_eq!(list["plugins"][0]["attach"], "veth");
    // Nothing else, and nothing without a name.
    let names = |folder: PathBuf| {
        let entries = fs::read_dir(folder).expect("there");
        let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    let plugins = [".weft-installed", "weft-cni", "weft-ipam-cni"];
    assert_eq!(names(machine.bin("")), plugins);
    assert_eq!(
        names(machine.conf("")),
        [".weft-installed", "10-weft.conflist"]
    );
}

#[test]
fn a_second_install_changes_only_what_differs() {
    let machine = Machine::new();
    machine.succeeds("install", &[]);
    let inode = |path: &Path| fs::symlink_metadata(path).expect("there").ino();
    let before = inode(&machine.bin("weft-cni"));
    let told = machine.succeeds("install", &["--mtu", "9000"]);
    assert_eq!(inode(&machine.bin("weft-cni")), before);
    let conflist = machine.conflist();
    assert!(
        told.contains(&format!("replaced {}", conflist.display())),
        "{told}"
    );
    let again = machine.succeeds("install", &["--mtu", "9000"]);
    assert_eq!(again.matches("is as it should be").count(), 3, "{again}");
}

#[test]
fn a_foreign_file_is_replaced_on_demand_and_comes_back() {
    let machine = Machine::new();
    fs::create_dir_all(machine.conf("")).expect("made");
    fs::write(machine.conflist(), "theirs").expect("written");
    let before = machine.files();
    let told = machine.fails("install", &[]);
    assert!(told.contains("10-weft.conflist"), "{told}");
    assert!(told.contains("--force"), "{told}");
    // Nothing is left behind, the plugins' folder included.
    assert_eq!(machine.files(), before);
    machine.succeeds("install", &["--force"]);
    let list = fs::read_to_string(machine.conflist()).expect("there");
    assert!(list.contains("weft-cni"), "{list}");
    machine.succeeds("uninstall", &[]);
    assert_eq!(machine.files(), before);
    let theirs = fs::read_to_string(machine.conflist());
    assert_eq!(theirs.expect("there"), "theirs");
}

#[test]
fn a_foreign_plugin_is_not_taken_for_ours() {
    let machine = Machine::new();
    fs::create_dir_all(machine.bin("")).expect("made");
    fs::write(machine.bin("weft-cni"), "#!/bin/sh\n").expect("written");
    let told = machine.fails("install", &[]);
    assert!(told.contains("weft-cni"), "{told}");
    assert!(!machine.conflist().exists());
}

#[test]
fn uninstall_leaves_what_was_there_and_what_was_changed() {
    let machine = Machine::new();
    fs::create_dir_all(machine.bin("")).expect("made");
    fs::write(machine.bin("bridge"), "a neighbour").expect("written");
    machine.succeeds("install", &[]);
    fs::write(machine.conflist(), "{\"mine\": true}").expect("written");
    let refused = machine.fails("install", &[]);
    assert!(refused.contains("--force"), "{refused}");
    let told = machine.succeeds("uninstall", &[]);
    assert!(told.contains("left "), "{told}");
    let changed = fs::read_to_string(machine.conflist()).expect("it stays");
    assert_eq!(changed, "{\"mine\": true}");
    assert!(machine.bin("bridge").exists());
    assert!(!machine.bin("weft-cni").exists());
    assert!(!machine.bin("weft-ipam-cni").is_symlink());
}

#[test]
fn uninstall_can_be_run_twice_and_before_any_install() {
    let machine = Machine::new();
    assert_eq!(machine.succeeds("uninstall", &[]), "nothing is installed\n");
    machine.succeeds("install", &[]);
    machine.succeeds("uninstall", &[]);
    // The folders were made for it.
    assert_eq!(machine.files(), Vec::<PathBuf>::new());
    assert_eq!(machine.succeeds("uninstall", &[]), "nothing is installed\n");
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_nothing_is_half_done() {
    // Root writes everywhere but on a file system that is mounted read-only.
    weft_testkit::needs_namespaces!();
    let machine = Machine::new();
    let script = "mkdir -p \"$1\" && mount -t tmpfs -o ro none \"$1\" && shift && \"$@\"; \
                  status=$?; exit $status";
    let install = machine.command("install", &[]);
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(machine.conf(""))
        .arg(install.get_program())
        .args(install.get_args())
        .output()
        .expect("unshare (util-linux)");
    assert!(!output.status.success());
    let told = said(&output);
    assert!(
        told.contains("net.d") && told.contains("os error 30"),
        "{told}"
    );
    assert!(!machine.bin("").exists());
}

#[test]
fn installs_at_once_and_beside_a_running_plugin_do_no_harm() {
    let machine = Machine::new();
    machine.succeeds("install", &[]);
    // It waits for its configuration.
    let mut running = Command::new(machine.bin("weft-cni"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the plugin");
    // Another content, so that it has to be replaced.
    fs::write(machine.bin(".weft-new-abandoned"), "of a killed install").expect("written");
    let other = machine.root.path().join("weft");
    // By another process: one that writes a file keeps others from running
    // it, and tests beside this one start processes.
    let made = Command::new("sh")
        .args(["-c", "cp \"$0\" \"$1\" && echo >> \"$1\"", WEFT])
        .arg(&other)
        .status();
    assert!(made.expect("a shell").success());
    thread::scope(|scope| {
        for number in 0..4 {
            let (machine, other) = (&machine, &other);
            scope.spawn(move || {
                let mut command = machine.command("install", &[]);
                if number % 2 == 0 {
                    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
                    command = Command::new(other);
                    command.args(arguments);
                }
                let output = command.output().expect("run weft");
                assert!(output.status.success(), "{}", said(&output));
            });
        }
    });
    let mut stdin = running.stdin.take().expect("piped");
    stdin.write_all(b"{}").expect("it reads");
    drop(stdin);
    let output = running.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let versions: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(versions["supportedVersions"].is_array(), "{versions}");
    assert!(version_of(&machine.bin("weft-cni")).starts_with("weft-cni "));
    assert!(!machine.bin(".weft-new-abandoned").exists());
    fs::remove_file(&other).expect("removed");
    machine.succeeds("uninstall", &[]);
    assert_eq!(machine.files(), Vec::<PathBuf>::new());
}

#[test]
fn one_folder_under_two_spellings_is_refused() {
    let machine = Machine::new();
    let folder = machine.root.path().join("both");
    for (bin, conf) in [
        ("both", "both"),
        ("both", "both/../both/"),
        ("./both", "both"),
    ] {
        let output = Command::new(WEFT)
            .current_dir(machine.root.path())
            .args(["install", "--cni-bin-dir", bin, "--cni-conf-dir", conf])
            .output()
            .expect("run weft");
        assert!(!output.status.success(), "{bin} {conf}");
        assert!(
            said(&output).contains("give two folders"),
            "{}",
            said(&output)
        );
        assert!(!folder.exists(), "what was made is gone again");
    }
}

#[test]
fn the_plugin_alone_is_taken_where_it_stands_beside() {
    let machine = Machine::new();
    let weft = machine.root.path().join("weft");
    // By another process, as above.
    let make = |script: &str| {
        let made = Command::new("sh")
            .args(["-c", script, WEFT])
            .arg(&weft)
            .status();
        assert!(made.expect("a shell").success());
    };
    let install = || {
        let mut command = Command::new(&weft);
        command.args(machine.command("install", &[]).get_args());
        assert!(command.status().expect("run weft").success());
        fs::read(machine.bin("weft-cni")).expect("there")
    };
    make("cp \"$0\" \"$1\"");
    let whole = fs::read(WEFT).expect("there");
    assert!(install() == whole, "weft itself");
    let alone = |version: &str| {
        make(&format!(
            "printf '#!/bin/sh\\necho weft-cni {version}\\n' > \"$1\"-cni && chmod +x \"$1\"-cni"
        ));
    };
    alone("0.0.1");
    assert!(install() == whole, "another version is left where it is");
    alone(env!("CARGO_PKG_VERSION"));
    assert!(install().starts_with(b"#!/bin/sh\n"), "the plugin alone");
}
