//! How long ago something was, in words.

use std::time::{SystemTime, UNIX_EPOCH};

use weft_api::ipam::Time;

/// By this machine's clock.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// In the largest unit of which there is at least one.
pub fn ago(then: Time, now: Time) -> String {
    let Some(millis) = now.checked_sub(then) else {
        return "in the future".to_owned();
    };
    let seconds = millis / 1000;
    let (count, unit) = match seconds {
        0 => return "just now".to_owned(),
        1..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        86_400.. => (seconds / 86_400, "d"),
    };
    format!("{count} {unit} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        const NOW: Time = 1_000_000_000_000;
        for (seconds, told) in [
            (0, "just now"),
            (1, "1 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3599, "59 min ago"),
            (3600, "1 h ago"),
            (86_399, "23 h ago"),
            (86_400, "1 d ago"),
            (864_000, "10 d ago"),
        ] {
            assert_eq!(ago(NOW - seconds * 1000, NOW), told);
        }
        assert_eq!(ago(NOW + 1, NOW), "in the future");
        assert!(now() > NOW, "the clock says it is before 2001-09-09");
    }
}
