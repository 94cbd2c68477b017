//! One line in, one request out, or the error that says why not.

use serde_json::{Map, Value};
use weft_api::forwarder::{Code, Error, REQUEST_MAX, Request};

use crate::publish::refusal;

/// Every operation, and whether it has fields of its own.
const OPERATIONS: [(&str, bool); 16] = [
    ("attach", true),
    ("detach", true),
    ("list", false),
    ("peers", false),
    ("apply", true),
    ("counters", false),
    ("drops", false),
    ("status", false),
    ("policies", true),
    ("policy-change", true),
    ("policy-drop", true),
    ("policy-list", false),
    ("policy-show", true),
    ("explain", true),
    ("denied", false),
    ("flows", true),
];

pub fn parse(line: &[u8]) -> Result<Request, Error> {
    let fields: Map<String, Value> = serde_json::from_slice(line).map_err(|fault| {
        let message = format!("the line is not a JSON object: {fault}");
        refusal(Code::Malformed, message, "send one object a line")
    })?;
    let Some(Value::String(op)) = fields.get("op") else {
        let message = "the object has no \"op\" that names an operation";
        return Err(refusal(
            Code::Malformed,
            message,
            format!("give one of {}", names()),
        ));
    };
    let Some(&(op, has_fields)) = OPERATIONS.iter().find(|(name, _)| name == op) else {
        let message = format!("operation {op:?} is unknown");
        return Err(refusal(
            Code::Unknown,
            message,
            format!("give one of {}", names()),
        ));
    };
    let hint = "docs/control-protocol.md shows each request";
    if !has_fields && let Some(field) = fields.keys().find(|key| *key != "op") {
        return Err(refusal(
            Code::Invalid,
            format!("{op}: unknown field `{field}`"),
            hint,
        ));
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|fault| refusal(Code::Invalid, format!("{op}: {fault}"), hint))
}

pub fn oversized() -> Error {
    let message = format!("the line is longer than {REQUEST_MAX} bytes");
    refusal(
        Code::Oversized,
        message,
        "a state that large needs more than one network",
    )
}

pub fn unended() -> Error {
    let message = "the stream ended within a line";
    refusal(Code::Malformed, message, "end each line with a newline")
}

fn names() -> String {
    OPERATIONS.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use weft_api::{
        forwarder::{
            Attach, Capabilities, Driver, Explain, Nodes, ObjectRef, Policies, PolicyChange,
        },
        names::{Mac, Name},
    };

    use super::*;

    fn code(line: &str) -> Code {
        parse(line.as_bytes()).expect_err(line).code
    }

    #[test]
    fn each_operation_is_understood() {
        let name = Name::new("n1p1").expect("valid");
        let attach = Attach {
            name: name.clone(),
            driver: Driver::Tap,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: Vec::new(),
            mtu: 1450,
            capabilities: Capabilities::default(),
            host: None,
        };
        let node =
            serde_json::from_str(r#"{"name":"n1","underlay":[],"vtep_mac":"02:00:00:00:00:01"}"#)
                .expect("a node");
        let source = Name::new("files").expect("valid");
        let policy = ObjectRef {
            kind: "NetworkPolicy".into(),
            namespace: None,
            name: "web".into(),
        };
        let requests = [
            Request::Attach(attach),
            Request::Detach { name },
            Request::List,
            Request::Peers,
            Request::Apply(Nodes {
                node,
                peers: Vec::new(),
            }),
            Request::Counters,
            Request::Drops,
            Request::Status,
            Request::Policies(Policies {
                source: source.clone(),
                objects: vec![serde_json::json!({"kind": "Pod"})],
                part: 3,
                more: true,
                dry_run: true,
            }),
            Request::PolicyChange(PolicyChange {
                source: source.clone(),
                put: Vec::new(),
                delete: vec![policy.clone()],
            }),
            Request::PolicyDrop { source },
            Request::PolicyList,
            Request::PolicyShow { policy },
            Request::Explain(Explain {
                from: "n1p1".into(),
                to: "n2p2".into(),
                port: "80/tcp".into(),
            }),
            Request::Denied,
            Request::Flows { after: Some(7) },
        ];
        for (request, (op, _)) in requests.into_iter().zip(OPERATIONS) {
            let line = serde_json::to_vec(&request).expect("requests are JSON");
            assert_eq!(parse(&line), Ok(request), "{op}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        for line in [
            "",
            "{",
            "[]",
            "7",
            "\"list\"",
            "{}",
            r#"{"op":7}"#,
            r#"{"op":null}"#,
            "\u{0}",
        ] {
            assert_eq!(code(line), Code::Malformed, "{line}");
        }
        assert_eq!(
            parse(b"{\"op\":\"\xff\"}").expect_err("not UTF-8").code,
            Code::Malformed
        );
        let deep = "[".repeat(100_000);
        assert_eq!(code(&format!("{{\"op\":{deep}")), Code::Malformed);
        for line in [r#"{"op":"reboot"}"#, r#"{"op":"List"}"#, r#"{"op":""}"#] {
            assert_eq!(code(line), Code::Unknown, "{line}");
        }
        for line in [
            r#"{"op":"list","name":"n1p1"}"#,
            r#"{"op":"detach"}"#,
            r#"{"op":"detach","name":""}"#,
            r#"{"op":"detach","name":"a b"}"#,
            r#"{"op":"detach","name":"a","also":1}"#,
            r#"{"op":"apply","node":{}}"#,
        ] {
            assert_eq!(code(line), Code::Invalid, "{line}");
        }
        for capabilities in [
            r#"{"aliases":[]}"#,
            r#"{"bandwidth":{"to_pod":{"rate":0,"burst":1}}}"#,
            r#"{"bandwidth":{"to_pod":{"rate":1,"burst":0}}}"#,
            r#"{"bandwidth":{"to_pod":{"rate":1}}}"#,
            r#"{"bandwidth":{"ingress":{"rate":1,"burst":1}}}"#,
            r#"{"port_mappings":[{"host_port":0,"container_port":1,"protocol":"tcp"}]}"#,
            r#"{"port_mappings":[{"host_port":1,"container_port":1,"protocol":"icmp"}]}"#,
            r#"{"port_mappings":[{"host_port":1,"container_port":1,"protocol":"tcp","host_ip":""}]}"#,
        ] {
            let line = format!(
                r#"{{"op":"attach","name":"a","driver":"tap","mac":"02:00:00:00:00:01","addresses":["10.1.0.1"],"mtu":1450,"capabilities":{capabilities}}}"#
            );
            assert_eq!(code(&line), Code::Invalid, "{line}");
        }
    }
}
