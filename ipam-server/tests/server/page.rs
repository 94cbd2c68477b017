//! The examples of docs/ipam-protocol.md, played to a server.

use serde_json::Value;

use crate::Server;

const PAGE: &str = include_str!("../../../docs/ipam-protocol.md");

/// The page groups by subject; the server is asked in an order in which each
/// request finds what it is about. The rest keeps the page's order.
const ORDER: [&str; 12] = [
    "status",
    "pool-create",
    "pools",
    "node-put",
    "nodes",
    "reserve",
    "reservations",
    "allocate",
    "blocks",
    "address",
    "allocations",
    "check",
];
const LAST: [&str; 5] = [
    "config",
    "unreserve",
    "node-delete",
    "pool-disable",
    "pool-delete",
];

fn examples() -> Vec<(String, &'static str, Value)> {
    let mut examples: Vec<_> = PAGE
        .split("```json\n")
        .skip(1)
        .filter_map(|block| {
            let (request, rest) = block.split_once('\n')?;
            let (answer, _) = rest.split_once('\n')?;
            let asked: Value = serde_json::from_str(request).expect("JSON");
            let op = asked["op"].as_str()?.to_owned();
            Some((op, request, serde_json::from_str(answer).expect("JSON")))
        })
        .collect();
    examples.sort_by_key(|(op, ..)| {
        let first = ORDER.iter().position(|name| name == op);
        let last = LAST.iter().position(|name| name == op);
        match op.as_str() {
            // A watch ends its connection's requests, not what is known.
            "watch" => ORDER.len(),
            "gc" => ORDER.len() + 1,
            _ => first.or(last.map(|at| 100 + at)).unwrap_or(50),
        }
    });
    examples
}

/// The page's answer with what differs from run to run taken out.
fn timeless(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let changing =
                    ["pid", "registered", "since", "sequence", "version"].contains(&key.as_str());
                *field = if changing {
                    Value::Null
                } else {
                    timeless(field.take())
                };
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|one| *one = timeless(one.take())),
        _ => {}
    }
    value
}

#[test]
fn the_page_tells_what_the_server_answers() {
    let server = Server::start();
    let examples = examples();
    assert_eq!(examples.len(), 29, "each request, and an error");
    for (_, request, expected) in examples {
        let mut client = server.client();
        client.send(format!("{request}\n"));
        assert_eq!(timeless(client.answer()), timeless(expected), "{request}");
    }
}
