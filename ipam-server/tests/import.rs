//! A Calico dump is read, and its faults are told.

use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use weft_api::ipam::{Problem, ProblemKind, Report};
use weft_ipam::{
    check::check,
    import::{ImportError, calico},
};

const DUMP: &str = include_str!("fixtures/calico.jsonl");
const NOW: u64 = 1_800_000_000_000;

fn checked(dump: &str) -> (Vec<Problem>, Report) {
    let imported = calico(dump.as_bytes()).expect("a dump");
    let report = check(imported.rows.iter().map(|(k, v)| (k, v)), None, NOW);
    (imported.problems, report)
}

#[test]
fn a_sound_dump_has_no_problem() {
    let (problems, report) = checked(DUMP);
    assert_eq!((problems, &report.problems), (vec![], &vec![]));
    assert_eq!((report.pools, report.blocks, report.allocations), (1, 1, 2));
}

#[test]
fn etcdctl_and_kubectl_say_the_same_as_lines() {
    let lines: Vec<serde_json::Value> = DUMP
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let pairs = lines.iter().filter(|line| line.get("key").is_some());
    let pairs: Vec<_> = pairs
        .map(|line| {
            let key = STANDARD.encode(line["key"].as_str().expect("a key"));
            serde_json::json!({"key": key, "value": STANDARD.encode(line["value"].to_string())})
        })
        .collect();
    let pool = serde_json::json!({
        "key": "/calico/resources/v3/projectcalico.org/ippools/small",
        "value": lines[5]["items"][0],
    });
    let etcd = format!("{}{pool}", serde_json::json!({ "kvs": pairs }));
    assert_eq!(calico(etcd.as_bytes()), calico(DUMP.as_bytes()));

    let mut handle = lines[2]["value"].clone();
    handle["handleID"] = "k8s-pod-network.c1".into();
    let mut tunnel = lines[3]["value"].clone();
    tunnel["handleID"] = "vxlan-tunnel-addr-n1".into();
    let affinity = serde_json::json!({
        "cidr": "10.0.0.0/30", "node": "n1", "state": "confirmed", "deleted": "false",
    });
    let item =
        |kind: &str, spec: &serde_json::Value| serde_json::json!({"kind": kind, "spec": spec});
    let kubectl = serde_json::json!({"kind": "List", "items": [
        item("IPAMBlock", &lines[0]["value"]),
        item("BlockAffinity", &affinity),
        item("IPAMHandle", &handle),
        item("IPAMHandle", &tunnel),
        lines[5]["items"][0],
    ]});
    let again = calico(kubectl.to_string().as_bytes());
    assert_eq!(again, calico(DUMP.as_bytes()));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn faults_are_told() {
    for (from, to, kind, message) in [
        (
            r#""block":{"10.0.0.0/30":1},"deleted":false"#,
            r#""block":{"10.0.0.0/30":2},"deleted":false"#,
            ProblemKind::Handle,
            "counts 2",
        ),
        (
            "handle/k8s-pod-network.c1",
            "handle/other",
            ProblemKind::Handle,
            "does not exist",
        ),
        (
            r#""deleted":true"#,
            r#""deleted":false"#,
            ProblemKind::Handle,
            "no block holds",
        ),
        (
            "[0,1,null,2]",
            "[0,1,null,3]",
            ProblemKind::Structure,
            "attribute 3, of 3",
        ),
        (
            "[0,1,null,2]",
            "[0,1,null,1]",
            ProblemKind::Structure,
            "attribute 2 belongs",
        ),
        ("[2]", "[-2]", ProblemKind::Structure, "free ordinal -2"),
        (
            "2026-01-01T",
            "2026-01-01 ",
            ProblemKind::Structure,
            "no time",
        ),
        (
            r#""state":"""#,
            r#""state":"x""#,
            ProblemKind::Structure,
            "not known",
        ),
        ("host:n1", "cat:n1", ProblemKind::Structure, "no owner"),
        (
            "2026-01-01T",
            "2999-01-01T",
            ProblemKind::Clock,
            "ahead of the clock",
        ),
        (
            r#""state":"""#,
            r#""state":"pending""#,
            ProblemKind::Unfinished,
            "claiming",
        ),
        ("[2]", "[2,2]", ProblemKind::Structure, "free twice"),
    ] {
        assert!(DUMP.contains(from), "{from}");
        let (mut problems, report) = checked(&DUMP.replace(from, to));
        problems.extend(report.problems);
        let told = problems
            .iter()
            .any(|p| p.kind == kind && p.message.contains(message));
        assert!(told, "{message} is not among {problems:#?}");
    }
}

#[test]
fn what_is_no_dump_is_refused() {
    assert_eq!(calico(b""), Err(ImportError::Nothing));
    assert_eq!(calico(b"{}"), Err(ImportError::Nothing));
    assert!(matches!(calico(b"{"), Err(ImportError::Json(_))));
}

proptest! {
    #[test]
    fn no_bytes_panic(place in 0..DUMP.len(), put in proptest::collection::vec(any::<u8>(), 0..4), cut in 0usize..8) {
        let mut dump = DUMP.as_bytes().to_vec();
        let end = (place + cut).min(dump.len());
        dump.splice(place..end, put.clone());
        for dump in [dump, put] {
            if let Ok(imported) = calico(&dump) {
                check(imported.rows.iter().map(|(k, v)| (k, v)), None, NOW);
            }
        }
    }
}
