//! docs/cni-rules.md names tests that exist.

use std::{collections::BTreeSet, fs, path::Path};

const PAGE: &str = include_str!("../../docs/cni-rules.md");

#[test]
fn each_rule_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = PAGE
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter(|line| *line != HEAD);
    let (mut rules, mut missing) = (BTreeSet::new(), Vec::new());
    for row in rows {
        let cells: Vec<_> = row.split(" | ").collect();
        let [rule, tests] = cells[..] else {
            panic!("two cells: {row}");
        };
        assert!(rules.insert(rule), "{rule} stands there twice");
        let mut tests = tests.split('`').skip(1).step_by(2).peekable();
        assert!(tests.peek().is_some(), "{rule} has no test");
        for test in tests {
            let (file, name) = test.split_once("::").expect("file::name");
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            let head = format!("fn {name}() {{");
            let first =
                |test: &str| test.lines().find(|line| line.starts_with("fn ")) == Some(&head);
            if !text.split("#[test]\n").skip(1).any(first) {
                missing.push(test);
            }
        }
    }
    assert_eq!(missing, [""; 0]);
    // All the rules of the page's second table are there.
    let numbered = |number: usize| {
        rules
            .iter()
            .any(|rule| rule.starts_with(&format!("| {number}. ")))
    };
    assert!((1..=20).all(numbered));
}

const HEAD: &str = "| rule | tests |";
