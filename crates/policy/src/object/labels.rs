//! Labels, and the selectors that look at them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::spelling;

/// A key may stand once; keys and values are spelled as Kubernetes asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// Matches labels that meet every requirement; of none, all labels.
///
/// Requirements are sorted and stand once, so that two selectors that ask the
/// same in another order are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "SelectorText")]
pub struct Selector(BTreeSet<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key has one of the values, of which there is one at least.
    In(String, BTreeSet<String>),
    /// The key has none of the values; it may be absent.
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Labels {
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.0.insert(key.to_owned(), value.to_owned());
    }
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.is_met(labels))
    }

    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }

    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }
}

impl Requirement {
    pub fn key(&self) -> &str {
        let (Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key)) =
            self;
        key
    }

    pub fn is_met(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.value(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => !labels.value(key).is_some_and(|v| values.contains(v)),
            Self::Exists(key) => labels.value(key).is_some(),
            Self::DoesNotExist(key) => labels.value(key).is_none(),
        }
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = String;

    fn try_from(text: BTreeMap<String, String>) -> Result<Self, String> {
        for (key, value) in &text {
            check(key, spelling::label_key)?;
            check(value, spelling::label_value)?;
        }
        Ok(Self(text))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectorText {
    match_labels: Option<Labels>,
    match_expressions: Option<Vec<ExpressionText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpressionText {
    key: String,
    operator: Operator,
    values: Option<BTreeSet<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl TryFrom<SelectorText> for Selector {
    type Error = String;

    fn try_from(text: SelectorText) -> Result<Self, String> {
        let equal = text.match_labels.unwrap_or_default().0;
        let mut requirements: BTreeSet<_> = equal
            .into_iter()
            .map(|(key, value)| Requirement::In(key, BTreeSet::from([value])))
            .collect();
        for expression in text.match_expressions.unwrap_or_default() {
            requirements.insert(expression.requirement()?);
        }
        Ok(Self(requirements))
    }
}

impl ExpressionText {
    fn requirement(self) -> Result<Requirement, String> {
        let Self {
            key,
            operator,
            values,
        } = self;
        check(&key, spelling::label_key)?;
        let values = values.unwrap_or_default();
        for value in &values {
            check(value, spelling::label_value)?;
        }
        let wants_values = matches!(operator, Operator::In | Operator::NotIn);
        if wants_values == values.is_empty() {
            let how_many = if wants_values {
                "one value at least"
            } else {
                "no values"
            };
            return Err(format!(
                "key \"{key}\": operator {operator:?} takes {how_many}"
            ));
        }
        Ok(match operator {
            Operator::In => Requirement::In(key, values),
            Operator::NotIn => Requirement::NotIn(key, values),
            Operator::Exists => Requirement::Exists(key),
            Operator::DoesNotExist => Requirement::DoesNotExist(key),
        })
    }
}

/// `text`, if `rule` allows it.
pub(super) fn check(
    text: &str,
    rule: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<(), String> {
    rule(text).map_err(|wrong| format!("\"{text}\" {wrong}"))
}
