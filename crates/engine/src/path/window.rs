//! How the last small questions fared.

use std::{collections::VecDeque, time::Duration};

/// Questions looked back upon.
const LENGTH: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Window {
    /// How long each answer took; none came to a lost one.
    recent: VecDeque<Option<Duration>>,
    total: Tally,
}

/// How many questions, and of how many no answer came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub asked: u64,
    pub lost: u64,
}

/// How long answers took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub last: Duration,
    pub least: Duration,
    pub mean: Duration,
    /// The mean difference between one and the next.
    pub jitter: Duration,
}

impl Window {
    pub fn answered(&mut self, took: Duration) {
        self.push(Some(took));
    }

    pub fn lost(&mut self) {
        self.total.lost += 1;
        self.push(None);
    }

    pub fn total(&self) -> Tally {
        self.total
    }

    pub fn recent(&self) -> Tally {
        let lost = self.recent.iter().filter(|took| took.is_none());
        Tally {
            asked: self.recent.len() as u64,
            lost: lost.count() as u64,
        }
    }

    pub fn times(&self) -> Option<Times> {
        let took = || self.recent.iter().flatten().copied();
        let differences = took().zip(took().skip(1)).map(|(a, b)| a.abs_diff(b));
        Some(Times {
            last: took().next_back()?,
            least: took().min()?,
            mean: mean(took())?,
            jitter: mean(differences).unwrap_or_default(),
        })
    }

    fn push(&mut self, took: Option<Duration>) {
        self.total.asked += 1;
        if self.recent.len() == LENGTH {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
    }
}

fn mean(durations: impl Iterator<Item = Duration>) -> Option<Duration> {
    let (sum, count) = durations.fold((Duration::ZERO, 0), |(sum, count), one| {
        (sum + one, count + 1)
    });
    (count > 0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_losses_are_those_of_the_last_questions() {
        let mut window = Window::default();
        assert_eq!(window.times(), None);
        for millis in [9, 1, 3, 2] {
            window.answered(Duration::from_millis(millis));
        }
        window.lost();
        let times = window.times().expect("four answers");
        let millis = |duration: Duration| duration.as_micros();
        assert_eq!(millis(times.last), 2000);
        assert_eq!(millis(times.least), 1000);
        assert_eq!(millis(times.mean), 3750);
        assert_eq!(millis(times.jitter), (8000 + 2000 + 1000) / 3);
        assert_eq!(window.recent(), Tally { asked: 5, lost: 1 });
        for _ in 0..LENGTH {
            window.lost();
        }
        assert_eq!(window.times(), None);
        assert_eq!(
            window.recent(),
            Tally {
                asked: 32,
                lost: 32
            }
        );
        assert_eq!(
            window.total(),
            Tally {
                asked: 37,
                lost: 33
            }
        );
    }
}
