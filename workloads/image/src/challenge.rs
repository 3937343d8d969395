//! What a server wants to know of who asks: the field `WWW-Authenticate` (RFC 9110, section 11.6.1), read strictly.

use std::fmt;

/// Longest field that is read.
pub const FIELD_BYTES_MAX: usize = 8_192;
/// Most challenges of a field.
const CHALLENGES_MAX: usize = 16;
/// Most parameters of a challenge.
const PARAMETERS_MAX: usize = 32;

/// One way to say who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case: `basic`, `bearer`.
    pub scheme: String,
    /// What some schemes have instead of parameters.
    pub token68: Option<String>,
    /// Names in lower case, and values without their quotes.
    pub parameters: Vec<(String, String)>,
}

/// Why a field cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// Longer than any that is meant well.
    #[error("it has more than {FIELD_BYTES_MAX} bytes")]
    TooLong,
    /// More challenges or parameters than are read.
    #[error("it has more than {CHALLENGES_MAX} challenges, or {PARAMETERS_MAX} parameters in one")]
    TooMany,
    /// Something else than the grammar has at a place.
    #[error("it is wrong at byte {at}")]
    Grammar {
        /// Where.
        at: usize,
    },
    /// The same parameter twice: two programs could read two things.
    #[error("it has a parameter twice")]
    Twice,
}

impl Challenge {
    /// The value of a parameter, whose name is in lower case.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.scheme)?;
        if let Some(token) = &self.token68 {
            write!(f, " {token}")?;
        }
        for (number, (name, value)) in self.parameters.iter().enumerate() {
            let separator = if number == 0 { " " } else { ", " };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "{separator}{name}=\"{value}\"")?;
        }
        Ok(())
    }
}

/// Reads one field.
///
/// # Errors
///
/// [`ChallengeError`]: the field is too long, holds too much, or does not follow the grammar.
pub fn parse(field: &str) -> Result<Vec<Challenge>, ChallengeError> {
    if field.len() > FIELD_BYTES_MAX {
        return Err(ChallengeError::TooLong);
    }
    let mut input = Input { bytes: field.as_bytes(), at: 0 };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        while input.space() || input.take(b',') {}
        if input.peek().is_none() {
            return Ok(challenges);
        }
        let name = input.token()?.to_ascii_lowercase();
        let spaced = input.space();
        if input.peek() == Some(b'=')
            && let Some(challenge) = challenges.last_mut().filter(|challenge| challenge.token68.is_none())
        {
            input.at += 1;
            input.space();
            let value = input.value()?;
            if challenge.parameter(&name).is_some() {
                return Err(ChallengeError::Twice);
            }
            if challenge.parameters.len() == PARAMETERS_MAX {
                return Err(ChallengeError::TooMany);
            }
            challenge.parameters.push((name, value));
            input.end_of_item()?;
            continue;
        }
        if !spaced && !matches!(input.peek(), None | Some(b',')) {
            return Err(input.wrong());
        }
        if challenges.len() == CHALLENGES_MAX {
            return Err(ChallengeError::TooMany);
        }
        let token68 = input.token68();
        challenges.push(Challenge { scheme: name, token68, parameters: Vec::new() });
    }
}

