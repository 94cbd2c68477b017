//! How the forwarder starts, whom it obeys, and how it ends.

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use weft_api::forwarder::{Code, Reply};

use crate::server::{Client, LIMIT, Server, command};

fn refused(output: &Output, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains(expected), "{expected:?} is not in: {text}");
}

#[test]
fn it_ends_cleanly_and_takes_its_socket_away() {
    let mut server = Server::start();
    let mut client = server.client();
    let Reply::Status(status) = client.ok(r#"{"op":"status"}"#) else {
        panic!("status answers with a status");
    };
    assert_eq!(
        (status.node.as_str(), status.workers, status.epoch),
        ("n1", 2, 0)
    );
    assert_eq!(i32::try_from(status.pid), Ok(server.pid().as_raw()));
    assert!(server.end().success());
    assert!(!server.control.exists());
    assert!(client.try_answer().is_none());
}

#[test]
fn a_second_forwarder_does_not_take_the_socket() {
    let server = Server::start();
    let second = command()
        .arg("--control")
        .arg(&server.control)
        .output()
        .expect("run");
    refused(&second, "another forwarder listens there");
    server.client().ok(r#"{"op":"status"}"#);
}

#[test]
fn a_second_forwarder_does_not_share_the_uplink() {
    let config = "node = 'n1'\n[uplink]\naddresses = ['127.81.0.11']\n";
    let server = Server::with_config(config);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("forwarder.toml");
    fs::write(&file, config).expect("write");
    let mut second = command()
        .args(["--control".as_ref(), folder.path().join("c").as_os_str()])
        .args(["--config".as_ref(), file.as_os_str()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    // Were it to serve, it would not end by itself.
    let until = Instant::now() + LIMIT;
    while second.try_wait().expect("wait").is_none() {
        if Instant::now() > until {
            second.kill().expect("it runs");
        }
        thread::sleep(Duration::from_millis(5));
    }
    let said = second.wait_with_output().expect("ended");
    refused(&said, "UDP port 4789 on 127.81.0.11 is taken");
    server.client().ok(r#"{"op":"status"}"#);
}

#[test]
fn a_socket_that_a_killed_forwarder_left_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let left = folder.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).expect("bind"));
    let mut child = command()
        .arg("--control")
        .arg(&left)
        .spawn()
        .expect("start");
    let until = Instant::now() + LIMIT;
    while UnixStream::connect(&left).is_err() {
        assert!(Instant::now() < until, "it does not answer");
    }
    child.kill().expect("it runs");
    child.wait().expect("wait");
}

#[test]
fn a_wrong_configuration_is_told_by_its_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("forwarder.toml");
    let control = folder.path().join("control.sock");
    for (text, expected) in [
        ("[uplink]\nadresses = []", "unknown field `adresses`"),
        ("workers = 0", "workers: 0 is out of range"),
        ("[uplink]\naddresses = ['203.0.113.77']", "203.0.113.77"),
    ] {
        fs::write(&file, text).expect("write");
        let run = command()
            .arg("--control")
            .arg(&control)
            .arg("--config")
            .arg(&file)
            .output();
        refused(&run.expect("run"), expected);
        assert!(
            !control.exists(),
            "a forwarder that did not start leaves no socket"
        );
    }
}

#[test]
fn a_cause_is_told_once_and_before_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = command()
        .arg("--control")
        .arg(folder.path().join("control.sock"))
        .arg("--config")
        .arg(folder.path().join("absent.toml"))
        .output()
        .expect("run");
    refused(&run, "absent.toml: No such file or directory");
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    assert!(said.trim_end().ends_with("leave --config out"), "{said}");
}

#[test]
fn no_thread_of_it_keeps_a_capability() {
    let server = Server::start();
    server.client().ok(r#"{"op":"status"}"#);
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs");
    let mut seen = 0;
    for task in tasks {
        let path = task.expect("a task").path().join("status");
        let status = fs::read_to_string(path).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("a field").trim().to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        seen += 1;
    }
    assert_eq!(
        seen, 5,
        "two workers, the control thread, who closes ports and who asks peers"
    );
}

#[test]
fn a_stranger_is_turned_away() {
    const NOBODY: u32 = 65534;
    const LISTED: u32 = 65533;
    if !may_become(NOBODY) || !may_become(LISTED) {
        return weft_testkit::rights::skipped(
            "a_stranger_is_turned_away",
            "only a root to whom other users are mapped can become one of them",
        );
    }
    let server = Server::with_config(&format!(
        "node = 'n1'\n[control]\nmode = '0666'\nuids = [{LISTED}]\n"
    ));
    let open = Permissions::from_mode(0o755);
    fs::set_permissions(server.folder.path(), open).expect("open the folder");
    let connect_as = |uid: u32| {
        let control = server.control.clone();
        thread::spawn(move || {
            assert_eq!(set_user(uid), 0, "setresuid");
            UnixStream::connect(control).expect("connect")
        })
    };
    let mut nobody = Client::new(connect_as(NOBODY).join().expect("connected"));
    assert_eq!(nobody.refusal(), Code::Forbidden);
    assert!(nobody.try_answer().is_none());
    let mut listed = Client::new(connect_as(LISTED).join().expect("connected"));
    listed.ok(r#"{"op":"status"}"#);
}

/// Tried in a thread that ends with it, and so changes no other.
fn may_become(uid: u32) -> bool {
    thread::spawn(move || set_user(uid) == 0)
        .join()
        .expect("a number comes back")
}

/// Changes the user of the calling thread alone, which the C library's
/// setresuid does not offer.
fn set_user(uid: u32) -> libc::c_long {
    // SAFETY: setresuid takes three numbers; the thread ends soon after.
    unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }
}
