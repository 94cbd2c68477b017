//! Servers that are away, stuck, or do not tell the truth.

use serde_json::{Value, json};

use crate::fake::{Manner, Reply, Scene, allocated, honestly, silent};

/// One way to go wrong, and what is left of an ADD: its code, and what the
/// forwarder and the IPAM server were asked.
struct Case {
    what: &'static str,
    forwarder: Manner,
    ipam: Manner,
    code: u32,
    says: &'static str,
    asked: (&'static [&'static str], &'static [&'static str]),
}

const ALLOCATED: &[&str] = &["allocate"];
const RELEASED: &[&str] = &["allocate", "release"];
/// What the forwarder is asked where the IPAM server's answer is in doubt.
const IN_DOUBT: &[&str] = &["status", "list"];
/// And where its own answer to an attach is.
const UNSURE: &[&str] = &["status", "attach", "list"];

fn refusal(code: &str) -> Reply {
    Reply::Json(json!({"error": {"code": code, "message": "no", "hint": "think again"}}))
}

fn at(op: &str, wanted: &str, reply: impl FnOnce() -> Reply) -> Option<Reply> {
    (op == wanted).then(reply)
}

const OF_THE_FORWARDER: [Case; 8] = [
    Case {
        what: "garbage to status",
        forwarder: |op| at(op, "status", || Reply::Bytes(b"what?\n")),
        ipam: honestly,
        code: 6,
        says: "same version",
        asked: (&["status"], &[]),
    },
    Case {
        what: "a hang-up at status",
        forwarder: |op| at(op, "status", || Reply::Bytes(b"")),
        ipam: honestly,
        code: 11,
        says: "hung up",
        asked: (&["status"], &[]),
    },
    Case {
        what: "half an answer to status",
        forwarder: |op| at(op, "status", || Reply::Bytes(b"{\"ok\":{\"sta")),
        ipam: honestly,
        code: 11,
        says: "hung up",
        asked: (&["status"], &[]),
    },
    Case {
        what: "an answer of another kind to status",
        forwarder: |op| at(op, "status", || Reply::Json(json!({"ok": {"ports": []}}))),
        ipam: honestly,
        code: 6,
        says: "another kind",
        asked: (&["status"], &[]),
    },
    Case {
        what: "a refused attach",
        forwarder: |op| at(op, "attach", || refusal("taken")),
        ipam: honestly,
        code: 102,
        says: "think again",
        asked: (&["status", "attach"], RELEASED),
    },
    Case {
        what: "garbage to attach",
        forwarder: |op| at(op, "attach", || Reply::Bytes(b"[1]\n")),
        ipam: honestly,
        code: 6,
        says: "same version",
        asked: (UNSURE, RELEASED),
    },
    Case {
        what: "a hang-up at attach",
        forwarder: |op| at(op, "attach", || Reply::Bytes(b"")),
        ipam: honestly,
        code: 11,
        says: "hung up",
        asked: (UNSURE, RELEASED),
    },
    Case {
        what: "an answer of another kind to attach",
        forwarder: |op| at(op, "attach", || Reply::Json(json!({"ok": {"peers": []}}))),
        ipam: honestly,
        code: 6,
        says: "another kind",
        asked: (UNSURE, RELEASED),
    },
];

