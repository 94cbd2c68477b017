//! Texts as large as a cluster are read, and larger ones refused as such.

use weft_policy::read;

fn refusal(text: &str) -> String {
    read(text).expect_err("a refusal").to_string()
}

#[test]
fn whole_clusters_are_read() {
    let pod = |number: usize| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"p{number}\", \
             \"annotations\": {{\"long\": \"{}\"}}}}, \"spec\": {{\"containers\": [{}]}}}}",
            "x".repeat(1100),
            ["{\"name\": \"c\", \"env\": [{\"name\": \"A\", \"value\": \"1\"}]}"; 16].join(", ")
        )
    };
    let documents: Vec<_> = (0..2000).map(pod).collect();
    let many = read(&documents.join("\n---\n")).expect("many documents");
    let items = documents.join(",\n\t");
    let list = format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n\t{items}]}}");
    assert_eq!(many.len(), 2000);
    assert_eq!(read(&list), Ok(many));
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