/// A field and how far it was read.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn wrong(&self) -> ChallengeError {
        ChallengeError::Grammar { at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Goes over white space; says whether there was some.
    fn space(&mut self) -> bool {
        let start = self.at;
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        self.at > start
    }

    fn run(&mut self, fits: impl Fn(u8) -> bool) -> &str {
        let start = self.at;
        while self.peek().is_some_and(&fits) {
            self.at += 1;
        }
        std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default()
    }

    fn token(&mut self) -> Result<String, ChallengeError> {
        let token = self.run(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)).to_owned();
        if token.is_empty() { Err(self.wrong()) } else { Ok(token) }
    }

    /// After the scheme: a token68, if that is what is there. A parameter begins like one and goes on after its `=`.
    fn token68(&mut self) -> Option<String> {
        let start = self.at;
        let mut token = self.run(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte)).to_owned();
        if !token.is_empty() {
            token.push_str(self.run(|byte| byte == b'='));
            self.space();
            if matches!(self.peek(), None | Some(b',')) {
                return Some(token);
            }
        }
        self.at = start;
        None
    }

    fn value(&mut self) -> Result<String, ChallengeError> {
        if !self.take(b'"') {
            return self.token();
        }
        let mut value = Vec::new();
        loop {
            let byte = match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    break;
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.peek()
                }
                other => other,
            };
            match byte {
                Some(byte) if byte == b'\t' || (byte >= b' ' && byte != 0x7f) => value.push(byte),
                _ => return Err(self.wrong()),
            }
            self.at += 1;
        }
        // Only an escape within a letter of several bytes could cut it, and then the letter is gone.
        String::from_utf8(value).map_err(|_| self.wrong())
    }

    fn end_of_item(&mut self) -> Result<(), ChallengeError> {
        self.space();
        if matches!(self.peek(), None | Some(b',')) { Ok(()) } else { Err(self.wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, token68: Option<&str>, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), token68: token68.map(str::to_owned), parameters }
    }

    #[test]
    fn fields_of_registries_are_read() {
        let token = r#"Bearer realm="https://auth.example/token",service="registry.example""#;
        let bearer =
            challenge("bearer", None, &[("realm", "https://auth.example/token"), ("service", "registry.example")]);
        let basic = challenge("basic", None, &[("realm", "a \"quoted\" one")]);
        for (field, expected) in [
            ("", vec![]),
            (token, vec![bearer.clone()]),
            (r#"BASIC Realm = "a \"quoted\" one""#, vec![basic.clone()]),
            (
                &format!(r#"Negotiate, {token}, Basic realm="a \"quoted\" one""#),
                vec![challenge("negotiate", None, &[]), bearer, basic],
            ),
            (
                "Negotiate YWJj==, Basic realm=x",
                vec![challenge("negotiate", Some("YWJj=="), &[]), challenge("basic", None, &[("realm", "x")])],
            ),
            (",, Basic ,", vec![challenge("basic", None, &[])]),
        ] {
            assert_eq!(parse(field).as_ref(), Ok(&expected), "{field}");
            let written = expected.iter().map(Challenge::to_string).collect::<Vec<_>>().join(", ");
            assert_eq!(parse(&written), Ok(expected), "{written}");
        }
    }

    #[test]
    fn fields_against_the_grammar_are_refused() {
        for field in [
            "realm=\"x\"",
            "Basic realm=\"x",
            "Basic realm=\"x\\",
            "Basic realm=\"x\" y",
            "Basic realm=\"\n\"",
            "Basic realm=x, realm=y",
            "Basic/1",
            "Basic ä=1",
            "Basic abc==, realm=x",
        ] {
            assert!(parse(field).is_err(), "{field}");
        }
        assert_eq!(parse(&"a,".repeat(CHALLENGES_MAX + 1)), Err(ChallengeError::TooMany));
        let many: Vec<String> = (0..=PARAMETERS_MAX).map(|number| format!("p{number}=1")).collect();
        assert_eq!(parse(&format!("Basic {}", many.join(","))), Err(ChallengeError::TooMany));
        assert_eq!(parse(&" ".repeat(FIELD_BYTES_MAX + 1)), Err(ChallengeError::TooLong));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_read_is_written_so_that_it_reads_the_same(field in ".{0,80}|[a-c=\", ]{0,40}") {
            if let Ok(challenges) = parse(&field) {
                let written = challenges.iter().map(Challenge::to_string).collect::<Vec<_>>().join(", ");
                proptest::prop_assert_eq!(parse(&written), Ok(challenges));
            }
        }
    }
}
