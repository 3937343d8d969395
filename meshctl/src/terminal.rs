//! Where text goes, and with which colours.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use crate::failure::{Exit, Failure};

/// What a piece of text means; colours follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Good,
    Warn,
    Bad,
    Note,
    Dim,
    Strong,
}

/// Whether to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    color: bool,
}

impl Style {
    pub(crate) const fn new(color: bool) -> Self {
        Self { color }
    }

    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Plain => return text.to_owned(),
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "1;31",
            Paint::Note => "36",
            Paint::Dim => "2",
            Paint::Strong => "1",
        };
        if self.color && !text.is_empty() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Colours on a terminal, unless `NO_COLOR` (no-color.org) or `TERM=dumb` forbid them.
pub(crate) fn color_wanted(is_terminal: bool, env: impl Fn(&str) -> Option<OsString>) -> bool {
    is_terminal && env("NO_COLOR").is_none_or(|v| v.is_empty()) && env("TERM").is_none_or(|term| term != "dumb")
}

/// Stdout for results, stderr for everything else.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) out: Style,
    pub(crate) err: Style,
}

impl Terminal {
    pub(crate) fn new(out: Style, err: Style) -> Self {
        Self { out, err }
    }

    /// Writes a result.
    ///
    /// # Errors
    /// A closed stdout is a quiet success: whoever read it has seen enough (`meshctl node list | head -1`).
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(Exit::Done)),
            Err(error) => Err(Failure::new("cannot write to stdout").caused_by(&error)),
        }
    }

    /// Writes a note or progress. A closed stderr loses it.
    pub(crate) fn note(&mut self, text: &str) {
        let mut stderr = io::stderr().lock();
        let _written = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }

    pub(crate) fn err_is_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    pub(crate) fn out_is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    pub(crate) fn fail(&mut self, failure: &Failure) -> ExitCode {
        self.note(&failure.render(self.err));
        failure.exit.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_need_a_willing_terminal() {
        let env = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        assert!(color_wanted(true, env(&[("TERM", "xterm")])));
        assert!(color_wanted(true, env(&[("NO_COLOR", "")])));
        assert!(!color_wanted(true, env(&[("NO_COLOR", "1")])));
        assert!(!color_wanted(true, env(&[("TERM", "dumb")])));
        assert!(!color_wanted(false, env(&[("TERM", "xterm")])));
    }
}
