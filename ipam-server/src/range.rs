//! Ranges of addresses, merged: which are reserved, which are cut into
//! blocks. Every question costs the logarithm of the number of ranges.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_api::ipam::Family;

/// Addresses of one family as numbers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub family: Family,
    pub first: u128,
    pub last: u128,
}

/// Disjoint ranges that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    v4: BTreeMap<u128, u128>,
    v6: BTreeMap<u128, u128>,
}

pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of a number; what exceeds the family is cut off.
pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

/// The block of `length` that holds a number.
pub fn block_of(family: Family, number: u128, length: u8) -> IpNet {
    match address(family, number) {
        IpAddr::V4(address) => Ipv4Net::new_assert(address, length).trunc().into(),
        IpAddr::V6(address) => Ipv6Net::new_assert(address, length).trunc().into(),
    }
}

impl Span {
    pub fn of(net: &IpNet) -> Self {
        Self {
            family: Family::of(net.network()),
            first: number(net.network()),
            last: number(net.broadcast()),
        }
    }

    /// Addresses in it, at most `u64::MAX`.
    pub fn size(&self) -> u64 {
        u64::try_from(self.last - self.first).map_or(u64::MAX, |size| size.saturating_add(1))
    }
}

impl Ranges {
    pub fn insert(&mut self, span: Span) {
        let of_family = self.family_mut(span.family);
        let (mut first, mut last) = (span.first, span.last);
        // All that overlaps or touches becomes one.
        while let Some((&start, &end)) = of_family.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            of_family.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        of_family.insert(first, last);
    }

    pub fn remove(&mut self, span: Span) {
        let of_family = self.family_mut(span.family);
        while let Some((&start, &end)) = of_family.range(..=span.last).next_back() {
            if end < span.first {
                break;
            }
            of_family.remove(&start);
            if start < span.first {
                of_family.insert(start, span.first - 1);
            }
            if end > span.last {
                of_family.insert(span.last + 1, end);
            }
        }
    }

    /// The end of a range that shares an address with `span`, the highest if
    /// there are several.
    pub fn overlap(&self, span: Span) -> Option<u128> {
        let (_, &end) = self.family(span.family).range(..=span.last).next_back()?;
        (end >= span.first).then_some(end)
    }

    /// The end of the range that holds all of `span`.
    pub fn cover(&self, span: Span) -> Option<u128> {
        let (_, &end) = self.family(span.family).range(..=span.first).next_back()?;
        (end >= span.last).then_some(end)
    }

    pub fn contains(&self, family: Family, number: u128) -> bool {
        let span = Span {
            family,
            first: number,
            last: number,
        };
        self.cover(span).is_some()
    }

    /// How many addresses of `span` are in it, at most `u64::MAX`.
    pub fn size_within(&self, span: Span) -> u64 {
        let touching = self.family(span.family).range(..=span.last).rev();
        touching
            .take_while(|(_, end)| **end >= span.first)
            .map(|(start, end)| Span {
                family: span.family,
                first: span.first.max(*start),
                last: span.last.min(*end),
            })
            .fold(0, |sum: u64, part| sum.saturating_add(part.size()))
    }

    fn family(&self, family: Family) -> &BTreeMap<u128, u128> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn family_mut(&mut self, family: Family) -> &mut BTreeMap<u128, u128> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn span(first: u128, last: u128) -> Span {
        Span {
            family: Family::V4,
            first,
            last,
        }
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_numbers(
            steps in proptest::collection::vec((any::<bool>(), 0_u128..60, 0_u128..12), 1..40),
            at in 0_u128..60,
            length in 0_u128..12,
        ) {
            let mut ranges = Ranges::default();
            let mut set = BTreeSet::new();
            for (insert, first, length) in steps {
                let numbers = first..=first + length;
                if insert {
                    ranges.insert(span(first, first + length));
                    set.extend(numbers);
                } else {
                    ranges.remove(span(first, first + length));
                    set.retain(|number| !numbers.contains(number));
                }
            }
            let asked = span(at, at + length);
            let inside = (at..=at + length).filter(|number| set.contains(number)).count() as u128;
            prop_assert_eq!(ranges.overlap(asked).is_some(), inside > 0);
            prop_assert_eq!(ranges.cover(asked).is_some(), inside == length + 1);
            prop_assert!(ranges.v4.iter().zip(ranges.v4.iter().skip(1))
                .all(|((_, end), (start, _))| end + 1 < *start));
        }
    }

    #[test]
    fn the_whole_of_ipv6_is_one_range() {
        let all = Span::of(&"::/0".parse().expect("valid"));
        let mut ranges = Ranges::default();
        ranges.insert(all);
        assert_eq!(ranges.cover(all), Some(u128::MAX));
        assert_eq!(all.size(), u64::MAX);
        ranges.remove(all);
        assert_eq!(ranges, Ranges::default());
    }
}