const OF_THE_IPAM_SERVER: [Case; 10] = [
    Case {
        what: "no address left",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || refusal("exhausted")),
        code: 103,
        says: "think again",
        asked: (&["status"], ALLOCATED),
    },
    Case {
        what: "a store that is away",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || refusal("unavailable")),
        code: 11,
        says: "think again",
        asked: (&["status"], ALLOCATED),
    },
    Case {
        what: "garbage to allocate",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || Reply::Bytes(b"{}\n")),
        code: 6,
        says: "same version",
        asked: (IN_DOUBT, RELEASED),
    },
    Case {
        what: "half an answer to allocate",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || Reply::Bytes(b"{\"ok\":")),
        code: 11,
        says: "hung up",
        asked: (IN_DOUBT, RELEASED),
    },
    Case {
        what: "half an answer to allocate, and a forwarder that ends",
        forwarder: |op| at(op, "list", || Reply::Bytes(b"{\"ok\":[")),
        ipam: |op| at(op, "allocate", || Reply::Bytes(b"{}\n")),
        code: 6,
        says: "ipam.sock",
        asked: (IN_DOUBT, ALLOCATED),
    },
    Case {
        what: "an answer of another kind to allocate",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || Reply::Json(json!({"ok": "done"}))),
        code: 6,
        says: "another kind",
        asked: (IN_DOUBT, RELEASED),
    },
    Case {
        what: "no address",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || Reply::Json(allocated(&[]))),
        code: 6,
        says: "another kind",
        asked: (IN_DOUBT, RELEASED),
    },
    Case {
        what: "addresses of one family",
        forwarder: honestly,
        ipam: |op| {
            at(op, "allocate", || {
                Reply::Json(allocated(&["10.9.0.1", "10.9.0.2"]))
            })
        },
        code: 6,
        says: "another kind",
        asked: (IN_DOUBT, RELEASED),
    },
    Case {
        what: "an address that no host may have",
        forwarder: honestly,
        ipam: |op| {
            at(op, "allocate", || {
                Reply::Json(allocated(&["10.9.0.1", "ff02::1"]))
            })
        },
        code: 104,
        says: "ff02::1",
        asked: (&["status"], RELEASED),
    },
    Case {
        what: "an endless line",
        forwarder: honestly,
        ipam: |op| at(op, "allocate", || Reply::Endless),
        code: 6,
        says: "bytes",
        asked: (IN_DOUBT, RELEASED),
    },
];

#[test]
fn an_add_undoes_what_it_did_wherever_a_server_fails() {
    weft_testkit::needs_namespaces!();
    for case in OF_THE_FORWARDER.iter().chain(&OF_THE_IPAM_SERVER) {
        let scene = Scene::new(case.forwarder, case.ipam);
        let failure = scene.call("ADD", &json!({})).expect_err(case.what);
        assert_eq!(failure["code"], case.code, "{}: {failure}", case.what);
        let said = failure["msg"].as_str().expect("a sentence");
        assert!(said.contains(case.says), "{}: {said}", case.what);
        let asked = (scene.forwarder.asked(), scene.ipam.asked());
        assert_eq!(
            (&*asked.0, &*asked.1),
            (&*owned(case.asked.0), &*owned(case.asked.1)),
            "{}",
            case.what
        );
        scene.assert_no_link(case.what);
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn the_first_cause_is_told_and_what_could_not_be_undone_beside_it() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(
        |op| at(op, "attach", || refusal("descriptor")),
        |op| at(op, "release", || refusal("internal")),
    );
    let failure = scene.call("ADD", &json!({})).expect_err("refused");
    assert_eq!(failure["code"], 102, "{failure}");
    assert!(
        failure["msg"]
            .as_str()
            .is_some_and(|said| said.contains("attach")),
        "{failure}"
    );
    let details = failure["details"].as_str().expect("what is left");
    assert!(
        details.contains("giving the address back failed too"),
        "{details}"
    );
}

#[test]
fn without_servers_nothing_is_added_and_all_is_deleted() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, honestly);
    let nobody = |name: &str| scene.dir.path().join(name);
    // A file that nobody listens at any more, and no file.
    drop(std::os::unix::net::UnixListener::bind(nobody("dead.sock")).expect("bind"));
    for away in ["dead.sock", "absent.sock"] {
        let no_forwarder = json!({"forwarder": nobody(away)});
        let no_ipam = json!({"ipam": {"socket": nobody(away)}});
        for (change, status) in [(&no_forwarder, 51), (&no_ipam, 50)] {
            let failure = scene.call("ADD", change).expect_err("a server is away");
            assert_eq!(failure["code"], 11, "{failure}");
            let said = failure["msg"].as_str().expect("a sentence");
            assert!(said.contains(away) && said.contains("running?"), "{said}");
            scene.assert_no_link(away);
            let failure = scene.call("STATUS", change).expect_err("a server is away");
            assert_eq!(failure["code"], status, "{failure}");
            let failure = scene.call("GC", change).expect_err("a server is away");
            assert_eq!(failure["code"], 11, "{failure}");
            assert_eq!(scene.call("DEL", change), Ok(Value::Null));
        }
    }
    let asked = (scene.forwarder.asked(), scene.ipam.asked());
    assert!(asked.0.contains(&"detach".to_owned()), "{asked:?}");
    assert!(asked.1.contains(&"release".to_owned()), "{asked:?}");
}

