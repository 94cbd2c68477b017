//! Text to expression, by recursive descent. Calls nothing but its own steps;
//! every step either moves on in the text or fails.

use std::collections::BTreeSet;

use super::{DEPTH_MAX, Expression, LABEL_MAX, SelectorError, Test};

pub(super) fn selector(text: &str) -> Result<Expression, SelectorError> {
    let mut cursor = Cursor { text, at: 0 };
    cursor.skip_blanks();
    if cursor.rest().is_empty() {
        return Ok(Expression::All);
    }
    let expression = any(&mut cursor, 0)?;
    if cursor.rest().is_empty() {
        Ok(expression)
    } else {
        Err(cursor.expected("'&&', '||' or the end"))
    }
}

fn any(cursor: &mut Cursor, depth: usize) -> Result<Expression, SelectorError> {
    let mut parts = vec![all_of(cursor, depth)?];
    while cursor.take("||") {
        parts.push(all_of(cursor, depth)?);
    }
    Ok(sole(parts).unwrap_or_else(Expression::Or))
}

fn all_of(cursor: &mut Cursor, depth: usize) -> Result<Expression, SelectorError> {
    let mut parts = vec![test(cursor, depth)?];
    while cursor.take("&&") {
        parts.push(test(cursor, depth)?);
    }
    Ok(sole(parts).unwrap_or_else(Expression::And))
}

fn sole(mut parts: Vec<Expression>) -> Result<Expression, Vec<Expression>> {
    match parts.pop() {
        Some(only) if parts.is_empty() => Ok(only),
        last => {
            parts.extend(last);
            Err(parts)
        }
    }
}

fn test(cursor: &mut Cursor, depth: usize) -> Result<Expression, SelectorError> {
    let mut negated = false;
    while cursor.take("!") {
        negated = !negated;
    }
    let inner = if cursor.looks_at("(") {
        if depth == DEPTH_MAX {
            return Err(cursor.expected(&format!("at most {DEPTH_MAX} nested parentheses")));
        }
        cursor.take("(");
        let inner = any(cursor, depth + 1)?;
        cursor.need(")")?;
        inner
    } else if cursor.take("all(") {
        cursor.need(")")?;
        Expression::All
    } else if cursor.take("global(") {
        cursor.need(")")?;
        Expression::Global
    } else if cursor.take("has(") {
        let label = cursor.label("a label")?;
        cursor.need(")")?;
        Expression::Has(label)
    } else {
        let label = cursor.label("a label, 'has(', 'all()', 'global()', '!' or '('")?;
        Expression::Label(label, operator(cursor)?)
    };
    Ok(match negated {
        true => Expression::Not(Box::new(inner)),
        false => inner,
    })
}

fn operator(cursor: &mut Cursor) -> Result<Test, SelectorError> {
    const OPERATORS: &str = "'==', '!=', 'in', 'not in', 'contains', 'starts with' or 'ends with'";
    Ok(if cursor.take("==") {
        Test::Equals(cursor.string()?)
    } else if cursor.take("!=") {
        Test::Differs(cursor.string()?)
    } else if cursor.take_words(&["contains"]) {
        Test::Contains(cursor.string()?)
    } else if cursor.take_words(&["starts", "with"]) {
        Test::StartsWith(cursor.string()?)
    } else if cursor.take_words(&["ends", "with"]) {
        Test::EndsWith(cursor.string()?)
    } else if cursor.take_words(&["not", "in"]) {
        Test::NotIn(set(cursor)?)
    } else if cursor.take_words(&["in"]) {
        Test::In(set(cursor)?)
    } else {
        return Err(cursor.expected(OPERATORS));
    })
}

fn set(cursor: &mut Cursor) -> Result<BTreeSet<String>, SelectorError> {
    cursor.need("{")?;
    let mut values = BTreeSet::new();
    while !cursor.take("}") {
        values.insert(cursor.string()?);
        if !cursor.take(",") && !cursor.looks_at("}") {
            return Err(cursor.expected("',' or '}'"));
        }
    }
    Ok(values)
}

/// Stands before the next word: blanks are skipped after each step.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.skip_blanks();
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn looks_at(&self, token: &str) -> bool {
        self.rest().starts_with(token)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.looks_at(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    fn need(&mut self, token: &str) -> Result<(), SelectorError> {
        if self.take(token) {
            Ok(())
        } else {
            Err(self.expected(&format!("'{token}'")))
        }
    }

    /// Words with or without blanks between them, and no further letter
    /// after the last, as Calico reads its operators.
    fn take_words(&mut self, words: &[&str]) -> bool {
        let start = self.at;
        let mut end = self.at;
        for word in words {
            if !self.looks_at(word) {
                self.at = start;
                return false;
            }
            end = self.at + word.len();
            self.advance(word.len());
        }
        let goes_on = self.text[end..].starts_with(in_label);
        if goes_on {
            self.at = start;
        }
        !goes_on
    }

    fn label(&mut self, expected: &str) -> Result<String, SelectorError> {
        let rest = self.rest();
        let label = &rest[..rest.find(|c| !in_label(c)).unwrap_or(rest.len())];
        if label.is_empty() {
            return Err(self.expected(expected));
        }
        if label.len() > LABEL_MAX {
            return Err(SelectorError {
                at: self.at,
                found: format!("a label of {} bytes", label.len()),
                expected: format!("at most {LABEL_MAX}"),
            });
        }
        self.advance(label.len());
        Ok(label.to_owned())
    }

    fn string(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let Some(quote) = quote else {
            return Err(self.expected("a string in quotes"));
        };
        let Some((value, _)) = rest[1..].split_once(quote) else {
            return Err(SelectorError {
                at: self.text.len(),
                found: "the end".into(),
                expected: format!("the closing {quote} of the string at byte {}", self.at),
            });
        };
        self.advance(value.len() + 2);
        Ok(value.to_owned())
    }

    fn expected(&self, expected: &str) -> SelectorError {
        /// Enough to recognise the place.
        const SHOWN: usize = 20;
        let rest = self.rest();
        let found = match rest.chars().nth(SHOWN) {
            _ if rest.is_empty() => "the end".into(),
            None => format!("{rest:?}"),
            Some(_) => format!("{:?}…", rest.chars().take(SHOWN).collect::<String>()),
        };
        SelectorError {
            at: self.at,
            found,
            expected: expected.to_owned(),
        }
    }
}

fn in_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./-".contains(c)
}
