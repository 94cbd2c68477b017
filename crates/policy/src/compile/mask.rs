//! Sets of small numbers, a bit each.

use smallvec::SmallVec;

const WORD: usize = u64::BITS as usize;

/// Grows as it is written; what lies beyond its end is not in it.
#[derive(Clone, Debug, Default)]
pub struct Mask(Vec<u64>);

impl Mask {
    pub fn insert(&mut self, bit: usize) {
        let place = bit / WORD;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] |= 1 << (bit % WORD);
    }

    pub fn remove(&mut self, bit: usize) {
        if let Some(word) = self.0.get_mut(bit / WORD) {
            *word &= !(1 << (bit % WORD));
        }
    }

    pub fn holds(&self, bit: usize) -> bool {
        self.word(bit / WORD) & (1 << (bit % WORD)) != 0
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub fn is_same(&self, other: &Self) -> bool {
        let places = self.0.len().max(other.0.len());
        (0..places).all(|place| self.word(place) == other.word(place))
    }

    /// Adds what the other holds.
    pub fn extend(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    pub fn word(&self, place: usize) -> u64 {
        self.0.get(place).copied().unwrap_or(0)
    }

    /// What both hold, least first.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let pairs = self.0.iter().zip(&other.0).enumerate();
        pairs.flat_map(|(place, (a, b))| ones(a & b).map(move |bit| place * WORD + bit))
    }
}

/// The bits of one word, least first.
pub fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// A set of a program's rules, of a length that is set when it is made. A
/// program of 1024 rules needs no allocation.
#[derive(Clone, Debug)]
pub struct RuleSet(SmallVec<[u64; 16]>);

impl RuleSet {
    pub fn of(rules: usize) -> Self {
        Self(SmallVec::from_elem(0, rules.div_ceil(WORD)))
    }

    pub fn insert(&mut self, rule: u32) {
        let rule = rule as usize;
        self.0[rule / WORD] |= 1 << (rule % WORD);
    }

    /// The least that both hold, from `start` on and before `end`.
    pub fn first_common(&self, other: &Self, start: usize, end: usize) -> Option<usize> {
        let pairs = self.0.iter().zip(&other.0).enumerate().skip(start / WORD);
        for (place, (a, b)) in pairs {
            let mut both = a & b;
            if place == start / WORD {
                both &= u64::MAX << (start % WORD);
            }
            if both != 0 {
                let rule = place * WORD + both.trailing_zeros() as usize;
                return (rule < end).then_some(rule);
            }
        }
        None
    }
}

/// Lists of rules by a sparse number, looked up by all that a [`Mask`] holds
/// at once: a word of the mask costs one step, however many bits it has.
#[derive(Debug, Default)]
pub struct RulesByBit {
    words: Vec<Word>,
    /// Where in `rules` the list of each present bit begins; one more at the
    /// end.
    starts: Vec<u32>,
    rules: Vec<u32>,
}

#[derive(Debug)]
struct Word {
    place: u32,
    bits: u64,
    /// Where in `starts` its least bit stands.
    first: u32,
}

impl RulesByBit {
    /// From pairs of a bit and a rule, in any order.
    pub fn new(mut pairs: Vec<(u32, u32)>) -> Self {
        pairs.sort_unstable();
        pairs.dedup();
        let mut lists = Self::default();
        let mut last = None;
        for (bit, rule) in pairs {
            if last != Some(bit) {
                last = Some(bit);
                lists.begin(bit);
            }
            lists.rules.push(rule);
        }
        lists.starts.push(small(lists.rules.len()));
        lists
    }

    fn begin(&mut self, bit: u32) {
        let place = bit / u64::BITS;
        if self.words.last().is_none_or(|word| word.place != place) {
            let first = small(self.starts.len());
            self.words.push(Word {
                place,
                bits: 0,
                first,
            });
        }
        if let Some(word) = self.words.last_mut() {
            word.bits |= 1 << (bit % u64::BITS);
        }
        self.starts.push(small(self.rules.len()));
    }

    pub fn each(&self, mask: &Mask, mut take: impl FnMut(u32)) {
        for word in &self.words {
            for bit in ones(word.bits & mask.word(word.place as usize)) {
                let below = word.bits & ((1 << bit) - 1);
                let list = (word.first + below.count_ones()) as usize;
                let (start, end) = (self.starts[list] as usize, self.starts[list + 1] as usize);
                self.rules[start..end].iter().copied().for_each(&mut take);
            }
        }
    }
}

/// A count of things in memory as the tables keep it.
pub fn small(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than four thousand million rules fit into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_what_was_put_in() {
        let mut mask = Mask::default();
        mask.insert(3);
        mask.insert(200);
        mask.insert(64);
        mask.remove(64);
        mask.remove(10_000);
        assert!(mask.holds(3) && mask.holds(200) && !mask.holds(64) && !mask.holds(999));
        let mut other = mask.clone();
        other.remove(3);
        assert_eq!(mask.common(&other).collect::<Vec<_>>(), [200]);
    }

    #[test]
    fn lists_are_found_by_the_bits_of_a_mask() {
        let lists = RulesByBit::new(vec![(130, 7), (2, 1), (2, 0), (63, 5), (2, 1)]);
        let found = |bits: &[usize]| {
            let mut mask = Mask::default();
            bits.iter().for_each(|bit| mask.insert(*bit));
            let mut rules = Vec::new();
            lists.each(&mask, |rule| rules.push(rule));
            rules
        };
        assert_eq!(found(&[]), [0; 0]);
        assert_eq!(found(&[2]), [0, 1]);
        assert_eq!(found(&[1, 3, 62, 131]), [0; 0]);
        assert_eq!(found(&[63, 130]), [5, 7]);
    }

    #[test]
    fn the_first_common_rule_lies_between_the_bounds() {
        let set = |rules: &[u32]| {
            let mut set = RuleSet::of(200);
            rules.iter().for_each(|rule| set.insert(*rule));
            set
        };
        let (a, b) = (set(&[1, 64, 70, 130]), set(&[2, 64, 70, 130, 199]));
        assert_eq!(a.first_common(&b, 0, 200), Some(64));
        assert_eq!(a.first_common(&b, 65, 200), Some(70));
        assert_eq!(a.first_common(&b, 71, 130), None);
        assert_eq!(a.first_common(&b, 71, 131), Some(130));
        assert_eq!(a.first_common(&b, 200, 200), None);
    }
}
