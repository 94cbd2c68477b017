//! The protocol's words on the command line and in tables: one word for one
//! thing everywhere.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use ipnet::IpNet;
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

/// Exact below 2^40, and near a power of two; of what is larger, the size.
/// Counts of IPv6 pools stop at the largest number there is.
pub fn amount(count: u64) -> String {
    const EXACT: u64 = 1 << 40;
    const NEAR: u64 = 1_000_000;
    if count == u64::MAX {
        return "2^64 or more".to_owned();
    }
    let power = count.checked_ilog2().unwrap_or(0);
    let above = count - count.checked_ilog2().map_or(0, |power| 1 << power);
    // 2^64 itself is one more than there is a number for.
    let below = (1 << power) - above;
    match (above, below) {
        _ if count < EXACT => grouped(count),
        (0, _) => format!("2^{power}"),
        (1..NEAR, _) => format!("2^{power} + {}", grouped(above)),
        (_, 1..NEAR) => format!("2^{} - {}", power + 1, grouped(below)),
        _ => {
            let hundredths = count >> (power - 20);
            let hundredths = (hundredths * 100) >> 20;
            format!("{}.{:02} x 2^{power}", hundredths / 100, hundredths % 100)
        }
    }
}

/// The size of a range.
pub fn size(net: &IpNet) -> String {
    let bits = net.max_prefix_len() - net.prefix_len();
    if bits < 64 {
        amount(1 << bits)
    } else {
        format!("2^{bits}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_as_long_as_people_can_read_them() {
        for (count, text) in [
            (0, "0"),
            (1, "1"),
            (65_536, "65 536"),
            ((1 << 40) - 1, "1 099 511 627 775"),
            (1 << 40, "2^40"),
            ((1 << 48) - 3, "2^48 - 3"),
            ((1 << 48) + 1234, "2^48 + 1 234"),
            (3 << 47, "1.50 x 2^48"),
            ((1 << 49) - 2_000_000, "1.99 x 2^48"),
            (1 << 63, "2^63"),
            (u64::MAX - 1, "2^64 - 2"),
            (u64::MAX, "2^64 or more"),
        ] {
            assert_eq!(amount(count), text, "{count}");
        }
    }

    #[test]
    fn a_range_has_its_exact_size() {
        for (net, text) in [
            ("10.0.0.0/16", "65 536"),
            ("10.0.0.1/32", "1"),
            ("fd00::/64", "2^64"),
            ("fd00::/48", "2^80"),
            ("fd00::/65", "2^63"),
            ("::/0", "2^128"),
        ] {
            assert_eq!(size(&net.parse().expect("a range")), text);
        }
    }
}
