//! How long to wait before the next attempt.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Longer pauses than this only fill memory with waiting rows.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The pause after the given number of failures: doubled each time, jittered to between half and one and a half, and
/// never less than what the server asked for.
pub(super) fn pause(first: Duration, failures: u32, retry_after: Option<Duration>) -> Duration {
    // Every RandomState has other keys: enough chance to spread a crowd.
    let chance = (RandomState::new().hash_one(failures) >> 11) as f64 / (1_u64 << 53) as f64;
    let doubled = first.saturating_mul(1 << (failures.saturating_sub(1)).min(16));
    let jittered = doubled.min(MAX_PAUSE).mul_f64(0.5 + chance);
    // A jitter on the server's time as well, so that all its rows do not come back at once.
    retry_after.map_or(jittered, |asked| jittered.max(asked + first.mul_f64(chance)))
}

/// `Retry-After` in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = http_date(value)?;
    Some(date.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may send.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let fields: Vec<&str> = text.split([' ', ':']).filter(|field| !field.is_empty()).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = fields[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let number = |field: &str| field.parse::<u32>().ok().map(i64::from);
    let (day, year) = (number(day)?, number(year)?);
    // Days since 1970 of the proleptic Gregorian calendar, with years that start in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    let seconds = days * 86_400 + number(hour)? * 3600 + number(minute)? * 60 + number(second)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_within_their_jitter_and_respect_the_server() {
        for failures in 1..5 {
            let doubled = Duration::from_millis(100 << (failures - 1));
            let pause = pause(Duration::from_millis(100), failures, None);
            assert!(pause >= doubled / 2 && pause < doubled * 3 / 2, "{failures}: {pause:?}");
        }
        assert!(pause(Duration::from_millis(1), 1, Some(Duration::from_secs(9))) >= Duration::from_secs(9));
    }

    #[test]
    fn dates_are_read() {
        let date = |text| http_date(text).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), 784_111_777);
        assert_eq!(date("Thu, 29 Feb 2024 00:00:00 GMT"), 1_709_164_800);
        assert!(http_date("yesterday").is_none());
    }
}
