//! The terminal of a user as a program's terminal: raw while it lasts, as it was afterwards, whatever happens between.

use std::io::{self, IsTerminal as _};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use vdc_api::TerminalSize;

/// Raw mode of standard input; ends when dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Begins it, where standard input is a terminal.
    pub(crate) fn begin() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing is left to be done about a terminal that has gone.
        let _gone = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Rows and columns of the terminal, if there is one.
pub(crate) fn size() -> Option<TerminalSize> {
    let found = rustix::termios::tcgetwinsize(io::stdout()).or_else(|_| rustix::termios::tcgetwinsize(io::stdin()));
    found.ok().filter(|size| size.ws_row > 0).map(|size| TerminalSize { rows: size.ws_row, columns: size.ws_col })
}
