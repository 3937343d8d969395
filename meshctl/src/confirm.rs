//! Asking before something that cannot be undone.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use crate::failure::{Exit, Failure};

/// What a person types is shorter.
const ANSWER_BYTES_MAX: u64 = 256;

/// Asks on the terminal; returns if the answer is yes.
///
/// # Errors
/// If nobody can be asked, or the answer is another one.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::new("this must be confirmed, and there is nobody to ask")
            .exit(Exit::Usage)
            .hint("run it on a terminal, or with --yes if what is said above may be lost"));
    }
    let mut stderr = io::stderr().lock();
    let cannot = |error: io::Error| Failure::new("cannot ask on this terminal").caused_by(&error);
    write!(stderr, "{question} Type yes to go on: ").and_then(|()| stderr.flush()).map_err(cannot)?;
    if is_yes(&mut io::stdin().lock()).map_err(cannot)? { Ok(()) } else { Err(Failure::new("nothing was done")) }
}

fn is_yes(from: &mut dyn BufRead) -> io::Result<bool> {
    let mut answer = String::new();
    from.take(ANSWER_BYTES_MAX).read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_is_a_yes() {
        for (typed, expected) in
            [("yes\n", true), (" YES \r\n", true), ("y\n", false), ("", false), ("\n", false), ("yes please\n", false)]
        {
            assert_eq!(is_yes(&mut typed.as_bytes()).expect("text"), expected, "{typed:?}");
        }
        assert!(!is_yes(&mut "yes".repeat(1_000).as_bytes()).expect("bounded"));
    }
}
