//! Calico's selector language over labels: which nodes and namespaces a pool
//! serves.
//!
//! ```text
//! any     = all-of { "||" all-of }          all-of = test { "&&" test }
//! test    = { "!" } ( "(" any ")" | "all()" | "global()" | "has(" label ")"
//!                   | label operator )
//! operator = "==" string | "!=" string | "contains" string
//!          | "starts with" string | "ends with" string
//!          | [ "not" ] "in" "{" [ string { "," string } ] [ "," ] "}"
//! ```
//!
//! A string stands in single or double quotes, without escapes. Pure; parsing
//! bounds the nesting, so that nothing here can exhaust the stack.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

mod parse;
#[cfg(test)]
mod tests;

/// Longest label, in bytes; Calico's limit.
pub const LABEL_MAX: usize = 512;

/// Most parentheses within each other.
pub const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Expression);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector, at byte {at}: found {found}, expected {expected}")]
pub struct SelectorError {
    pub at: usize,
    pub found: String,
    pub expected: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    All,
    /// Selects all, as `All` does, but is written otherwise.
    Global,
    Has(String),
    Label(String, Test),
    Not(Box<Expression>),
    /// Two or more.
    And(Vec<Expression>),
    /// Two or more.
    Or(Vec<Expression>),
}

/// What is asked of a label's value. No string holds both kinds of quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equals(String),
    Differs(String),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

impl Selector {
    /// The empty text selects all.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::selector(text).map(Self)
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

impl Expression {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Label(label, test) => test.passes(labels.get(label).map(String::as_str)),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(all) => all.iter().all(|one| one.matches(labels)),
            Self::Or(any) => any.iter().any(|one| one.matches(labels)),
        }
    }
}

impl Test {
    /// A label that is absent differs from every value and is in no set.
    fn passes(&self, value: Option<&str>) -> bool {
        match self {
            Self::Equals(wanted) => value == Some(wanted),
            Self::Differs(unwanted) => value != Some(unwanted),
            Self::Contains(part) => value.is_some_and(|value| value.contains(part.as_str())),
            Self::StartsWith(part) => value.is_some_and(|value| value.starts_with(part.as_str())),
            Self::EndsWith(part) => value.is_some_and(|value| value.ends_with(part.as_str())),
            Self::In(set) => value.is_some_and(|value| set.contains(value)),
            Self::NotIn(set) => !value.is_some_and(|value| set.contains(value)),
        }
    }
}

/// Reads back as the same selector.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Label(label, test) => write!(f, "{label} {test}"),
            Self::Not(inner) => write!(f, "!{}", Operand(inner)),
            Self::And(all) => joined(f, all, " && "),
            Self::Or(any) => joined(f, any, " || "),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, parts: &[Expression], operator: &str) -> fmt::Result {
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            f.write_str(operator)?;
        }
        // "&&" binds tighter than "||", yet with parentheses no reader has to
        // know; around a negation they would only be noise.
        match part {
            Expression::Not(_) => write!(f, "{part}")?,
            _ => write!(f, "{}", Operand(part))?,
        }
    }
    Ok(())
}

/// In parentheses where it consists of several words.
struct Operand<'a>(&'a Expression);

impl fmt::Display for Operand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expression::Not(_) | Expression::And(_) | Expression::Or(_) => {
                write!(f, "({})", self.0)
            }
            // `!k == 'v'` negates the whole comparison.
            _ => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equals(value) => write!(f, "== {}", Quoted(value)),
            Self::Differs(value) => write!(f, "!= {}", Quoted(value)),
            Self::Contains(value) => write!(f, "contains {}", Quoted(value)),
            Self::StartsWith(value) => write!(f, "starts with {}", Quoted(value)),
            Self::EndsWith(value) => write!(f, "ends with {}", Quoted(value)),
            Self::In(set) => write!(f, "in {}", Braced(set)),
            Self::NotIn(set) => write!(f, "not in {}", Braced(set)),
        }
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('\'') { '"' } else { '\'' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

struct Braced<'a>(&'a BTreeSet<String>);

impl fmt::Display for Braced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<_> = self
            .0
            .iter()
            .map(|value| Quoted(value).to_string())
            .collect();
        write!(f, "{{{}}}", values.join(", "))
    }
}
