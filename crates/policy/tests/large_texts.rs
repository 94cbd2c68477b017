//! Texts as large as a cluster are read, and larger ones refused as such.

use weft_policy::read;

fn refusal(text: &str) -> String {
    read(text).expect_err("a refusal").to_string()
}

/// A pod as JSON.
fn pod(number: usize, containers: usize) -> String {
    let container = r#"{"name": "c", "env": [{"name": "A", "value": "1"}]}"#;
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "p{number}",
        "annotations": {{"long": "{}"}}}}, "spec": {{"containers": [{}]}}}}"#,
        "x".repeat(1100),
        vec![container; containers].join(",")
    )
}

#[test]
fn whole_clusters_are_read() {
    let documents: Vec<_> = (0..2000).map(|number| pod(number, 1)).collect();
    let documents = read(&documents.join("\n---\n")).expect("many documents");
    assert_eq!(documents.len(), 2000);
    // 300 000 values.
    let items: Vec<_> = (0..500).map(|number| pod(number, 60)).collect();
    let items = items.join(",\n\t");
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{items}]}}"#);
    assert_eq!(read(&list).expect("a long list").len(), 500);
}

#[test]
fn too_much_is_told_apart_from_bad_text() {
    let text = "--- {}\n".repeat((1 << 18) + 1);
    let sentence = refusal(&text);
    assert!(
        sentence.contains("too large: more than 262144 documents"),
        "{sentence}"
    );
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    assert!(refusal(&deep).contains("more than 64 levels"));
}
