//! The examples of docs/control-protocol.md, played to a forwarder.

use serde_json::Value;

use crate::{
    attach::pod,
    server::{Client, Server},
};

const PAGE: &str = include_str!("../../docs/control-protocol.md");

/// Each request of the page with the answer below it.
fn examples() -> Vec<(&'static str, Value)> {
    let blocks = PAGE.split("```json\n").skip(1);
    let example = |block: &'static str| {
        let mut lines = block.lines();
        let (request, answer) = (lines.next()?, lines.next()?);
        assert_eq!(
            lines.next(),
            Some("```"),
            "one request and one answer: {request}"
        );
        Some((
            request,
            serde_json::from_str(answer).expect("an answer is JSON"),
        ))
    };
    blocks.filter_map(example).collect()
}

/// Whether the page's answer has the shape of the real one: the same fields
/// and kinds everywhere. A list's one element stands for all of its kind, and
/// of counters some stand for all.
fn same_shape(page: &Value, real: &Value, place: &str) {
    match (page, real) {
        (Value::Object(page), Value::Object(real)) => {
            let missing = page.keys().find(|key| !real.contains_key(*key));
            assert_eq!(missing, None, "{place}");
            let untold = real.keys().find(|key| !page.contains_key(*key));
            assert!(
                untold.is_none() || place.ends_with("/values"),
                "{place}: {untold:?}"
            );
            for (key, value) in page {
                same_shape(value, &real[key], &format!("{place}/{key}"));
            }
        }
        (Value::Array(page), Value::Array(real)) => {
            assert_eq!(page.is_empty(), real.is_empty(), "{place}");
            for (page, real) in page.iter().zip(real) {
                same_shape(page, real, place);
            }
        }
        _ => {
            let kind = std::mem::discriminant;
            assert_eq!(kind(page), kind(real), "{place}: {page} {real}");
        }
    }
}

fn exchange(client: &mut Client, request: &str) -> Value {
    client.send(format!("{request}\n"));
    serde_json::to_value(client.answer()).expect("JSON")
}

#[test]
fn the_page_tells_what_the_forwarder_answers() {
    weft_testkit::needs_namespaces!();
    let config = "node = 'n1'\n[uplink]\naddresses = ['127.82.0.1']\n";
    let server = Server::with_config(config);
    let mut client = server.client();
    let pod = pod(1);
    let examples = examples();
    assert_eq!(examples.len(), 17, "each operation and an error");
    for (request, answer) in &examples {
        let real = exchange(&mut client, request);
        same_shape(answer, &real, request);
        if let Some(error) = answer.get("error") {
            assert_eq!(error, &real["error"], "{request}");
        }
        if request.contains("\"attach\"") {
            client.pass(&format!("{request}\n"), &pod.fds());
            let done = serde_json::to_value(client.answer()).expect("JSON");
            assert_eq!(done, serde_json::json!({"ok": {"done": {"epoch": 2}}}));
        }
    }
}
