//! Human durations: the ages in tables, which kubectl prints as they come.

use jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// A duration of `seconds` in at most two units, as kubectl's users know it: `95s`, `3m5s`, `5h27m`, `3d1h`, `2y3d`.
///
/// Up to one second below zero is `0s` (clocks differ); anything less is `<invalid>`.
pub fn human(seconds: i64) -> String {
    match seconds {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, "m", seconds % MINUTE, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        _ if seconds < 2 * YEAR => format!("{}d", seconds / DAY),
        _ if seconds < 8 * YEAR => two(seconds / YEAR, "y", seconds % YEAR / DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit}{small}{small_unit}"),
    }
}

/// Time from an RFC 3339 text to `now`; `None` if it is no such text.
pub fn since(text: &str, now: Timestamp) -> Option<String> {
    let then: Timestamp = text.parse().ok()?;
    Some(human(whole_seconds(then, now)))
}

/// Seconds from `then` to `now`, rounded towards the past.
pub fn whole_seconds(then: Timestamp, now: Timestamp) -> i64 {
    now.as_millisecond().saturating_sub(then.as_millisecond()).div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (95, "95s"),
            (119, "119s"),
            (120, "2m"),
            (185, "3m5s"),
            (180, "3m"),
            (600, "10m"),
            (124 * 60, "124m"),
            (5 * HOUR + 27 * 60, "5h27m"),
            (5 * HOUR, "5h"),
            (8 * HOUR, "8h"),
            (23 * HOUR, "23h"),
            (48 * HOUR, "2d"),
            (3 * DAY + HOUR, "3d1h"),
            (8 * DAY, "8d"),
            (400 * DAY, "400d"),
            (2 * YEAR + 3 * DAY, "2y3d"),
            (2 * YEAR, "2y"),
            (9 * YEAR + DAY, "9y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(seconds), text, "{seconds} seconds");
        }
    }

    #[test]
    fn an_age_counts_from_the_text() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(since("2026-01-01T00:00:00Z", now).as_deref(), Some("60s"));
        assert_eq!(since("yesterday", now), None);
    }
}
