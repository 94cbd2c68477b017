//! Files of policies that are watched, and what giving them withdraws.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{
    operator::{json, run, started, text},
    policy::write,
    server::{LIMIT, Server},
};

fn objects_of(server: &Server, source: &str) -> Option<u64> {
    let rules = json(&run(server, &["policy", "list", "--json"]));
    let sources = rules["sources"].as_array().expect("a list").clone();
    let found = sources.into_iter().find(|one| one["source"] == source)?;
    found["objects"].as_u64()
}

fn wait_for(server: &Server, objects: Option<u64>, what: &str) {
    let until = Instant::now() + LIMIT;
    while objects_of(server, "files") != objects {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn watched_files_stay_in_force_through_bad_files_and_restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    let mut server = Server::start();
    server.end();
    let _watch = Killed(started(
        &server,
        &["policy", "apply", "-f", path, "--watch"],
    ));
    thread::sleep(Duration::from_millis(200));
    server.start_again();
    wait_for(&server, Some(4), "it waits for the forwarder");
    fs::write(folder.path().join("z.yaml"), "kind: [").expect("write");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(objects_of(&server, "files"), Some(4));
    server.end();
    server.start_again();
    wait_for(&server, Some(4), "a new forwarder has what was in force");
    let more = "{apiVersion: v1, kind: Namespace, metadata: {name: z}}";
    fs::write(folder.path().join("z.yaml"), more).expect("write");
    wait_for(&server, Some(5), "what is good again is given");
    for file in ["z.yaml", "pods.yaml", "door.yaml"] {
        fs::remove_file(folder.path().join(file)).expect("remove");
    }
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(objects_of(&server, "files"), Some(5), "an empty folder");
}

#[test]
fn a_refusal_that_passes_is_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    let server = Server::start();
    let other = ["policy", "apply", "-f", path, "--source", "other"];
    text(&run(&server, &other));
    let _watch = Killed(started(
        &server,
        &["policy", "apply", "-f", path, "--watch"],
    ));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(objects_of(&server, "files"), None, "they are another's");
    text(&run(&server, &["policy", "drop", "other"]));
    wait_for(&server, Some(4), "no file had to change");
}

#[test]
fn what_is_withdrawn_is_told_and_all_only_on_demand() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    write(folder.path(), "b");
    let server = Server::start();
    let door = folder.path().join("door.yaml");
    let door = door.to_str().expect("a path");
    text(&run(&server, &["policy", "apply", "-f", path]));
    let part = run(&server, &["policy", "apply", "-f", door]);
    let told = "1 object of files in force, 3 withdrawn, epoch ";
    assert!(text(&part).starts_with(told), "{}", text(&part));
    let empty = tempfile::tempdir().expect("a folder");
    let empty = empty.path().to_str().expect("a path");
    let refused = run(&server, &["policy", "apply", "-f", empty]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("give --allow-empty"), "{why}");
    assert_eq!(objects_of(&server, "files"), Some(1));
    let all = ["policy", "apply", "-f", empty, "--allow-empty", "--json"];
    assert_eq!(json(&run(&server, &all))["withdrawn"], 1);
}
