//! Looking at Rust source without parsing it: enough to tell code from comments, strings and tests.

/// The source with every comment, string and character literal blanked; line breaks stay, so line numbers do too.
pub(crate) fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        match end {
            Some(end) => {
                out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
                at = end;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

/// If a comment or literal starts at `at`: where it ends.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let starts = |text: &str| text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let in_word = at > 0 && is_word(chars[at - 1]);
    if starts("//") {
        return Some(chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n));
    }
    if starts("/*") {
        let mut depth = 0_u32;
        let mut i = at;
        while i < chars.len() {
            match (chars[i], chars.get(i + 1)) {
                ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
                ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
                _ => i += 1,
            }
            if depth == 0 {
                break;
            }
        }
        return Some(i.min(chars.len()));
    }
    if !in_word && (starts("r\"") || starts("r#") || starts("br\"") || starts("br#")) {
        let hashes_at = at + if chars[at] == 'b' { 2 } else { 1 };
        let hashes = chars[hashes_at..].iter().take_while(|c| **c == '#').count();
        if chars.get(hashes_at + hashes) != Some(&'"') {
            return None; // A raw identifier such as r#type.
        }
        let mut i = hashes_at + hashes + 1;
        while i < chars.len() {
            let closing =
                chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
            if closing {
                return Some((i + 1 + hashes).min(chars.len()));
            }
            i += 1;
        }
        return Some(chars.len());
    }
    if starts("\"") {
        return Some(quoted_end(chars, at, '"'));
    }
    // A character literal, and not a lifetime: 'x' or '\…'.
    if starts("'") && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'')) {
        return Some(quoted_end(chars, at, '\''));
    }
    None
}

fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Code (see [`code_only`]) without its `#[cfg(test)]` items.
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        out += &rest[..start];
        let item = &rest[start..];
        let body = item.find(['{', ';']).unwrap_or(item.len());
        let end =
            if item[body..].starts_with('{') { body + block_length(&item[body..]) } else { (body + 1).min(item.len()) };
        out.extend(item[..end].chars().filter(|c| *c == '\n'));
        rest = &item[end..];
    }
    out + rest
}

/// Length of the block that `text` starts with, braces included.
fn block_length(text: &str) -> usize {
    let mut depth = 0_u32;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    text.len()
}

/// Line numbers (from 1) at which `pattern` stands in `code`, its ends not inside a longer word.
pub(crate) fn lines_with(code: &str, pattern: &str) -> Vec<usize> {
    let first_is_word = pattern.chars().next().is_some_and(is_word);
    let last_is_word = pattern.chars().next_back().is_some_and(is_word);
    code.lines()
        .enumerate()
        .flat_map(|(number, line)| {
            let whole = line.match_indices(pattern).filter(move |(at, _)| {
                let before = line[..*at].chars().next_back().is_some_and(is_word);
                let after = line[at + pattern.len()..].chars().next().is_some_and(is_word);
                let inside_longer = (first_is_word && before) || (last_is_word && after);
                !inside_longer
            });
            whole.map(move |_| number + 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        for (source, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("unsafe", 'u')"#, "f(        ,    )"),
            (r#"f("\"unsafe")"#, "f(          )"),
            ("r#\"a \" b\"# c", "           c"),
            ("br\"a\" c", "      c"),
            ("r#type", "r#type"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("'\\'' x", "     x"),
            ("/* open", "       "),
            ("\"open", "     "),
        ] {
            assert_eq!(code_only(source), code, "{source}");
        }
    }

    #[test]
    fn tests_are_cut_and_lines_kept() {
        let code = "a\n#[cfg(test)]\nmod tests {\n fn f() { {} }\n}\nb\n#[cfg(test)]\nmod tests;\nc";
        assert_eq!(without_tests(code), "a\n\n\n\n\nb\n\n\nc");
        assert_eq!(without_tests("#[cfg(test)]\nmod tests {"), "\n");
    }

    #[test]
    fn patterns_are_whole_words() {
        assert_eq!(lines_with("unsafe {\nunsafe_code\nmy unsafe unsafe", "unsafe"), [1, 3, 3]);
        assert_eq!(lines_with("Instant::now()\nMyInstant::now()", "Instant::now"), [1]);
        assert_eq!(lines_with("print!()\nx_print!()", "print!"), [1]);
    }
}
