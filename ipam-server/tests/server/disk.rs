//! Disks that are full, and files that cannot be written.

use std::{fs, io::Write, process::Command, time::Instant};

use serde_json::{Value, json};

use crate::{PATIENCE, Server, allocate, code, pool, spawn};

/// A server whose folder is a file system of one MiB, gone with the guard.
struct Small {
    folder: std::path::PathBuf,
}

impl Small {
    fn mount(folder: &std::path::Path) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "tmpfs"])
            .arg(folder)
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        assert!(mounted, "tests of a full disk mount a tmpfs, as root");
        Self {
            folder: folder.to_owned(),
        }
    }

    fn remount(&self, how: &str) {
        let status = Command::new("mount")
            .args(["-o", how])
            .arg(&self.folder)
            .status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

#[test]
fn a_full_disk_is_told_and_got_over() {
    let place = tempfile::tempdir().expect("a folder");
    let small = Small::mount(place.path());
    let server = Server::with_store(&small.folder.join("ipam.redb"));
    let mut client = server.client();
    client.done(pool("default", "10.1.0.0/16"));
    let filler = small.folder.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);

    let mut held = Vec::new();
    let refusal = loop {
        let container = format!("c{}", held.len());
        let answer = client.ask(allocate(&container, "n1"));
        match answer["ok"]["allocated"]["addresses"][0]["address"].as_str() {
            Some(address) => held.push((container, address.to_owned())),
            None => break answer,
        }
        assert!(held.len() < 60_000, "one MiB is soon full");
    };
    assert!(
        ["unavailable", "deadline"].contains(&code(&refusal)),
        "{refusal}"
    );
    let message = refusal["error"]["message"].as_str().expect("words");
    assert!(message.contains("make room"), "{refusal}");
    // What only asks is answered meanwhile.
    assert_eq!(code(&client.ask(json!({"op": "pools"}))), "none");

    fs::remove_file(&filler).expect("ours");
    let until = Instant::now() + PATIENCE;
    while code(&client.ask(allocate("after", "n1"))) != "none" {
        assert!(Instant::now() < until, "{}", server.log());
    }
    for (container, address) in &held {
        let again = client.ask(allocate(container, "n1"));
        assert_eq!(again["ok"]["allocated"]["existing"], true, "{container}");
        assert_eq!(
            again["ok"]["allocated"]["addresses"][0]["address"],
            *address
        );
    }
    assert_eq!(client.problems(), Vec::<Value>::new());
}

#[test]
fn a_read_only_file_system_ends_the_start_with_a_remedy() {
    let place = tempfile::tempdir().expect("a folder");
    let small = Small::mount(place.path());
    let store = small.folder.join("ipam.redb");
    let mut server = Server::with_store(&store);
    server.client().done(pool("default", "10.1.0.0/16"));
    assert!(server.end().success());
    small.remount("remount,ro");
    let mut refused = spawn(server.folder(), &store);
    assert!(!refused.wait().expect("a child").success());
    let log = server.log();
    assert!(log.contains("let weft-ipam read and write it"), "{log}");
    assert!(!server.socket().exists(), "it leaves no socket");
    small.remount("remount,rw");
    let server = server.again();
    let pools = server.client().ask(json!({"op": "pools"}));
    assert_eq!(pools["ok"]["pools"][0]["name"], "default");
}
