use proptest::prelude::*;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    owned.collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn selectors_select() {
    let node = labels(&[
        ("zone", "east-1"),
        ("kubernetes.io/os", "linux"),
        ("quoted", "it's"),
        ("empty", ""),
        ("in", "x"),
    ]);
    for (text, selects) in [
        ("", true),
        (" \t", true),
        ("all()", true),
        ("all( )", true),
        ("global()", true),
        ("!all()", false),
        ("has(zone)", true),
        ("has( zone )", true),
        ("has(gpu)", false),
        ("!has(gpu)", true),
        ("!!has(gpu)", false),
        ("! ! ! has(gpu)", true),
        ("zone == 'east-1'", true),
        ("zone=='east-1'", true),
        ("zone == \"east-2\"", false),
        ("kubernetes.io/os == 'linux'", true),
        ("gpu == ''", false),
        ("empty == ''", true),
        ("quoted == \"it's\"", true),
        ("zone != 'east-1'", false),
        ("zone != 'east-2'", true),
        ("gpu != 'yes'", true),
        ("!gpu != 'yes'", false),
        ("zone in {'west-1', 'east-1'}", true),
        ("zone in {'west-1','east-1',}", true),
        ("zone in {}", false),
        ("gpu in {''}", false),
        ("zone not in {'east-1'}", false),
        ("zone notin {'west-1'}", true),
        ("zone not\tin{'west-1'}", true),
        ("zone not in {}", true),
        ("gpu not in {'yes'}", true),
        ("in in {'x'}", true),
        ("zone contains 'st-'", true),
        ("gpu contains ''", false),
        ("zone starts with 'east'", true),
        ("zone startswith 'west'", false),
        ("zone ends with '-1'", true),
        ("zone ends   with '-2'", false),
        ("has(gpu) || has(zone) && zone == 'east-1'", true),
        ("(has(zone) || has(gpu)) && has(gpu)", false),
        ("has(zone) || has(gpu) && has(gpu)", true),
        ("!(has(gpu) || has(zone))", false),
        ("!has(zone) || has(zone)", true),
        ("((has(zone)))", true),
    ] {
        let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(selector.matches(&node), selects, "{text:?}");
        let again = Selector::parse(&selector.to_string());
        assert_eq!(again.as_ref(), Ok(&selector), "{text:?} as {selector}");
    }
}

#[test]
fn faults_are_told_with_their_place() {
    for (text, at, found, expected) in [
        ("zone = 'a'", 5, "\"= 'a'\"", "'=='"),
        ("zone", 4, "the end", "'=='"),
        ("zone == east", 8, "\"east\"", "a string in quotes"),
        (
            "zone == 'east",
            13,
            "the end",
            "closing ' of the string at byte 8",
        ),
        ("zone in 'a'", 8, "\"'a'\"", "'{'"),
        ("zone in {'a' 'b'}", 13, "\"'b'}\"", "',' or '}'"),
        ("zone in {,}", 9, "\",}\"", "a string in quotes"),
        ("zone inn {'a'}", 5, "\"inn {'a'}\"", "'in'"),
        ("has(zone", 8, "the end", "')'"),
        ("has()", 4, "\")\"", "a label"),
        ("has (zone)", 4, "\"(zone)\"", "'=='"),
        ("all() all()", 6, "\"all()\"", "the end"),
        ("all() &&", 8, "the end", "a label"),
        ("all() & all()", 6, "\"& all()\"", "'&&'"),
        ("(all()", 6, "the end", "')'"),
        ("all())", 5, "\")\"", "the end"),
        ("!", 1, "the end", "a label"),
        ("zone\n== 'a'", 4, "\"\\n== 'a'\"", "'=='"),
        ("näme == 'a'", 1, "\"äme == 'a'\"", "'=='"),
    ] {
        let error = Selector::parse(text).expect_err(text);
        assert_eq!((error.at, error.found.as_str()), (at, found), "{text:?}");
        assert!(error.expected.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |depth| format!("{}all(){}", "!(".repeat(depth), ")".repeat(depth));
    let deep = Selector::parse(&nested(DEPTH_MAX)).expect("as deep as allowed");
    assert_eq!(Selector::parse(&deep.to_string()), Ok(deep));
    assert!(Selector::parse(&nested(DEPTH_MAX + 1)).is_err());
    assert!(Selector::parse(&nested(1_000_000)).is_err());
    assert!(Selector::parse(&format!("{}all()", "!".repeat(1_000_000))).is_ok());
    assert!(Selector::parse(&format!("has({})", "k".repeat(LABEL_MAX))).is_ok());
    assert!(Selector::parse(&format!("has({})", "k".repeat(LABEL_MAX + 1))).is_err());
}

fn expressions() -> impl Strategy<Value = Expression> {
    let label = "[a-zA-Z0-9_./-]{1,8}";
    let value = prop_oneof!["[^']{0,6}", "[^\"]{0,6}"];
    let set = || proptest::collection::btree_set(value.clone(), 0..4);
    let test = prop_oneof![
        value.clone().prop_map(Test::Equals),
        value.clone().prop_map(Test::Differs),
        value.clone().prop_map(Test::Contains),
        value.clone().prop_map(Test::StartsWith),
        value.clone().prop_map(Test::EndsWith),
        set().prop_map(Test::In),
        set().prop_map(Test::NotIn),
    ];
    let leaf = prop_oneof![
        Just(Expression::All),
        Just(Expression::Global),
        label.prop_map(Expression::Has),
        (label, test).prop_map(|(label, test)| Expression::Label(label, test)),
    ];
    leaf.prop_recursive(6, 40, 4, |inner| {
        let several = || proptest::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            inner.clone().prop_map(|one| Expression::Not(Box::new(one))),
            several().prop_map(Expression::And),
            several().prop_map(Expression::Or),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(expression in expressions()) {
        let selector = Selector(expression);
        prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn no_text_panics(text in ".{0,60}") {
        let _ = Selector::parse(&text);
    }

    #[test]
    fn no_heap_of_words_panics(words in proptest::collection::vec(
        proptest::sample::select(vec![
            "!", "(", ")", "{", "}", ",", "==", "!=", "&&", "||", "=", "&", "|", "has(", "all(", "global(",
            "in", "not", "starts", "with", "ends", "contains", "k", "'v'", "\"w\"", "'", "\"", " ", "ä",
        ]), 0..24,
    )) {
        if let Ok(selector) = Selector::parse(&words.concat()) {
            prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
        }
    }
}
