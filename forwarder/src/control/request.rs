//! One line in, one request out, or the error that says why not.

use std::fmt::Display;

use serde_json::{Map, Value};
use weft_api::{
    forwarder::{Code, Error, REQUEST_MAX, Request},
    unique::Unique,
};

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
    let fields = fields(line)?;
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

fn fields(line: &[u8]) -> Result<Map<String, Value>, Error> {
    let malformed = |fault: &dyn Display| {
        let message = format!("the line is not a JSON object: {fault}");
        refusal(Code::Malformed, message, "send one object a line")
    };
    let mut json = serde_json::Deserializer::from_slice(line);
    let Unique(value) = serde_path_to_error::deserialize(&mut json).map_err(|fault| {
        if fault.inner().is_data() {
            refusal(Code::Invalid, fault.to_string(), "leave one of the two out")
        } else {
            malformed(fault.inner())
        }
    })?;
    json.end().map_err(|fault| malformed(&fault))?;
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(malformed(&"it is another value")),
    }
}

pub fn oversized() -> Error {
    let message = format!("the line is longer than {REQUEST_MAX} bytes");
    refusal(
        Code::Oversized,
        message,
        "give `policies` in parts; an `apply` that large needs more than one network",
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
    fn a_key_that_comes_twice_is_named_with_its_place() {
        let objects = r#"[{"kind":"Pod"},{"spec":{"ingress":[],"egress":[],"ingress":[{}]}}]"#;
        for (line, said) in [
            (
                format!(r#"{{"op":"policies","source":"a","objects":{objects}}}"#),
                "objects[1].spec: key `ingress` comes twice",
            ),
            (
                format!(r#"{{"op":"policy-change","source":"a","put":{objects}}}"#),
                "put[1].spec: key `ingress` comes twice",
            ),
            (
                r#"{"op":"detach","name":"a","name":"b"}"#.to_owned(),
                "key `name` comes twice",
            ),
        ] {
            let refused = parse(line.as_bytes()).expect_err(&line);
            assert_eq!(refused.code, Code::Invalid, "{line}");
            assert!(refused.message.starts_with(said), "{}", refused.message);
        }
    }

    #[test]
    fn an_object_of_an_empty_namespace_is_of_the_default_one() {
        let asked = |namespace| {
            let policy = format!(r#"{{"kind":"NetworkPolicy"{namespace},"name":"web"}}"#);
            parse(format!(r#"{{"op":"policy-show","policy":{policy}}}"#).as_bytes())
        };
        let left_out = asked("");
        assert!(left_out.is_ok());
        for namespace in [r#","namespace":"""#, r#","namespace":null"#] {
            assert_eq!(asked(namespace), left_out);
        }
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        for line in [
            "",
            "{",
            "[]",
            "{}{}",
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
