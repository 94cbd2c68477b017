//! One line in, one request out, or the error that says why not.

use serde_json::{Map, Value};
use weft_api::ipam::{Code, Error, REQUEST_MAX, Request};

/// Every operation, and whether it has fields of its own.
pub const OPERATIONS: [(&str, bool); 24] = [
    ("allocate", true),
    ("probe", true),
    ("release", true),
    ("gc", true),
    ("check", true),
    ("watch", true),
    ("pools", false),
    ("blocks", false),
    ("address", true),
    ("allocations", true),
    ("pool-create", true),
    ("pool-disable", true),
    ("pool-delete", true),
    ("reserve", true),
    ("unreserve", true),
    ("reservations", false),
    ("node-put", true),
    ("node-delete", true),
    ("nodes", false),
    ("node-register", true),
    ("node-leave", true),
    ("configure", true),
    ("config", false),
    ("status", false),
];

pub fn parse(line: &[u8]) -> Result<Request, Error> {
    // The common case needs no look at the fields one by one.
    match serde_json::from_slice(line) {
        Ok(request) if !lets_fields_pass(&request) => Ok(request),
        _ => explain(line),
    }
}

/// An operation without fields of its own does not refuse foreign ones.
fn lets_fields_pass(request: &Request) -> bool {
    use Request::{Blocks, Config, Nodes, Pools, Reservations, Status};
    matches!(
        request,
        Blocks | Config | Nodes | Pools | Reservations | Status
    )
}

fn explain(line: &[u8]) -> Result<Request, Error> {
    let fields: Map<String, Value> = serde_json::from_slice(line).map_err(|fault| {
        let message = format!("the line is not a JSON object: {fault}");
        Error::new(Code::Malformed, message, "send one object a line")
    })?;
    let choice = || {
        format!(
            "give one of {}",
            OPERATIONS.map(|(name, _)| name).join(", ")
        )
    };
    let Some(Value::String(op)) = fields.get("op") else {
        let message = "the object has no \"op\" that names an operation";
        return Err(Error::new(Code::Malformed, message, choice()));
    };
    let Some(&(op, has_fields)) = OPERATIONS.iter().find(|(name, _)| name == op) else {
        let message = format!("operation {op:?} is unknown");
        return Err(Error::new(Code::Unknown, message, choice()));
    };
    let hint = "docs/ipam-protocol.md shows each request";
    if !has_fields && let Some(field) = fields.keys().find(|key| *key != "op") {
        let message = format!("{op}: unknown field `{field}`");
        return Err(Error::new(Code::Invalid, message, hint));
    }
    serde_json::from_slice(line)
        .map_err(|fault| Error::new(Code::Invalid, format!("{op}: {fault}"), hint))
}

pub fn oversized() -> Error {
    let message = format!("the line is longer than {REQUEST_MAX} bytes");
    Error::new(Code::Oversized, message, "split the request")
}

pub fn unended() -> Error {
    let message = "the stream ended within a line";
    Error::new(Code::Malformed, message, "end each line with a newline")
}
