//! Times as people write them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since 1970-01-01 UTC as RFC 3339 in whole seconds, such as `2026-11-21T07:06:19Z`.
pub fn of_ms(milliseconds: u64) -> String {
    let seconds = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    // Only years after 9999 cannot be written.
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| milliseconds.to_string())
}

/// The same for a time of a file; nothing for a file that is older than 1970.
pub fn of_system(time: std::time::SystemTime) -> Option<String> {
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(of_ms(u64::try_from(since.as_millis()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(of_ms(0), "1970-01-01T00:00:00Z");
        assert_eq!(of_ms(1_000_000_000_999), "2001-09-09T01:46:40Z");
        assert_eq!(of_ms(u64::MAX), u64::MAX.to_string());
    }
}
