//! Numbers for people.

/// `12s`, `3m12s`, `2h05m`, `3d4h`.
pub(crate) fn age_s(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// `840ms`, and from a second on like [`age_s`].
pub(crate) fn age_ms(milliseconds: u64) -> String {
    if milliseconds < 1_000 { format!("{milliseconds}ms") } else { age_s(milliseconds / 1_000) }
}

/// `512 B`, `9.4 kB`, `3.2 MB`: powers of 1,000.
pub(crate) fn bytes(count: u64) -> String {
    if count < 1_000 {
        return format!("{count} B");
    }
    // Tenths of the unit, rounded; what rounds up to 1,000 of a unit is 1 of the next.
    let (mut unit, mut divisor) = (0, 1_000_u64);
    let tenths = |divisor: u64| {
        u128::from(count) * 10 / u128::from(divisor) + u128::from(count % divisor * 10 % divisor * 2 >= divisor)
    };
    while tenths(divisor) >= 10_000 && unit < 5 {
        (unit, divisor) = (unit + 1, divisor * 1_000);
    }
    let tenths = tenths(divisor);
    format!("{}.{} {}", tenths / 10, tenths % 10, ["kB", "MB", "GB", "TB", "PB", "EB"][unit])
}

/// `0.38 ms`, `21.4 ms`, `142 ms`.
pub(crate) fn rtt(milliseconds: f64) -> String {
    let digits = if milliseconds < 9.995 { 2 } else { usize::from(milliseconds < 99.95) };
    format!("{milliseconds:.digits$} ms")
}

/// `1 node`, `3 nodes`.
pub(crate) fn count(number: u64, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// Cuts text into lines of at most `width` characters, at spaces.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How far a peer's clock is from this node's. Peers tell whole seconds, so less than two says nothing.
pub(super) fn clock_offset(ms: i64) -> String {
    match ms.unsigned_abs() / 1_000 {
        0 | 1 => "clock agrees".to_owned(),
        seconds => format!("clock {} {}", age_s(seconds), if ms > 0 { "ahead" } else { "behind" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_offsets_are_no_finer_than_they_are_known() {
        for (ms, text) in
            [(0, "clock agrees"), (-1_000, "clock agrees"), (412_000, "clock 6m52s ahead"), (-2_000, "clock 2s behind")]
        {
            assert_eq!(clock_offset(ms), text);
        }
    }

    #[test]
    fn numbers_are_short_and_rounded() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (192, "3m12s"),
            (3_600, "1h00m"),
            (7_500, "2h05m"),
            (86_399, "23h59m"),
            (86_400, "1d0h"),
            (273_600, "3d4h"),
        ] {
            assert_eq!(age_s(seconds), text);
        }
        assert_eq!((age_ms(999), age_ms(41_900)), ("999ms".into(), "41s".into()));
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (9_412, "9.4 kB"),
            (9_450, "9.5 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (3_200_000, "3.2 MB"),
            (1_000_000_000, "1.0 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (milliseconds, text) in [
            (0.384, "0.38 ms"),
            (9.99, "9.99 ms"),
            (9.999, "10.0 ms"),
            (21.37, "21.4 ms"),
            (99.96, "100 ms"),
            (142.3, "142 ms"),
        ] {
            assert_eq!(rtt(milliseconds), text);
        }
        assert_eq!((count(1, "node"), count(0, "site")), ("1 node".into(), "0 sites".into()));
    }

    #[test]
    fn text_wraps_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("overlong-word x", 5), ["overlong-word", "x"]);
        assert!(wrap("  ", 5).is_empty());
    }
}
