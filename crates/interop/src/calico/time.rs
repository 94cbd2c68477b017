//! Times as Kubernetes writes them: `2026-01-31T12:00:00Z`.

const DAY: u64 = 24 * 3600;

/// Days from 0000-03-01, with which years of this reckoning begin so that the
/// leap day ends them, to 1970-01-01.
const EPOCH: u64 = 719_468;

/// In 400 years.
const DAYS: u64 = 146_097;

/// Of seconds since 1970.
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / DAY + EPOCH, seconds % DAY);
    let (era, day) = (days / DAYS, days % DAYS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = match month < 10 {
        true => (month + 3, 0),
        false => (month - 9, 1),
    };
    let year = era * 400 + year + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// In seconds since 1970, a fraction of one left out.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let parts: Result<Vec<u64>, _> = text.split(by).map(str::parse).collect();
        parts.ok()?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.split('.').next()?, ':')?;
    let sound =
        (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sound || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - EPOCH;
    Some(days * DAY + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:01Z", 951_825_601),
            ("2000-03-01T00:00:00Z", 951_868_800),
            ("2026-12-31T23:59:59Z", 1_798_761_599),
            ("2100-02-28T00:00:00Z", 4_107_456_000),
        ] {
            assert_eq!(parse_rfc3339(text), Some(seconds), "{text}");
            assert_eq!(rfc3339(seconds), text);
        }
        assert_eq!(parse_rfc3339("2000-02-29T12:00:01.5Z"), Some(951_825_601));
        assert_eq!(parse_rfc3339("2026-13-01T00:00:00Z"), None);
    }
}
