//! Times on the wire.

/// Seconds since 1970-01-01T00:00:00Z as RFC 3339 in UTC, for example `2026-03-01T12:00:00Z`.
///
/// Years beyond 9999 do not fit the format; such times read as the last second of 9999.
#[must_use]
pub fn rfc3339(unix_s: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let unix_s = unix_s.min(LAST);
    let (days, second_of_day) = (unix_s / 86_400, unix_s % 86_400);
    // Civil date from a day count, in eras of 400 years that start on 1 March, so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Nanoseconds since 1970-01-01T00:00:00Z as RFC 3339 in UTC with nine digits of fraction.
#[must_use]
pub fn rfc3339_ns(unix_ns: u64) -> String {
    let seconds = rfc3339(unix_ns / 1_000_000_000);
    format!("{}.{:09}Z", seconds.trim_end_matches('Z'), unix_ns % 1_000_000_000)
}

/// Reads RFC 3339 in UTC (`Z`), with or without a fraction, as nanoseconds since 1970-01-01T00:00:00Z. Nothing for other
/// texts, other offsets, times before 1970 and after 2554, where nanoseconds do not fit.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let (date, time) = whole.split_once('T')?;
    let field = |digits: Option<&str>, length: usize, range: std::ops::RangeInclusive<u64>| -> Option<u64> {
        let digits = digits.filter(|d| d.len() == length && d.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse().ok().filter(|number| range.contains(number))
    };
    let (mut date, mut time) = (date.split('-'), time.split(':'));
    let (year, month, day) =
        (field(date.next(), 4, 1970..=2554)?, field(date.next(), 2, 1..=12)?, field(date.next(), 2, 1..=31)?);
    let (hour, minute, second) =
        (field(time.next(), 2, 0..=23)?, field(time.next(), 2, 0..=59)?, field(time.next(), 2, 0..=60)?);
    let is_number = !fraction.is_empty() && fraction.len() <= 9 && fraction.bytes().all(|b| b.is_ascii_digit());
    if date.next().is_some() || time.next().is_some() || !is_number {
        return None;
    }
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    // The inverse of [`rfc3339`]: years begin in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    // A day that the month does not have would be another one.
    if second < 60 && !rfc3339(seconds).starts_with(&format!("{year:04}-{month:02}-{day:02}T")) {
        return None;
    }
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for ns in [0, 1, 951_782_399_999_999_999, 1_709_164_800_000_000_000, 4_107_542_400_123_456_789] {
            assert_eq!(parse_rfc3339(&rfc3339_ns(ns)), Some(ns));
            assert_eq!(parse_rfc3339(&rfc3339(ns / 1_000_000_000)), Some(ns / 1_000_000_000 * 1_000_000_000));
        }
        assert_eq!(parse_rfc3339("2026-03-01T12:00:00.5Z"), Some(1_772_366_400_500_000_000));
        for wrong in [
            "",
            "Z",
            "2026-03-01",
            "2026-03-01T12:00:00",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-03-01T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-03-01T12:00:00.Z",
            "2026-03-01T12:00:00+01:00",
            "2026-3-1T1:2:3Z",
            "2026-03-01T12:00:00.1234567890Z",
            "9999-01-01T00:00:00Z",
            "2026-03-01T12:00Z",
        ] {
            assert_eq!(parse_rfc3339(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn known_moments_are_written_as_calendars_do() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_000_000_000, "2001-09-09T01:46:40Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
        }
    }
}
