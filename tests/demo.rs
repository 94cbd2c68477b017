//! `weft demo`, whole: what it finds, what it says, and that it cleans up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

#[test]
fn every_pod_answers_every_pod_however_it_is_attached() {
    for (attach, nodes, questions) in [("tap", "3", 60), ("veth", "2", 20)] {
        let files = tempfile::tempdir().expect("a directory");
        let demo = demo(files.path())
            .args([
                "--attach",
                attach,
                "--nodes",
                nodes,
                "--pods",
                "1",
                "--seconds",
                "0.2",
            ])
            .arg("--json")
            .output()
            .expect("weft runs");
        assert!(
            demo.status.success(),
            "{}",
            String::from_utf8_lossy(&demo.stderr)
        );
        let report: Value = serde_json::from_slice(&demo.stdout).expect("JSON");
        assert_eq!(report["asked"], questions);
        assert_eq!(report["answered"], questions);
        let speeds = report["speeds"].as_array().expect("speeds");
        assert_eq!(
            speeds.len(),
            6,
            "four loads across nodes, two without tunnel offload"
        );
        for speed in speeds {
            assert!(
                speed["weft"]["mean"]
                    .as_f64()
                    .is_some_and(|mean| mean > 0.0),
                "{speed}"
            );
        }
        assert!(is_empty(files.path()), "{attach}");
    }
}

#[test]
fn people_get_a_table_and_no_progress_in_a_pipe() {
    let files = tempfile::tempdir().expect("a directory");
    let demo = demo(files.path())
        .args(["--nodes", "1", "--seconds", "0.2"])
        .output()
        .expect("weft runs");
    let page = String::from_utf8_lossy(&demo.stdout);
    assert!(demo.status.success(), "{page}");
    assert!(
        page.contains("20 of 20 questions between pods answered"),
        "{page}"
    );
    assert!(page.contains("load "), "{page}");
    assert!(
        !page.contains("across nodes"),
        "one node has no other: {page}"
    );
    assert_eq!(String::from_utf8_lossy(&demo.stderr), "");
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let files = tempfile::tempdir().expect("a directory");
    for bad in [
        &["--nodes", "0"][..],
        &["--pods", "999"],
        &["--seconds", "0"],
        &["--seconds", "NaN"],
        &["--nodes", "1", "--pods", "1"],
    ] {
        let demo = demo(files.path()).args(bad).output().expect("weft runs");
        assert_eq!(demo.status.code(), Some(1), "{bad:?}");
        assert!(demo.stderr.starts_with(b"weft: "), "{bad:?}");
        assert!(is_empty(files.path()), "{bad:?}");
    }
}

#[test]
fn an_interrupt_takes_the_lab_down() {
    let files = tempfile::tempdir().expect("a directory");
    let mut demo = demo(files.path())
        .args(["--seconds", "600"])
        .stderr(Stdio::null())
        .spawn()
        .expect("weft runs");
    eventually("the lab is up", || !is_empty(files.path()));
    // Somewhere between the first question and the last load.
    thread::sleep(Duration::from_secs(2));
    let pid = Pid::from_raw(i32::try_from(demo.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("it runs");
    let mut status = None;
    eventually("the demo ends", || {
        status = demo.try_wait().expect("a child");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(130));
    assert!(is_empty(files.path()));
}

#[test]
fn what_a_killed_demo_left_goes_with_the_next() {
    let files = tempfile::tempdir().expect("a directory");
    let start = || {
        let before = entries(files.path());
        let child = demo(files.path())
            .args(["--seconds", "600"])
            .stderr(Stdio::null())
            .spawn()
            .expect("weft runs");
        eventually("the lab has an IPAM server", || {
            let mut fresh = entries(files.path());
            fresh.retain(|dir| !before.contains(dir));
            fresh.iter().any(|dir| dir.join("ipam.redb").exists())
        });
        child
    };
    let mut killed = start();
    killed.kill().expect("it runs");
    killed.wait().expect("a child");
    let left = entries(files.path());
    assert!(!left.is_empty(), "nobody cleans up yet");
    let mut lives = start();
    assert!(left.iter().all(|dir| !dir.exists()));
    // What belongs to one that lives stays.
    let held = entries(files.path());
    let next = demo(files.path())
        .args(["--nodes", "1", "--seconds", "0.1"])
        .output()
        .expect("weft runs");
    assert!(next.status.success());
    assert!(held.iter().all(|dir| dir.exists()));
    let pid = Pid::from_raw(i32::try_from(lives.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("it runs");
    lives.wait().expect("a child");
    assert!(is_empty(files.path()));
}

/// The labs' files go into `files`.
fn demo(files: &Path) -> Command {
    let mut command = Command::new(WEFT);
    command.arg("demo").env("TMPDIR", files);
    command
}

fn is_empty(dir: &Path) -> bool {
    entries(dir).is_empty()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.flatten().map(|entry| entry.path()).collect()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < until, "not in 60 s: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
