//! The protocol's words on the command line and in tables: one word for one
//! thing everywhere.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::{Serialize, de::DeserializeOwned};
use weft_api::{
    ipam::Allocation,
    names::{Handle, Name, NameError},
};

use crate::output::grouped;

pub const USES: &[&str] = &["workload", "tunnel", "load-balancer"];
pub const ENCAPSULATIONS: &[&str] = &["vxlan", "ipip", "none"];
pub const WHENS: &[&str] = &["always", "cross-subnet"];

/// One of these words, as the protocol has them.
pub fn one_of<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| serde_json::from_value(word.into()))
}

/// The protocol's word for a value.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

pub fn name(text: &str) -> Result<Name, NameError> {
    Name::new(text)
}

pub fn handle(text: &str) -> Result<Handle, NameError> {
    Handle::new(text)
}

/// Nothing where there is nothing.
pub fn maybe(value: &Option<impl ToString>) -> String {
    value.as_ref().map(ToString::to_string).unwrap_or_default()
}

pub fn joined(list: &[impl ToString]) -> String {
    let words: Vec<_> = list.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// Counts of IPv6 pools stop at the largest number there is.
pub fn amount(count: u64) -> String {
    if count == u64::MAX {
        "over 2^64".to_owned()
    } else {
        grouped(count)
    }
}

/// Whose an address is: as a person would say it.
pub fn holder(allocation: &Allocation) -> String {
    match (&allocation.pod, &allocation.handle, &allocation.identity) {
        (_, None, Some(identity)) => format!("kept for {identity}"),
        (_, None, None) => "nobody, it rests".to_owned(),
        (Some(pod), Some(_), _) => format!("pod {}/{}", pod.namespace, pod.name),
        (None, Some(handle), _) => handle.to_string(),
    }
}