#[test]
fn a_server_that_lies_does_not_make_status_good() {
    weft_testkit::needs_namespaces!();
    let another: Manner = |_| Some(Reply::Json(json!({"ok": "done"})));
    let other: Manner = |_| Some(Reply::Json(json!({"ok": {"ports": []}})));
    let failure = Scene::new(other, honestly).call("STATUS", &json!({}));
    assert_eq!(failure.expect_err("no status")["code"], 51);
    let failure = Scene::new(honestly, another).call("STATUS", &json!({}));
    assert_eq!(failure.expect_err("no addresses")["code"], 50);
    let none: Manner = |op| at(op, "probe", || refusal("exhausted"));
    let failure = Scene::new(honestly, none).call("STATUS", &json!({}));
    assert_eq!(failure.expect_err("no address left")["code"], 50);
    assert_eq!(
        Scene::new(honestly, honestly).call("STATUS", &json!({})),
        Ok(Value::Null)
    );
}

/// The client's deadline ends each of these.
#[test]
fn a_forwarder_that_says_nothing_is_given_up() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(silent, honestly);
    let failure = scene.call("ADD", &json!({})).expect_err("no answer");
    assert_eq!(failure["code"], 11, "{failure}");
    assert_eq!(scene.ipam.asked(), [""; 0]);
    // The runtime is to ask again, but the address is free.
    let failure = scene.call("DEL", &json!({})).expect_err("no answer");
    assert_eq!(failure["code"], 11, "{failure}");
    assert_eq!(scene.ipam.asked(), ["release"]);
}

#[test]
fn an_ipam_server_that_says_nothing_is_given_up() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(honestly, silent);
    let failure = scene.call("DEL", &json!({})).expect_err("no answer");
    assert_eq!(failure["code"], 11, "{failure}");
    assert_eq!(scene.forwarder.asked(), ["detach"]);
}

#[test]
fn a_forwarder_silent_at_attach_costs_no_address() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(|op| at(op, "attach", || Reply::Silence), honestly);
    let failure = scene.call("ADD", &json!({})).expect_err("no answer");
    assert_eq!(failure["code"], 11, "{failure}");
    assert_eq!(scene.ipam.asked(), ["allocate", "release"]);
    scene.assert_no_link("after the deadline");
}

/// Each failure of DEL leaves the other parts to be done.
#[test]
fn a_delegate_deletes_though_our_own_part_failed() {
    weft_testkit::needs_namespaces!();
    let scene = Scene::new(|op| at(op, "detach", || Reply::Bytes(b"")), honestly);
    let record = scene.dir.path().join("record");
    let plugin = scene.dir.path().join("delegate");
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID >> {}\n",
        record.display()
    );
    std::fs::write(&plugin, script).expect("write");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&plugin, mode).expect("its mode");
    let failure = scene
        .call("DEL", &json!({"ipam": {"type": "delegate"}}))
        .expect_err("a hang-up");
    assert_eq!(failure["code"], 11, "{failure}");
    assert_eq!(
        std::fs::read_to_string(&record).expect("it was called"),
        "DEL c1\n"
    );
    // One that gives no address is asked to delete what it may have made.
    std::fs::remove_file(&record).expect("it was there");
    let failure = scene
        .call("ADD", &json!({"ipam": {"type": "delegate"}}))
        .expect_err("no address");
    assert_eq!(failure["code"], 6, "{failure}");
    assert_eq!(
        std::fs::read_to_string(&record).expect("it was called"),
        "ADD c1\nDEL c1\n"
    );
    std::fs::write(
        &plugin,
        format!(
            "#!/bin/sh\necho $CNI_COMMAND >> {}\nexit 3\n",
            record.display()
        ),
    )
    .expect("write");
    std::fs::remove_file(&record).expect("it was there");
    let failure = scene
        .call("ADD", &json!({"ipam": {"type": "delegate"}}))
        .expect_err("it fails");
    assert_eq!(failure["code"], 5, "{failure}");
    assert_eq!(
        std::fs::read_to_string(&record).expect("it was called"),
        "ADD\nDEL\n"
    );
    let failure = scene
        .call("ADD", &json!({"ipam": {"type": "missing"}}))
        .expect_err("no plugin");
    assert_eq!(failure["code"], 7, "{failure}");
}
